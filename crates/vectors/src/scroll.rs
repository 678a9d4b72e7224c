use std::collections::HashMap;

use qdrant_client::qdrant::{CountPoints, GetPoints, PointId, ScrollPoints, Value as PayloadValue};
use serde_json::{Map, Value};
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId};

use crate::{Result, VectorError, Vectors, filter, key, payload, query::include};

/// The most points of one page: 10,000 ids and versions are about a megabyte.
pub const MAX_SCROLL_LIMIT: u32 = 10_000;

/// The largest answer: 1,000 points with 16 KiB of metadata each, and room.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Everything that we write into a payload.
const PAYLOAD: [&str; 5] = [key::PROJECT, key::KIND, key::SOURCE, key::VERSION, key::METADATA];

/// A point as the store holds it, without its vectors. What its payload lacks, or what can't
/// be read there, is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPoint {
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub project_id: Option<ProjectId>,
    /// What the row is.
    pub kind: Option<Kind>,
    /// The source it belongs to.
    pub source_id: Option<SourceId>,
    /// The row's version when the point was written; 0 if the point has lost it.
    pub version: i64,
    /// The source's metadata; empty if the point has lost it.
    pub metadata: Map<String, Value>,
}

/// A page of points with their payloads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PointPage {
    /// Ascending by id.
    pub points: Vec<StoredPoint>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Uuid>,
}

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
        let reply = self.call("scroll", collection, self.timeout(), Box::pin(self.points().scroll(request))).await?;
        let points = reply
            .result
            .into_iter()
            .filter_map(|point| Some((payload::uuid_of(point.id)?, payload::version(&point.payload))))
            .collect();
        Ok(VersionPage { points, next: payload::uuid_of(reply.next_page_offset) })
    }

    /// Reads points with their payloads in the order of ids, from `from` on (inclusive). Points
    /// with a number for an id aren't ours, and come before `from`, whatever it is.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn scroll_points(
        &self,
        collection: &str,
        project: Option<ProjectId>,
        from: Uuid,
        limit: u32,
    ) -> Result<PointPage> {
        let request = ScrollPoints {
            collection_name: collection.to_owned(),
            filter: project.map(filter::project),
            offset: Some(payload::point_id(from)),
            limit: Some(limit.clamp(1, MAX_SCROLL_LIMIT)),
            with_payload: Some(include(&PAYLOAD)),
            ..ScrollPoints::default()
        };
        let mut client = self.points().max_decoding_message_size(ANSWER_BYTES_MAX);
        let reply = self.call("scroll", collection, self.timeout(), Box::pin(client.scroll(request))).await?;
        let points = reply.result.into_iter().filter_map(|point| stored(point.id, &point.payload)).collect();
        Ok(PointPage { points, next: payload::uuid_of(reply.next_page_offset) })
    }

    /// Reads the points of `ids` that exist, in no particular order; [`MAX_SCROLL_LIMIT`] ids at
    /// the most.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if there is no such collection.
    pub async fn get_points(&self, collection: &str, ids: &[Uuid]) -> Result<Vec<StoredPoint>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let request = GetPoints {
            collection_name: collection.to_owned(),
            ids: ids.iter().copied().map(payload::point_id).collect(),
            with_payload: Some(include(&PAYLOAD)),
            ..GetPoints::default()
        };
        let mut client = self.points().max_decoding_message_size(ANSWER_BYTES_MAX);
        let reply = self.call("retrieve", collection, self.timeout(), Box::pin(client.get(request))).await?;
        Ok(reply.result.into_iter().filter_map(|point| stored(point.id, &point.payload)).collect())
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
        let reply = self.call("count", collection, self.timeout(), Box::pin(self.points().count(request))).await?;
        Ok(reply.result.ok_or(VectorError::BadAnswer("count without a result"))?.count)
    }
}

fn stored(id: Option<PointId>, fields: &HashMap<String, PayloadValue>) -> Option<StoredPoint> {
    let id_at = |name| payload::text(fields, name).and_then(|text| Uuid::parse_str(text).ok());
    Some(StoredPoint {
        id: payload::uuid_of(id)?,
        project_id: id_at(key::PROJECT).map(ProjectId::from_uuid),
        kind: payload::text(fields, key::KIND).and_then(|kind| kind.parse().ok()),
        source_id: id_at(key::SOURCE).map(SourceId::from_uuid),
        version: payload::version(fields),
        metadata: payload::metadata(fields),
    })
}
