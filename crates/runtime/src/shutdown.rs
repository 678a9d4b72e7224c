use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::telemetry::panic_text;

/// Stops a process, or a part of one, in two stages. Clones share the stages.
///
/// *Soft*: take no new work, finish what is in flight. *Hard*: drop everything now. Hard
/// follows soft after the deadline, whatever happens, so a stop always ends.
#[derive(Clone)]
pub struct Shutdown(Arc<Stages>);

struct Stages {
    soft: CancellationToken,
    hard: CancellationToken,
    deadline: Duration,
    /// The task that turns soft into hard at the deadline.
    timer: JoinHandle<()>,
}

impl Drop for Stages {
    fn drop(&mut self) {
        // Once soft has fired, tokens that outlive this handle still need their hard stage.
        if !self.soft.is_cancelled() {
            self.timer.abort();
        }
    }
}

impl Shutdown {
    /// Makes a shutdown that only [`Shutdown::trigger`] starts; `deadline` is the time from
    /// soft to hard. Needs a tokio runtime.
    #[must_use]
    pub fn manual(deadline: Duration) -> Self {
        let soft = CancellationToken::new();
        let hard = CancellationToken::new();
        let timer = tokio::spawn({
            let (soft, hard) = (soft.clone(), hard.clone());
            async move {
                soft.cancelled().await;
                tokio::select! {
                    () = hard.cancelled() => {}
                    () = tokio::time::sleep(deadline) => {
                        tracing::warn!(deadline_ms = millis(deadline), "shutdown deadline passed, dropping what is left");
                        hard.cancel();
                    }
                }
            }
        });
        Self(Arc::new(Stages { soft, hard, deadline, timer }))
    }

    /// Makes a shutdown that SIGTERM or SIGINT starts; a second signal goes to hard at once.
    ///
    /// # Errors
    /// When the signal handlers can't be installed.
    pub fn on_signals(deadline: Duration) -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::manual(deadline);
        // The tokens only: holding the handle would keep it from ever being dropped.
        tokio::spawn(obey_signals(terminate, interrupt, shutdown.0.soft.clone(), shutdown.0.hard.clone(), deadline));
        Ok(shutdown)
    }

    /// Returns a token that fires when no new work may be taken. Cancelling it stops only
    /// who holds it: [`Shutdown::trigger`] stops the whole.
    #[must_use]
    pub fn soft(&self) -> CancellationToken {
        self.0.soft.child_token()
    }

    /// Returns a token that fires when everything must be dropped.
    #[must_use]
    pub fn hard(&self) -> CancellationToken {
        self.0.hard.child_token()
    }

    /// Returns the time between soft and hard.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.0.deadline
    }

    /// Says whether the soft stage has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.soft.is_cancelled()
    }

    /// Starts the soft stage; hard follows at the deadline. Harmless if already begun.
    pub fn trigger(&self) {
        self.0.soft.cancel();
    }

    /// Starts both stages at once.
    pub fn trigger_hard(&self) {
        self.0.soft.cancel();
        self.0.hard.cancel();
    }

    /// Makes an empty group of background tasks that live no longer than this shutdown.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        Tasks { shutdown: self.clone(), tracker: TaskTracker::new(), failure: Arc::default() }
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("soft", &self.0.soft.is_cancelled())
            .field("hard", &self.0.hard.is_cancelled())
            .field("deadline", &self.0.deadline)
            .finish()
    }
}

async fn obey_signals(
    mut terminate: Signal,
    mut interrupt: Signal,
    soft: CancellationToken,
    hard: CancellationToken,
    deadline: Duration,
) {
    let name = next_signal(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = name, deadline_ms = millis(deadline), "stopping, a second signal stops at once");
    soft.cancel();
    let name = next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = name, "second signal, dropping what is left");
    hard.cancel();
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// The background tasks of one service. Clones share the group.
///
/// A task that fails or panics starts the shutdown: half a service is worse than none, and
/// [`Tasks::finish`] then returns why. At the hard stage what still runs is dropped.
#[derive(Clone, Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Tasks {
    /// Runs `task` in the background, in the span of the caller.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let hard = self.shutdown.hard();
        let shutdown = self.shutdown.clone();
        let failure = Arc::clone(&self.failure);
        let run = async move {
            let caught = hard.run_until_cancelled(AssertUnwindSafe(task).catch_unwind()).await;
            let error = match caught {
                None => {
                    tracing::warn!(task = name, "task dropped at the hard stage");
                    return;
                }
                Some(Ok(Ok(()))) => return,
                Some(Ok(Err(error))) => error.context(format!("run task {name}")),
                Some(Err(panic)) => {
                    anyhow::anyhow!("task {name} panicked: {}", panic_text(&*panic))
                }
            };
            // The first failure is the cause; what fails after it is mostly its consequence.
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            shutdown.trigger();
        };
        self.tracker.spawn(run.in_current_span());
    }

    /// Waits until every task has ended, at the latest soon after the hard stage.
    ///
    /// # Errors
    /// The first failure or panic of a task.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.tracker.close();
        self.tracker.wait().await;
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
