//! What one process takes on at once.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use waybill_runtime::status;

use crate::Config;

/// A permit stands for this many bytes: a semaphore counts in 32 bits.
const BYTES_PER_PERMIT: usize = 1_024;

/// When a refused call may come again. A put takes some tens of milliseconds.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Bounds calls, streams and bytes.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    puts: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Held as long as what it stands for is in memory.
pub(crate) type Held = OwnedSemaphorePermit;

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            puts: Arc::new(Semaphore::new(config.max_concurrent_puts)),
            streams: Arc::new(Semaphore::new(config.max_streams)),
            bytes: Arc::new(Semaphore::new(config.max_bytes_in_flight / BYTES_PER_PERMIT)),
            waiting: Arc::new(Semaphore::new(config.max_waiting_puts)),
        }
    }

    /// Takes on a call, or refuses it for now.
    pub(crate) fn put(&self) -> Result<Held, Status> {
        let refused = |_| busy("TOO_MANY_PUTS", "too many puts at once (ingestion.max_concurrent_puts)");
        self.puts.clone().try_acquire_owned().map_err(refused)
    }

    /// Takes on a stream, or refuses it for now.
    pub(crate) fn stream(&self) -> Result<Held, Status> {
        let refused = |_| busy("TOO_MANY_STREAMS", "too many streams at once (ingestion.max_streams)");
        self.streams.clone().try_acquire_owned().map_err(refused)
    }

    /// Takes on a call that will wait for the vector store, or refuses it for now.
    pub(crate) fn waiting(&self) -> Result<Held, Status> {
        let refused = |_| {
            busy(
                "TOO_MANY_WAITING",
                "too many puts wait for the index (ingestion.max_waiting_puts): nothing was written",
            )
        };
        self.waiting.clone().try_acquire_owned().map_err(refused)
    }

    /// Makes room for a body, or refuses it for now.
    pub(crate) fn bytes(&self, bytes: usize) -> Result<Held, Status> {
        let refused = |_| busy("TOO_MANY_BYTES", "too many bytes of bodies at once (ingestion.max_bytes_in_flight)");
        self.bytes.clone().try_acquire_many_owned(permits(bytes)).map_err(refused)
    }

    /// Waits for room for a body. `None` if the limits are gone, which they never are.
    pub(crate) async fn wait_for_bytes(&self, bytes: usize) -> Option<Held> {
        self.bytes.clone().acquire_many_owned(permits(bytes)).await.ok()
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX)
}

fn busy(reason: &str, description: &str) -> Status {
    status::resource_exhausted(reason, format!("{description}: try again"), Some(RETRY_AFTER))
}
