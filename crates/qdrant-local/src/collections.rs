//! The `qdrant.Collections` service.

use std::sync::Arc;

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::collections_server::Collections;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::catalog::{AliasAction, Catalog};
use crate::convert::collection;
use crate::error::Error;
use crate::store::blocking;
use crate::unimplemented::unimplemented_rpcs;

/// Bytes a collection or alias name may have; a real server's limit, which
/// comes from file names. Here it bounds the manifest.
const MAX_NAME_BYTES: usize = 255;

/// Serves collections and aliases.
#[derive(Debug, Clone)]
pub(crate) struct CollectionsService {
    pub(crate) catalog: Arc<Catalog>,
}

#[tonic::async_trait]
impl Collections for CollectionsService {
    async fn get(
        &self,
        request: Request<proto::GetCollectionInfoRequest>,
    ) -> Result<Response<proto::GetCollectionInfoResponse>, Status> {
        let start = Instant::now();
        let store = self.catalog.resolve(&request.into_inner().collection_name)?;
        let shard = store.read(|shard| Ok(shard.info())).await?;
        Ok(Response::new(proto::GetCollectionInfoResponse {
            result: Some(collection::info(&store.spec, store.indexing_threshold(), shard)),
            time: start.elapsed().as_secs_f64(),
        }))
    }

    async fn list(
        &self,
        _request: Request<proto::ListCollectionsRequest>,
    ) -> Result<Response<proto::ListCollectionsResponse>, Status> {
        let start = Instant::now();
        let names = self.catalog.collections().into_iter();
        Ok(Response::new(proto::ListCollectionsResponse {
            collections: names.map(|name| proto::CollectionDescription { name }).collect(),
            time: start.elapsed().as_secs_f64(),
        }))
    }

    async fn create(
        &self,
        request: Request<proto::CreateCollection>,
    ) -> Result<Response<proto::CollectionOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let name = checked_name(request.collection_name.clone())?;
        let spec = collection::spec(request)?;
        let catalog = Arc::clone(&self.catalog);
        blocking(move || catalog.create(&name, spec)).await?;
        Ok(done(true, start))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateCollection>,
    ) -> Result<Response<proto::CollectionOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let name = request.collection_name.clone();
        let threshold = collection::indexing_threshold(request)?;
        let catalog = Arc::clone(&self.catalog);
        blocking(move || match threshold {
            Some(kib) => catalog.set_indexing_threshold(&name, kib),
            None => catalog.resolve(&name).map(drop),
        })
        .await?;
        Ok(done(true, start))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteCollection>,
    ) -> Result<Response<proto::CollectionOperationResponse>, Status> {
        let start = Instant::now();
        let name = request.into_inner().collection_name;
        let catalog = Arc::clone(&self.catalog);
        let existed = blocking(move || catalog.delete(&name)).await?;
        Ok(done(existed, start))
    }

    async fn update_aliases(
        &self,
        request: Request<proto::ChangeAliases>,
    ) -> Result<Response<proto::CollectionOperationResponse>, Status> {
        let start = Instant::now();
        let actions = request.into_inner().actions.into_iter().map(alias_action);
        let actions = actions.collect::<Result<Vec<_>, _>>()?;
        let catalog = Arc::clone(&self.catalog);
        blocking(move || catalog.change_aliases(actions)).await?;
        Ok(done(true, start))
    }

    async fn list_collection_aliases(
        &self,
        request: Request<proto::ListCollectionAliasesRequest>,
    ) -> Result<Response<proto::ListAliasesResponse>, Status> {
        let start = Instant::now();
        let name = request.into_inner().collection_name;
        self.catalog.resolve(&name)?;
        let mut aliases = self.catalog.aliases();
        aliases.retain(|(_, collection)| *collection == name);
        Ok(alias_list(aliases, start))
    }

    async fn list_aliases(
        &self,
        _request: Request<proto::ListAliasesRequest>,
    ) -> Result<Response<proto::ListAliasesResponse>, Status> {
        let start = Instant::now();
        Ok(alias_list(self.catalog.aliases(), start))
    }

    async fn collection_exists(
        &self,
        request: Request<proto::CollectionExistsRequest>,
    ) -> Result<Response<proto::CollectionExistsResponse>, Status> {
        let start = Instant::now();
        let name = request.into_inner().collection_name;
        let exists = self.catalog.resolve(&name).is_ok();
        Ok(Response::new(proto::CollectionExistsResponse {
            result: Some(proto::CollectionExists { exists }),
            time: start.elapsed().as_secs_f64(),
        }))
    }

    unimplemented_rpcs! { "qdrant.Collections":
        collection_cluster_info "CollectionClusterInfo"
            (proto::CollectionClusterInfoRequest) -> proto::CollectionClusterInfoResponse;
        update_collection_cluster_setup "UpdateCollectionClusterSetup"
            (proto::UpdateCollectionClusterSetupRequest)
            -> proto::UpdateCollectionClusterSetupResponse;
        create_shard_key "CreateShardKey"
            (proto::CreateShardKeyRequest) -> proto::CreateShardKeyResponse;
        delete_shard_key "DeleteShardKey"
            (proto::DeleteShardKeyRequest) -> proto::DeleteShardKeyResponse;
        list_shard_keys "ListShardKeys"
            (proto::ListShardKeysRequest) -> proto::ListShardKeysResponse;
    }
}

fn done(result: bool, start: Instant) -> Response<proto::CollectionOperationResponse> {
    Response::new(proto::CollectionOperationResponse { result, time: start.elapsed().as_secs_f64() })
}

fn alias_list(aliases: Vec<(String, String)>, start: Instant) -> Response<proto::ListAliasesResponse> {
    let aliases = aliases.into_iter();
    Response::new(proto::ListAliasesResponse {
        aliases: aliases
            .map(|(alias_name, collection_name)| proto::AliasDescription { alias_name, collection_name })
            .collect(),
        time: start.elapsed().as_secs_f64(),
    })
}

fn alias_action(operation: proto::AliasOperations) -> Result<AliasAction, Error> {
    let action = operation.action.ok_or_else(|| Error::invalid("alias operation without an action"))?;
    Ok(match action {
        Action::CreateAlias(create) => {
            AliasAction::Create { alias: checked_name(create.alias_name)?, collection: create.collection_name }
        }
        Action::RenameAlias(rename) => {
            AliasAction::Rename { old: rename.old_alias_name, new: checked_name(rename.new_alias_name)? }
        }
        Action::DeleteAlias(delete) => AliasAction::Delete { alias: delete.alias_name },
    })
}

fn checked_name(name: String) -> Result<String, Error> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!("a name must have 1 to {MAX_NAME_BYTES} bytes, got {}", name.len())));
    }
    if let Some(bad) = name.chars().find(|c| c.is_control() || r#"<>:"/\|?*"#.contains(*c)) {
        return Err(Error::invalid(format!("name cannot contain {bad:?}")));
    }
    Ok(name)
}
