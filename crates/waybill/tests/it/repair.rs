//! Stores that somebody changed by hand: each change is found, named and made right.

use serde_json::{Map, json};
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId};
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig};
use waybill_testkit::{Program, eventually};
use waybill_vectors::{
    DEFAULT_ALIAS, Mode, PLAUSIBLE_LEAD, PointWrite, QuerySpec, SearchFilter, SparseVector, StoredPoint,
};

use crate::{
    verified::{BY_HAND, Verified},
    world::PATIENCE,
};

impl Verified {
    /// Some chunks of a project, with their points.
    async fn some(&self, count: usize) -> Vec<StoredPoint> {
        let ids = "COPY (SELECT id FROM chunk ORDER BY id) TO STDOUT";
        let ids: Vec<Uuid> = self.sql(ids).await.lines().take(count).map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids.len(), count);
        self.world.vectors.get_points(DEFAULT_ALIAS, &ids).await.unwrap()
    }

    async fn dimensions(&self) -> usize {
        let info = self.world.vectors.collection_info(DEFAULT_ALIAS).await.unwrap();
        usize::try_from(info.dimensions.unwrap()).unwrap()
    }

    /// Puts points into Qdrant whatever was there.
    async fn put(&self, points: Vec<StoredPoint>) {
        let mut dense = vec![0.0; self.dimensions().await];
        dense[0] = 1.0;
        let ids: Vec<Uuid> = points.iter().map(|point| point.id).collect();
        self.delete(&ids).await;
        let writes = points.into_iter().map(|point| PointWrite {
            id: point.id,
            project_id: point.project_id.unwrap(),
            kind: point.kind.unwrap(),
            source_id: point.source_id,
            version: point.version,
            metadata: point.metadata,
            dense: dense.clone(),
            sparse: (Vec::new(), Vec::new()),
        });
        self.world.vectors.upsert(DEFAULT_ALIAS, writes.collect(), PATIENCE).await.unwrap();
    }

    async fn delete(&self, ids: &[Uuid]) {
        self.world.vectors.delete(DEFAULT_ALIAS, ids, i64::MAX - PLAUSIBLE_LEAD, PATIENCE).await.unwrap();
    }

    async fn last_version(&self) -> i64 {
        self.sql("COPY (SELECT last_value FROM row_version) TO STDOUT").await.trim().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_that_were_changed_by_hand_are_made_right() {
    let verified = Verified::start(60, BY_HAND).await;
    verified.expect_parity().await;

    let points = verified.some(9).await;
    let at = |n: usize| points[n].clone();
    let last = verified.last_version().await;
    let stranger = ProjectId::from_uuid(Uuid::from_u128(0xaa));
    let metadata = json!({"lang": "xx"}).as_object().cloned().unwrap();
    verified
        .put(vec![
            StoredPoint { project_id: Some(stranger), ..at(0) },
            StoredPoint { metadata, ..at(1) },
            // A delivery under that kind would find no row, and delete the point.
            StoredPoint { kind: Some(Kind::Entity), source_id: None, ..at(2) },
            StoredPoint { version: at(3).version - 1, ..at(3) },
            StoredPoint { version: 0, ..at(4) },
            StoredPoint { version: at(5).version + 1, ..at(5) },
            StoredPoint { version: last + 1_000_000, ..at(6) },
            // No row ever had it: handing out versions from there on would use them up.
            StoredPoint { version: i64::MAX, ..at(7) },
            StoredPoint { id: Uuid::from_u128(5), version: 1, ..at(0) },
            StoredPoint { id: Uuid::from_u128(6), version: last + 2_000_000, ..at(0) },
            StoredPoint { id: Uuid::max(), version: i64::MAX, kind: Some(Kind::LlmRequest), ..at(0) },
        ])
        .await;
    verified.delete(&[at(8).id]).await;

    // One that was moved to another project is that one's too.
    let (code, report) = verified.verify(&["--project", "other"]).await;
    assert_eq!(code, 1);
    assert_eq!(report["by_kind"], json!({"wrong_payload": 1}), "{report:#}");
    let (code, table) = verified.run(&["verify"]).await;
    assert_eq!(code, 1);
    for part in ["wrong_payload", "stale", "ahead", "orphan", "missing", &at(8).id.to_string()] {
        assert!(table.contains(part), "{part} in {table}");
    }
    verified.expect_and_repair(json!({"wrong_payload": 3, "stale": 2, "ahead": 3, "orphan": 3, "missing": 1})).await;
    let after = verified.last_version().await;
    assert!(after > last + 2_000_000 && after < last + PLAUSIBLE_LEAD, "{last} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_state_that_lies_is_made_right() {
    let mut verified = Verified::start(60, BY_HAND).await;
    let points = verified.some(5).await;
    let id = |n: usize| points[n].id;
    verified
        .sql(&format!(
            "UPDATE index_state SET version = version + 1000000 WHERE key = '{}';
             UPDATE index_state SET deleted = true WHERE key = '{}';
             DELETE FROM index_state WHERE key = '{}';
             UPDATE index_state SET version = 1 WHERE key = '{}';
             INSERT INTO index_state (sink, kind, key, version) VALUES ('qdrant', 'chunk', '{}', 5);
             INSERT INTO index_state (sink, kind, key, version, deleted) VALUES ('qdrant', 'chunk', '{}', 5, true)",
            id(0),
            id(1),
            id(2),
            id(3),
            Uuid::from_u128(7),
            Uuid::from_u128(8),
        ))
        .await;
    verified.expect_and_repair(json!({"false_claim": 3, "unconfirmed": 2})).await;

    // Outbox rows that were lost.
    verified.world.relay.kill9().await.unwrap();
    verified.sql("UPDATE source SET metadata = '{\"late\": true}' WHERE uri LIKE '%5.%'").await;
    let changed = "COPY (SELECT count(DISTINCT o.key) FROM outbox o JOIN outbox_cursor c USING (sink, lane) WHERE o.seq > c.closed_seq) TO STDOUT";
    let changed: u64 = verified.sql(changed).await.trim().parse().unwrap();
    assert!(changed > 0);
    let lost =
        "DELETE FROM outbox o USING outbox_cursor c WHERE o.sink = c.sink AND o.lane = c.lane AND o.seq > c.closed_seq";
    verified.sql(lost).await;
    verified.world.kill_relay().await;
    verified.expect_and_repair(json!({"stale": changed})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_was_emptied_or_dropped_comes_back() {
    let verified = Verified::start(60, BY_HAND).await;
    let rows = verified.world.rows().await;
    let ids: Vec<Uuid> = rows.keys().copied().collect();
    verified.delete(&ids).await;
    verified.expect_and_repair(json!({"missing": rows.len()})).await;

    let target = verified.world.vectors.alias_target(DEFAULT_ALIAS).await.unwrap().unwrap();
    verified.world.vectors.delete_collection(&target).await.unwrap();
    let (code, report) = verified.verify(&[]).await;
    assert_eq!((code, &report["by_kind"]), (1, &json!({"missing": rows.len()})), "{report:#}");
    // If it is made anew while anything is claimed still, the relay compares everything by itself, too.
    assert_eq!(verified.verify(&["--repair"]).await.0, 0);
    verified.expect_parity().await;
    let passed = "COPY (SELECT started_at IS NULL AND (wanted_at IS NULL OR wanted_at < last_started_at) FROM relay_scrub) TO STDOUT";
    eventually("no comparison is to come", PATIENCE, async || verified.sql(passed).await.trim() == "t").await;

    // By project: `recover` brings back one, and the other stays away.
    verified.delete(&ids).await;
    let (code, output) = verified.run(&["recover", "p"]).await;
    assert!(code == 0 && output.contains("delivered again"), "{output}");
    verified.quiet().await;
    assert_eq!(verified.world.points().await.len(), rows.len() - 30);
    assert_eq!(verified.verify(&["--project", "p"]).await.0, 0);
    let (code, report) = verified.verify(&["--project", "other"]).await;
    assert_eq!((code, &report["by_kind"]), (1, &json!({"missing": 30})), "{report:#}");
    assert_eq!(verified.run(&["recover", "other"]).await.0, 0);
    verified.expect_parity().await;

    // What scripts see when there is no verdict.
    let (code, output) = verified.run(&["verify", "--project", "nobody"]).await;
    assert!(code == 2 && output.contains("no project"), "{code} {output}");
    let args = ["verify", "--endpoint", "http://127.0.0.1:1"];
    let mut nobody = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
    assert_eq!(nobody.wait(PATIENCE).await.unwrap().code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_redis_has_lost_are_sent_again() {
    let mut verified = Verified::start(20, BY_HAND).await;
    // Nobody reads them: there is no worker.
    verified
        .sql("INSERT INTO llm_request (id, project_id, chunk_id, job_id) SELECT derived_id(c.id, 'r'), c.project_id, c.id, j.id FROM chunk c JOIN job j USING (project_id) LIMIT 50")
        .await;
    let queued = async |verified: &Verified| {
        let count = "COPY (SELECT count(*) FROM llm_request WHERE state = 'queued') TO STDOUT";
        eventually("all requests are queued", PATIENCE, async || verified.sql(count).await.trim() == "50").await;
        verified.quiet().await;
    };
    queued(&verified).await;
    verified.expect_parity().await;

    let queue = LlmQueue::connect(&QueueConfig::new(verified.world.redis.url())).unwrap();
    let length = async || queue.stats().await.unwrap().iter().map(|stream| stream.length).sum::<u64>();
    let claimed = queue.claim("somebody", Priority::Normal, 3, None).await.unwrap();
    queue.finish(&claimed[..2]).await.unwrap();
    assert_eq!(length().await, 48);
    verified.expect_and_repair(json!({"missing_in_queue": 2})).await;
    queued(&verified).await;
    assert_eq!(length().await, 50);

    verified.world.redis.flush().await.unwrap();
    verified.expect_and_repair(json!({"missing_in_queue": 50})).await;
    queued(&verified).await;
    assert_eq!(length().await, 50);

    // A request whose outbox row was lost.
    verified.world.relay.kill9().await.unwrap();
    verified.sql("UPDATE llm_request SET state = 'pending', stream_id = NULL WHERE id = (SELECT min(id::text)::uuid FROM llm_request)").await;
    verified.sql("DELETE FROM outbox o USING outbox_cursor c WHERE o.sink = c.sink AND o.lane = c.lane AND o.seq > c.closed_seq").await;
    verified.world.kill_relay().await;
    verified.expect_and_repair(json!({"unconfirmed": 1})).await;
    queued(&verified).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reindexing_writes_points_anew() {
    let verified = Verified::start(40, BY_HAND).await;
    let now = async || verified.sql("COPY (SELECT now()) TO STDOUT").await;
    let delivered_since = async |since: &str| {
        verified.quiet().await;
        let keys = format!("COPY (SELECT count(*) FROM index_state WHERE confirmed_at > '{since}') TO STDOUT");
        verified.sql(&keys).await.trim().parse::<usize>().unwrap()
    };
    // A vector is not compared, and is written anew.
    let damaged = verified.some(1).await;
    verified.put(damaged.clone()).await;
    assert_eq!(verified.verify(&[]).await.0, 0);
    let mut dense = vec![0.0; verified.dimensions().await];
    dense[0] = 1.0;
    let filter = SearchFilter {
        project_id: damaged[0].project_id.unwrap(),
        kinds: Vec::new(),
        source_ids: Vec::new(),
        metadata: Map::new(),
    };
    let query = QuerySpec {
        mode: Mode::Dense,
        dense,
        sparse: SparseVector::default(),
        filter,
        limit: 1,
        score_threshold: Some(0.99),
    };
    let found = async || verified.world.vectors.query(DEFAULT_ALIAS, query.clone()).await.unwrap().len();
    assert_eq!(found().await, 1);

    let rows = verified.world.rows().await.len();
    let before = now().await;
    let uri = verified
        .sql(&format!(
            "COPY (SELECT uri FROM source WHERE id = '{}') TO STDOUT",
            damaged[0].source_id.unwrap().as_uuid()
        ))
        .await;
    let (code, output) = verified.run(&["reindex", "--project", "p", "--source", &uri, "--json"]).await;
    assert_eq!(code, 0, "{output}");
    let of_source = format!(
        "COPY (SELECT count(*) FROM chunk c LEFT JOIN extraction e ON e.chunk_id = c.id WHERE source_id = '{0}') TO STDOUT",
        damaged[0].source_id.unwrap().as_uuid()
    );
    let facts = verified.sql(&of_source.replace("count(*)", "count(e.id)")).await.parse::<usize>().unwrap();
    let of_source = verified.sql(&of_source).await.parse::<usize>().unwrap() + facts;
    assert!(output.contains(&format!("\"keys\":{of_source}")), "{of_source} {output}");
    assert_eq!(delivered_since(&before).await, of_source);
    assert_eq!(found().await, 0, "the vector is right again");

    let before = now().await;
    assert_eq!(verified.run(&["reindex", "--project", "p"]).await.0, 0);
    assert_eq!(delivered_since(&before).await, rows - 30);
    let before = now().await;
    assert_eq!(verified.run(&["reindex", "--all"]).await.0, 0);
    assert_eq!(delivered_since(&before).await, rows);
    let (code, output) = verified.run(&["reindex", "--project", "p", "--source", "none"]).await;
    assert!(code == 1 && output.contains("no source"), "{output}");
    verified.expect_parity().await;
}
