use std::{fmt, sync::Arc, time::Duration};

use opentelemetry::metrics::Meter;
use uuid::Uuid;

use crate::{
    GROUP, Message, Priority, QueueConfig, QueueError, Result, Sent, StreamStats,
    connection::{Connections, Session},
    scripts::Scripts,
};

/// How many messages one script takes: Redis does nothing else while it runs, some
/// milliseconds for as many.
pub(crate) const CHUNK: usize = 500;

/// The longest timeout: who waits longer for Redis has no deadline.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The queue. Clones share their connections.
#[derive(Clone)]
pub struct LlmQueue {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) connections: Connections,
    pub(crate) scripts: Scripts,
    pub(crate) prefix: String,
    stream_max: u64,
    dedup_ttl_ms: u64,
}

impl fmt::Debug for LlmQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the connections: they hold the url with its password.
        f.debug_struct("LlmQueue").field("prefix", &self.shared.prefix).finish_non_exhaustive()
    }
}

impl LlmQueue {
    /// Makes a queue. Connects at the first call, so a server that is down is no error here.
    ///
    /// # Errors
    /// [`QueueError::Config`] if the URL can't be used, a limit is zero, or the timeout is more than
    /// an hour.
    pub fn connect(config: &QueueConfig) -> Result<Self> {
        let dedup_ttl_ms = milliseconds(config.dedup_ttl);
        for (zero, name) in [
            (config.pool_size == 0, "the pool size"),
            (config.stream_max == 0, "the most messages of a stream"),
            (dedup_ttl_ms == 0, "the time that requests are known"),
            (milliseconds(config.timeout) == 0, "the timeout"),
        ] {
            if zero {
                return Err(QueueError::Config(format!("{name} is zero: set it, or leave it out for the default")));
            }
        }
        if config.timeout > LONGEST_TIMEOUT {
            return Err(QueueError::Config(format!(
                "a timeout of {:?} is none: set {LONGEST_TIMEOUT:?} or less",
                config.timeout
            )));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                connections: Connections::new(config)?,
                scripts: Scripts::new(),
                prefix: config.prefix.clone(),
                stream_max: config.stream_max,
                dedup_ttl_ms,
            }),
        })
    }

    /// Has the use of connections measured from now on, by clones too. `pool` tells them from
    /// others of the process: say whose they are.
    pub fn measure(&self, meter: &Meter, pool: &'static str) {
        self.shared.connections.measure(meter, pool);
    }

    /// Returns the most messages that a stream holds.
    #[must_use]
    pub fn stream_max(&self) -> u64 {
        self.shared.stream_max
    }

    /// Sends messages, each unless its request was sent before, and says in the same order
    /// what became of them. Creates the consumer group if it is missing.
    ///
    /// A request that was sent is [`Sent::Known`] even if its entry is gone. If
    /// [`LlmQueue::knows`] says so and the request is still open, [`LlmQueue::forget`] it first.
    ///
    /// # Errors
    /// After any, some of the messages may have been sent: send all again, those are known.
    pub async fn send(&self, priority: Priority, messages: &[Message]) -> Result<Vec<Sent>> {
        let mut sent = Vec::with_capacity(messages.len());
        if messages.is_empty() {
            return Ok(sent);
        }
        let mut session = self.shared.connections.session().await?;
        for chunk in messages.chunks(CHUNK) {
            let mut script = self.shared.scripts.send.prepare_invoke();
            script.key(self.stream(priority));
            script.arg(GROUP).arg(self.shared.stream_max).arg(self.shared.dedup_ttl_ms);
            for message in chunk {
                script.key(self.mark(priority, message.request_id));
                script.arg(message.request_id.to_string()).arg(message.project_id.to_string());
                script.arg(message.job_id.map(|id| id.to_string()).unwrap_or_default());
                script.arg(message.headers.as_deref().unwrap_or_default());
            }
            let answers: Vec<(i64, String)> = session.script(&script).await?;
            check_length(answers.len(), chunk.len())?;
            sent.extend(answers.into_iter().map(|(outcome, id)| match outcome {
                1 => Sent::Added(id),
                0 => Sent::Known(id),
                _ => Sent::Full,
            }));
        }
        Ok(sent)
    }

    /// Says in the same order which requests wait in the stream or are under way.
    ///
    /// False for a request that was never sent, whose entry Redis has lost, or that is
    /// finished: ask about open requests only, and [`LlmQueue::forget`] those that are lost.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn knows(&self, priority: Priority, request_ids: &[Uuid]) -> Result<Vec<bool>> {
        let mut known = Vec::with_capacity(request_ids.len());
        if request_ids.is_empty() {
            return Ok(known);
        }
        let mut session = self.shared.connections.session().await?;
        for chunk in request_ids.chunks(CHUNK) {
            let mut script = self.shared.scripts.knows.prepare_invoke();
            script.key(self.stream(priority));
            for id in chunk {
                script.key(self.mark(priority, *id));
            }
            let answers: Vec<i64> = session.script(&script).await?;
            check_length(answers.len(), chunk.len())?;
            known.extend(answers.into_iter().map(|answer| answer == 1));
        }
        Ok(known)
    }

    /// Forgets that requests were sent, so that they can be sent again. Leaves their entries:
    /// one that is still there is delivered as well.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn forget(&self, priority: Priority, request_ids: &[Uuid]) -> Result<()> {
        if request_ids.is_empty() {
            return Ok(());
        }
        let mut session = self.shared.connections.session().await?;
        for chunk in request_ids.chunks(CHUNK) {
            let mut command = deadpool_redis::redis::cmd("DEL");
            for id in chunk {
                command.arg(self.mark(priority, *id));
            }
            session.command::<()>(&command).await?;
        }
        Ok(())
    }

    /// Says how each stream stands, in the order of [`Priority::ALL`]. One that does not exist
    /// is empty.
    ///
    /// # Errors
    /// If the server does not answer as it should.
    pub async fn stats(&self) -> Result<Vec<StreamStats>> {
        let mut session = self.shared.connections.session().await?;
        let mut stats = Vec::with_capacity(Priority::ALL.len());
        for priority in Priority::ALL {
            let mut script = self.shared.scripts.stats.prepare_invoke();
            script.key(self.stream(priority)).arg(GROUP);
            let (length, pending, age): (u64, u64, i64) = session.script(&script).await?;
            stats.push(StreamStats { priority, length, pending, oldest_ms: u64::try_from(age).ok() });
        }
        Ok(stats)
    }

    pub(crate) async fn ensure_group(&self, session: &mut Session, priority: Priority) -> Result<()> {
        let mut script = self.shared.scripts.ensure_group.prepare_invoke();
        script.key(self.stream(priority)).arg(GROUP);
        session.script(&script).await
    }

    /// Returns the key of a priority's stream.
    pub(crate) fn stream(&self, priority: Priority) -> String {
        format!("{}:{{llm:{priority}}}:stream", self.shared.prefix)
    }

    /// Returns the key that says that a request was sent.
    fn mark(&self, priority: Priority, request_id: Uuid) -> String {
        format!("{}:{{llm:{priority}}}:sent:{request_id}", self.shared.prefix)
    }
}

pub(crate) fn check_length(answers: usize, questions: usize) -> Result<()> {
    if answers == questions { Ok(()) } else { Err(QueueError::BadAnswer("not one answer per question")) }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    // Redis counts in signed 64 bits, and adds the time of day.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(1 << 52)
}
