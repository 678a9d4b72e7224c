//! Taking documents in: look, cut, store, ring.

use std::{collections::HashSet, sync::Arc, thread::available_parallelism, time::Duration};

use futures::future::join_all;
use tokio::sync::{OnceCell, Semaphore};
use waybill_domain::SourceId;
use waybill_storage::{
    Bell, Db, StorageError, secrets,
    sources::{self, NewSource, PutError, PutResult},
};

use crate::{
    chunk::{Chunker, Cut, TooManyChunks},
    meter::PutMeter,
    validate::Put,
};

/// How long the answers of puts with a request id are kept.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers that are forgotten by one statement, so that none holds its locks for long.
const PURGE_STEP: i64 = 1_000;

/// Why a put was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Storage(#[from] Arc<StorageError>),
    /// All of the body is markup.
    #[error("nothing is left to read of the body")]
    NothingToRead,
    #[error(transparent)]
    TooManyChunks(#[from] TooManyChunks),
    /// The chunker panicked.
    #[error("cut the body: {0}")]
    Cut(String),
}

pub(crate) type Answer = Result<PutResult, Refusal>;

/// The write path. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ingestion {
    db: Db,
    bell: Bell,
    chunker: Arc<Chunker>,
    /// Bodies that are cut at once: it is work for a core each.
    cutting: Arc<Semaphore>,
    token_key: Arc<OnceCell<Vec<u8>>>,
    meter: PutMeter,
}

/// Puts that were looked up and cut, and wait to be stored.
pub(crate) struct Prepared {
    answers: Vec<Option<Answer>>,
    sources: Vec<NewSource>,
}

impl Ingestion {
    pub(crate) fn new(db: Db, chunker: Chunker) -> Self {
        let bell = Bell::start(&db);
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            db,
            bell,
            chunker: Arc::new(chunker),
            cutting: Arc::new(Semaphore::new(cores)),
            token_key: Arc::default(),
            meter: PutMeter::none(),
        }
    }

    /// Has it counted what puts change.
    pub(crate) fn measured(mut self, meter: PutMeter) -> Self {
        self.meter = meter;
        self
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn chunker_id(&self) -> &str {
        self.chunker.id()
    }

    /// Tells the relay that there is something new.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Returns what page tokens are signed with. Read once.
    pub(crate) async fn token_key(&self) -> Result<&[u8], StorageError> {
        let key = self.token_key.get_or_try_init(|| secrets::page_token_key(&self.db)).await?;
        Ok(key)
    }

    /// Stores one source.
    pub(crate) async fn put(&self, put: Put, headers: Option<&str>) -> Answer {
        let prepared = self.prepare(vec![put], &HashSet::new()).await;
        match self.store(prepared, headers).await.pop() {
            Some(answer) => answer,
            None => Err(Refusal::Cut("a put without an answer".to_owned())),
        }
    }

    /// Answers what needs no work and cuts the rest, on all cores.
    ///
    /// What is stored of the sources in `in_flight` is about to change: it says nothing about
    /// theirs. The same goes for an item after another of the same source.
    pub(crate) async fn prepare(&self, puts: Vec<Put>, in_flight: &HashSet<SourceId>) -> Prepared {
        let mut seen = HashSet::new();
        let settled: Vec<bool> = puts
            .iter()
            .map(|put| {
                let id = put.key.source_id();
                seen.insert(id) && !in_flight.contains(&id)
            })
            .collect();
        let keys: Vec<_> =
            puts.iter().zip(&settled).filter(|(_, settled)| **settled).map(|(put, _)| &put.key).collect();
        let mut peeked = match sources::peek(&self.db, &keys).await {
            Ok(peeked) => peeked.into_iter(),
            Err(error) => {
                let error = Arc::new(error);
                let answers = puts.iter().map(|_| Some(Err(Refusal::Storage(Arc::clone(&error))))).collect();
                return Prepared { answers, sources: Vec::new() };
            }
        };
        let cuts = puts.into_iter().zip(settled).map(|(put, settled)| {
            let answer = if settled { peeked.next().flatten() } else { None };
            async move {
                match answer {
                    Some(answer) => Err(answer.map_err(Refusal::from)),
                    None => self.cut(put).await.map_err(Err),
                }
            }
        });
        let mut prepared = Prepared { answers: Vec::new(), sources: Vec::new() };
        for cut in join_all(cuts).await {
            match cut {
                Ok(source) => {
                    prepared.answers.push(None);
                    prepared.sources.push(source);
                }
                Err(answer) => prepared.answers.push(Some(answer)),
            }
        }
        prepared
    }

    /// Stores what was prepared, in one transaction where that can be, and answers each in
    /// the order given.
    pub(crate) async fn store(&self, prepared: Prepared, headers: Option<&str>) -> Vec<Answer> {
        let Prepared { answers, sources } = prepared;
        if sources.is_empty() {
            let answers: Vec<Answer> = answers.into_iter().flatten().collect();
            for result in answers.iter().flatten() {
                self.meter.put(result);
            }
            return answers;
        }
        let stored = sources::put_group(&self.db, &sources, headers).await;
        self.bell.ring();
        let mut stored: Box<dyn Iterator<Item = Answer> + Send> = match stored {
            Ok(stored) => Box::new(stored.into_iter().map(|answer| answer.map_err(Refusal::from))),
            Err(error) => {
                let error = Arc::new(error);
                Box::new(std::iter::repeat_with(move || Err(Refusal::Storage(Arc::clone(&error)))))
            }
        };
        let answers: Vec<Answer> = answers.into_iter().filter_map(|answer| answer.or_else(|| stored.next())).collect();
        for result in answers.iter().flatten() {
            self.meter.put(result);
        }
        answers
    }

    async fn cut(&self, put: Put) -> Result<NewSource, Refusal> {
        let Ok(_permit) = self.cutting.acquire().await else {
            return Err(Refusal::Cut("the service is gone".to_owned()));
        };
        let chunker = Arc::clone(&self.chunker);
        let work = move || {
            let key = put.key;
            let cut = chunker.cut(&put.body, key.media_type, key.given_title.as_deref(), &key.uri);
            cut.map(|Cut { title, text, chunks }| NewSource { key, title, text, chunks })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(source)) if source.chunks.is_empty() => Err(Refusal::NothingToRead),
            Ok(source) => Ok(source?),
            // Without the error: it has the panic's message, which may quote the body.
            Err(_) => Err(Refusal::Cut("the chunker panicked".to_owned())),
        }
    }

    /// Forgets the answers that are too old, in steps.
    pub(crate) async fn purge_requests(&self) {
        loop {
            match sources::purge_requests(&self.db, REMEMBERED, PURGE_STEP).await {
                Ok(gone) if gone < PURGE_STEP.unsigned_abs() => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "purge put requests, to be tried again");
                    return;
                }
            }
        }
    }
}
