use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{Encoder, tokens::TextTokenizer};
use crate::ModelError;

type Vectors = Result<Vec<Vec<f32>>, ModelError>;

/// Threads of their own for a model, and a bounded queue before them.
///
/// Embedding takes milliseconds to seconds of pure computing: on an async worker it
/// would hold up every other task. The threads end when the pool is dropped.
pub(super) struct Pool {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    texts: Vec<String>,
    answer: oneshot::Sender<Vectors>,
}

impl Pool {
    /// Starts one thread for each encoder. `queue` jobs wait before `run` has to.
    pub(super) fn start(
        encoders: Vec<Box<dyn Encoder>>,
        tokenizer: Arc<TextTokenizer>,
        queue: usize,
    ) -> Result<Self, ModelError> {
        let (jobs, waiting) = mpsc::channel(queue);
        let waiting = Arc::new(Mutex::new(waiting));
        for (number, mut encoder) in encoders.into_iter().enumerate() {
            let (waiting, tokenizer) = (Arc::clone(&waiting), Arc::clone(&tokenizer));
            thread::Builder::new()
                .name(format!("embed-{number}"))
                .spawn(move || work(&waiting, &tokenizer, encoder.as_mut()))
                .map_err(|error| ModelError::Inference(format!("start a thread: {error}")))?;
        }
        Ok(Self { jobs })
    }

    /// Embeds the texts on one thread. A caller that stops waiting costs nothing if its
    /// turn has not come.
    pub(super) async fn run(&self, texts: Vec<String>) -> Vectors {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { texts, answer }).await.map_err(|_closed| ModelError::Stopped)?;
        answered.await.map_err(|_closed| ModelError::Stopped)?
    }
}

fn work(waiting: &Mutex<mpsc::Receiver<Job>>, tokenizer: &TextTokenizer, encoder: &mut dyn Encoder) {
    loop {
        // The guard goes at the end of the statement: one thread waits for a job, the
        // others for the lock.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(job) = job else { return };
        if job.answer.is_closed() {
            continue;
        }
        // A panic in a model must not take the thread away from all who come later.
        let vectors = catch_unwind(AssertUnwindSafe(|| embed(&job.texts, tokenizer, encoder)))
            .unwrap_or_else(|_| Err(ModelError::Inference("the model panicked".to_owned())));
        if job.answer.send(vectors).is_err() {
            tracing::debug!("caller left before its vectors were ready");
        }
    }
}

fn embed(texts: &[String], tokenizer: &TextTokenizer, encoder: &mut dyn Encoder) -> Vectors {
    let ids = texts.iter().map(|text| tokenizer.ids(text)).collect::<Result<Vec<_>, _>>()?;
    let vectors = encoder.encode(&ids)?;
    if vectors.len() != texts.len() {
        let (got, wanted) = (vectors.len(), texts.len());
        return Err(ModelError::Inference(format!("{got} vectors for {wanted} texts")));
    }
    Ok(vectors)
}
