//! Batches shared by everybody who embeds with one model.
//!
//! There is no timer: a worker that is free takes what waits, at once. While all are busy
//! texts gather, and the next batch is larger, so batches grow with the load and a lone
//! caller waits for nobody.

mod error;
mod queue;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use waybill_domain::{Backoff, TextHash};
use waybill_models::{EmbeddingProvider, ModelError, Purpose};
use waybill_runtime::Components;

pub(crate) use self::error::EmbedError;
use self::error::Remedy;
use self::queue::{Batch, Full, Queue};
pub(crate) use self::queue::{BatchLimits, QueueLimits};
use crate::meter::ModelMeter;
use crate::vector::to_bytes;

/// How often a batch is tried before everybody who waits is told. Three rides out the restart
/// of one replica behind a balancer; callers have retries of their own.
const ATTEMPTS: u32 = 3;

/// How often in a row a batch obeys a server that throttles.
const PAUSES: u32 = 5;

/// The longest pause that is waited out here; who is told to wait longer should know it.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pause when a server throttles and doesn't say for how long.
const USUAL_PAUSE: Duration = Duration::from_secs(1);

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(2) };

/// What a caller is told who finds the queue full. A guess: a batch takes about as long.
const ROOM_AFTER: Duration = Duration::from_secs(1);

/// How a batcher works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatcherOptions {
    pub(crate) queue: QueueLimits,
    pub(crate) batch: BatchLimits,
    /// Calls of the model under way at a time, besides one that is kept for queries.
    pub(crate) in_flight: usize,
}

/// Told of every document's vector, whether or not its caller is still there.
pub(crate) type OnComputed = Box<dyn Fn(TextHash, Arc<[u8]>) + Send + Sync>;

/// Embeds texts with one model. Its workers end when it is dropped.
pub(crate) struct Batcher {
    shared: Arc<Shared>,
    _workers: JoinSet<()>,
}

struct Shared {
    provider: Arc<dyn EmbeddingProvider>,
    options: BatcherOptions,
    on_computed: OnComputed,
    queue: Mutex<Queue>,
    wake: Notify,
    /// Until when no call is made, because the server throttles.
    paused_until: Mutex<Option<Instant>>,
    signals: Option<(ModelMeter, Components)>,
}

impl Batcher {
    /// Starts the workers, on the current runtime.
    pub(crate) fn start(
        provider: Arc<dyn EmbeddingProvider>,
        options: BatcherOptions,
        on_computed: OnComputed,
        signals: Option<(ModelMeter, Components)>,
    ) -> Self {
        let shared = Arc::new(Shared {
            provider,
            options,
            on_computed,
            queue: Mutex::new(Queue::new(options.queue)),
            wake: Notify::new(),
            paused_until: Mutex::new(None),
            signals,
        });
        if let Some((meter, components)) = &shared.signals {
            let queue = Arc::downgrade(&shared);
            meter.observe_queue(options.queue.texts, move || Some(queue.upgrade()?.queue().waiting()));
            components.set_one("provider", &shared.model(), Ok(shared.model()));
        }
        let mut workers = JoinSet::new();
        for number in 0..=options.in_flight {
            // One more worker than calls for documents, so that a query never waits for a
            // worker; it may still wait for the model.
            workers.spawn(Arc::clone(&shared).work(number == options.in_flight));
        }
        Self { shared, _workers: workers }
    }

    /// Embeds texts; answers come in their order. Dropping the future gives up what no one
    /// else waits for.
    ///
    /// # Errors
    /// [`EmbedError::Full`] at once; otherwise the first failure among the texts.
    pub(crate) async fn embed(
        &self,
        texts: Vec<(TextHash, String)>,
        purpose: Purpose,
    ) -> Result<Vec<Arc<[u8]>>, EmbedError> {
        let submitted = self.shared.queue().submit(texts, purpose);
        let receivers =
            submitted.map_err(|Full| EmbedError::Full { model: self.shared.model(), retry_after: ROOM_AFTER })?;
        self.shared.wake.notify_waiters();
        let mut vectors = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            let outcome = receiver.await.unwrap_or_else(|_closed| Err(self.shared.unavailable("it has stopped")));
            vectors.push(outcome?);
        }
        Ok(vectors)
    }

    /// Returns how many texts wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.shared.queue().waiting()
    }
}

impl Shared {
    async fn work(self: Arc<Self>, only_queries: bool) {
        loop {
            let batch = self.next(only_queries).await;
            self.run(batch).await;
        }
    }

    async fn next(&self, only_queries: bool) -> Batch {
        loop {
            let mut woken = std::pin::pin!(self.wake.notified());
            // Before looking: what is submitted in between wakes it.
            woken.as_mut().enable();
            if let Some(batch) = self.queue().take(&self.options.batch, only_queries) {
                return batch;
            }
            woken.await;
        }
    }

    /// Embeds a batch, whatever it takes, and tells everybody.
    async fn run(&self, batch: Batch) {
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            if let Some(halves) = self.run_part(part).await {
                parts.extend(halves);
            }
        }
    }

    /// Returns the two halves if one text in it seems to be at fault.
    async fn run_part(&self, mut part: Batch) -> Option<[Batch; 2]> {
        let (mut failures, mut pauses) = (0, 0);
        loop {
            self.wait_for_pause().await;
            self.drop_unwanted(&mut part);
            if part.texts.is_empty() {
                return None;
            }
            let error = match self.call(&part).await {
                Ok(vectors) => {
                    self.deliver(&part, vectors);
                    return None;
                }
                Err(error) => error,
            };
            tracing::debug!(model = self.model(), texts = part.texts.len(), %error, "embedding failed");
            match Remedy::of(&error) {
                Remedy::Pause(asked) => {
                    let pause = asked.unwrap_or(USUAL_PAUSE);
                    pauses += 1;
                    if pauses > PAUSES || pause > LONGEST_PAUSE {
                        self.fail(&part, &EmbedError::Throttled { model: self.model(), retry_after: pause });
                        return None;
                    }
                    self.pause(pause);
                }
                Remedy::Retry => {
                    failures += 1;
                    if failures >= ATTEMPTS {
                        self.fail(&part, &self.unavailable(&error.to_string()));
                        return None;
                    }
                    let wait = BACKOFF.wait(failures, &mut rand::rng());
                    sleep(wait).await;
                }
                Remedy::Split if part.texts.len() > 1 => return Some(halves(part)),
                Remedy::Split => {
                    let reason = error.to_string();
                    self.fail(&part, &EmbedError::Refused { model: self.model(), reason });
                    return None;
                }
                Remedy::GiveUp => {
                    let reason = error.to_string();
                    self.fail(&part, &EmbedError::Broken { model: self.model(), reason });
                    return None;
                }
            }
        }
    }

    async fn call(&self, part: &Batch) -> Result<Vec<Vec<f32>>, ModelError> {
        // A panic would end the worker, and whoever waits for the batch would wait forever.
        let begun = Instant::now();
        let result = AssertUnwindSafe(self.provider.embed(&part.texts, part.purpose))
            .catch_unwind()
            .await
            .unwrap_or_else(|_panic| Err(ModelError::Inference("the model panicked".to_owned())));
        self.note(part, begun, &result);
        let vectors = result?;
        let info = self.provider.info();
        if vectors.len() != part.texts.len() || vectors.iter().any(|vector| vector.len() != info.dimensions) {
            return Err(ModelError::BadAnswer {
                provider: info.provider,
                problem: format!("not one vector of {} dimensions for each text", info.dimensions),
            });
        }
        Ok(vectors)
    }

    /// Measures a call, and says how the provider is.
    fn note(&self, part: &Batch, begun: Instant, result: &Result<Vec<Vec<f32>>, ModelError>) {
        let Some((meter, components)) = &self.signals else { return };
        meter.called(part.texts.len(), self.options.batch.texts, begun.elapsed(), result);
        match result {
            Ok(_) => components.set_one("provider", &self.model(), Ok(self.model())),
            // Of one text, or of too many: the provider is there.
            Err(error) if matches!(Remedy::of(error), Remedy::Split | Remedy::Pause(_)) => {}
            Err(error) => {
                components.set_one("provider", &self.model(), Err(format!("{}: {error}", self.model())));
            }
        }
    }

    fn deliver(&self, part: &Batch, vectors: Vec<Vec<f32>>) {
        let vectors: Vec<Arc<[u8]>> = vectors.into_iter().map(|vector| to_bytes(vector).into()).collect();
        if part.purpose == Purpose::Document {
            for (hash, vector) in part.hashes.iter().zip(&vectors) {
                (self.on_computed)(*hash, Arc::clone(vector));
            }
        }
        let mut queue = self.queue();
        for (hash, vector) in part.hashes.iter().zip(vectors) {
            queue.complete(&(*hash, part.purpose), &Ok(vector));
        }
    }

    fn fail(&self, part: &Batch, error: &EmbedError) {
        tracing::warn!(texts = part.texts.len(), %error, "texts have no vector");
        let outcome = Err(error.clone());
        let mut queue = self.queue();
        for hash in &part.hashes {
            queue.complete(&(*hash, part.purpose), &outcome);
        }
    }

    fn drop_unwanted(&self, part: &mut Batch) {
        let mut queue = self.queue();
        let wanted: Vec<bool> = part.hashes.iter().map(|hash| queue.still_wanted(&(*hash, part.purpose))).collect();
        let mut keep = wanted.iter();
        part.hashes.retain(|_| keep.next().is_some_and(|&wanted| wanted));
        let mut keep = wanted.iter();
        part.texts.retain(|_| keep.next().is_some_and(|&wanted| wanted));
    }

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused_until = lock(&self.paused_until);
        // Whoever was told to wait longest is right.
        *paused_until = Some(paused_until.map_or(until, |other| other.max(until)));
    }

    async fn wait_for_pause(&self) {
        loop {
            let until = *lock(&self.paused_until);
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn model(&self) -> String {
        self.provider.info().name.clone()
    }

    fn unavailable(&self, reason: &str) -> EmbedError {
        EmbedError::Unavailable { model: self.model(), reason: reason.to_owned() }
    }
}

fn halves(mut part: Batch) -> [Batch; 2] {
    let middle = part.texts.len() / 2;
    let second =
        Batch { purpose: part.purpose, hashes: part.hashes.split_off(middle), texts: part.texts.split_off(middle) };
    [part, second]
}

/// What the locks guard is never left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
