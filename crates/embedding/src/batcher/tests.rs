use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, yield_now};
use waybill_models::ModelInfo;

use super::*;

/// Makes vectors of one number, when it is let, and remembers what it was asked.
struct GatedModel {
    info: ModelInfo,
    gate: Semaphore,
    calls: Mutex<Vec<Vec<String>>>,
    failures: Mutex<VecDeque<ModelError>>,
    /// A text that the model refuses.
    poison: &'static str,
}

#[async_trait]
impl EmbeddingProvider for GatedModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn embed(&self, texts: &[String], _: Purpose) -> Result<Vec<Vec<f32>>, ModelError> {
        lock(&self.calls).push(texts.to_vec());
        self.gate.acquire().await.unwrap().forget();
        if let Some(error) = lock(&self.failures).pop_front() {
            return Err(error);
        }
        if texts.iter().any(|text| text == "panic") {
            panic!("the test wants it");
        }
        if texts.iter().any(|text| text == self.poison) {
            return Err(ModelError::Rejected { provider: "test", status: 400, message: "bad text".to_owned() });
        }
        Ok(vec![vec![1.0]; texts.len()])
    }
}

struct World {
    model: Arc<GatedModel>,
    batcher: Arc<Batcher>,
    computed: Arc<AtomicUsize>,
}

impl World {
    /// One call for documents at a time, four texts in each; `open` calls pass the gate.
    fn new(open: usize) -> Self {
        let model = Arc::new(GatedModel {
            info: ModelInfo { name: "m".to_owned(), provider: "test", dimensions: 1, max_tokens: 100 },
            gate: Semaphore::new(open),
            calls: Mutex::default(),
            failures: Mutex::default(),
            poison: "poison",
        });
        let options = BatcherOptions {
            queue: QueueLimits { texts: 6, bytes: 1_000 },
            batch: BatchLimits { texts: 4, tokens: 1_000, tokens_per_text: 100 },
            in_flight: 1,
        };
        let computed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&computed);
        let on_computed = Box::new(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let batcher = Arc::new(Batcher::start(Arc::<GatedModel>::clone(&model), options, on_computed, None));
        Self { model, batcher, computed }
    }

    fn embed(&self, texts: &[&str], purpose: Purpose) -> JoinHandle<Result<usize, EmbedError>> {
        let texts = texts.iter().map(|text| (TextHash::of(text), (*text).to_owned())).collect();
        let batcher = Arc::clone(&self.batcher);
        tokio::spawn(async move { batcher.embed(texts, purpose).await.map(|vectors| vectors.len()) })
    }

    fn documents(&self, texts: &[&str]) -> JoinHandle<Result<usize, EmbedError>> {
        self.embed(texts, Purpose::Document)
    }

    /// Keeps the one worker for documents busy, with a call that waits at the gate.
    async fn occupy(&self) -> JoinHandle<Result<usize, EmbedError>> {
        let busy = self.documents(&["busy"]);
        self.until(|| self.calls().len() == 1).await;
        busy
    }

    /// The runtime has one thread, so others run each time this one steps aside.
    async fn until(&self, condition: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if condition() {
                return;
            }
            yield_now().await;
        }
        panic!("never happened; calls: {:?}", self.calls());
    }

    fn calls(&self) -> Vec<Vec<String>> {
        lock(&self.model.calls).clone()
    }

    fn fail_with(&self, errors: impl IntoIterator<Item = ModelError>) {
        lock(&self.model.failures).extend(errors);
    }
}

fn unavailable() -> ModelError {
    ModelError::Unavailable { provider: "test", reason: "down".to_owned() }
}

fn throttled(retry_after: Duration) -> ModelError {
    ModelError::Throttled { provider: "test", retry_after: Some(retry_after) }
}

#[tokio::test]
async fn callers_who_come_while_the_model_is_busy_share_a_call() {
    let world = World::new(0);
    let busy = world.occupy().await;
    let callers = [world.documents(&["a", "b"]), world.documents(&["c"]), world.documents(&["d"])];
    world.until(|| world.batcher.waiting() == 4).await;
    world.model.gate.add_permits(2);
    assert_eq!(busy.await.unwrap(), Ok(1));
    for (caller, expected) in callers.into_iter().zip([2, 1, 1]) {
        assert_eq!(caller.await.unwrap(), Ok(expected));
    }
    assert_eq!(world.calls()[1], ["a", "b", "c", "d"]);
    assert_eq!(world.calls().len(), 2);
    assert_eq!(world.computed.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn a_query_does_not_wait_behind_documents() {
    let world = World::new(0);
    let _busy = world.occupy().await;
    let _documents = world.documents(&["1", "2", "3", "4", "5", "6"]);
    world.until(|| world.batcher.waiting() == 6).await;
    let _query = world.embed(&["q"], Purpose::Query);
    world.until(|| world.calls().len() == 2).await;
    assert_eq!(world.calls()[1], ["q"]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let world = World::new(0);
    let _busy = world.occupy().await;
    let waiting = world.documents(&["1", "2", "3", "4", "5"]);
    world.until(|| world.batcher.waiting() == 5).await;
    let refused = world.documents(&["6", "7"]).await.unwrap();
    assert!(matches!(refused, Err(EmbedError::Full { .. })), "{refused:?}");
    // Those who left make room.
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    world.model.gate.add_permits(10);
    assert_eq!(world.documents(&["6", "7"]).await.unwrap(), Ok(2));
}

#[tokio::test]
async fn a_caller_who_has_gone_is_skipped() {
    let world = World::new(0);
    let _busy = world.occupy().await;
    let gone = world.documents(&["gone"]);
    let stays = world.documents(&["stays"]);
    world.until(|| world.batcher.waiting() == 2).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    world.model.gate.add_permits(2);
    assert_eq!(stays.await.unwrap(), Ok(1));
    assert_eq!(world.calls()[1], ["stays"]);
}

#[tokio::test]
async fn a_model_that_fails_is_tried_again_a_few_times() {
    let world = World::new(100);
    world.fail_with([unavailable(), unavailable()]);
    assert_eq!(world.documents(&["a"]).await.unwrap(), Ok(1));
    world.fail_with([unavailable(), unavailable(), unavailable()]);
    let failed = world.documents(&["b"]).await.unwrap();
    assert!(matches!(failed, Err(EmbedError::Unavailable { .. })), "{failed:?}");
    assert_eq!(world.calls().len(), 6);
}

#[tokio::test]
async fn a_throttled_model_is_left_alone_as_long_as_it_asked() {
    let world = World::new(100);
    world.fail_with([throttled(Duration::from_millis(70)), throttled(Duration::from_millis(20))]);
    let start = Instant::now();
    assert_eq!(world.documents(&["a"]).await.unwrap(), Ok(1));
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());

    // Longer than anybody should wait without knowing.
    world.fail_with([throttled(Duration::from_secs(60))]);
    let failed = world.documents(&["b"]).await.unwrap();
    let expected = EmbedError::Throttled { model: "m".to_owned(), retry_after: Duration::from_secs(60) };
    assert_eq!(failed, Err(expected));
}

#[tokio::test]
async fn one_refused_text_does_not_fail_the_others() {
    let world = World::new(0);
    let busy = world.occupy().await;
    let good = world.documents(&["a", "b"]);
    let bad = world.documents(&["poison"]);
    world.until(|| world.batcher.waiting() == 3).await;
    world.model.gate.add_permits(10);
    assert_eq!(busy.await.unwrap(), Ok(1));
    assert_eq!(good.await.unwrap(), Ok(2));
    let refused = bad.await.unwrap();
    assert!(matches!(refused, Err(EmbedError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_model_that_panics_keeps_its_worker() {
    let world = World::new(100);
    let failed = world.documents(&["panic"]).await.unwrap();
    assert!(matches!(failed, Err(EmbedError::Unavailable { .. })), "{failed:?}");
    assert_eq!(world.documents(&["a"]).await.unwrap(), Ok(1));
}
