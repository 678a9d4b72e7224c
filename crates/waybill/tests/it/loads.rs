//! Large loads: delivery that is stopped for them goes on, however they end.

use std::process::Stdio;

use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
};
use waybill_api::relay::v1::GetStatusRequest;
use waybill_testkit::{Signal, eventually, psql, signal};

use crate::{
    program::{assert_has, ran, waybill},
    world::{PATIENCE, World},
};

/// An import of JSON lines, fed by the test.
struct Import {
    child: Child,
    lines: ChildStdin,
}

impl Import {
    fn start(world: &World, how: &str) -> Self {
        let mut command = waybill(world.dir.path());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        command.args(["import", "-", "--project", "p", how, "--endpoint", &url(world.ports.ingestion)]);
        command.args(["--relay-endpoint", &url(world.ports.relay)]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn().unwrap();
        let lines = child.stdin.take().unwrap();
        Self { child, lines }
    }

    /// Feeds documents, and waits until Postgres has them.
    async fn load(&mut self, world: &World, name: &str, count: usize) {
        for n in 0..count {
            let line = format!("{{\"uri\": \"{name}/{n}\", \"text\": \"Document {n} of {name}.\"}}\n");
            self.lines.write_all(line.as_bytes()).await.unwrap();
        }
        self.lines.flush().await.unwrap();
        let sources = format!("COPY (SELECT count(*) FROM source WHERE uri LIKE '{name}/%') TO STDOUT");
        let sent = count.to_string();
        eventually("the documents are in Postgres", PATIENCE, async || {
            psql(&world.db.url, &sources).await.unwrap().trim() == sent
        })
        .await;
    }
}

async fn sql(world: &World, select: &str) -> String {
    psql(&world.db.url, &format!("COPY ({select}) TO STDOUT")).await.unwrap().trim().to_owned()
}

const PAUSES: &str = "SELECT count(*) FROM sink_pause WHERE until > now()";

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinated_load_is_delivered_after_it_and_on_every_way_out() {
    let world = World::start().await;

    // Its end in good order.
    let mut import = Import::start(&world, "--coordinated");
    import.load(&world, "a", 50).await;
    assert_eq!(sql(&world, PAUSES).await, "2", "both sinks");
    assert_eq!((world.confirmed().await, world.points().await.len()), (0, 0), "nothing is delivered meanwhile");
    drop(import.lines);
    let ended = ran(import.child.wait_with_output().await.unwrap()).expect_code(0);
    assert_has(&ended.stderr, &["paused qdrant and llm, nothing is under way", "resumed delivery"]);
    assert_eq!(sql(&world, PAUSES).await, "0");
    world.wait_until_equal().await;

    // Ctrl-C.
    let mut import = Import::start(&world, "--coordinated");
    import.load(&world, "b", 50).await;
    signal(import.child.id().unwrap(), Signal::SIGINT).unwrap();
    let ended = ran(import.child.wait_with_output().await.unwrap()).expect_code(130);
    assert_has(&ended.stderr, &["resumed delivery", "interrupted"]);
    assert_eq!(sql(&world, PAUSES).await, "0");
    world.wait_until_equal().await;

    // Killed: it can't resume, so the pause has an end of its own.
    let mut import = Import::start(&world, "--coordinated");
    import.load(&world, "c", 50).await;
    import.child.kill().await.unwrap();
    let lasts = "SELECT count(*) FROM sink_pause WHERE until BETWEEN now() AND now() + interval '1 minute'";
    assert_eq!(sql(&world, lasts).await, "2");
    assert_eq!(world.confirmed().await, 100);
    // A minute later.
    psql(&world.db.url, "UPDATE sink_pause SET until = now()").await.unwrap();
    world.wait_until_equal().await;
    assert_eq!(world.confirmed().await, 150);

    // A pause of somebody else stays.
    world.run(&["relay", "pause", "qdrant", "--by", "ada", "--reason", "moving"]).await.expect_code(0);
    let mut import = Import::start(&world, "--coordinated");
    import.load(&world, "d", 5).await;
    drop(import.lines);
    let ended = ran(import.child.wait_with_output().await.unwrap()).expect_code(0);
    assert_has(&ended.stderr, &["qdrant was paused already, by ada", "it stays so"]);
    assert_eq!(sql(&world, "SELECT sink, paused_by FROM sink_pause").await, "qdrant\tada");
    let still = world.run(&["relay", "drain", "qdrant", "--still"]).await.expect_code(0);
    assert_has(&still.stdout, &["qdrant is paused, and nothing is under way: 5 rows to confirm"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_still_while_a_relay_delivers() {
    let mut world = World::start().await;
    let mut import = Import::start(&world, "--bulk");
    import.load(&world, "a", 50).await;
    world.wait_until_equal().await;
    // In the middle of a delivery: the embedding service does not answer.
    world.embedding.signal(Signal::SIGSTOP).unwrap();
    import.load(&world, "a/more", 50).await;
    eventually("a delivery is under way", PATIENCE, async || {
        let status = world.relay_client().get_status(GetStatusRequest::default()).await.unwrap().into_inner();
        status.sinks.iter().any(|sink| sink.sink == "qdrant" && sink.in_flight > 0)
    })
    .await;
    world.run(&["relay", "pause", "qdrant", "--reason", "test"]).await.expect_code(0);
    let not_still = world.run(&["relay", "drain", "qdrant", "--still", "--timeout", "2s"]).await.expect_code(1);
    assert_has(&not_still.stdout, &["qdrant not drained in time"]);
    world.embedding.signal(Signal::SIGCONT).unwrap();
    world.run(&["relay", "drain", "qdrant", "--still"]).await.expect_code(0);
    // Nobody speaks for a relay that is gone.
    world.relay.kill9().await.unwrap();
    world.start_relay().await;
    world.run(&["relay", "resume", "qdrant"]).await.expect_code(0);
    world.wait_until_equal().await;
    drop(import.lines);
    import.child.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_mode_ends_with_its_loads() {
    let world = World::start().await;
    let live = "SELECT count(*) FROM bulk_load WHERE until > now()";
    let threshold = async || world.vectors.collection_info("waybill").await.unwrap().indexing_threshold;
    let mut first = Import::start(&world, "--bulk");
    first.load(&world, "a", 5).await;
    world.wait_until_equal().await;
    let before = sql(&world, "SELECT indexing_threshold FROM vector_index").await;
    let before: u64 = before.parse().unwrap_or_default();
    eventually("no index is built", PATIENCE, async || threshold().await > Some(before.max(1_000_000))).await;
    let mut second = Import::start(&world, "--bulk");
    second.load(&world, "b", 5).await;
    assert_eq!(sql(&world, live).await, "2");

    drop(first.lines);
    ran(first.child.wait_with_output().await.unwrap()).expect_code(0);
    second.load(&world, "b/more", 5).await;
    assert_eq!(sql(&world, live).await, "1");
    // The second is killed: its time is over by itself.
    second.child.kill().await.unwrap();
    psql(&world.db.url, "UPDATE bulk_load SET until = now()").await.unwrap();
    let put_back = "SELECT indexing_threshold IS NULL FROM vector_index";
    eventually("it is as before", PATIENCE, async || sql(&world, put_back).await == "t").await;
    assert!(threshold().await.is_none_or(|kib| kib < 1_000_000), "{:?}", threshold().await);
    world.wait_until_equal().await;
}
