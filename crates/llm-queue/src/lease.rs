//! What a worker in another process is checked by: it claims from Redis itself and hands its
//! answer in elsewhere.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    Claimed, GROUP, Hold, LlmQueue, Priority, Result,
    queue::milliseconds,
    reply::{self, Entry, Held},
    worker::HANDED_BACK,
};

/// The longest name of a worker.
const MAX_WORKER_BYTES: usize = 128;

/// A name that no worker may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWorkerName {
    /// It is empty, too long, or would break a line of the log.
    #[error("is no name: write 1 to {MAX_WORKER_BYTES} bytes without control characters")]
    Malformed,
    /// The queue uses it itself.
    #[error("is {HANDED_BACK:?}, which stands for nobody: take another name")]
    Reserved,
}

/// Checks the name that a worker reads the group by.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn check_worker_name(name: &str) -> std::result::Result<(), InvalidWorkerName> {
    if name.is_empty() || name.len() > MAX_WORKER_BYTES || name.chars().any(char::is_control) {
        return Err(InvalidWorkerName::Malformed);
    }
    if name == HANDED_BACK { Err(InvalidWorkerName::Reserved) } else { Ok(()) }
}

/// Says whether a text has the form of a message's id, `<milliseconds>-<number>`.
#[must_use]
pub fn is_message_id(text: &str) -> bool {
    // Digits alone: a parser of numbers takes "+1" too.
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_ok();
    text.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number))
}

impl LlmQueue {
    /// Says who has a message of a request in hand, whichever its priority. If it is `worker`,
    /// its time is renewed, so that nobody takes the message over during what follows.
    /// `stream_id` has to be one by [`is_message_id`].
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn hold(&self, worker: &str, request_id: Uuid, stream_id: &str) -> Result<Hold> {
        let mut session = self.shared.connections.session().await?;
        for priority in Priority::ALL {
            let mut script = self.shared.scripts.hold.prepare_invoke();
            script.key(self.stream(priority)).arg(GROUP).arg(worker).arg(stream_id).arg(request_id.to_string());
            return Ok(match reply::hold(session.script(&script).await?)? {
                // Each stream counts by itself, so another may have the id too.
                Held::Gone => continue,
                Held::Free => Hold::Free,
                Held::Taken(name) if name == HANDED_BACK => Hold::Free,
                Held::Taken(name) => Hold::Taken(name),
                Held::Ours(Entry { id, message: Some(message), deliveries }) => {
                    Hold::Ours(Claimed { message, priority, stream_id: id, deliveries })
                }
                // It would be taken over for ever, and nobody could begin it.
                Held::Ours(Entry { id, .. }) => {
                    self.remove(&mut session, priority, &[&id]).await?;
                    Hold::Gone
                }
            });
        }
        Ok(Hold::Gone)
    }

    /// Gives a message back, so that a [`LlmQueue::reclaim`] with `min_idle` takes it once
    /// `wait` has passed; `wait` is cut to `min_idle`. One that was taken over since stays with
    /// its new worker.
    ///
    /// # Errors
    /// As [`LlmQueue::hand_back`].
    pub async fn postpone(&self, claimed: &Claimed, wait: Duration, min_idle: Duration) -> Result<()> {
        self.give_back(std::slice::from_ref(claimed), milliseconds(min_idle.saturating_sub(wait))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_what_is_none() {
        for id in ["0-0", "1718000000000-3", "18446744073709551615-1"] {
            assert!(is_message_id(id), "{id}");
        }
        for id in ["", "-", "1", "1-", "-1", "+1-1", "1-1-1", "1-x", "*", "18446744073709551616-1", "1-1\0"] {
            assert!(!is_message_id(id), "{id}");
        }
    }

    #[test]
    fn a_name_is_a_line_and_not_reserved() {
        assert_eq!(check_worker_name("worker-ü"), Ok(()));
        assert_eq!(check_worker_name("handed-back"), Err(InvalidWorkerName::Reserved));
        for name in [String::new(), "a\nb".to_owned(), "a\0".to_owned(), "x".repeat(129)] {
            assert_eq!(check_worker_name(&name), Err(InvalidWorkerName::Malformed));
        }
    }
}
