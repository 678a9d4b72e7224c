//! Kills one process after the other in the middle of an import, and compares Postgres and
//! Qdrant key by key.

use waybill_testkit::{Program, corpus, eventually, psql};

use crate::world::{PATIENCE, World, write_corpus};

/// Some 6,000 chunks: enough that each kill finds work under way.
const DOCUMENTS: usize = 1_500;

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_and_qdrant_killed_in_the_middle_of_an_import() {
    let mut world = World::start().await;
    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 7, DOCUMENTS);
    let mut import = world.import(&folder);

    // Each kill waits until something new is confirmed, so that it hits work under way.
    let mut seen = Vec::new();
    for kill in 0..3 {
        let before = seen.last().copied().unwrap_or(0);
        eventually("deliveries go on", PATIENCE, async || world.confirmed().await > before + 100).await;
        match kill {
            0 => world.kill_relay().await,
            1 => world.kill_postgres().await,
            _ => world.kill_qdrant().await,
        }
        seen.push(world.confirmed().await);
    }
    let ended = import.wait(PATIENCE).await.unwrap();
    assert!(ended.success(), "the import got through: {:?}", import.output());
    world.wait_until_equal().await;
    let rows = world.rows().await;
    assert!(seen.iter().all(|&seen| seen < rows.len()), "each kill came in the middle: {seen:?} of {}", rows.len());

    // Once more with changes and deletes, and all three at once.
    write_corpus(&folder, 8, DOCUMENTS);
    let mut import = world.import(&folder);
    eventually("the second import is under way", PATIENCE, async || world.rows().await != rows).await;
    psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%7.%'").await.unwrap();
    world.kill_relay().await;
    world.kill_postgres().await;
    world.kill_qdrant().await;
    assert!(import.wait(PATIENCE).await.unwrap().success(), "the import got through: {:?}", import.output());
    psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%3.%'").await.unwrap();
    world.wait_until_equal().await;
}

/// Held for the whole of an import, with an xid: the worst that a forgotten session can do.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_slows_neither_delivery_nor_search() {
    let world = World::start().await;
    psql(&world.db.url, "CREATE TABLE go (n int); INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'other')")
        .await
        .unwrap();
    let open = tokio::spawn({
        let url = world.db.url.clone();
        let sql = "BEGIN; SELECT pg_current_xact_id(); INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
                   SELECT gen_random_uuid(), id, 'u', 't', 'text', sha256('x'), 'x', 'chunked', 'test' FROM project WHERE name = 'other';
                   INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
                   SELECT gen_random_uuid(), project_id, id, 0, 'held back', sha256('x'), 0, 9, 2 FROM source WHERE uri = 'u';
                   DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; COMMIT";
        async move { psql(&url, sql).await }
    });
    let running = "COPY (SELECT count(*) FROM pg_locks WHERE relation = 'go'::regclass AND granted) TO STDOUT";
    eventually("the transaction is open", PATIENCE, async || psql(&world.db.url, running).await.unwrap().trim() == "1")
        .await;

    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 9, DOCUMENTS);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    world.wait_until_equal().await;
    let needle = corpus::document(9, 4).needle;
    let endpoint = format!("http://127.0.0.1:{}", world.ports.embedding);
    let args = ["search", &needle, "--project", "p", "--mode", "lexical", "--endpoint", &endpoint, "--json"];
    let mut search = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
    assert!(search.wait(PATIENCE).await.unwrap().success());
    let output = search.output().join("\n");
    assert!(output.contains("0004."), "the needle is found while the transaction is open: {output}");

    let before = world.rows().await;
    psql(&world.db.url, "INSERT INTO go VALUES (1)").await.unwrap();
    open.await.unwrap().unwrap();
    world.wait_until_equal().await;
    assert_eq!(world.rows().await.len(), before.len() + 1, "its own row followed");
}
