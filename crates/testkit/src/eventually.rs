//! Waiting for a condition.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Short enough to cost a test nothing, long enough not to keep a core busy.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, and panics with `reason` if it does not within
/// `deadline`.
///
/// The condition is asked again and again; an answer that does not come counts as no.
///
/// # Panics
/// If the deadline passes.
pub async fn eventually(reason: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + deadline;
    loop {
        match timeout_at(until, condition()).await {
            Ok(true) => return,
            Ok(false) if Instant::now() < until => sleep(POLL).await,
            _ => panic!("not within {deadline:?}: {reason}"),
        }
    }
}
