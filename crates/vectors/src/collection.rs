use qdrant_client::qdrant::{
    AliasOperations, ChangeAliases, CollectionExistsRequest, CreateAlias, CreateCollectionBuilder,
    CreateFieldIndexCollection, DeleteCollection, Distance, FieldType, GetCollectionInfoRequest, IntegerIndexParams,
    KeywordIndexParams, ListAliasesRequest, Modifier, OptimizersConfigDiff, PayloadIndexParams, SparseVectorConfig,
    SparseVectorParams, UpdateCollection, VectorParamsBuilder, VectorParamsMap, VectorsConfig,
    alias_operations::Action, payload_index_params::IndexParams, vectors_config,
};
use waybill_domain::ErrorClass;

use crate::{DENSE, Result, SPARSE, VectorError, Vectors, key};

/// The alias under which searches find the live collection.
pub const DEFAULT_ALIAS: &str = "waybill";

/// The longest part of a model's name that a collection's name keeps: the whole is a
/// directory's name on the server.
const MAX_SLUG: usize = 80;

/// A collection: of one model, because vectors of two can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CollectionSpec {
    /// What it is called.
    pub name: String,
    /// How many numbers a dense vector has.
    pub dimensions: usize,
}

/// What the server says about a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionInfo {
    /// How many points it holds, roughly while it is being written.
    pub points: u64,
    /// How many numbers a dense vector has; `None` if it has no vector of ours.
    pub dimensions: Option<u64>,
    /// Whether it has our sparse vector.
    pub has_sparse: bool,
    /// How large a segment may get before an index is built for it, in KiB; `None` if that is not
    /// said.
    pub indexing_threshold: Option<u64>,
}

impl CollectionSpec {
    /// Names the collection of `model`: `waybill_<slug>_<dimensions>`.
    ///
    /// Names that differ only in what a slug drops are told apart by a hash of the name.
    #[must_use]
    pub fn for_model(model: &str, dimensions: usize) -> Self {
        let mut slug: String = model
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(MAX_SLUG)
            .collect();
        if slug != model {
            slug = format!("{slug}-{:08x}", fnv1a(model.as_bytes()));
        }
        Self { name: format!("waybill_{slug}_{dimensions}"), dimensions }
    }
}

/// FNV-1a: the same on every platform and in every version, unlike the standard hasher.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl Vectors {
    /// Makes sure that the collection exists with its vectors and payload indexes, and that
    /// `alias` exists; an alias that is there stays where it points.
    ///
    /// Safe to call by many at once and again after a failure half-way: each step looks at
    /// what is there.
    ///
    /// # Errors
    /// [`VectorError::CollectionMismatch`] if it exists with another form; otherwise as the
    /// server fails.
    pub async fn ensure_collection(&self, spec: &CollectionSpec, alias: &str) -> Result<()> {
        self.ensure_made(spec).await?;
        if self.alias_target(alias).await?.is_none() {
            self.point_alias(alias, &spec.name).await?;
        }
        Ok(())
    }

    /// As [`Vectors::ensure_collection`], without an alias.
    ///
    /// # Errors
    /// The same.
    pub async fn ensure_made(&self, spec: &CollectionSpec) -> Result<()> {
        if !self.collection_exists(&spec.name).await? {
            self.create_collection(spec).await?;
        }
        self.check_form(spec).await?;
        self.create_indexes(&spec.name).await
    }

    /// Makes an empty collection, without what payloads are filtered by. False if it was there: of
    /// many that try at once, one makes it.
    ///
    /// # Errors
    /// As the server fails; then it may have been made all the same.
    pub async fn create_collection(&self, spec: &CollectionSpec) -> Result<bool> {
        match self.create(spec).await {
            Ok(()) => {
                tracing::info!(collection = spec.name, dimensions = spec.dimensions, "collection created");
                Ok(true)
            }
            // Another relay may have been faster.
            Err(error) if error.class() != ErrorClass::Unknown && self.collection_exists(&spec.name).await? => {
                tracing::debug!(collection = spec.name, %error, "collection was made by another");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Says whether there is a collection of that name. Aliases don't count.
    ///
    /// # Errors
    /// As the server fails.
    pub async fn collection_exists(&self, name: &str) -> Result<bool> {
        let request = CollectionExistsRequest { collection_name: name.to_owned() };
        let reply =
            self.call("collection_exists", name, self.timeout(), self.collections().collection_exists(request)).await?;
        Ok(reply.result.is_some_and(|result| result.exists))
    }

    /// Tells what a collection, or the one behind an alias, is like.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is none.
    pub async fn collection_info(&self, name: &str) -> Result<CollectionInfo> {
        let request = GetCollectionInfoRequest { collection_name: name.to_owned() };
        let reply = self.call("get_collection", name, self.timeout(), self.collections().get(request)).await?;
        let info = reply.result.ok_or(VectorError::BadAnswer("collection without information"))?;
        let config = info.config.unwrap_or_default();
        let indexing_threshold = config.optimizer_config.and_then(|optimizers| optimizers.indexing_threshold);
        let params = config.params;
        let (vectors, sparse) =
            params.map(|params| (params.vectors_config, params.sparse_vectors_config)).unwrap_or_default();
        let dimensions = match vectors.and_then(|vectors| vectors.config) {
            Some(vectors_config::Config::ParamsMap(map)) => map.map.get(DENSE).map(|params| params.size),
            _ => None,
        };
        Ok(CollectionInfo {
            points: info.points_count.unwrap_or_default(),
            dimensions,
            has_sparse: sparse.is_some_and(|sparse| sparse.map.contains_key(SPARSE)),
            indexing_threshold,
        })
    }

    /// Sets how large a segment may get before an index is built for it, in KiB.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn set_indexing_threshold(&self, name: &str, kib: u64) -> Result<()> {
        let optimizers = OptimizersConfigDiff { indexing_threshold: Some(kib), ..OptimizersConfigDiff::default() };
        let request = UpdateCollection {
            collection_name: name.to_owned(),
            optimizers_config: Some(optimizers),
            ..UpdateCollection::default()
        };
        self.call("update_collection", name, self.timeout(), Box::pin(self.collections().update(request))).await?;
        Ok(())
    }

    /// Returns the collection that `alias` points to, if there is such an alias.
    ///
    /// # Errors
    /// As the server fails.
    pub async fn alias_target(&self, alias: &str) -> Result<Option<String>> {
        let reply = self
            .call("list_aliases", alias, self.timeout(), self.collections().list_aliases(ListAliasesRequest {}))
            .await?;
        let found = reply.aliases.into_iter().find(|entry| entry.alias_name == alias);
        Ok(found.map(|entry| entry.collection_name))
    }

    /// Makes `alias` point to `collection`, wherever it pointed before.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn point_alias(&self, alias: &str, collection: &str) -> Result<()> {
        let create =
            Action::CreateAlias(CreateAlias { collection_name: collection.to_owned(), alias_name: alias.to_owned() });
        // Creating an alias that exists moves it, in one step.
        let request = ChangeAliases { actions: vec![AliasOperations { action: Some(create) }], timeout: None };
        self.call("update_aliases", collection, self.timeout(), self.collections().update_aliases(request)).await?;
        tracing::info!(alias, collection, "alias points to collection");
        Ok(())
    }

    /// Deletes a collection and the aliases that point to it. No error if there is none.
    ///
    /// # Errors
    /// As the server fails.
    pub async fn delete_collection(&self, name: &str) -> Result<()> {
        let request = DeleteCollection { collection_name: name.to_owned(), timeout: None };
        match self.call("delete_collection", name, self.timeout(), self.collections().delete(request)).await {
            Ok(_) | Err(VectorError::CollectionMissing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, spec: &CollectionSpec) -> Result<()> {
        let dense = VectorParamsBuilder::new(spec.dimensions as u64, Distance::Cosine).build();
        let map = VectorParamsMap { map: [(DENSE.to_owned(), dense)].into() };
        let vectors = VectorsConfig { config: Some(vectors_config::Config::ParamsMap(map)) };
        // How rare a term is among all documents is known to the server alone.
        let params = SparseVectorParams { modifier: Some(Modifier::Idf.into()), index: None };
        let sparse = SparseVectorConfig { map: [(SPARSE.to_owned(), params)].into() };
        let request =
            CreateCollectionBuilder::new(&spec.name).vectors_config(vectors).sparse_vectors_config(sparse).build();
        self.call("create_collection", &spec.name, self.timeout(), self.collections().create(request)).await?;
        Ok(())
    }

    async fn check_form(&self, spec: &CollectionSpec) -> Result<()> {
        let info = self.collection_info(&spec.name).await?;
        let problem = if info.dimensions != Some(spec.dimensions as u64) {
            let found = info.dimensions.map_or_else(|| "none".to_owned(), |dimensions| dimensions.to_string());
            format!("its vector {DENSE:?} has dimensions {found}, not {}", spec.dimensions)
        } else if !info.has_sparse {
            format!("it has no sparse vector {SPARSE:?}")
        } else {
            return Ok(());
        };
        Err(VectorError::CollectionMismatch { name: spec.name.clone(), problem })
    }

    /// Indexes what filters ask for. Doing so again changes nothing.
    async fn create_indexes(&self, collection: &str) -> Result<()> {
        let keyword = |is_tenant| {
            IndexParams::KeywordIndexParams(KeywordIndexParams {
                is_tenant: Some(is_tenant),
                ..KeywordIndexParams::default()
            })
        };
        // Ranges for the comparison on write, nothing else.
        let version = IndexParams::IntegerIndexParams(IntegerIndexParams {
            lookup: Some(false),
            range: Some(true),
            ..IntegerIndexParams::default()
        });
        let indexes = [
            (key::PROJECT, FieldType::Keyword, keyword(true)),
            (key::KIND, FieldType::Keyword, keyword(false)),
            (key::SOURCE, FieldType::Keyword, keyword(false)),
            (key::VERSION, FieldType::Integer, version),
        ];
        for (field, field_type, params) in indexes {
            let request = CreateFieldIndexCollection {
                collection_name: collection.to_owned(),
                wait: Some(true),
                field_name: field.to_owned(),
                field_type: Some(field_type.into()),
                field_index_params: Some(PayloadIndexParams { index_params: Some(params) }),
                ..CreateFieldIndexCollection::default()
            };
            self.call("create_field_index", collection, self.timeout(), self.points().create_field_index(request))
                .await?;
        }
        Ok(())
    }
}
