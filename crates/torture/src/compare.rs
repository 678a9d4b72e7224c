//! The stores side by side, key by key, and beside what the clients know.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use waybill_llm::{ExtractionSettings, ExtractionTask, LlmProvider as _, Rules};
use waybill_llm_queue::{LlmQueue, QueueConfig};
use waybill_testkit::psql;
use waybill_vectors::{DEFAULT_ALIAS, StoredPoint};

use crate::{
    FACTS_PREFIX,
    oracle::{Difference, Found, Oracle, State, difference},
    world::World,
};

/// Points read at a time.
const PAGE: u32 = 1_000;

/// How a promise of the end can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// What was acknowledged, or follows from it, is not there.
    Lost,
    /// It is there as it was before.
    Stale,
    /// It is there, and should not be.
    Orphan,
    /// It was done twice.
    Double,
    /// Work is left that should have been done.
    Unfinished,
}

/// A key that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How.
    pub fault: Fault,
    /// Which key, and where.
    pub key: String,
    /// What it should be.
    pub expected: Value,
    /// What it is.
    pub found: Value,
}

/// What a comparison saw.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Comparison {
    /// Keys that differ; none if the stores are equal.
    pub findings: Vec<Finding>,
    /// Sources in Postgres.
    pub sources: usize,
    /// Rows that should be points.
    pub rows: usize,
    /// Points.
    pub points: usize,
    /// Requests for facts, all of them.
    pub requests: usize,
    /// Facts.
    pub facts: usize,
}

impl Comparison {
    fn add(&mut self, fault: Fault, key: String, expected: Value, found: Value) {
        self.findings.push(Finding { fault, key, expected, found });
    }

    /// Counts the findings of one kind.
    #[must_use]
    pub fn count(&self, fault: Fault) -> usize {
        self.findings.iter().filter(|finding| finding.fault == fault).count()
    }
}

/// Compares everything once.
///
/// # Errors
/// If a store does not answer.
pub(crate) async fn compare(world: &World, oracle: &Oracle) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    sources(world, oracle, &mut comparison).await?;
    points(world, &mut comparison).await?;
    claims(world, &mut comparison).await?;
    requests(world, &mut comparison).await?;
    facts(world, &mut comparison).await?;
    queue(world, &mut comparison).await?;
    Ok(comparison)
}

/// Says how the passages of a source stand in each store now, for a violation's details.
pub(crate) async fn passages(world: &World, uri: &str) -> anyhow::Result<Value> {
    // The uri is ours: letters, digits and slashes.
    let query = format!(
        "SELECT c.id, c.version AS row, c.text, i.version AS claim, i.deleted, i.confirmed_at::text
         FROM source s JOIN chunk c ON c.source_id = s.id
         LEFT JOIN index_state i ON i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = c.id
         WHERE s.uri = '{uri}' ORDER BY c.ordinal"
    );
    let mut passages = rows::<Value>(world, &query).await?;
    for passage in &mut passages {
        let id: Uuid = passage["id"].as_str().unwrap_or_default().parse()?;
        let point = world.vectors.get_points(DEFAULT_ALIAS, &[id]).await?.pop();
        passage["point"] = json!(point.map(Mirrored::from));
    }
    Ok(json!(passages))
}

/// Runs a query whose only column is JSON, and reads the rows.
async fn rows<T: DeserializeOwned>(world: &World, query: &str) -> anyhow::Result<Vec<T>> {
    let text = psql(&world.db_url, &format!("SELECT row_to_json(t) FROM ({query}) t")).await?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read the row {line}"))).collect()
}

/// Sources in Postgres beside what the clients know.
async fn sources(world: &World, oracle: &Oracle, comparison: &mut Comparison) -> anyhow::Result<()> {
    let query = "SELECT uri, encode(content_hash, 'hex') AS sha256, version, metadata FROM source";
    let found: Vec<Found> = rows(world, query).await?;
    comparison.sources = found.len();
    let mut found: BTreeMap<String, Found> = found.into_iter().map(|found| (found.uri.clone(), found)).collect();
    for (uri, possible) in oracle.all() {
        let found = found.remove(&uri);
        if let Some(how) = difference(&possible, found.as_ref()) {
            let fault = match how {
                Difference::Lost => Fault::Lost,
                Difference::CameBack => Fault::Orphan,
                Difference::Stale => Fault::Stale,
                Difference::WrittenAgain => Fault::Double,
            };
            comparison.add(fault, format!("postgres source {uri}"), json!(possible), json!(found));
        }
    }
    for (uri, found) in found {
        comparison.add(Fault::Orphan, format!("postgres source {uri}"), json!([State::Absent]), json!(found));
    }
    let query = "SELECT s.uri, s.chunk_count, count(c.id) AS chunks FROM source s
                 LEFT JOIN chunk c ON c.source_id = s.id GROUP BY s.id HAVING count(c.id) <> s.chunk_count";
    for row in rows::<Value>(world, query).await? {
        comparison.add(Fault::Lost, format!("postgres chunks of {}", row["uri"]), json!(row["chunk_count"]), row);
    }
    Ok(())
}

/// A row as its point should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Mirrored {
    id: Uuid,
    kind: String,
    version: i64,
    project: Option<Uuid>,
    source: Option<Uuid>,
    metadata: Map<String, Value>,
}

impl From<StoredPoint> for Mirrored {
    fn from(point: StoredPoint) -> Self {
        Self {
            id: point.id,
            kind: point.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            version: point.version,
            project: point.project_id.map(|id| id.as_uuid()),
            source: point.source_id.map(|id| id.as_uuid()),
            metadata: point.metadata,
        }
    }
}

/// Rows of Postgres beside points of Qdrant.
async fn points(world: &World, comparison: &mut Comparison) -> anyhow::Result<()> {
    let query = "SELECT c.id, 'chunk' AS kind, c.version, c.project_id AS project, c.source_id AS source, s.metadata
                   FROM chunk c JOIN source s ON s.id = c.source_id
                 UNION ALL
                 SELECT e.id, 'extraction', e.version, e.project_id, c.source_id, s.metadata
                   FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
                 UNION ALL
                 SELECT id, 'entity', version, project_id, NULL, '{}' FROM entity";
    let expected: Vec<Mirrored> = rows(world, query).await?;
    comparison.rows = expected.len();
    let mut points = BTreeMap::new();
    let mut from = Some(Uuid::nil());
    // Without an alias nothing was ever delivered.
    if world.vectors.alias_target(DEFAULT_ALIAS).await?.is_none() {
        from = None;
    }
    while let Some(start) = from {
        let page = world.vectors.scroll_points(DEFAULT_ALIAS, None, start, PAGE).await?;
        points.extend(page.points.into_iter().map(|point| (point.id, Mirrored::from(point))));
        from = page.next;
    }
    comparison.points = points.len();
    for row in expected {
        let key = format!("qdrant {} {}", row.kind, row.id);
        match points.remove(&row.id) {
            None => comparison.add(Fault::Lost, key, json!(row), Value::Null),
            Some(point) if same(&point, &row) => {}
            Some(point) => comparison.add(Fault::Stale, key, json!(row), json!(point)),
        }
    }
    for (id, point) in points {
        comparison.add(Fault::Orphan, format!("qdrant {} {id}", point.kind), Value::Null, json!(point));
    }
    Ok(())
}

/// Numbers come back as they like: 1 is 1.0.
fn same(point: &Mirrored, row: &Mirrored) -> bool {
    let plain = |metadata: &Map<String, Value>| -> BTreeMap<String, Value> {
        let number = |value: &Value| value.as_f64().map_or_else(|| value.clone(), |number| json!(number));
        metadata.iter().map(|(key, value)| (key.clone(), number(value))).collect()
    };
    let bare = |mirrored: &Mirrored| Mirrored { metadata: Map::new(), ..mirrored.clone() };
    bare(point) == bare(row) && plain(&point.metadata) == plain(&row.metadata)
}

/// What `index_state` claims beside the rows, and what the relays have left to do.
async fn claims(world: &World, comparison: &mut Comparison) -> anyhow::Result<()> {
    let query =
        "SELECT coalesce(r.kind, i.kind) AS kind, coalesce(r.id, i.key) AS id, r.version AS row, i.version AS claim
                 FROM (SELECT 'chunk' AS kind, id, version FROM chunk
                       UNION ALL SELECT 'extraction', id, version FROM extraction
                       UNION ALL SELECT 'entity', id, version FROM entity) r
                 FULL JOIN (SELECT kind, key, version FROM index_state WHERE sink = 'qdrant' AND NOT deleted) i
                   ON i.kind = r.kind AND i.key = r.id
                 WHERE r.version IS DISTINCT FROM i.version";
    for row in rows::<Value>(world, query).await? {
        let fault = match (row["row"].is_null(), row["claim"].is_null()) {
            (true, _) => Fault::Orphan,
            (_, true) => Fault::Unfinished,
            _ => Fault::Stale,
        };
        let key = format!("index_state {} {}", row["kind"], row["id"]);
        comparison.add(fault, key, row["row"].clone(), row["claim"].clone());
    }
    let query = "SELECT 'outbox_retry' AS place, sink, kind, key, attempts, error FROM outbox_retry
                 UNION ALL
                 SELECT 'dead_letter', sink, kind, key, attempts, error FROM dead_letter";
    for row in rows::<Value>(world, query).await? {
        comparison.add(Fault::Unfinished, format!("{} {} {}", row["place"], row["sink"], row["key"]), Value::Null, row);
    }
    Ok(())
}

/// Requests beside the chunks that they are for.
async fn requests(world: &World, comparison: &mut Comparison) -> anyhow::Result<()> {
    let query = format!(
        "SELECT c.id AS chunk, s.uri, array_remove(array_agg(r.state), NULL) AS states
         FROM chunk c JOIN source s ON s.id = c.source_id LEFT JOIN llm_request r ON r.chunk_id = c.id
         WHERE starts_with(s.uri, '{FACTS_PREFIX}') OR r.id IS NOT NULL
         GROUP BY c.id, s.uri"
    );
    for row in rows::<Value>(world, &query).await? {
        let states: Vec<&str> = row["states"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let is_wanted = row["uri"].as_str().is_some_and(|uri| uri.starts_with(FACTS_PREFIX));
        comparison.requests += states.len();
        let fault = match states.as_slice() {
            ["done"] if is_wanted => continue,
            [] => Fault::Lost,
            _ if !is_wanted => Fault::Orphan,
            // The rules never refuse, so nothing can use up its attempts.
            [_] => Fault::Unfinished,
            _ => Fault::Double,
        };
        comparison.add(fault, format!("llm_request of chunk {} of {}", row["chunk"], row["uri"]), json!(["done"]), row);
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct ChunkText {
    id: Uuid,
    uri: String,
    text: String,
    headings: Vec<String>,
    title: String,
    facts: Vec<FactRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct FactRow {
    statement: String,
    quote: String,
    quote_start: usize,
    quote_end: usize,
}

/// Facts beside those of an undisturbed run of the rules over the same text.
async fn facts(world: &World, comparison: &mut Comparison) -> anyhow::Result<()> {
    let query = format!(
        "SELECT c.id, s.uri, c.text, c.headings, s.title, coalesce(
             (SELECT json_agg(json_build_object('statement', e.statement, 'quote', e.quote,
                                                'quote_start', e.quote_start, 'quote_end', e.quote_end))
              FROM extraction e WHERE e.chunk_id = c.id), '[]') AS facts
         FROM chunk c JOIN source s ON s.id = c.source_id
         WHERE starts_with(s.uri, '{FACTS_PREFIX}') OR EXISTS (SELECT FROM extraction e WHERE e.chunk_id = c.id)"
    );
    for chunk in rows::<ChunkText>(world, &query).await? {
        comparison.facts += chunk.facts.len();
        let expected = if chunk.uri.starts_with(FACTS_PREFIX) { undisturbed(&chunk).await? } else { BTreeSet::new() };
        let found: BTreeSet<FactRow> = chunk.facts.iter().cloned().collect();
        let key = format!("facts of chunk {} of {}", chunk.id, chunk.uri);
        if found.len() < chunk.facts.len() {
            comparison.add(Fault::Double, key.clone(), json!(expected), json!(chunk.facts));
        }
        for fact in expected.difference(&found) {
            comparison.add(Fault::Lost, key.clone(), json!(fact), Value::Null);
        }
        for fact in found.difference(&expected) {
            comparison.add(Fault::Orphan, key.clone(), Value::Null, json!(fact));
        }
    }
    Ok(())
}

async fn undisturbed(chunk: &ChunkText) -> anyhow::Result<BTreeSet<FactRow>> {
    let task = ExtractionTask {
        text: chunk.text.clone(),
        headings: chunk.headings.clone(),
        title: chunk.title.clone(),
        settings: ExtractionSettings { enabled: true, ..ExtractionSettings::default() },
    };
    let answer = Rules::new().extract(&task).await.map_err(|error| anyhow::anyhow!("run the rules: {error}"))?;
    let facts = answer.extraction.facts.into_iter().map(|fact| FactRow {
        statement: fact.statement,
        quote: fact.quote,
        quote_start: fact.start_byte,
        quote_end: fact.end_byte,
    });
    Ok(facts.collect())
}

/// What Redis still holds.
async fn queue(world: &World, comparison: &mut Comparison) -> anyhow::Result<()> {
    let queue = LlmQueue::connect(&QueueConfig::new(world.redis_url.clone()))?;
    for stream in queue.stats().await? {
        if stream.length > 0 || stream.pending > 0 {
            let found = json!({ "length": stream.length, "pending": stream.pending });
            comparison.add(Fault::Orphan, format!("redis stream {}", stream.priority), json!(0), found);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrored(version: i64, rev: Value) -> Mirrored {
        let metadata = Map::from_iter([("rev".to_owned(), rev)]);
        Mirrored { id: Uuid::nil(), kind: "chunk".to_owned(), version, project: None, source: None, metadata }
    }

    #[test]
    fn points_are_compared_with_their_payload_and_numbers_by_value() {
        assert!(same(&mirrored(1, json!(2)), &mirrored(1, json!(2.0))));
        assert!(!same(&mirrored(1, json!(2)), &mirrored(2, json!(2))));
        assert!(!same(&mirrored(1, json!(2)), &mirrored(1, json!(3))));
    }
}
