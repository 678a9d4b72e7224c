//! Answers RPCs that this server doesn't have.

/// Writes trait methods that answer UNIMPLEMENTED and name the RPC.
///
/// `#[tonic::async_trait]` doesn't look into macros, so the methods are written
/// out in the form it would give them.
macro_rules! unimplemented_rpcs {
    ($service:literal: $($method:ident $rpc:literal ($request:ty) -> $response:ty;)*) => {
        $(
            fn $method<'life0, 'async_trait>(
                &'life0 self,
                _request: ::tonic::Request<$request>,
            ) -> ::std::pin::Pin<
                Box<
                    dyn Future<Output = Result<::tonic::Response<$response>, ::tonic::Status>>
                        + Send
                        + 'async_trait,
                >,
            >
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                let error = $crate::error::Error::unimplemented(concat!($service, "/", $rpc));
                Box::pin(::std::future::ready(Err(error.into())))
            }
        )*
    };
}

pub(crate) use unimplemented_rpcs;
