//! What Postgres says of mirrored keys, for comparing a sink with it: in pages by id, and key by
//! key in one snapshot.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SinkName, SourceId};

use crate::{Db, Result, StorageError};

/// Rows of the backlog that one look goes through: some 100 ms of work. Of what lies beyond it
/// nothing is known, so it counts as waiting to be delivered.
pub const BACKLOG_ROWS_MAX: i64 = 100_000;

/// The kinds that are points.
const POINTS: [Kind; 3] = [Kind::Chunk, Kind::Extraction, Kind::Entity];

/// A row with what its point shows, but for the text.
#[derive(Debug, Clone, PartialEq)]
pub struct MirroredRow {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// The source that it comes from; an entity comes from many.
    pub source_id: Option<SourceId>,
    /// Grows with every change of what the point shows.
    pub version: i64,
    /// The source's metadata; an entity has none.
    pub metadata: Map<String, Value>,
}

/// What `index_state` says that the sink shows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What the key names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The version the sink confirmed; of a deleted key, the last it confirmed.
    pub version: i64,
    /// Whether the sink confirmed that it shows nothing of the key.
    pub deleted: bool,
    /// Whether it speaks of a collection that was lost since, see [`crate::index`].
    pub void: bool,
}

/// Everything that Postgres says of a key, in one snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyState {
    /// The key.
    pub id: Uuid,
    /// Its row, if there is one.
    pub row: Option<MirroredRow>,
    /// What the sink is said to show.
    pub claim: Option<Claim>,
    /// Whether a delivery of it is still to come. Only looked up where the sink has not
    /// confirmed the row as it is.
    pub pending: bool,
}

impl KeyState {
    /// Says whether the sink confirmed the row as it is, be it under an earlier generation.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        let (Some(row), Some(claim)) = (&self.row, &self.claim) else { return false };
        !claim.deleted && claim.version == row.version
    }
}

/// Lists mirrored rows in the order of their ids, from `from` on (inclusive), at most `limit`.
///
/// # Errors
/// If the statement fails.
pub async fn rows(db: &Db, project: Option<ProjectId>, from: Uuid, limit: i64) -> Result<Vec<MirroredRow>> {
    // Two statements: a plan for both would read every project to find one.
    let rows = match project {
        None => {
            sqlx::query_as!(
                Row,
                r#"SELECT kind AS "kind!", id AS "id!", project_id AS "project_id!", source_id, version AS "version!", metadata AS "metadata!"
                   FROM ((SELECT 'chunk' AS kind, c.id, c.project_id, c.source_id, c.version, s.metadata
                          FROM chunk c JOIN source s ON s.id = c.source_id
                          WHERE c.id >= $1 ORDER BY c.id LIMIT $2)
                         UNION ALL
                         (SELECT 'extraction', e.id, e.project_id, c.source_id, e.version, s.metadata
                          FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
                          WHERE e.id >= $1 ORDER BY e.id LIMIT $2)
                         UNION ALL
                         (SELECT 'entity', id, project_id, NULL, version, '{}'::jsonb
                          FROM entity WHERE id >= $1 ORDER BY id LIMIT $2)) AS mirrored
                   ORDER BY id LIMIT $2"#,
                from,
                limit
            )
            .fetch_all(db.pool())
            .await?
        }
        Some(project) => {
            sqlx::query_as!(
                Row,
                r#"SELECT kind AS "kind!", id AS "id!", project_id AS "project_id!", source_id, version AS "version!", metadata AS "metadata!"
                   FROM ((SELECT 'chunk' AS kind, c.id, c.project_id, c.source_id, c.version, s.metadata
                          FROM chunk c JOIN source s ON s.id = c.source_id
                          WHERE c.project_id = $3 AND c.id >= $1 ORDER BY c.id LIMIT $2)
                         UNION ALL
                         (SELECT 'extraction', e.id, e.project_id, c.source_id, e.version, s.metadata
                          FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
                          WHERE e.project_id = $3 AND e.id >= $1 ORDER BY e.id LIMIT $2)
                         UNION ALL
                         (SELECT 'entity', id, project_id, NULL, version, '{}'::jsonb
                          FROM entity WHERE project_id = $3 AND id >= $1 ORDER BY id LIMIT $2)) AS mirrored
                   ORDER BY id LIMIT $2"#,
                from,
                limit,
                project.as_uuid()
            )
            .fetch_all(db.pool())
            .await?
        }
    };
    rows.into_iter().map(MirroredRow::try_from).collect()
}

/// As [`rows`], of one source: its chunks and what was read in them. Entities belong to many
/// sources, so there are none.
///
/// # Errors
/// If the statement fails.
pub async fn rows_of_source(db: &Db, source: SourceId, from: Uuid, limit: i64) -> Result<Vec<MirroredRow>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT m.kind AS "kind!", m.id AS "id!", m.project_id AS "project_id!", s.id AS source_id, m.version AS "version!", s.metadata
           FROM (SELECT 'chunk' AS kind, id, project_id, version FROM chunk WHERE source_id = $3
                 UNION ALL
                 SELECT 'extraction', e.id, e.project_id, e.version
                 FROM chunk c JOIN extraction e ON e.chunk_id = c.id WHERE c.source_id = $3) AS m
           JOIN source s ON s.id = $3
           WHERE m.id >= $1 ORDER BY m.id LIMIT $2"#,
        from,
        limit,
        source.as_uuid()
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter().map(MirroredRow::try_from).collect()
}

/// Lists what `sink` is said to show, tombstones included, in the order of keys, from `from` on
/// (inclusive), at most `limit`.
///
/// # Errors
/// If the statement fails.
pub async fn claims(db: &Db, sink: SinkName, from: Uuid, limit: i64) -> Result<Vec<Claim>> {
    let rows = sqlx::query_as!(
        ClaimRow,
        r#"SELECT i.kind AS "kind!", i.key AS "key!", i.version AS "version!", i.deleted AS "deleted!",
                  i.generation < (SELECT x.generation FROM vector_index x) AS "void!"
           FROM unnest($4::text[]) AS k (kind) CROSS JOIN LATERAL (
               SELECT s.kind, s.key, s.version, s.deleted, s.generation FROM index_state s
               WHERE s.sink = $1 AND s.kind = k.kind AND s.key >= $2 ORDER BY s.key LIMIT $3) AS i
           ORDER BY i.key LIMIT $3"#,
        sink.as_str(),
        from,
        limit,
        &kinds()
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter().map(Claim::try_from).collect()
}

/// Reads what `sink` is said to show of `keys`; a key of which nothing is said is left out.
///
/// # Errors
/// If the statement fails.
pub async fn claims_of(db: &Db, sink: SinkName, keys: &[Uuid]) -> Result<Vec<Claim>> {
    let mut connection = db.pool().acquire().await?;
    claims_on(&mut connection, sink, keys).await
}

/// Picks confirmed keys at random: from each of `places`, those that follow, `run` of each kind at
/// the most. Costs that many index look-ups, whatever the table holds.
///
/// # Errors
/// If the statement fails.
pub async fn sample(db: &Db, sink: SinkName, places: i32, run: i64) -> Result<Vec<Uuid>> {
    // Tombstones are left out afterwards, else a table full of them would be read whole.
    let keys = sqlx::query_scalar!(
        r#"WITH place AS MATERIALIZED (SELECT gen_random_uuid() AS key FROM generate_series(1, $2::integer))
           SELECT DISTINCT i.key AS "key!"
           FROM place p CROSS JOIN unnest($4::text[]) AS k (kind) CROSS JOIN LATERAL (
               SELECT s.key, s.deleted FROM index_state s
               WHERE s.sink = $1 AND s.kind = k.kind AND s.key >= p.key ORDER BY s.key LIMIT $3) AS i
           WHERE NOT i.deleted"#,
        sink.as_str(),
        places,
        run,
        &kinds()
    )
    .fetch_all(db.pool())
    .await?;
    Ok(keys)
}

/// Reads everything about `ids` in one snapshot, in their order.
///
/// # Errors
/// If a statement fails.
pub async fn examine(db: &Db, sink: SinkName, ids: &[Uuid]) -> Result<Vec<KeyState>> {
    let mut tx = db.pool().begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").execute(&mut *tx).await?;
    let mut rows = rows_of(&mut tx, ids).await?;
    let mut claims: HashMap<Uuid, Vec<Claim>> = HashMap::new();
    for claim in claims_on(&mut tx, sink, ids).await? {
        claims.entry(claim.key).or_default().push(claim);
    }
    let mut states: Vec<KeyState> = ids
        .iter()
        .map(|id| {
            let row = rows.remove(id);
            let said = claims.get(id).map(Vec::as_slice).unwrap_or_default();
            // Of a key without a row whichever promises something.
            let claim = match &row {
                Some(row) => said.iter().find(|claim| claim.kind == row.kind),
                None => said.iter().find(|claim| !claim.deleted).or(said.first()),
            };
            KeyState { id: *id, claim: claim.copied(), row, pending: false }
        })
        .collect();
    let open: Vec<Uuid> = states.iter().filter(|state| !state.is_confirmed()).map(|state| state.id).collect();
    if !open.is_empty() {
        let pending = pending(&mut tx, sink, &open).await?;
        for state in &mut states {
            state.pending = !state.is_confirmed() && pending.contains(&state.id);
        }
    }
    tx.commit().await?;
    Ok(states)
}

async fn rows_of(connection: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<Uuid, MirroredRow>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT 'chunk' AS "kind!", c.id AS "id!", c.project_id AS "project_id!", c.source_id, c.version AS "version!", s.metadata AS "metadata!"
           FROM chunk c JOIN source s ON s.id = c.source_id WHERE c.id = ANY($1)
           UNION ALL
           SELECT 'extraction', e.id, e.project_id, c.source_id, e.version, s.metadata
           FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id WHERE e.id = ANY($1)
           UNION ALL
           SELECT 'entity', id, project_id, NULL, version, '{}'::jsonb FROM entity WHERE id = ANY($1)"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| Ok((row.id, MirroredRow::try_from(row)?))).collect()
}

async fn claims_on(connection: &mut PgConnection, sink: SinkName, keys: &[Uuid]) -> Result<Vec<Claim>> {
    // LIMIT keeps the planner from making a join of it, see `sources::read`.
    let rows = sqlx::query_as!(
        ClaimRow,
        r#"SELECT i.kind AS "kind!", i.key AS "key!", i.version AS "version!", i.deleted AS "deleted!",
                  i.generation < (SELECT x.generation FROM vector_index x) AS "void!"
           FROM unnest($2::uuid[]) AS w (key) CROSS JOIN unnest($3::text[]) AS k (kind) CROSS JOIN LATERAL (
               SELECT s.kind, s.key, s.version, s.deleted, s.generation FROM index_state s
               WHERE s.sink = $1 AND s.kind = k.kind AND s.key = w.key LIMIT 1) AS i"#,
        sink.as_str(),
        keys,
        &kinds()
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Claim::try_from).collect()
}

/// Finds those of `keys` that are still to be delivered, or are known not to have been: by the
/// outbox, waiting for another try, or given up. One statement, for keys move from one to the other.
pub(crate) async fn pending(connection: &mut PgConnection, sink: SinkName, keys: &[Uuid]) -> Result<HashSet<Uuid>> {
    let backlog = sqlx::query!(
        r#"WITH unread AS MATERIALIZED (
               SELECT o.key, o.seq > c.closed_seq AS open
               FROM outbox o JOIN outbox_cursor c ON c.sink = o.sink AND c.lane = o.lane
               WHERE o.sink = $1 AND o.seq > (SELECT min(closed_seq) FROM outbox_cursor WHERE sink = $1)
               ORDER BY o.seq LIMIT $3)
           SELECT (SELECT count(*) FROM unread) AS "looked!",
                  ARRAY(SELECT key FROM unread WHERE open AND key = ANY($2)
                        UNION SELECT key FROM outbox_retry WHERE sink = $1 AND key = ANY($2)
                        UNION SELECT key FROM dead_letter WHERE sink = $1 AND key = ANY($2)) AS "keys!""#,
        sink.as_str(),
        keys,
        BACKLOG_ROWS_MAX
    )
    .fetch_one(connection)
    .await?;
    let keys = if backlog.looked >= BACKLOG_ROWS_MAX { keys.to_vec() } else { backlog.keys };
    Ok(keys.into_iter().collect())
}

fn kinds() -> Vec<String> {
    POINTS.map(|kind| kind.as_str().to_owned()).to_vec()
}

struct Row {
    kind: String,
    id: Uuid,
    project_id: Uuid,
    source_id: Option<Uuid>,
    version: i64,
    metadata: Value,
}

impl TryFrom<Row> for MirroredRow {
    type Error = StorageError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            kind: kind(&row.kind)?,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            source_id: row.source_id.map(SourceId::from_uuid),
            version: row.version,
            metadata: match row.metadata {
                Value::Object(metadata) => metadata,
                _ => Map::new(),
            },
        })
    }
}

struct ClaimRow {
    kind: String,
    key: Uuid,
    version: i64,
    deleted: bool,
    void: bool,
}

impl TryFrom<ClaimRow> for Claim {
    type Error = StorageError;

    fn try_from(row: ClaimRow) -> Result<Self> {
        Ok(Self { kind: kind(&row.kind)?, key: row.key, version: row.version, deleted: row.deleted, void: row.void })
    }
}

fn kind(name: &str) -> Result<Kind> {
    name.parse().map_err(|error| StorageError::Corrupt(format!("{error}")))
}
