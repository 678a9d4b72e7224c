//! What the tests here share.

use std::time::Duration;

use serde_json::json;
use waybill_domain::{ContentHash, MediaType, ProjectId, TextHash, embedding_text};
use waybill_storage::{
    Db, DbConfig, projects,
    sources::{NewChunk, NewSource, PutAnswer, PutResult, RequestKey, SourceKey, put_group},
};
use waybill_testkit::{TestDb, psql};

/// A migrated database of its own, a pool on it and the project "p".
pub(crate) struct Fixture {
    pub(crate) database: TestDb,
    pub(crate) db: Db,
    pub(crate) project: ProjectId,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let database = TestDb::create().await.unwrap();
        let db = connect(&database.url);
        let project = projects::create(&db, &"p".parse().unwrap()).await.unwrap().unwrap().id;
        Self { database, db, project }
    }

    /// Runs SQL past our code.
    pub(crate) async fn sql(&self, sql: &str) -> String {
        psql(&self.database.url, sql).await.unwrap()
    }

    /// The number that `sql` returns.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.sql(sql).await.parse().unwrap()
    }

    pub(crate) async fn put(&self, item: NewSource) -> PutResult {
        self.try_put(item).await.unwrap()
    }

    pub(crate) async fn try_put(&self, item: NewSource) -> PutAnswer {
        put_group(&self.db, &[item], None).await.unwrap().remove(0)
    }

    /// Empties the log, as trimming does.
    pub(crate) async fn forget_outbox(&self) {
        self.sql("DELETE FROM outbox").await;
    }

    /// The keys that are in the log, in its order.
    pub(crate) async fn outbox_keys(&self) -> Vec<String> {
        self.sql("SELECT key FROM outbox ORDER BY seq").await.lines().map(str::to_owned).collect()
    }

    /// Confirms all chunks at their current versions, as a settle does.
    pub(crate) async fn confirm_all(&self) {
        self.sql(
            "INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', id, version FROM chunk
             ON CONFLICT (sink, kind, key) DO UPDATE SET version = excluded.version, deleted = false",
        )
        .await;
    }
}

pub(crate) fn connect(url: &str) -> Db {
    Db::connect(&config(url)).unwrap()
}

pub(crate) fn config(url: &str) -> DbConfig {
    DbConfig {
        url: url.to_owned(),
        max_connections: 16,
        acquire_timeout: Duration::from_secs(20),
        application_name: "test".to_owned(),
    }
}

/// A source with one chunk for each of `passages`.
pub(crate) fn source(project: ProjectId, uri: &str, passages: &[&str]) -> NewSource {
    let mut text = String::new();
    let mut chunks = Vec::new();
    for passage in passages {
        let start = text.len();
        text.push_str(passage);
        let headings = vec!["Title".to_owned()];
        chunks.push(NewChunk {
            text_hash: TextHash::of(embedding_text(&headings, passage)),
            headings,
            range: start..text.len(),
            token_count: 1,
        });
        text.push('\n');
    }
    NewSource {
        key: SourceKey {
            project_id: project,
            uri: uri.to_owned(),
            given_title: None,
            media_type: MediaType::Text,
            metadata: json!({}),
            content_hash: ContentHash::of(&text),
            chunker: "test".to_owned(),
            request: None,
            job_id: None,
            provisional: None,
        },
        title: "Title".to_owned(),
        text,
        chunks,
    }
}

/// The same source as a request that can be retried.
pub(crate) fn requested(mut item: NewSource, id: &str) -> NewSource {
    let fingerprint = *item.key.content_hash.as_bytes();
    item.key.request = Some(RequestKey { id: id.to_owned(), fingerprint });
    item
}
