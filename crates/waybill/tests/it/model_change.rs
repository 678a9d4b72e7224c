//! Another model for everything, while documents are written and searched.

use serde_json::Value;
use waybill_domain::CrashPoint;
use waybill_testkit::{eventually, psql};
use waybill_vectors::DEFAULT_ALIAS;

use crate::{
    program::assert_has,
    verified::{BY_HAND, Verified},
    world::PATIENCE,
};

/// The same model under other names: to the system they are others, with collections of their own.
fn two_more_models() -> String {
    let path = crate::world::model();
    let model = |name: &str| {
        format!(
            "[[embedding.more_models]]\nkind = \"local\"\n[embedding.more_models.local]\npath = {path:?}\nname = \"{name}\"\n"
        )
    };
    format!("{BY_HAND}{}{}", model("second"), model("third"))
}

impl Verified {
    async fn live(&self) -> String {
        self.world.vectors.alias_target(DEFAULT_ALIAS).await.unwrap().unwrap()
    }

    async fn build(&self) -> Value {
        let (_, output) = self.run(&["status", "--json"]).await;
        serde_json::from_str::<Value>(output.lines().next_back().unwrap()).unwrap()["build"].clone()
    }
}

/// Changes, adds and deletes, for ever.
async fn keep_writing(url: &str) {
    for n in 0.. {
        let sql = format!(
            "UPDATE chunk SET ordinal = ordinal + 1 WHERE id = (SELECT id FROM chunk ORDER BY random() LIMIT 1);
             DELETE FROM entity WHERE canonical = '{n}';
             INSERT INTO entity (id, project_id, type, canonical, aliases)
             SELECT derived_id(id, 'new {n}'), id, 'term', 'new {n}', ARRAY['new {n}'] FROM project WHERE name = 'p'"
        );
        psql(url, &sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_model_takes_over_when_its_collection_is_equal() {
    let mut verified = Verified::start(60, &two_more_models()).await;
    let first = verified.live().await;
    let url = verified.world.db.url.clone();

    let changed = tokio::select! {
        changed = verified.run(&["reindex", "--all", "--model", "second"]) => changed,
        () = keep_writing(&url) => unreachable!(),
    };
    assert_eq!(changed.0, 0, "{}", changed.1);
    assert_has(&changed.1, &["are embedded by second, and searches use it"]);
    let second = verified.live().await;
    assert!(second != first && second.contains("second"), "{second}");
    assert!(!verified.world.vectors.collection_exists(&first).await.unwrap(), "the old one is deleted");
    verified.expect_parity().await;
    let endpoint = format!("http://127.0.0.1:{}", verified.world.ports.embedding);
    let searched = crate::program::run(
        verified.world.dir.path(),
        &["search", "harbour", "--project", "p", "--mode", "dense", "--json", "--endpoint", &endpoint],
    );
    assert_has(&searched.expect_code(0).stdout, &["\"second\""]);

    // The relay dies when it has moved the alias, before it could say so.
    verified.world.arm_relay(CrashPoint::AliasMoved.as_str()).await;
    verified.world.relay.line("serving", PATIENCE).await.unwrap();
    let (code, _) = verified.run(&["reindex", "--all", "--model", "third"]).await;
    assert_ne!(code, 0);
    verified.world.relay_aborted().await;
    verified.world.start_relay().await;
    // A change goes to both as long as nobody has said that it is over.
    verified.sql("UPDATE chunk SET ordinal = ordinal + 1").await;
    verified.world.wait_until_equal().await;
    let old = verified.world.vectors.collection_info(&second).await.unwrap().points;
    assert_eq!(old as usize, verified.world.rows().await.len(), "searches may know the old one still");
    assert_eq!(verified.build().await["moved"], false);
    let (code, output) = verified.run(&["reindex", "--cancel-build"]).await;
    assert_ne!(code, 0, "too late: {output}");
    let (code, output) = verified.run(&["reindex", "--all", "--model", "third"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(!verified.world.vectors.collection_exists(&second).await.unwrap());
    assert_eq!(verified.build().await, Value::Null);
    verified.expect_parity().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_model_can_be_cancelled_and_gone_on_with() {
    let verified = Verified::start(60, &two_more_models()).await;
    let first = verified.live().await;
    let (code, output) = verified.run(&["reindex", "--all", "--model", "fourth"]).await;
    assert_ne!(code, 0);
    assert_has(&output, &["doesn't serve the model \"fourth\"", "second, third"]);
    let (code, output) = verified.run(&["reindex", "--cancel-build"]).await;
    assert_ne!(code, 0);
    assert_has(&output, &["no collection is being built"]);

    // Nothing is delivered, so it can't get to its end.
    verified.run(&["relay", "pause", "qdrant", "--reason", "test"]).await;
    tokio::select! {
        ended = verified.run(&["reindex", "--all", "--model", "second"]) => panic!("{}", ended.1),
        () = eventually("all keys are queued", PATIENCE, async || {
            let rows = verified.world.rows().await.len();
            verified.build().await["keys"] == rows
        }) => {}
    }
    let (code, output) = verified.run(&["reindex", "--all", "--model", "third"]).await;
    assert_ne!(code, 0, "{output}");
    assert_has(&output, &["a collection is being built for the model \"second\""]);
    let (_, table) = verified.run(&["status"]).await;
    assert_has(&table, &["for second: "]);

    let (code, output) = verified.run(&["reindex", "--cancel-build"]).await;
    assert_eq!(code, 0, "{output}");
    verified.run(&["relay", "resume", "qdrant"]).await;
    verified.expect_parity().await;
    assert_eq!(verified.live().await, first);

    // Interrupted, it is gone on with: changes go to both meanwhile.
    verified.run(&["relay", "pause", "qdrant", "--reason", "test"]).await;
    tokio::select! {
        ended = verified.run(&["reindex", "--all", "--model", "second"]) => panic!("{}", ended.1),
        () = eventually("all keys are queued", PATIENCE, async || verified.build().await["keys"] != 0) => {}
    }
    verified.run(&["relay", "resume", "qdrant"]).await;
    verified.sql("UPDATE chunk SET ordinal = ordinal + 1").await;
    let (code, output) = verified.run(&["reindex", "--all", "--model", "second"]).await;
    assert_eq!(code, 0, "{output}");
    assert!(verified.live().await.contains("second"));
    verified.expect_parity().await;
    let (code, output) = verified.run(&["reindex", "--all", "--model", "second"]).await;
    assert_eq!(code, 0);
    assert_has(&output, &["second is in use already"]);
}
