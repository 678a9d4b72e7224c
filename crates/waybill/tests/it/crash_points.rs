//! Has the relay die between each two of its steps, and compares the stores when the next one
//! has been at work. The kills of `crash` hit anywhere; these hit where something is half done.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;
use waybill_domain::CrashPoint;
use waybill_testkit::{eventually, psql};
use waybill_vectors::DEFAULT_ALIAS;

use crate::{
    extraction::{Library, settings},
    llm_server::{LlmServer, Mood},
    world::{PATIENCE, World, write_corpus},
};

/// Some 600 chunks: several batches of 64.
const DOCUMENTS: usize = 150;

async fn number(world: &World, sql: &str) -> usize {
    psql(&world.db.url, &format!("COPY ({sql}) TO STDOUT")).await.unwrap().trim().parse().unwrap()
}

/// Which version of each row Qdrant shows, as far as Postgres knows.
async fn settled(world: &World) -> BTreeMap<Uuid, i64> {
    let sql = "COPY (SELECT key, version FROM index_state WHERE sink = 'qdrant' AND NOT deleted) TO STDOUT";
    let text = psql(&world.db.url, sql).await.unwrap();
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(id, version)| (id.parse().unwrap(), version.trim().parse().unwrap()))
        .collect()
}

/// Changes one row after the other, for ever: there is always something to deliver.
async fn keep_writing(url: &str) {
    loop {
        let one = "UPDATE chunk SET ordinal = ordinal + 1 WHERE id = (SELECT id FROM chunk ORDER BY random() LIMIT 1)";
        psql(url, one).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_relay_dies_the_stores_end_equal() {
    let mut world = World::start().await;
    let folder = world.dir.path().join("corpus");
    let points = [
        CrashPoint::Read,
        CrashPoint::Embed,
        CrashPoint::Send,
        CrashPoint::SettleBeforeCommit,
        CrashPoint::SettleAfterCommit,
    ];
    for (seed, point) in (20..).zip(points) {
        let name = point.as_str();
        // What is settled and not closed would be delivered again first: nothing to see in that.
        let open = "SELECT count(*) FROM outbox o JOIN outbox_cursor c USING (sink, lane)
                    WHERE o.sink = 'qdrant' AND o.seq > c.closed_seq";
        eventually("all of it is closed", PATIENCE, async || number(&world, open).await == 0).await;
        let before = world.rows().await;
        // Each document is changed, and some are deleted while the relay is at work. It dies at
        // the first hit, and the next one at the third.
        write_corpus(&folder, seed, DOCUMENTS);
        world.arm_relay(name).await;
        let mut import = world.import(&folder);
        world.relay_aborted().await;
        let (settled, shown) = (settled(&world).await, world.points().await);
        match point {
            CrashPoint::Read => assert!(settled == before && shown == before, "nothing is done yet"),
            CrashPoint::Send | CrashPoint::SettleBeforeCommit => assert!(settled != shown, "{name}: done, not settled"),
            CrashPoint::SettleAfterCommit => assert!(settled != before, "some of it is settled"),
            _ => {}
        }
        world.arm_relay(&format!("{name}:3")).await;
        psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%5.%'").await.unwrap();
        let url = world.db.url.clone();
        tokio::select! {
            () = world.relay_aborted() => {}
            () = keep_writing(&url) => {}
        }
        assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
        psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%7.%'").await.unwrap();
        world.start_relay().await;
        world.wait_until_equal().await;
        assert!(world.rows().await != before, "{name}: something was to be done");
        let failed = "SELECT count(*) FROM dead_letter";
        assert_eq!(number(&world, failed).await, 0, "{name}: a death is nobody's failure");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_dies_loses_no_letter() {
    let mut world = World::start().await;
    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 30, 300);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    world.wait_until_equal().await;
    let rows = world.rows().await;
    let ids: Vec<_> = rows.keys().copied().collect();
    let total = ids.len();
    assert!(total > 600, "more than a step: {total}");
    let letters = "SELECT count(*) FROM dead_letter";
    // What is left after the death, at the least: a step takes 500.
    for (point, left) in [(CrashPoint::RedriveBeforeStatement, total), (CrashPoint::RedriveAfterStatement, total - 500)]
    {
        // Qdrant lost every point, and the relay gave every key up. Only a redrive brings them back.
        psql(
            &world.db.url,
            "INSERT INTO dead_letter (sink, kind, key, project_id, error, error_class, attempts)
             SELECT 'qdrant', 'chunk', id, project_id, 'lost', 'unknown', 1 FROM chunk",
        )
        .await
        .unwrap();
        for ids in ids.chunks(500) {
            world.vectors.delete(DEFAULT_ALIAS, ids, i64::MAX, Duration::from_secs(10)).await.unwrap();
        }
        assert!(world.points().await.is_empty());
        // Paused, so that the count of letters says what the redrive has done and no delivery.
        world.run(&["relay", "pause", "qdrant", "--reason", "test"]).await.expect_code(0);
        world.arm_relay(point.as_str()).await;
        world.relay.line("serving", PATIENCE).await.unwrap();
        let broken = world.run(&["dlq", "redrive", "--all"]).await;
        assert_ne!(broken.code, Some(0), "{broken:?}");
        world.relay_aborted().await;
        assert_eq!(number(&world, letters).await, left, "{}", point.as_str());
        world.start_relay().await;
        let rest = world.run(&["dlq", "redrive", "--all", "--json"]).await.expect_code(0);
        assert_eq!(rest.stdout.trim(), format!("{{\"count\":{left}}}"));
        world.run(&["relay", "resume", "qdrant"]).await.expect_code(0);
        eventually("every point is back", PATIENCE, async || world.points().await == rows).await;
        assert_eq!(number(&world, letters).await, 0);
        // A settle that came now would clear the letters of the next round.
        let open = "SELECT count(*) FROM outbox o JOIN outbox_cursor c USING (sink, lane) WHERE o.seq > c.closed_seq";
        eventually("all of it is settled", PATIENCE, async || number(&world, open).await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_dies_is_done_anew() {
    let mut world = World::start().await;
    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 32, 40);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    world.wait_until_equal().await;
    let rows = world.rows().await;
    let ids: Vec<_> = rows.keys().copied().collect();
    world.vectors.delete(DEFAULT_ALIAS, &ids, i64::MAX, Duration::from_secs(10)).await.unwrap();
    world.arm_relay(CrashPoint::Repair.as_str()).await;
    world.relay.line("serving", PATIENCE).await.unwrap();
    let broken = world.run(&["verify", "--repair"]).await;
    assert_ne!(broken.code, Some(0), "{broken:?}");
    world.relay_aborted().await;
    assert_eq!(settled(&world).await, rows, "no claim is taken back without the row that mends it");
    assert!(world.points().await.is_empty());
    world.start_relay().await;
    world.run(&["verify", "--repair"]).await;
    eventually("every point is back", PATIENCE, async || world.points().await == rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_relay_dies_is_asked_once() {
    let server = LlmServer::start(|_, _| Mood::Answer(Duration::from_millis(5))).await;
    let mut library = Library::open_with(&settings(&server.url), 31).await;
    // So that the sink of the queue is the only one at work.
    library.world.run(&["relay", "drain", "qdrant"]).await.expect_code(0);
    library.world.run(&["relay", "pause", "qdrant", "--reason", "test"]).await.expect_code(0);
    let id = library.start().await;
    for point in [CrashPoint::Send, CrashPoint::SettleBeforeCommit, CrashPoint::SettleAfterCommit] {
        library.world.relay_aborts(point.as_str()).await;
    }
    library.world.start_relay().await;
    let job = library.wait(&id).await;
    assert_eq!((job.dead_count, job.cancelled_count), (0, 0), "{job:?}");
    assert_eq!(server.calls(), usize::try_from(job.done_count).unwrap(), "each request is asked for once");
    library.world.run(&["relay", "resume", "qdrant"]).await.expect_code(0);
    library.world.wait_until_equal().await;
}
