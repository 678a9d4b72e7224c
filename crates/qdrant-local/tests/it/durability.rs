//! The server is killed, with SIGKILL, in the middle of writing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qdrant_client::qdrant::vector_output::Vector as Stored;
use qdrant_client::qdrant::{
    CreateAliasBuilder, CreateFieldIndexCollectionBuilder, DeletePointsBuilder, FieldType, GetPointsBuilder,
    UpsertPointsBuilder,
};
use qdrant_client::{Qdrant, QdrantError};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{DENSE, SPARSE, connect, create_collection, integer, number, older_than, point};

const COLLECTION: &str = "stream";
const WRITERS: u64 = 4;
/// Points of one request.
const BATCH: u64 = 48;
/// Batches a writer goes round, overwriting them with ever newer versions.
const BATCHES: u64 = 6;
/// Limit for anything that waits for the other process.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server in a process of its own, killed when dropped.
struct Process {
    child: Child,
    client: Arc<Qdrant>,
}

impl Process {
    async fn start(dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_qdrant-local"))
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        timeout(PATIENCE, stdout.read_line(&mut address)).await.unwrap().unwrap();
        let client = Arc::new(connect(&format!("http://{}", address.trim())));
        Self { child, client }
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn terminate(mut self) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(sent.unwrap().success());
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap();
        assert!(status.unwrap().success());
    }
}

/// What became of a point's versions.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    sent: i64,
    acknowledged: i64,
}

type Ledger = Arc<Mutex<BTreeMap<u64, Versions>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill_in_the_middle_of_a_batch() {
    let dir = TempDir::new().unwrap();
    let ledger = Ledger::default();
    let server = Process::start(dir.path()).await;
    create_collection(&server.client, COLLECTION).await;
    // The index of the version is what a conditional upsert looks at.
    let index = CreateFieldIndexCollectionBuilder::new(COLLECTION, "version", FieldType::Integer);
    server.client.create_field_index(index).await.unwrap();
    server.kill().await;

    // Kills after a few and after more batches hit different moments.
    for (round, kill_after) in [3_usize, 17, 29, 8].into_iter().enumerate() {
        let server = Process::start(dir.path()).await;
        check(&server.client, &ledger).await;
        let acknowledged = watch::Sender::new(0_usize);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let client = Arc::clone(&server.client);
            let ledger = Arc::clone(&ledger);
            let acknowledged = acknowledged.clone();
            let first_version = 1 + round as i64 * 1_000;
            writers.spawn(async move {
                write(&client, writer, first_version, &ledger, &acknowledged).await;
            });
        }
        let mut progress = acknowledged.subscribe();
        timeout(PATIENCE, progress.wait_for(|done| *done >= kill_after)).await.unwrap().unwrap();
        server.kill().await;
        timeout(PATIENCE, writers.join_all()).await.unwrap();
    }

    let server = Process::start(dir.path()).await;
    check(&server.client, &ledger).await;
    finish(&server.client, &ledger).await;
    server.terminate().await;
    let server = Process::start(dir.path()).await;
    check(&server.client, &ledger).await;
}

/// Overwrites the writer's points with newer and newer versions until the
/// server is gone.
async fn write(client: &Qdrant, writer: u64, first_version: i64, ledger: &Ledger, acknowledged: &watch::Sender<usize>) {
    for (batch, version) in (0..BATCHES).cycle().zip(first_version..) {
        let first = (writer * BATCHES + batch) * BATCH;
        let ids = first..first + BATCH;
        note(ledger, ids.clone(), |versions| versions.sent = version);
        if upsert(client, ids.clone(), version).await.is_err() {
            return;
        }
        note(ledger, ids, |versions| versions.acknowledged = version);
        acknowledged.send_modify(|done| *done += 1);
    }
}

async fn upsert(client: &Qdrant, ids: std::ops::Range<u64>, version: i64) -> Result<(), QdrantError> {
    let points = ids.map(|id| {
        let payload = json!({"version": version, "text": format!("{id} at {version}")});
        point(id, dense(id, version), &[(1, version as f32)], payload)
    });
    let request =
        UpsertPointsBuilder::new(COLLECTION, points.collect::<Vec<_>>()).update_filter(older_than(version)).wait(true);
    client.upsert_points(request).await.map(drop)
}

fn dense(id: u64, version: i64) -> [f32; 4] {
    [id as f32, version as f32, 1.0, 0.0]
}

fn note(ledger: &Ledger, ids: std::ops::Range<u64>, change: impl Fn(&mut Versions)) {
    let mut ledger = ledger.lock().unwrap();
    for id in ids {
        change(ledger.entry(id).or_default());
    }
}

/// Checks that every acknowledged point is there, whole, and at a version that
/// is neither older than what was acknowledged nor one nobody has sent.
async fn check(client: &Qdrant, ledger: &Ledger) {
    let ledger = ledger.lock().unwrap().clone();
    let ids: Vec<_> = ledger.keys().map(|&id| id.into()).collect();
    let request = GetPointsBuilder::new(COLLECTION, ids).with_payload(true).with_vectors(true);
    let found = client.get_points(request).await.unwrap().result;
    let mut found: BTreeMap<_, _> = found.into_iter().map(|point| (number(point.id.clone()), point)).collect();
    for (id, versions) in ledger {
        let Some(point) = found.remove(&id) else {
            assert_eq!(versions.acknowledged, 0, "point {id} is lost");
            continue;
        };
        let version = integer(&point, "version");
        assert!(
            (versions.acknowledged..=versions.sent).contains(&version),
            "point {id} is at {version}, expected {versions:?}"
        );
        let text = point.payload["text"].as_str().unwrap();
        assert_eq!(*text, format!("{id} at {version}"));
        if versions.sent > versions.acknowledged {
            // A write that was never answered may be there in part, until the
            // writer repeats it.
            continue;
        }
        let vectors = point.vectors.unwrap();
        let Some(Stored::Dense(stored)) = vectors.get_vector_by_name(DENSE) else {
            panic!("point {id} has no dense vector");
        };
        assert_eq!(stored.data, dense(id, version));
        let Some(Stored::Sparse(stored)) = vectors.get_vector_by_name(SPARSE) else {
            panic!("point {id} has no sparse vector");
        };
        assert_eq!(stored.values, [version as f32]);
    }
}

/// Repeats what was sent but not acknowledged, as a writer that lost its
/// server does. Nothing may be passed by: afterwards all must be whole.
async fn finish(client: &Qdrant, ledger: &Ledger) {
    let open: Vec<_> = {
        let ledger = ledger.lock().unwrap();
        let open = ledger.iter();
        open.filter(|(_, versions)| versions.sent > versions.acknowledged)
            .map(|(&id, versions)| (id, versions.sent))
            .collect()
    };
    for (id, version) in open {
        upsert(client, id..id + 1, version).await.unwrap();
        note(ledger, id..id + 1, |versions| {
            versions.acknowledged = version;
        });
    }
}

#[tokio::test]
async fn alias_changes_and_deletions_survive_a_kill() {
    let dir = TempDir::new().unwrap();
    let server = Process::start(dir.path()).await;
    for name in ["old", "new"] {
        create_collection(&server.client, name).await;
        let alias = CreateAliasBuilder::new(name, "live");
        server.client.create_alias(alias).await.unwrap();
    }
    let stored = [1, 2].map(|id| point(id, [1.0; 4], &[(1, 1.0)], json!({"version": 1})));
    let upsert = UpsertPointsBuilder::new("live", stored.to_vec());
    server.client.upsert_points(upsert).await.unwrap();
    let delete = DeletePointsBuilder::new("live").points(vec![1_u64]);
    server.client.delete_points(delete).await.unwrap();
    server.client.delete_collection("old").await.unwrap();
    server.kill().await;

    let server = Process::start(dir.path()).await;
    assert!(!server.client.collection_exists("old").await.unwrap());
    let aliases = server.client.list_aliases().await.unwrap().aliases;
    assert_eq!(aliases.len(), 1);
    assert_eq!(aliases[0].collection_name, "new");
    let request = GetPointsBuilder::new("live", vec![1.into(), 2.into()]);
    let found = server.client.get_points(request).await.unwrap().result;
    let found: Vec<_> = found.into_iter().map(|point| number(point.id)).collect();
    assert_eq!(found, [2]);
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_is_there() {
    let dir = TempDir::new().unwrap();
    let server = Process::start(dir.path()).await;
    let second = Command::new(env!("CARGO_BIN_EXE_qdrant-local"))
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", "127.0.0.1:0"])
        .kill_on_drop(true)
        .output();
    let second = timeout(PATIENCE, second).await.unwrap().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8(second.stderr).unwrap();
    let owner = format!("in use by process {}", server.child.id().unwrap());
    assert!(message.contains(&owner), "{message}");
}
