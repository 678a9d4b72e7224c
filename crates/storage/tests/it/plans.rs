//! Plans that are made while tables are empty, and kept.

use std::time::Duration;

use waybill_storage::{Db, DbConfig, sources::put_group};
use waybill_testkit::eventually;

use crate::support::{Fixture, config, requested, source};

/// Whoever comes first to an empty database keeps its plans until tables are analysed. Puts must
/// not read whole tables meanwhile.
#[tokio::test]
async fn puts_go_by_key_on_tables_that_were_never_analysed() {
    const ROWS: i64 = 50_000;
    let t = Fixture::new().await;
    for table in ["source", "chunk", "put_request"] {
        t.sql(&format!("ALTER TABLE {table} SET (autovacuum_enabled = false)")).await;
    }
    // One connection: after some puts, each of its statements is planned for good.
    let one = Db::connect(&DbConfig { max_connections: 1, ..config(&t.database.url) }).unwrap();
    let put = async |groups: std::ops::Range<i32>| {
        for group in groups {
            let item = |n| {
                let name = format!("{group}-{n}");
                requested(source(t.project, &name, &["one", "two", "three", "four"]), &name)
            };
            let items: Vec<_> = (0..64).map(item).collect();
            for answer in put_group(&one, &items, None).await.unwrap() {
                answer.unwrap();
            }
        }
    };
    put(0..12).await;
    t.sql(&format!(
        "INSERT INTO source (id, project_id, uri, title, media_type, metadata, content_hash, text, state, chunker)
         SELECT gen_random_uuid(), project_id, 'filler ' || n, title, media_type, metadata, content_hash, text, state, chunker
         FROM (SELECT * FROM source LIMIT 1) AS s, generate_series(1, {ROWS}) AS n;
         INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), project_id, id, 1, 'filler', content_hash, 0, 6, 1
         FROM source WHERE uri LIKE 'filler %';
         INSERT INTO put_request (project_id, request_id, fingerprint, source_id, outcome, version, chunk_count, chunks_added, chunks_removed)
         SELECT project_id, 'filler ' || n, fingerprint, source_id, outcome, version, 0, 0, 0
         FROM (SELECT * FROM put_request LIMIT 1) AS r, generate_series(1, {ROWS}) AS n"
    ))
    .await;
    put(12..16).await;
    // A session's figures are there when it has ended.
    one.close().await;
    let there = format!("SELECT n_tup_ins = {ROWS} + 16 * 64 FROM pg_stat_user_tables WHERE relname = 'put_request'");
    eventually("the figures are there", Duration::from_secs(20), async || t.sql(&there).await == "t").await;
    // What filled them read `source` once; each put that reads it adds as much.
    let scanned = t.sql("SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE seq_tup_read >= 100000").await;
    assert_eq!(scanned, "", "rows read without an index");
}
