use qdrant_client::qdrant::{CountPoints, ScrollPoints};
use uuid::Uuid;
use waybill_domain::ProjectId;

use crate::{Result, VectorError, Vectors, client::call, filter, key, payload, query::include};

/// The most points of one page: 10,000 ids and versions are about a megabyte.
pub const MAX_SCROLL_LIMIT: u32 = 10_000;

/// A page of what the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionPage {
    /// Ids and versions, ascending by id; version 0 where a point has lost it.
    pub points: Vec<(Uuid, i64)>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Uuid>,
}

impl Vectors {
    /// Reads ids and versions in the order of ids, from `from` on (inclusive).
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn scroll_versions(
        &self,
        collection: &str,
        project: Option<ProjectId>,
        from: Option<Uuid>,
        limit: u32,
    ) -> Result<VersionPage> {
        let request = ScrollPoints {
            collection_name: collection.to_owned(),
            filter: project.map(filter::project),
            offset: from.map(payload::point_id),
            limit: Some(limit.clamp(1, MAX_SCROLL_LIMIT)),
            with_payload: Some(include(&[key::VERSION])),
            ..ScrollPoints::default()
        };
        let reply = call(collection, self.timeout(), Box::pin(self.points().scroll(request))).await?;
        let points = reply
            .result
            .into_iter()
            .filter_map(|point| Some((payload::uuid_of(point.id)?, payload::version(&point.payload))))
            .collect();
        Ok(VersionPage { points, next: payload::uuid_of(reply.next_page_offset) })
    }

    /// Counts the points of a project, or all, exactly.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn count(&self, collection: &str, project: Option<ProjectId>) -> Result<u64> {
        let request = CountPoints {
            collection_name: collection.to_owned(),
            filter: project.map(filter::project),
            exact: Some(true),
            ..CountPoints::default()
        };
        let reply = call(collection, self.timeout(), Box::pin(self.points().count(request))).await?;
        Ok(reply.result.ok_or(VectorError::BadAnswer("count without a result"))?.count)
    }
}
