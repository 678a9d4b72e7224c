//! Stores that were restored from older copies, real ones; and comparing while everything moves.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use waybill_testkit::{eventually, psql};

use crate::verified::{BY_HAND, Verified, copy_dir};
use crate::world::PATIENCE;

const DOCUMENTS: usize = 80;

impl Verified {
    /// Changes, deletes and adds documents.
    async fn change(&self) {
        self.import(2, DOCUMENTS / 4).await;
        self.sql("UPDATE source SET metadata = '{\"later\": true}' WHERE uri LIKE '%7.%'; DELETE FROM source WHERE uri LIKE '%9.%'; DELETE FROM entity WHERE canonical LIKE '2%'; UPDATE entity SET aliases = aliases || ARRAY['more'] WHERE canonical LIKE '1%'").await;
        self.world.wait_until_equal().await;
        self.quiet().await;
    }

    /// Runs SQL on the server with nobody connected to the database.
    async fn alone(&self, statements: &[&str]) {
        let (admin, name) = (self.world.postgres.admin_url(), &self.world.db.name);
        psql(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
        let end =
            format!("SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{name}'");
        psql(&admin, &end).await.unwrap();
        for statement in statements {
            psql(&admin, statement).await.unwrap();
        }
        psql(&admin, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qdrant_restored_from_an_older_snapshot_catches_up() {
    let mut verified = Verified::start(DOCUMENTS, BY_HAND).await;
    let snapshot = verified.world.dir.path().join("snapshot");
    verified.world.while_qdrant_is_down(|data| copy_dir(data, &snapshot)).await;
    let old = verified.world.points().await;
    verified.change().await;
    let rows = verified.world.rows().await;
    verified
        .world
        .while_qdrant_is_down(|data| {
            std::fs::remove_dir_all(data).unwrap();
            copy_dir(&snapshot, data);
        })
        .await;
    assert_eq!(verified.world.points().await, old, "Qdrant is as it was");

    let missing = rows.keys().filter(|id| !old.contains_key(id)).count();
    let orphan = old.keys().filter(|id| !rows.contains_key(id)).count();
    let stale = rows.iter().filter(|(id, version)| old.get(id).is_some_and(|old| old < version)).count();
    assert!(missing > 10 && orphan > 10 && stale > 10, "{missing} {orphan} {stale}");
    verified.expect_and_repair(json!({"missing": missing, "orphan": orphan, "stale": stale})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restored_from_an_older_dump_has_its_way() {
    let verified = Verified::start(DOCUMENTS, BY_HAND).await;
    let name = verified.world.db.name.clone();
    verified.alone(&[&format!("CREATE DATABASE copy TEMPLATE {name}")]).await;
    verified.change().await;
    let shown = verified.world.points().await;
    // The services go on, and find themselves in the past.
    verified
        .alone(&[&format!("ALTER DATABASE {name} RENAME TO lost"), &format!("ALTER DATABASE copy RENAME TO {name}")])
        .await;
    let rows = verified.world.rows().await;
    assert_ne!(rows, shown);
    let missing = rows.keys().filter(|id| !shown.contains_key(id)).count();
    let orphan = shown.keys().filter(|id| !rows.contains_key(id)).count();
    let ahead = rows.iter().filter(|(id, version)| shown.get(id).is_some_and(|shown| shown > version)).count();
    assert!(missing > 10 && orphan > 10 && ahead > 10, "{missing} {orphan} {ahead}");

    let mut first = (0, serde_json::Value::Null);
    eventually("the relay has its connections again", PATIENCE, async || {
        first = match verified.run(&["verify", "--json"]).await {
            (1, output) => (1, serde_json::from_str(output.lines().next_back().unwrap()).unwrap()),
            _ => return false,
        };
        true
    })
    .await;
    assert_eq!(first.1["by_kind"], json!({"missing": missing, "orphan": orphan, "ahead": ahead}), "{:#}", first.1);
    // Two at once, over all and over one project.
    let (both, one) = tokio::join!(verified.verify(&["--repair"]), verified.verify(&["--repair", "--project", "p"]));
    assert_eq!((both.0, one.0), (0, 0), "{both:#?} {one:#?}");
    verified.expect_parity().await;

    // Life goes on: what is written now is above everything that Qdrant has seen.
    verified.change().await;
    verified.expect_parity().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_drift_while_everything_moves() {
    let verified = Verified::start(DOCUMENTS, BY_HAND).await;
    verified.sql("CREATE TABLE go (n int)").await;
    let busy = AtomicBool::new(true);
    let writer = |number: usize| {
        let (busy, url) = (&busy, verified.world.db.url.clone());
        async move {
            let mut rounds = 0;
            while busy.load(Ordering::Relaxed) {
                rounds += 1;
                let touch =
                    format!("UPDATE source SET metadata = '{{\"round\": {rounds}}}' WHERE uri LIKE '%{number}.%'");
                // Keys that go and come back, some of them in one transaction.
                let flicker = format!(
                    "BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM entity WHERE canonical LIKE '{number}%';
                     DELETE FROM entity WHERE canonical LIKE '{number}%'; INSERT INTO entity SELECT * FROM kept; COMMIT"
                );
                psql(&url, &touch).await.unwrap();
                psql(&url, &flicker).await.unwrap();
                let gone = format!("DELETE FROM entity WHERE canonical = '{number}'");
                psql(&url, &gone).await.unwrap();
                let back = format!(
                    "INSERT INTO entity (id, project_id, type, canonical, aliases)
                     SELECT derived_id(id, '{number}'), id, 'term', '{number}', '{{x}}' FROM project WHERE name = 'other'"
                );
                psql(&url, &back).await.unwrap();
            }
            rounds
        }
    };
    // An open transaction keeps cursors where they are: settled rows stay above them.
    let hold = tokio::spawn({
        let url = verified.world.db.url.clone();
        let sql = "BEGIN; SELECT pg_current_xact_id();
                   DO $$ BEGIN WHILE (SELECT count(*) FROM go) < 1 LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; COMMIT";
        async move { psql(&url, sql).await }
    });
    let compare = async {
        let mut undelivered = 0;
        for round in 0..24_u64 {
            if round == 12 {
                verified.sql("INSERT INTO go VALUES (1)").await;
            }
            let mut import =
                (round % 8 == 0).then(|| verified.world.import(&verified.write_corpus(round + 10, DOCUMENTS)));
            if round % 6 == 5 {
                // Points are written anew as they are, while they are compared.
                assert_eq!(verified.run(&["reindex", "--all"]).await.0, 0);
            }
            let project: &[&str] = if round % 4 == 3 { &["--project", "p"] } else { &[] };
            let (code, report) = verified.verify(project).await;
            assert_eq!((code, &report["findings"]), (0, &json!([])), "round {round}: {report:#}");
            undelivered += report["undelivered"].as_u64().unwrap();
            if let Some(import) = &mut import {
                assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
            }
        }
        busy.store(false, Ordering::Relaxed);
        undelivered
    };
    let (undelivered, one, two, three) = tokio::join!(compare, writer(1), writer(2), writer(3));
    assert!(undelivered > 100, "{undelivered} keys were on their way");
    assert!(one > 5 && two > 5 && three > 5, "{one} {two} {three} rounds");
    hold.await.unwrap().unwrap();
    verified.expect_parity().await;
}
