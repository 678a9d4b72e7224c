//! The whole system by one command, on real stores: up, import, search, kill, up again.

use std::fs;
use std::path::{Path, PathBuf};

use waybill_testkit::{Signal, eventually};

use crate::place::{Place, STOP_LIMIT, UP_LIMIT, model};
use crate::program::{assert_has, run};

async fn top_hit(place: &Place, question: &str) -> String {
    let found = place.json(&["search", question]).await;
    found["hits"][0]["uri"].as_str().unwrap_or_default().to_owned()
}

fn documents(dir: &Path) -> PathBuf {
    let docs = dir.join("docs");
    fs::create_dir_all(docs.join("animals")).unwrap();
    let write = |name: &str, text: &str| fs::write(docs.join(name), text).unwrap();
    write("animals/cat.md", "# Cats\n\nA cat sleeps most of the day and hunts mice at night.\n");
    write("animals/bee.md", "# Bees\n\nBees gather nectar from flowers and make honey in a hive.\n");
    write("trains.txt", "A train runs on rails between stations and carries passengers.\n");
    write(
        "bread.html",
        "<html><body><h1>Bread</h1><p>Knead flour, water and yeast, then bake the dough.</p></body></html>",
    );
    docs
}

/// Returns every process below `pid`.
fn descendants(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, parent(pid)?))
        })
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // A process that has ended and waits to be collected runs no more.
    if field("State:")?.trim_start().starts_with('Z') {
        return None;
    }
    field("PPid:")?.trim().parse().ok()
}

async fn assert_gone(processes: &[u32]) {
    eventually("its child processes are gone", STOP_LIMIT, async || processes.iter().all(|&pid| parent(pid).is_none()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_found_and_stay_found_after_a_kill() {
    let place = Place::new();
    let docs = documents(place.dir());
    let docs = docs.to_str().unwrap();

    let mut up = place.up().await;
    let pid = up.pid().unwrap();
    let report = place.json(&["import", docs, "--wait"]).await;
    assert_eq!(report["new"], 4, "{report}");
    assert_eq!(top_hit(&place, "where does honey come from?").await, "animals/bee.md");
    assert_eq!(top_hit(&place, "baking dough").await, "bread.html");

    let status = place.json(&["status"]).await;
    assert_eq!(status["sinks"][0]["lag_rows"], 0, "{status}");
    let table = place.run(&["status"]).await.expect_code(0);
    assert_has(&table.stdout, &["LAG ROWS", "qdrant"]);
    let services = fs::read_to_string(place.data_dir().join("endpoints.json")).unwrap();
    assert_has(&services, &["\"ingestion\"", "\"embedding\"", "\"extraction\"", "\"relay\""]);
    let human = place.run(&["search", "cat"]).await.expect_code(0);
    assert_has(&human.stdout, &["Cats", "animals/cat.md", "bytes"]);

    let data_dir = place.data_dir().display().to_string();
    let model = model().display().to_string();
    let args = ["up", "--free-ports", "--data-dir", &data_dir, "--model-dir", &model];
    let second = run(place.dir(), &args).expect_code(1);
    assert_has(&second.stderr, &["in use", &pid.to_string(), &data_dir]);

    let children = descendants(pid);
    assert!(!children.is_empty(), "the stores run as child processes");
    up.kill9().await.unwrap();
    assert_gone(&children).await;

    let mut up = place.up().await;
    let children = descendants(up.pid().unwrap());
    assert_eq!(top_hit(&place, "where does honey come from?").await, "animals/bee.md");
    let again = place.json(&["import", docs, "--wait"]).await;
    assert_eq!((&again["new"], &again["unchanged"]), (&0.into(), &4.into()), "{again}");
    place.run(&["sources", "delete", "animals/bee.md"]).await.expect_code(0);
    eventually("a deleted source is not found", UP_LIMIT, async || {
        top_hit(&place, "where does honey come from?").await != "animals/bee.md"
    })
    .await;

    up.signal(Signal::SIGTERM).unwrap();
    let status = up.wait(STOP_LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{:#?}", up.output());
    assert_gone(&children).await;
    assert!(!place.data_dir().join("endpoints.json").exists());
    place.run(&["search", "x", "--endpoint", "http://127.0.0.1:1"]).await.expect_code(3);
}
