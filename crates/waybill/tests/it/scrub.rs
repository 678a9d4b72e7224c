//! What is found and made right with no command at all.

use serde_json::{Value, json};
use uuid::Uuid;
use waybill_testkit::eventually;
use waybill_vectors::{DEFAULT_ALIAS, PointWrite};

use crate::{verified::Verified, world::PATIENCE};

const CHECKS: &str = "
                [relay.scrub]
                period_s = 0
                check_s = 1
                [relay.verify]
                page_keys_max = 64
                rows_per_second = 1000000
";

impl Verified {
    async fn status(&self) -> Value {
        let (code, output) = self.run(&["status", "--json"]).await;
        assert_eq!(code, 0, "{output}");
        serde_json::from_str::<Value>(output.lines().next_back().unwrap()).unwrap()["verify"].clone()
    }

    async fn reconfigure(&mut self, change: impl FnOnce(String) -> String) {
        let path = self.world.config();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(text)).unwrap();
        self.world.kill_relay().await;
    }

    async fn put_orphan(&self) {
        let info = self.world.vectors.collection_info(DEFAULT_ALIAS).await.unwrap();
        let orphan = PointWrite {
            id: Uuid::from_u128(1),
            project_id: waybill_domain::ProjectId::from_uuid(Uuid::from_u128(2)),
            kind: waybill_domain::Kind::Chunk,
            source_id: None,
            version: 1,
            metadata: serde_json::Map::new(),
            dense: vec![0.5; usize::try_from(info.dimensions.unwrap()).unwrap()],
            sparse: (Vec::new(), Vec::new()),
        };
        self.world.vectors.upsert(DEFAULT_ALIAS, vec![orphan], PATIENCE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_noticed_and_made_right_by_itself() {
    let mut verified = Verified::start(60, CHECKS).await;
    assert_eq!(verified.status().await["last"], Value::Null, "no pass without a reason");
    let rows = verified.world.rows().await.len();

    let target = verified.world.vectors.alias_target(DEFAULT_ALIAS).await.unwrap().unwrap();
    verified.world.vectors.delete_collection(&target).await.unwrap();
    eventually("the collection is filled again", PATIENCE, async || verified.world.points().await.len() == rows).await;
    verified.expect_parity().await;
    eventually("the pass has ended", PATIENCE, async || verified.status().await["last"] != Value::Null).await;

    // A pass each second finds what no check can: a point without a row. Without repair, it says so.
    verified.quiet().await;
    verified
        .reconfigure(|text| {
            text.replace("check_s = 1", "check_s = 0\nrepair = false").replace("period_s = 0", "period_s = 1")
        })
        .await;
    verified.put_orphan().await;
    eventually("it is found", PATIENCE, async || verified.status().await["last"]["by_kind"] == json!({"orphan": 1}))
        .await;
    let (_, table) = verified.run(&["status"]).await;
    assert!(table.contains("1 differ, "), "{table}");
    assert_eq!(verified.world.points().await.len(), rows + 1);
    verified.reconfigure(|text| text.replace("repair = false", "repair = true")).await;
    verified.expect_parity().await;
    eventually("it is equal again", PATIENCE, async || verified.status().await["last"]["finding_count"] == json!(0))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_goes_on_where_a_dead_relay_left_it() {
    let mut verified = Verified::start(60, CHECKS).await;
    // As slow as it takes to be met in the middle.
    let slow = |text: String| {
        text.replace("check_s = 1", "check_s = 0")
            .replace("period_s = 0", "period_s = 100000")
            .replace("rows_per_second = 1000000", "rows_per_second = 100")
    };
    verified.reconfigure(slow).await;
    let pass = async |verified: &Verified| {
        let row = verified.sql("COPY (SELECT started_at, position, owner FROM relay_scrub) TO STDOUT").await;
        let parts: Vec<String> = row.split('\t').map(str::to_owned).collect();
        (parts[0].clone(), parts[1].parse::<Uuid>().unwrap(), parts[2].clone())
    };
    let mut left = pass(&verified).await;
    eventually("the pass is under way", PATIENCE, async || {
        left = pass(&verified).await;
        left.1.as_u128() >> 124 > 1
    })
    .await;
    verified.reconfigure(|text| text.replace("rows_per_second = 100", "rows_per_second = 1000000")).await;
    // The dead one's lease is over.
    let left = pass(&verified).await;
    verified.sql("UPDATE relay_scrub SET lease_until = now() - interval '1 second'").await;
    eventually("it has ended", PATIENCE, async || verified.status().await["last"] != Value::Null).await;
    let began = verified.sql("COPY (SELECT last_started_at FROM relay_scrub) TO STDOUT").await;
    assert_eq!(began.trim(), left.0, "the same pass");
    let seen = verified.sql("COPY (SELECT last_tally ->> 'rows' FROM relay_scrub) TO STDOUT").await;
    assert_eq!(seen.trim().parse::<usize>().unwrap(), verified.world.rows().await.len(), "each key once");
}
