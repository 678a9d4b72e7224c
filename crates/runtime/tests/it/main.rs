//! Integration tests of the runtime: a real server and real clients on the loopback.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that can't go on fails its test")]

mod admin;
mod admin_tls;
mod calls;
mod config;
mod decode;
mod echo;
mod lines;
mod logs;
mod shutdown;
mod stop;
mod tls;
