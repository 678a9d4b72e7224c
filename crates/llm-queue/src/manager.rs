use deadpool::managed;
use deadpool_redis::redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
use secrecy::ExposeSecret;
use waybill_tls::ClientTls;

use crate::{QueueConfig, QueueError, Result};

pub(crate) type Pool = managed::Pool<Manager>;
pub(crate) type Connection = managed::Object<Manager>;

/// Makes connections. TLS is ours: the client would read certificates once, and this reads them
/// for each connection.
pub(crate) struct Manager {
    plain: deadpool_redis::Manager,
    secure: Option<Secure>,
    options: AsyncConnectionConfig,
}

struct Secure {
    host: String,
    port: u16,
    login: RedisConnectionInfo,
    tls: ClientTls,
}

impl Manager {
    pub(crate) fn new(config: &QueueConfig) -> Result<Self> {
        // The client's error is left out, as it might quote the url.
        let no_address = |_url: RedisError| {
            QueueError::Config(
                "the url is no address: write redis://:PASSWORD@HOST:PORT/DB, or rediss:// for TLS".to_owned(),
            )
        };
        let info: ConnectionInfo = config.url.expose_secret().into_connection_info().map_err(no_address)?;
        let secure = match info.addr() {
            ConnectionAddr::TcpTls { host, port, .. } => {
                config.tls.check().map_err(|error| QueueError::Config(error.to_string()))?;
                let login = info.redis_settings().clone();
                Some(Secure { host: host.clone(), port: *port, login, tls: config.tls.clone() })
            }
            _ => None,
        };
        // Deadlines are this crate's: the client's own default would cut off claims that wait.
        let options =
            AsyncConnectionConfig::new().set_connection_timeout(Some(config.timeout / 2)).set_response_timeout(None);
        let plain = deadpool_redis::Manager::new_with_config(info, options.clone()).map_err(no_address)?;
        Ok(Self { plain, secure, options })
    }
}

impl Secure {
    async fn connect(&self, options: &AsyncConnectionConfig) -> std::result::Result<MultiplexedConnection, RedisError> {
        let stream = self.tls.connect(&self.host, self.port, &[]).await?;
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.login, stream, options.clone()).await?;
        // Ends with the last handle of its connection.
        tokio::spawn(driver);
        Ok(connection)
    }
}

impl managed::Manager for Manager {
    type Type = MultiplexedConnection;
    type Error = RedisError;

    /// The pool limits the time.
    async fn create(&self) -> std::result::Result<MultiplexedConnection, RedisError> {
        match &self.secure {
            // Boxed: or the future of every call would have room for a handshake.
            Some(secure) => Box::pin(secure.connect(&self.options)).await,
            None => self.plain.create().await,
        }
    }

    async fn recycle(
        &self,
        connection: &mut MultiplexedConnection,
        metrics: &managed::Metrics,
    ) -> managed::RecycleResult<RedisError> {
        self.plain.recycle(connection, metrics).await
    }
}
