//! Every way of changing a mirrored row leaves its outbox rows. All of it goes through the
//! program `psql`, past our code.

use std::collections::BTreeSet;

use uuid::Uuid;
use waybill_domain::Lane;
use waybill_testkit::{TestDb, psql, psql_file};

const PROJECT: u128 = 0xa0;
const SOURCE: u128 = 0xb0;

/// The id of the chunk `n`.
fn chunk(n: u128) -> Uuid {
    Uuid::from_u128(0xc000 + n)
}

fn keys(chunks: &[u128]) -> BTreeSet<String> {
    chunks.iter().map(|&n| chunk(n).to_string()).collect()
}

/// A row of `chunk` as SQL values.
fn row(n: u128) -> String {
    format!(
        "('{}', '{}', '{}', {n}, 'text', '\\x{}', 0, 4, 1)",
        chunk(n),
        Uuid::from_u128(PROJECT),
        Uuid::from_u128(SOURCE),
        "00".repeat(32)
    )
}

const COLUMNS: &str = "(id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)";

fn insert(chunks: &[u128]) -> String {
    let rows: Vec<String> = chunks.iter().map(|&n| row(n)).collect();
    format!("INSERT INTO chunk {COLUMNS} VALUES {}", rows.join(", "))
}

struct Raw(TestDb);

impl Raw {
    /// A project, a source, the chunks 1 to 3, and an empty log.
    async fn new() -> Self {
        let raw = Self(TestDb::create().await.unwrap());
        let (project, source) = (Uuid::from_u128(PROJECT), Uuid::from_u128(SOURCE));
        raw.run(&format!(
            "INSERT INTO project (id, name) VALUES ('{project}', 'p'), ('{}', 'q')",
            Uuid::from_u128(PROJECT + 1)
        ))
        .await;
        raw.run(&format!(
            "INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
             VALUES ('{source}', '{project}', 'a', 'A', 'text', '\\x{}', 'text', 'chunked', 'test')",
            "00".repeat(32)
        ))
        .await;
        raw.run(&insert(&[1, 2, 3])).await;
        raw.run("DELETE FROM outbox").await;
        raw
    }

    async fn run(&self, sql: &str) -> String {
        psql(&self.0.url, sql).await.unwrap()
    }

    async fn refused(&self, sql: &str) -> String {
        psql(&self.0.url, sql).await.unwrap_err().to_string()
    }

    /// Runs `sql` and checks which chunks it left in the outbox, each once.
    async fn leaves(&self, sql: &str, chunks: &[u128]) {
        self.run(sql).await;
        self.left(sql, chunks).await;
    }

    async fn left(&self, what: &str, chunks: &[u128]) {
        let rows = self.run("SELECT sink, kind, key FROM outbox ORDER BY seq").await;
        let found: Vec<&str> = rows.lines().map(|row| row.strip_prefix("qdrant|chunk|").unwrap()).collect();
        assert_eq!(found.len(), chunks.len(), "{what}: {rows}");
        assert_eq!(found.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), keys(chunks), "{what}");
        self.run("DELETE FROM outbox").await;
    }
}

#[tokio::test]
async fn each_statement_leaves_its_rows() {
    let raw = Raw::new().await;
    let source = Uuid::from_u128(SOURCE);
    let id = |n| chunk(n).to_string();
    raw.leaves(&insert(&[4]), &[4]).await;
    raw.leaves(&insert(&[5, 6, 7]), &[5, 6, 7]).await;
    raw.leaves(&format!("UPDATE chunk SET ordinal = 9 WHERE id = '{}'", id(4)), &[4]).await;
    raw.leaves(&format!("UPDATE chunk SET ordinal = 9 WHERE id IN ('{}', '{}')", id(5), id(6)), &[5, 6]).await;
    raw.leaves(&format!("UPDATE chunk SET id = '{}' WHERE id = '{}'", id(8), id(7)), &[7, 8]).await;
    raw.leaves("UPDATE chunk SET ordinal = 9 WHERE false", &[]).await;
    raw.leaves(&format!("DELETE FROM chunk WHERE id IN ('{}', '{}')", id(6), id(8)), &[6, 8]).await;
    // 1 to 5 are left.
    raw.leaves(&format!("{} ON CONFLICT (id) DO UPDATE SET ordinal = 10", insert(&[5, 6])), &[5, 6]).await;
    raw.leaves(&format!("{} ON CONFLICT DO NOTHING", insert(&[6, 7])), &[7]).await;
    raw.leaves(
        &format!(
            "WITH gone AS (DELETE FROM chunk WHERE id = '{}' RETURNING *),
                  moved AS (UPDATE chunk SET ordinal = 11 WHERE id = '{}' RETURNING *)
             INSERT INTO chunk SELECT '{}', project_id, source_id, ordinal, headings, text, text_hash, start_byte, end_byte, token_count
             FROM gone",
            id(7),
            id(6),
            id(8)
        ),
        &[6, 7, 8],
    )
    .await;
    raw.leaves(
        &format!(
            "MERGE INTO chunk c USING (VALUES ('{}'::uuid, 1), ('{}', 2), ('{}', 3)) AS n (id, what) ON c.id = n.id
             WHEN MATCHED AND n.what = 1 THEN DELETE
             WHEN MATCHED THEN UPDATE SET ordinal = 12
             WHEN NOT MATCHED THEN INSERT {COLUMNS} VALUES {}",
            id(8),
            id(6),
            id(9),
            row(9)
        ),
        &[6, 8, 9],
    )
    .await;
    raw.leaves(&format!("UPDATE source SET metadata = '{{\"a\": 1}}' WHERE id = '{source}'"), &[1, 2, 3, 4, 5, 6, 9])
        .await;
    raw.leaves(&format!("UPDATE source SET title = 'B' WHERE id = '{source}'"), &[]).await;
    raw.leaves("DELETE FROM source", &[1, 2, 3, 4, 5, 6, 9]).await;
}

#[tokio::test]
async fn a_copy_leaves_its_rows() {
    let raw = Raw::new().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = |n: u128| {
        let (project, source) = (Uuid::from_u128(PROJECT), Uuid::from_u128(SOURCE));
        format!("{}\t{project}\t{source}\t{n}\ttext\t\\\\x{}\t0\t4\t1\n", chunk(n), "00".repeat(32))
    };
    let sql = format!("COPY chunk {COLUMNS} FROM stdin;\n{}{}\\.\n", line(4), line(5));
    std::fs::write(file.path(), sql).unwrap();
    psql_file(&raw.0.url, file.path()).await.unwrap();
    raw.left("COPY", &[4, 5]).await;
}

#[tokio::test]
async fn a_cascade_from_a_project_leaves_its_rows() {
    let raw = Raw::new().await;
    raw.leaves("DELETE FROM project", &[1, 2, 3]).await;
}

#[tokio::test]
async fn a_chunk_that_changes_its_project_is_dirty_in_both() {
    let raw = Raw::new().await;
    let (from, to) = (Uuid::from_u128(PROJECT), Uuid::from_u128(PROJECT + 1));
    raw.run(&format!("UPDATE chunk SET project_id = '{to}' WHERE id = '{}'", chunk(1))).await;
    let rows = raw.run("SELECT key, project_id FROM outbox ORDER BY project_id").await;
    assert_eq!(rows, format!("{0}|{from}\n{0}|{to}", chunk(1)));
    raw.run("DELETE FROM outbox").await;
    raw.leaves(&format!("UPDATE source SET project_id = '{to}'"), &[1, 2, 2, 3, 3]).await;
}

#[tokio::test]
async fn what_is_rolled_back_leaves_none() {
    let raw = Raw::new().await;
    raw.leaves(&format!("BEGIN; {}; ROLLBACK", insert(&[4])), &[]).await;
    raw.leaves(&format!("BEGIN; {}; SAVEPOINT s; {}; ROLLBACK TO s; COMMIT", insert(&[4]), insert(&[5])), &[4]).await;
    // A statement that fails takes its outbox rows with it.
    raw.refused(&insert(&[6, 4])).await;
    raw.left("a duplicate", &[]).await;
}

#[tokio::test]
async fn truncate_is_refused_and_says_what_to_do() {
    let raw = Raw::new().await;
    // Without CASCADE, Postgres itself refuses: other tables point to this one.
    raw.refused("TRUNCATE chunk").await;
    for (sql, table) in [
        ("TRUNCATE chunk CASCADE", "chunk"),
        ("TRUNCATE source CASCADE", "chunk"),
        // The first mirrored table that it comes to.
        ("TRUNCATE project CASCADE", "entity"),
    ] {
        let refused = raw.refused(sql).await;
        assert!(refused.contains(&format!("TRUNCATE of \"{table}\" is refused")), "{sql}: {refused}");
        assert!(refused.contains("qdrant"), "{sql}: {refused}");
        assert!(refused.contains(&format!("Use DELETE FROM {table}.")), "{sql}: {refused}");
    }
    assert_eq!(raw.run("SELECT count(*) FROM chunk").await, "3");
    raw.left("TRUNCATE", &[]).await;
}

#[tokio::test]
async fn outbox_rows_are_never_updated() {
    let raw = Raw::new().await;
    raw.run(&insert(&[4])).await;
    let refused = raw.refused("UPDATE outbox SET lane = 1").await;
    assert!(refused.contains("outbox rows are never updated"), "{refused}");
    raw.left("UPDATE outbox", &[4]).await;
}

#[tokio::test]
async fn a_row_by_hand_takes_an_xid_before_its_seq() {
    let raw = Raw::new().await;
    let id = chunk(1);
    let xid = raw
        .run(&format!(
            "INSERT INTO outbox (sink, lane, kind, key, project_id)
             SELECT 'qdrant', outbox_lane('{id}'), 'chunk', '{id}', '{}' WHERE pg_current_xact_id_if_assigned() IS NOT NULL
             RETURNING key",
            Uuid::from_u128(PROJECT)
        ))
        .await;
    assert_eq!(xid, id.to_string(), "the trigger runs before the statement reads");
}

#[tokio::test]
async fn headers_of_the_transaction_go_with_its_rows() {
    let raw = Raw::new().await;
    let headers = r#"{"traceparent": "00-a"}"#;
    raw.run(&format!("BEGIN; SELECT set_config('waybill.headers', '{headers}', true); {}; COMMIT", insert(&[4]))).await;
    raw.run(&insert(&[5])).await;
    assert_eq!(raw.run("SELECT coalesce(headers, 'none') FROM outbox ORDER BY seq").await, format!("{headers}\nnone"));
}

#[tokio::test]
async fn versions_grow_over_deletion_too() {
    let raw = Raw::new().await;
    let version =
        async || raw.run(&format!("SELECT version FROM chunk WHERE id = '{}'", chunk(1))).await.parse::<i64>().unwrap();
    let first = version().await;
    raw.run(&format!("UPDATE chunk SET version = 0, ordinal = 5 WHERE id = '{}'", chunk(1))).await;
    let second = version().await;
    raw.run(&format!("DELETE FROM chunk WHERE id = '{}'", chunk(1))).await;
    raw.run(&insert(&[1])).await;
    assert!(first < second && second < version().await);
}

#[tokio::test]
async fn the_lane_in_sql_is_the_lane_in_rust() {
    let raw = Raw::new().await;
    let rows = raw
        .run(
            "SELECT id, outbox_lane(id) FROM (SELECT md5(n::text)::uuid AS id FROM generate_series(1, 1000) AS n) AS r",
        )
        .await;
    let mut lanes = BTreeSet::new();
    for row in rows.lines() {
        let (id, lane) = row.split_once('|').unwrap();
        assert_eq!(Lane::of(id.parse().unwrap()).get().to_string(), lane, "{id}");
        lanes.insert(lane.to_owned());
    }
    assert_eq!(lanes.len(), 64, "these ids reach every lane");
    raw.run(&insert(&[4])).await;
    assert_eq!(raw.run("SELECT lane FROM outbox").await, Lane::of(chunk(4)).get().to_string());
}
