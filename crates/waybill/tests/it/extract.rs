//! Facts out of documents, through every part: import, queue, worker, and out again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use waybill_testkit::Signal;

use crate::place::{Place, STOP_LIMIT};
use crate::program::assert_has;

/// Plain words, a line each: what the chunks hold is what the files hold.
const DOCUMENTS: [(&str, &str); 3] = [
    (
        "people/ada.txt",
        "Ada Lovelace was an English mathematician. Ada Lovelace was born on 10 December 1815 in London.",
    ),
    ("places/london.txt", "London is the capital of England. In 2021 London had a population of 8.8 million people."),
    (
        "things/engine.txt",
        "The Analytical Engine is a mechanical computer. Charles Babbage designed the Analytical Engine in 1837.",
    ),
];

fn documents(dir: &Path) -> PathBuf {
    let docs = dir.join("docs");
    for (name, text) in DOCUMENTS {
        let path = docs.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    docs
}

fn ids(facts: &[Value]) -> BTreeSet<&str> {
    facts.iter().map(|fact| fact["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_quote_the_documents_and_are_found_once() {
    let place = Place::new();
    let docs = documents(place.dir());
    let mut up = place.up().await;

    let nothing = place.run(&["extract"]).await.expect_code(1);
    assert_has(&nothing.stderr, &["no project", "waybill projects ls"]);
    let report = place.json(&["import", docs.to_str().unwrap()]).await;
    assert_eq!(report["new"], 3, "{report}");
    let none = place.run(&["facts"]).await.expect_code(0);
    assert_has(&none.stderr, &["no facts yet"]);
    let none = place.run(&["jobs"]).await.expect_code(0);
    assert_has(&none.stderr, &["no jobs yet"]);

    let first = place.json(&["extract"]).await;
    assert_eq!((&first["state"], &first["done_count"]), (&"done".into(), &3.into()), "{first}");
    assert_eq!((&first["request_count"], &first["dead_count"]), (&3.into(), &0.into()), "{first}");

    let facts = place.json_lines(&["facts", "-n", "1000"]).await;
    assert!(!facts.is_empty(), "{first}");
    assert_eq!(first["fact_count"], facts.len(), "{first}");
    let texts = BTreeMap::from(DOCUMENTS);
    for fact in &facts {
        let quote = fact["quote"].as_str().unwrap();
        let text = texts[fact["uri"].as_str().unwrap()];
        assert!(!quote.is_empty() && text.contains(quote), "{fact}");
        assert_eq!(fact["job_id"], first["id"], "{fact}");
    }
    let human = place.run(&["facts", "-n", "1"]).await.expect_code(0);
    assert_has(&human.stdout, &["“", "”", "bytes", "confidence"]);
    if facts.len() > 1 {
        assert_has(&human.stderr, &["there are more"]);
    }

    let entities = place.json_lines(&["facts", "--entities", "-n", "1000"]).await;
    assert!(!entities.is_empty());
    let name = entities[0]["aliases"][0].as_str().unwrap();
    let about = place.json_lines(&["facts", "--entity", name, "-n", "1000"]).await;
    assert!(!about.is_empty() && ids(&about).is_subset(&ids(&facts)), "{about:?}");

    let id = first["id"].as_str().unwrap();
    let jobs = place.json_lines(&["jobs"]).await;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!((&jobs[0]["id"], &jobs[0]["state"]), (&first["id"], &"done".into()), "{jobs:?}");
    let table = place.run(&["jobs"]).await.expect_code(0);
    assert_has(&table.stdout, &[id, "done", "3/3"]);
    let followed = place.run(&["jobs", id, "--watch"]).await.expect_code(0);
    assert_has(&followed.stdout, &[id, "done"]);

    let again = place.json(&["extract"]).await;
    assert_eq!(again["state"], "done", "{again}");
    assert_ne!(again["id"], first["id"], "a job of its own");
    let facts_again = place.json_lines(&["facts", "-n", "1000"]).await;
    assert_eq!(ids(&facts_again), ids(&facts), "found again, stored once");
    assert_eq!(facts_again.len(), facts.len());
    assert_eq!(place.json_lines(&["jobs"]).await.len(), 2);

    let few = place.json(&["extract", "--prefix", "people/", "--no-wait"]).await;
    assert_eq!(few["request_count"], 1, "{few}");
    let few = few["id"].as_str().unwrap();
    place.run(&["jobs", few, "--watch"]).await.expect_code(0);
    // What is done stays done, whoever cancels it afterwards.
    let cancelled = place.json(&["jobs", "--cancel", few]).await;
    assert_eq!(cancelled["done_count"], 1, "{cancelled}");

    let source = place.json(&["sources", "get", "people/ada.txt"]).await;
    assert_eq!(source["job_id"], report["job_id"], "{source}");
    let requests = place.json_lines(&["jobs", id, "--requests"]).await;
    assert_eq!(requests.len(), 3, "{requests:?}");
    assert!(requests.iter().all(|request| request["state"] == "done"), "{requests:?}");
    let human = place.run(&["jobs", id, "--requests", "--state", "dead"]).await.expect_code(0);
    assert_has(&human.stderr, &["no such requests"]);

    let of_london = place.json_lines(&["facts", "--prefix", "places/", "-n", "1000"]).await;
    assert!(!of_london.is_empty() && of_london.len() < facts.len(), "{of_london:?}");
    for (args, code, reason) in [
        (vec!["facts", "--reject"], 2, "--yes"),
        (vec!["facts", "--reject", "--yes"], 1, "says nothing"),
        (vec!["facts", "--reject", "--yes", "--all", "--prefix", "places/"], 2, "cannot be used with"),
    ] {
        assert_has(&place.run(&args).await.expect_code(code).stderr, &[reason]);
    }
    let rejected = place.json(&["facts", "--prefix", "places/", "--reject", "--yes"]).await;
    assert_eq!(rejected["rejected_count"], of_london.len());
    let left = place.json_lines(&["facts", "-n", "1000"]).await;
    assert!(left.iter().all(|fact| fact["uri"] != "places/london.txt"), "{left:?}");
    assert_eq!(left.len() + of_london.len(), facts.len());
    let rejected = place.json(&["facts", "--all", "--reject", "--yes"]).await;
    assert_eq!(rejected["rejected_count"], left.len());

    up.signal(Signal::SIGTERM).unwrap();
    let status = up.wait(STOP_LIMIT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{:#?}", up.output());
}
