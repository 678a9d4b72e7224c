//! A library whose stores are compared: by `waybill verify`, and by this test itself.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use uuid::Uuid;
use waybill_testkit::{Program, corpus, eventually, psql};
use waybill_vectors::DEFAULT_ALIAS;

use crate::world::{PATIENCE, World};

/// Nothing is compared but by the test. Small pages, so that there are many.
pub(crate) const BY_HAND: &str = "
                [relay.scrub]
                period_s = 0
                check_s = 0
                [relay.verify]
                page_keys_max = 64
                rows_per_second = 1000000
";

pub(crate) struct Verified {
    pub(crate) world: World,
}

impl Verified {
    /// Starts with documents, metadata, facts and entities in two projects, all delivered.
    pub(crate) async fn start(documents: usize, more: &str) -> Self {
        let verified = Self { world: World::start_with(more).await };
        verified.import(1, documents).await;
        let other = "INSERT INTO project (id, name) VALUES ('00000000-0000-0000-0000-0000000000aa', 'other');
            INSERT INTO entity (id, project_id, type, canonical, aliases)
            SELECT derived_id('00000000-0000-0000-0000-0000000000aa', n::text), '00000000-0000-0000-0000-0000000000aa', 'term', n::text, ARRAY[n::text]
            FROM generate_series(1, 30) AS n;
            UPDATE source SET metadata = '{\"lang\": \"en\", \"n\": 3, \"x\": 1.5, \"whole\": 1.0, \"tags\": [\"a\", null]}' WHERE uri LIKE '%3.%';
            INSERT INTO job (id, project_id, settings) SELECT derived_id(id, 'job'), id, '{}' FROM project WHERE name = 'p';
            INSERT INTO extraction (id, project_id, chunk_id, job_id, type, statement, confidence, quote, quote_start, quote_end, model, prompt_version)
            SELECT derived_id(c.id, 'fact'), c.project_id, c.id, j.id, 'statement', left(c.text, 40), 1, left(c.text, 1), 0, 1, 'm', 'p'
            FROM chunk c JOIN job j USING (project_id) WHERE c.ordinal = 0;";
        verified.sql(other).await;
        verified.world.wait_until_equal().await;
        verified.quiet().await;
        verified
    }

    pub(crate) async fn sql(&self, sql: &str) -> String {
        psql(&self.world.db.url, sql).await.unwrap()
    }

    pub(crate) fn write_corpus(&self, seed: u64, documents: usize) -> std::path::PathBuf {
        let folder = self.world.dir.path().join("corpus");
        std::fs::create_dir_all(&folder).unwrap();
        for (index, document) in corpus::documents(seed, documents).enumerate() {
            let ending = document.uri.rsplit('.').next().unwrap_or("txt");
            std::fs::write(folder.join(format!("{index:04}.{ending}")), document.body).unwrap();
        }
        folder
    }

    pub(crate) async fn import(&self, seed: u64, documents: usize) {
        let mut import = self.world.import(&self.write_corpus(seed, documents));
        assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    }

    /// Waits until the relay has written that nothing is left to do.
    pub(crate) async fn quiet(&self) {
        let open = "COPY (SELECT count(*) FROM outbox o JOIN outbox_cursor c USING (sink, lane) WHERE o.seq > c.closed_seq) TO STDOUT";
        eventually("everything is delivered and closed", PATIENCE, async || self.sql(open).await.trim() == "0").await;
    }

    /// Runs a command of the command line on the relay, and returns its code and what it printed.
    pub(crate) async fn run(&self, args: &[&str]) -> (i32, String) {
        let endpoint = format!("http://127.0.0.1:{}", self.world.ports.relay);
        let args = args.iter().copied().chain(["--endpoint", &endpoint]);
        let mut program = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
        let code = program.wait(PATIENCE).await.unwrap().code().unwrap();
        // Nothing says so: what it waits for is the end of the output.
        let _ended = program.line("\0", PATIENCE).await;
        (code, program.output().join("\n"))
    }

    /// Runs `waybill verify --json`, and returns its code and report.
    pub(crate) async fn verify(&self, args: &[&str]) -> (i32, Value) {
        let (code, output) = self.run(&[&["verify", "--json"], args].concat()).await;
        let report = output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{output}"));
        (code, serde_json::from_str(report).unwrap())
    }

    /// Expects drift of these kinds, has it repaired, and waits until all is as it should be.
    pub(crate) async fn expect_and_repair(&self, by_kind: Value) {
        let (code, report) = self.verify(&[]).await;
        assert_eq!((code, &report["by_kind"]), (1, &by_kind), "{report:#}");
        let (code, report) = self.verify(&["--repair"]).await;
        assert_eq!((code, &report["by_kind"]), (0, &by_kind), "{report:#}");
        assert_eq!(report["repaired_count"], report["finding_count"]);
        self.expect_parity().await;
    }

    /// Waits until Qdrant shows what Postgres says, payloads too, and expects the command to
    /// say so.
    pub(crate) async fn expect_parity(&self) {
        self.world.wait_until_equal().await;
        self.quiet().await;
        let (points, rows) = (self.points().await, self.rows().await);
        for (id, row) in &rows {
            assert_eq!(points.get(id), Some(row), "point {id}");
        }
        assert_eq!(points.len(), rows.len());
        let (code, report) = self.verify(&[]).await;
        assert_eq!((code, &report["finding_count"], &report["undelivered"]), (0, &json!(0), &json!(0)), "{report:#}");
        assert_eq!((&report["rows"], &report["points"]), (&json!(rows.len()), &json!(rows.len())), "each seen once");
    }

    /// What Postgres says, in its own words.
    async fn rows(&self) -> BTreeMap<Uuid, Value> {
        let rows = "COPY (SELECT json_build_object('id', id, 'kind', kind, 'project', project_id, 'source', source_id, 'version', version, 'metadata', metadata)
            FROM (SELECT c.id, 'chunk' AS kind, c.project_id, c.source_id, c.version, s.metadata FROM chunk c JOIN source s ON s.id = c.source_id
                  UNION ALL
                  SELECT e.id, 'extraction', e.project_id, c.source_id, e.version, s.metadata
                  FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
                  UNION ALL SELECT id, 'entity', project_id, NULL, version, '{}' FROM entity) AS r) TO STDOUT";
        let rows = self.sql(rows).await;
        let rows = rows.lines().map(|line| serde_json::from_str::<Value>(&line.replace("\\\\", "\\")).unwrap());
        rows.map(|row| (row["id"].as_str().unwrap().parse().unwrap(), row)).collect()
    }

    /// What Qdrant shows, in the same form.
    async fn points(&self) -> BTreeMap<Uuid, Value> {
        let page = self.world.vectors.scroll_points(DEFAULT_ALIAS, None, Uuid::nil(), 10_000).await.unwrap();
        assert_eq!(page.next, None, "more points than this test has");
        page.points
            .into_iter()
            .map(|point| {
                let value = json!({"id": point.id, "kind": point.kind, "project": point.project_id,
                    "source": point.source_id, "version": point.version, "metadata": point.metadata});
                (point.id, value)
            })
            .collect()
    }
}

/// Copies a directory with all that is in it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
