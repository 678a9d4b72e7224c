//! Searching: points from the vector store, what they say from Postgres.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;
use waybill_domain::{FreshnessToken, Kind, ProjectId, ProjectName};
use waybill_storage::{Db, StorageError, hydrate, hydrate::Hydrated, index, projects};
use waybill_vectors::{
    MAX_QUERY_LIMIT, Mode, QuerySpec, ScoredPoint, SearchFilter, SparseVector, VectorError, Vectors,
};

use crate::batcher::EmbedError;
use crate::config::Config;
use crate::embed::Embedder;
use crate::freshness::Freshness;
use crate::meter::SearchMeter;
use crate::registry::{Model, Registry};

/// A search with tokens is tried so often while the collection is made anew.
const ATTEMPTS: u32 = 3;

/// How long the target of the alias is remembered. While it moves, both collections exist.
const ALIAS_REMEMBERED: Duration = Duration::from_secs(5);

/// Points fetched on top of those wanted, as some may be stale: a few, and a quarter.
const SPARE_POINTS: usize = 5;
const SPARE_FRACTION: usize = 4;

/// How much more is fetched the second and last time, when too few points of the first
/// fetch could be shown.
const SECOND_FETCH_FACTOR: usize = 4;
const SECOND_FETCH_EXTRA: usize = 100;

/// A search, checked.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    pub(crate) project: ProjectName,
    pub(crate) query: String,
    pub(crate) mode: Mode,
    pub(crate) limit: usize,
    pub(crate) score_threshold: Option<f32>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) source_uris: Vec<String>,
    pub(crate) metadata: Map<String, Value>,
    /// Writes that it must see, of this project.
    pub(crate) at_least_as_fresh: Vec<FreshnessToken>,
}

/// What a search found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) hits: Vec<Hit>,
    /// Points that were passed over because their row is gone or another version.
    pub(crate) stale: usize,
    pub(crate) model: String,
}

/// A point and its row.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) score: f32,
    pub(crate) row: Hydrated,
}

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SearchError {
    #[error(
        "the vector store has not confirmed {sources} within {} ms: search again with the same tokens to go on waiting, with a longer deadline, or without the tokens to see what is there; `waybill status` says how far the relay is",
        .waited.as_millis()
    )]
    Stale { sources: String, waited: Duration },
    #[error(
        "the vector store has lost its collection, and with it what it had confirmed: search again when the relay has filled it anew, which `waybill verify --repair` begins at once, or without the tokens"
    )]
    CollectionLost,
    #[error("too many searches wait for the index (embedding.max_waiting_searches): try again")]
    TooManyWaiting,
    #[error("there is no project {0}")]
    UnknownProject(ProjectName),
    #[error("the live collection {collection:?} holds vectors of a model that is not served here; served: {served}")]
    ForeignCollection { collection: String, served: String },
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error("search the vector store: {0}")]
    Vectors(#[from] VectorError),
    #[error("read from postgres: {0}")]
    Storage(#[from] StorageError),
}

/// Searches.
pub(crate) struct Searcher {
    db: Db,
    vectors: Vectors,
    registry: Arc<Registry>,
    embedder: Arc<Embedder>,
    alias: String,
    freshness: Freshness,
    /// Where the alias pointed when it was last asked.
    target: Mutex<Option<(Instant, Target)>>,
    meter: Option<SearchMeter>,
}

/// The live collection and the model that made it.
#[derive(Clone)]
struct Target {
    collection: String,
    model: Arc<Model>,
}

impl Searcher {
    pub(crate) fn new(
        db: Db,
        vectors: Vectors,
        registry: Arc<Registry>,
        embedder: Arc<Embedder>,
        config: &Config,
    ) -> Self {
        let freshness = Freshness::new(db.clone(), config);
        Self {
            db,
            vectors,
            registry,
            embedder,
            alias: config.alias.clone(),
            freshness,
            target: Mutex::new(None),
            meter: None,
        }
    }

    /// Has it counted which points were passed over.
    pub(crate) fn measured(mut self, meter: SearchMeter) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Finds what answers the query. Without a collection nothing was delivered yet, so
    /// nothing is found. Waits first, at the latest until `answer_by`, for what it must see.
    ///
    /// # Errors
    /// See [`SearchError`].
    pub(crate) async fn search(&self, search: &Search, answer_by: Option<Instant>) -> Result<Found, SearchError> {
        let project = projects::find(&self.db, &search.project).await?;
        let project = project.ok_or_else(|| SearchError::UnknownProject(search.project.clone()))?;
        // Confirmed, and gone since: finding nothing would be no answer to who must see it.
        let must_see = search.at_least_as_fresh.iter().any(|token| !token.deleted);
        if !must_see {
            return self.look(search, project, false).await;
        }
        for _ in 0..ATTEMPTS {
            let generation = index::generation(&self.db).await?;
            self.freshness.wait(&search.at_least_as_fresh, answer_by).await?;
            let found = self.look(search, project, true).await?;
            // Else the collection was lost and made anew in between, and may have been empty.
            if index::generation(&self.db).await? == generation {
                return Ok(found);
            }
        }
        Err(SearchError::CollectionLost)
    }

    /// Asks the live collection.
    async fn look(&self, search: &Search, project: ProjectId, must_see: bool) -> Result<Found, SearchError> {
        let Some(target) = self.target().await? else {
            return if must_see { Err(SearchError::CollectionLost) } else { Ok(Found::default()) };
        };
        let nothing = || Found { model: target.model.info.name.clone(), ..Found::default() };
        let source_ids = match search.source_uris.as_slice() {
            [] => Vec::new(),
            uris => hydrate::source_ids(&self.db, project, uris).await?,
        };
        if source_ids.is_empty() && !search.source_uris.is_empty() {
            return Ok(nothing());
        }
        let spec = QuerySpec {
            mode: search.mode,
            dense: match search.mode {
                Mode::Lexical => Vec::new(),
                Mode::Dense | Mode::Hybrid => self.embedder.query(&target.model, &search.query).await?,
            },
            sparse: match search.mode {
                Mode::Dense => SparseVector::default(),
                Mode::Lexical | Mode::Hybrid => {
                    let terms = self.embedder.query_terms(&search.query);
                    SparseVector { indices: terms.indices, values: terms.values }
                }
            },
            filter: SearchFilter {
                project_id: project,
                kinds: search.kinds.clone(),
                source_ids,
                metadata: search.metadata.clone(),
            },
            limit: 0,
            score_threshold: search.score_threshold,
        };
        match self.fetch(&target, spec, project, search.limit).await {
            Err(SearchError::Vectors(VectorError::CollectionMissing(_))) => {
                // Deleted or replaced since the alias was looked up: the next search looks again.
                *self.target.lock().await = None;
                if must_see { Err(SearchError::CollectionLost) } else { Ok(nothing()) }
            }
            other => other,
        }
    }

    /// Fetches points and their rows; a second time and more of them if too few can be shown.
    async fn fetch(
        &self,
        target: &Target,
        spec: QuerySpec,
        project: ProjectId,
        wanted: usize,
    ) -> Result<Found, SearchError> {
        let first = wanted + wanted / SPARE_FRACTION + SPARE_POINTS;
        let second = (wanted * SECOND_FETCH_FACTOR + SECOND_FETCH_EXTRA).min(MAX_QUERY_LIMIT);
        let mut found = Found::default();
        for limit in [first, second] {
            let spec = QuerySpec { limit, ..spec.clone() };
            let points = self.vectors.query(&target.collection, spec).await?;
            let offered = points.len();
            found = self.hydrate(points, project, wanted).await?;
            if found.hits.len() >= wanted || offered < limit {
                break;
            }
        }
        if let Some(meter) = &self.meter {
            meter.stale(found.stale);
        }
        found.model.clone_from(&target.model.info.name);
        Ok(found)
    }

    /// Pairs points with their rows, and leaves out those that don't match.
    ///
    /// The rows are read after the points, so a row is never older than what its point was
    /// made of. Any other version means that the point shows something else: an earlier
    /// state, or one that Postgres has lost since, restored from a backup.
    async fn hydrate(&self, points: Vec<ScoredPoint>, project: ProjectId, wanted: usize) -> Result<Found, SearchError> {
        let keys: Vec<(Kind, Uuid)> =
            points.iter().filter_map(|point| point.kind.map(|kind| (kind, point.id))).collect();
        let rows = hydrate::rows(&self.db, &keys).await?;
        let mut rows: HashMap<Uuid, Hydrated> = rows.into_iter().map(|row| (row.id, row)).collect();
        let mut found = Found::default();
        for point in points {
            if found.hits.len() == wanted {
                break;
            }
            let row = rows.remove(&point.id).filter(|row| row.project_id == project && row.version == point.version);
            match row {
                Some(row) => found.hits.push(Hit { score: point.score, row }),
                None => found.stale += 1,
            }
        }
        Ok(found)
    }

    /// Returns the live collection, if there is one, and the model that made it.
    async fn target(&self) -> Result<Option<Target>, SearchError> {
        // Held while asking: of many searches, one asks.
        let mut remembered = self.target.lock().await;
        if let Some((until, target)) = &*remembered
            && Instant::now() < *until
        {
            return Ok(Some(target.clone()));
        }
        *remembered = None;
        let Some(collection) = self.vectors.alias_target(&self.alias).await? else {
            return Ok(None);
        };
        let model = self.registry.of_collection(&collection).cloned().ok_or_else(|| {
            SearchError::ForeignCollection { collection: collection.clone(), served: self.registry.names() }
        })?;
        let target = Target { collection, model };
        *remembered = Some((Instant::now() + ALIAS_REMEMBERED, target.clone()));
        Ok(Some(target))
    }
}
