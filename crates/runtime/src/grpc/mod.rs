//! The gRPC server and client that every service shares.

mod body;
mod call;
mod client;
mod deadline;
pub(crate) mod decode;
mod health;
mod listener;
mod measure;
mod server;

pub use client::{Along, ClientOptions, Peer, channel, peer, peer_of};
pub use deadline::answer_by;
pub use health::Health;
pub use listener::Listener;
pub use server::{GrpcOptions, STARTING, serve};
