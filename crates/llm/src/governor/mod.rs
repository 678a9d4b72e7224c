//! Decides how many calls to a model may be under way, and when.
//!
//! Pure state: the caller passes the time in and does what the answer says. Each of the
//! three serves one server; a caller behind a lock asks all of them.

mod aimd;
mod breaker;
mod rate;

pub use aimd::{Aimd, AimdConfig, Outcome};
pub use breaker::{Breaker, BreakerConfig, BreakerState};
pub use rate::RateLimit;
