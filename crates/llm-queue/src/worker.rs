//! The side of the workers.
//!
//! A message belongs to the worker that claimed it until it is finished, handed back, or
//! taken over after it lay idle. None of it is a lock: two workers may hold a request for a
//! moment, and Postgres decides whose answer counts.

use std::time::Duration;

use deadpool_redis::redis::{ScriptInvocation, cmd};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    Claimed, GROUP, LlmQueue, Priority, QueueError, Result,
    connection::Session,
    queue::{CHUNK, check_length, milliseconds},
    reply::{self, Entry, Page},
};

/// The longest that a claim waits: the caller is due to look after other things.
const LONGEST_BLOCK: Duration = Duration::from_secs(60);

/// How often a call makes the consumer group anew before it gives up: a server that is
/// flushed more often is not one to work with.
const GROUP_ATTEMPTS: usize = 3;

/// The consumer that holds what was handed back. No worker may have this name.
pub(crate) const HANDED_BACK: &str = "handed-back";

/// How long ago a message that is handed back pretends to have been delivered: longer than
/// any worker waits before it takes one over.
const HANDED_BACK_IDLE_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a consumer that has nothing in hand is kept.
const CONSUMER_IDLE_MS: u64 = 24 * 60 * 60 * 1000;

/// Where a walk over the messages under way begins and ends.
const CURSOR_START: &str = "0-0";

impl LlmQueue {
    /// Takes new messages, oldest first: `count` of them or 500 at the most. Waits for one as
    /// long as `block` if there is none, a minute at the most; `None` does not wait.
    ///
    /// An entry that is no [`Message`] is removed and logged. A future that is dropped may
    /// leave messages with `worker`; [`LlmQueue::reclaim`] finds them.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn claim(
        &self,
        worker: &str,
        priority: Priority,
        count: usize,
        block: Option<Duration>,
    ) -> Result<Vec<Claimed>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let block = block.unwrap_or_default().min(LONGEST_BLOCK);
        let until = Instant::now() + block;
        let mut session = if block.is_zero() {
            self.shared.connections.session().await?
        } else {
            self.shared.connections.blocking_session(block).await?
        };
        let stream = self.stream(priority);
        let mut attempts = 0;
        let answer = loop {
            let mut command = cmd("XREADGROUP");
            command.arg("GROUP").arg(GROUP).arg(worker).arg("COUNT").arg(count.min(CHUNK));
            // Zero would wait forever.
            let left = milliseconds(until.saturating_duration_since(Instant::now()));
            if left > 0 {
                command.arg("BLOCK").arg(left);
            }
            command.arg("STREAMS").arg(&stream).arg(">");
            attempts += 1;
            match session.command(&command).await {
                Err(QueueError::GroupMissing) if attempts < GROUP_ATTEMPTS => {
                    self.ensure_group(&mut session, priority).await?;
                }
                answer => break answer?,
            }
        };
        Ok(self.accept(&mut session, priority, reply::read_group(answer)?).await)
    }

    /// Takes over messages that no worker has shown interest in for `min_idle`, `worker`'s own
    /// included: `count` of them or 500 at the most.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn reclaim(
        &self,
        worker: &str,
        priority: Priority,
        min_idle: Duration,
        count: usize,
    ) -> Result<Vec<Claimed>> {
        let count = count.min(CHUNK);
        let mut session = self.shared.connections.session().await?;
        let mut entries = Vec::new();
        let mut cursor = CURSOR_START.to_owned();
        let mut attempts = 0;
        while entries.len() < count {
            let mut script = self.shared.scripts.reclaim.prepare_invoke();
            script.key(self.stream(priority));
            script.arg(GROUP).arg(worker).arg(milliseconds(min_idle)).arg(&cursor).arg(count - entries.len());
            script.arg(CONSUMER_IDLE_MS);
            match reclaimed(&mut session, &script).await {
                Ok(page) => {
                    entries.extend(page.entries);
                    cursor = page.cursor;
                    if cursor == CURSOR_START {
                        break;
                    }
                }
                Err(QueueError::GroupMissing) if attempts < GROUP_ATTEMPTS => {
                    attempts += 1;
                    self.ensure_group(&mut session, priority).await?;
                }
                // What was taken over already would lie idle all over again.
                Err(error) if !entries.is_empty() => {
                    warn!(%priority, %error, "could not look through all messages under way");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.accept(&mut session, priority, entries).await)
    }

    /// Says that `worker` is still at these messages, so that nobody takes them over, and
    /// answers in the same order whether they are its own: false if another has taken the
    /// message over, or Redis has lost it.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn heartbeat(&self, worker: &str, claimed: &[Claimed]) -> Result<Vec<bool>> {
        let mut ours = vec![false; claimed.len()];
        if claimed.is_empty() {
            return Ok(ours);
        }
        let mut session = self.shared.connections.session().await?;
        for priority in Priority::ALL {
            let places: Vec<usize> = (0..claimed.len()).filter(|&at| claimed[at].priority == priority).collect();
            for chunk in places.chunks(CHUNK) {
                let mut script = self.shared.scripts.heartbeat.prepare_invoke();
                script.key(self.stream(priority)).arg(GROUP).arg(worker);
                for &at in chunk {
                    script.arg(&claimed[at].stream_id);
                }
                let answers: Vec<i64> = session.script(&script).await?;
                check_length(answers.len(), chunk.len())?;
                for (&at, answer) in chunk.iter().zip(answers) {
                    ours[at] = answer > 0;
                }
            }
        }
        Ok(ours)
    }

    /// Removes messages whose requests are done, whoever has them in hand. That they were
    /// sent stays known, so that a relay that is late does not send them again.
    ///
    /// # Errors
    /// After any, some may have been removed: finish all again, it is harmless.
    pub async fn finish(&self, claimed: &[Claimed]) -> Result<()> {
        if claimed.is_empty() {
            return Ok(());
        }
        let mut session = self.shared.connections.session().await?;
        for priority in Priority::ALL {
            let ids: Vec<&str> = of(claimed, priority).map(|claimed| claimed.stream_id.as_str()).collect();
            self.remove(&mut session, priority, &ids).await?;
        }
        Ok(())
    }

    /// Gives messages back, so that the next [`LlmQueue::reclaim`] takes them at once: for a
    /// worker that shuts down. They count as delivered all the same. One that was taken over
    /// since stays with its new worker.
    ///
    /// # Errors
    /// After any, some may have been given back: do it again, it is harmless. Or leave it,
    /// then they are taken over once they have lain idle.
    pub async fn hand_back(&self, claimed: &[Claimed]) -> Result<()> {
        self.give_back(claimed, HANDED_BACK_IDLE_MS).await
    }

    /// Gives messages back as [`LlmQueue::hand_back`] does, as if they had been delivered
    /// `idle_ms` ago.
    pub(crate) async fn give_back(&self, claimed: &[Claimed], idle_ms: u64) -> Result<()> {
        if claimed.is_empty() {
            return Ok(());
        }
        let mut session = self.shared.connections.session().await?;
        for priority in Priority::ALL {
            let claimed: Vec<&Claimed> = of(claimed, priority).collect();
            for chunk in claimed.chunks(CHUNK) {
                let mut script = self.shared.scripts.hand_back.prepare_invoke();
                script.key(self.stream(priority)).arg(GROUP).arg(HANDED_BACK).arg(idle_ms);
                for claimed in chunk {
                    script.arg(&claimed.stream_id).arg(claimed.deliveries);
                }
                session.script::<()>(&script).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, session: &mut Session, priority: Priority, ids: &[&str]) -> Result<()> {
        for chunk in ids.chunks(CHUNK) {
            let mut script = self.shared.scripts.finish.prepare_invoke();
            script.key(self.stream(priority)).arg(GROUP).arg(chunk);
            session.script::<()>(&script).await?;
        }
        Ok(())
    }

    /// Keeps the messages, and removes what is none: it would come back for ever.
    async fn accept(&self, session: &mut Session, priority: Priority, entries: Vec<Entry>) -> Vec<Claimed> {
        let mut claimed = Vec::with_capacity(entries.len());
        let mut garbage = Vec::new();
        for Entry { id, message, deliveries } in entries {
            match message {
                Some(message) => claimed.push(Claimed { message, priority, stream_id: id, deliveries }),
                None => garbage.push(id),
            }
        }
        if !garbage.is_empty() {
            warn!(%priority, entries = ?garbage, "removed entries of the stream that are no messages");
            let ids: Vec<&str> = garbage.iter().map(String::as_str).collect();
            // The messages are ours by now and more urgent; the rest is found again.
            if let Err(error) = self.remove(session, priority, &ids).await {
                warn!(%priority, %error, "could not remove them");
            }
        }
        claimed
    }
}

async fn reclaimed(session: &mut Session, script: &ScriptInvocation<'_>) -> Result<Page> {
    reply::reclaim(session.script(script).await?)
}

fn of(claimed: &[Claimed], priority: Priority) -> impl Iterator<Item = &Claimed> {
    claimed.iter().filter(move |claimed| claimed.priority == priority)
}
