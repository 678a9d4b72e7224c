//! Facts and entities: storing what a model read in a chunk, and reading it back.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{EntityId, ExtractionId, JobId, ProjectId};

use crate::{Db, Result, requests::EntitiesState, sources::begin};

mod reject;

pub use reject::{REJECT_STEP, reject, reject_step};

/// How many, by reason. Without zeros.
pub type Reasons = BTreeMap<&'static str, u32>;

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// The facts, each resting on a quote.
    pub facts: Vec<NewFact>,
    /// Facts, or parts of them, that broke a rule and are not among them: how many, by reason.
    pub facts_dropped: Reasons,
    /// Entities of these facts that broke a rule and are not in them.
    pub entities_dropped: Reasons,
    /// The model that answered.
    pub model: String,
    /// The prompt that was used.
    pub prompt_version: String,
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens of the answer.
    pub completion_tokens: i64,
    /// By the prices that were configured.
    pub cost: f64,
}

/// A fact to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFact {
    /// What sort of fact.
    pub kind: String,
    /// What it says.
    pub statement: String,
    /// Whom or what it is about.
    pub subject: Option<String>,
    /// What it says of the subject.
    pub predicate: Option<String>,
    /// What the subject stands in relation to.
    pub object: Option<String>,
    /// 0 to 1.
    pub confidence: f32,
    /// The chunk's own words.
    pub quote: String,
    /// Where they stand in its text, in bytes.
    pub range: std::ops::Range<usize>,
    /// Whom and what it mentions.
    pub entities: Vec<NewEntity>,
}

/// A mention of an entity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewEntity {
    /// What sort of entity.
    pub kind: String,
    /// Normalised: what makes two spellings one entity.
    pub canonical: String,
    /// As it is spelt here.
    pub name: String,
    /// `subject`, `object` or `mention`.
    pub role: String,
}

/// A stored fact.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Its id.
    pub id: ExtractionId,
    /// The tenant.
    pub project_id: ProjectId,
    /// The chunk it was read in.
    pub chunk_id: Uuid,
    /// The uri of the chunk's source.
    pub source_uri: String,
    /// What it was made for.
    pub job_id: JobId,
    /// What sort of fact.
    pub kind: String,
    /// What it says.
    pub statement: String,
    /// Whom or what it is about.
    pub subject: Option<String>,
    /// What it says of the subject.
    pub predicate: Option<String>,
    /// What the subject stands in relation to.
    pub object: Option<String>,
    /// 0 to 1.
    pub confidence: f32,
    /// The chunk's own words.
    pub quote: String,
    /// Where the quote begins in the chunk's text, in bytes.
    pub quote_start: i32,
    /// Where it ends.
    pub quote_end: i32,
    /// The model that found it.
    pub model: String,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// A stored entity.
#[derive(Debug, Clone, PartialEq)]
pub struct Entity {
    /// Its id.
    pub id: EntityId,
    /// The tenant.
    pub project_id: ProjectId,
    /// What sort of entity.
    pub kind: String,
    /// Normalised name.
    pub canonical: String,
    /// Every spelling that was met.
    pub aliases: Vec<String>,
    /// Facts that mention it.
    pub facts: i64,
}

/// Which facts a listing or a rejection is about.
#[derive(Debug, Clone, PartialEq)]
pub struct FactFilter {
    /// Whose facts.
    pub project_id: ProjectId,
    /// Only those of this chunk.
    pub chunk_id: Option<Uuid>,
    /// Only those of sources whose uris begin so.
    pub uri_prefix: String,
    /// Only those of this job.
    pub job_id: Option<JobId>,
    /// Only those of this type.
    pub kind: Option<String>,
    /// Only those that mention one of these entities; none given: whatever they mention.
    pub entities: Vec<EntityId>,
    /// Only those with less confidence.
    pub confidence_below: Option<f32>,
    /// Only this one.
    pub id: Option<ExtractionId>,
}

impl FactFilter {
    /// All facts of a project.
    #[must_use]
    pub const fn all(project_id: ProjectId) -> Self {
        Self {
            project_id,
            chunk_id: None,
            uri_prefix: String::new(),
            job_id: None,
            kind: None,
            entities: Vec::new(),
            confidence_below: None,
            id: None,
        }
    }

    fn entity_ids(&self) -> Vec<Uuid> {
        self.entities.iter().map(|id| id.as_uuid()).collect()
    }
}

/// Stores what came of a request and finishes it, in one transaction: facts of the chunk that
/// are not among these go, those that stay are left as they are, entities are found or made.
/// Returns `false`, and writes nothing, if the request is no longer open: it was answered by
/// another worker, cancelled, or its chunk is gone. `headers` go into the outbox rows.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing has changed.
pub async fn complete(db: &Db, request: Uuid, outcome: &Outcome, headers: Option<&str>) -> Result<bool> {
    let mut tx = begin(db, headers).await?;
    // The chunk first: who deletes it takes the locks in that order too.
    let Some(chunk) = sqlx::query!(
        "SELECT c.id, c.project_id FROM chunk c
         WHERE c.id = (SELECT chunk_id FROM llm_request WHERE id = $1) FOR NO KEY UPDATE",
        request
    )
    .fetch_optional(&mut *tx)
    .await?
    else {
        return Ok(false);
    };
    let mut facts: BTreeMap<Uuid, &NewFact> = BTreeMap::new();
    for fact in &outcome.facts {
        // The same statement twice is one fact: the first counts.
        facts.entry(ExtractionId::derive(chunk.id, &fact.kind, &fact.statement).as_uuid()).or_insert(fact);
    }
    let entities = facts.values().map(|fact| fact.entities.len()).sum();
    let entities_state = EntitiesState::of(entities, total(&outcome.entities_dropped));
    let Some(job) = sqlx::query_scalar!(
        "UPDATE llm_request
         SET state = 'done', model = $2, prompt_version = $3, prompt_tokens = prompt_tokens + $4,
             completion_tokens = completion_tokens + $5, cost = cost + $6, facts_dropped = $7, facts_dropped_by = $8,
             entities_state = $9, entities_dropped = $10, updated_at = now()
         WHERE id = $1 AND state IN ('pending', 'queued', 'running') RETURNING job_id",
        request,
        outcome.model,
        outcome.prompt_version,
        outcome.prompt_tokens,
        outcome.completion_tokens,
        outcome.cost,
        i32::try_from(total(&outcome.facts_dropped)).unwrap_or(i32::MAX),
        json(&outcome.facts_dropped),
        entities_state.as_str(),
        json(&outcome.entities_dropped)
    )
    .fetch_optional(&mut *tx)
    .await?
    else {
        return Ok(false);
    };
    let project = ProjectId::from_uuid(chunk.project_id);
    replace_facts(&mut tx, chunk.id, project, job, &facts, outcome).await?;
    link_entities(&mut tx, project, &facts).await?;
    tx.commit().await?;
    Ok(true)
}

fn total(reasons: &Reasons) -> i64 {
    reasons.values().map(|count| i64::from(*count)).sum()
}

fn json(reasons: &Reasons) -> Option<serde_json::Value> {
    (!reasons.is_empty()).then(|| reasons.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect())
}

async fn replace_facts(
    connection: &mut PgConnection,
    chunk: Uuid,
    project: ProjectId,
    job: Uuid,
    facts: &BTreeMap<Uuid, &NewFact>,
    outcome: &Outcome,
) -> Result<()> {
    let ids: Vec<Uuid> = facts.keys().copied().collect();
    sqlx::query!("DELETE FROM extraction WHERE chunk_id = $1 AND NOT id = ANY($2)", chunk, &ids)
        .execute(&mut *connection)
        .await?;
    let texts = |of: fn(&NewFact) -> Option<String>| facts.values().map(|fact| of(fact)).collect::<Vec<_>>();
    let place = |at: usize| i32::try_from(at).unwrap_or(i32::MAX);
    sqlx::query!(
        "INSERT INTO extraction (id, project_id, chunk_id, job_id, type, statement, subject, predicate, object,
                                 confidence, quote, quote_start, quote_end, model, prompt_version)
         SELECT f.id, $1, $2, $3, f.type, f.statement, f.subject, f.predicate, f.object, f.confidence, f.quote,
                f.quote_start, f.quote_end, $4, $5
         FROM unnest($6::uuid[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::real[],
                     $13::text[], $14::integer[], $15::integer[])
              AS f (id, type, statement, subject, predicate, object, confidence, quote, quote_start, quote_end)
         ON CONFLICT (id) DO NOTHING",
        project.as_uuid(),
        chunk,
        job,
        outcome.model,
        outcome.prompt_version,
        &ids,
        &texts(|fact| Some(fact.kind.clone())) as &[Option<String>],
        &texts(|fact| Some(fact.statement.clone())) as &[Option<String>],
        &texts(|fact| fact.subject.clone()) as &[Option<String>],
        &texts(|fact| fact.predicate.clone()) as &[Option<String>],
        &texts(|fact| fact.object.clone()) as &[Option<String>],
        &facts.values().map(|fact| fact.confidence.clamp(0.0, 1.0)).collect::<Vec<_>>(),
        &texts(|fact| Some(fact.quote.clone())) as &[Option<String>],
        &facts.values().map(|fact| place(fact.range.start)).collect::<Vec<_>>(),
        &facts.values().map(|fact| place(fact.range.end)).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn link_entities(
    connection: &mut PgConnection,
    project: ProjectId,
    facts: &BTreeMap<Uuid, &NewFact>,
) -> Result<()> {
    // In the order of their ids, so that two workers can't wait for each other.
    let mut entities: BTreeMap<Uuid, (&NewEntity, BTreeSet<&str>)> = BTreeMap::new();
    let mut links: BTreeSet<(Uuid, Uuid, &str)> = BTreeSet::new();
    for (&fact_id, fact) in facts {
        for entity in &fact.entities {
            let id = EntityId::derive(project, &entity.kind, &entity.canonical).as_uuid();
            entities.entry(id).or_insert_with(|| (entity, BTreeSet::new())).1.insert(&entity.name);
            links.insert((fact_id, id, &entity.role));
        }
    }
    // One by one: a batch of array columns can't hold arrays of unequal length.
    for (id, (entity, names)) in &entities {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        sqlx::query!(
            "INSERT INTO entity (id, project_id, type, canonical, aliases) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE
             SET aliases = ARRAY(SELECT DISTINCT a COLLATE \"C\" FROM unnest(entity.aliases || excluded.aliases) AS a ORDER BY 1)
             WHERE NOT excluded.aliases <@ entity.aliases",
            id,
            project.as_uuid(),
            entity.kind,
            entity.canonical,
            &names
        )
        .execute(&mut *connection)
        .await?;
    }
    let fact_ids: Vec<Uuid> = facts.keys().copied().collect();
    let (from, to): (Vec<Uuid>, Vec<Uuid>) = links.iter().map(|(fact, entity, _)| (*fact, *entity)).unzip();
    let roles: Vec<String> = links.iter().map(|(_, _, role)| (*role).to_owned()).collect();
    sqlx::query!(
        "DELETE FROM extraction_entity l
         WHERE l.extraction_id = ANY($1) AND NOT EXISTS (
             SELECT FROM unnest($2::uuid[], $3::uuid[], $4::text[]) AS n (extraction_id, entity_id, role)
             WHERE (n.extraction_id, n.entity_id, n.role) = (l.extraction_id, l.entity_id, l.role))",
        &fact_ids,
        &from,
        &to,
        &roles
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO extraction_entity (extraction_id, entity_id, role)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[]) ON CONFLICT DO NOTHING",
        &from,
        &to,
        &roles
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lists facts by id, from after `after`.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn list_facts(db: &Db, filter: &FactFilter, after: Uuid, limit: i64) -> Result<Vec<Fact>> {
    let rows = sqlx::query!(
        "SELECT e.id, e.project_id, e.chunk_id, s.uri, e.job_id, e.type AS kind, e.statement, e.subject, e.predicate,
                e.object, e.confidence, e.quote, e.quote_start, e.quote_end, e.model, e.created_at
         FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
         WHERE e.project_id = $1 AND e.id > $2 AND s.provisional_until IS NULL
           AND ($3::uuid IS NULL OR e.chunk_id = $3)
           AND ($4::uuid IS NULL OR e.job_id = $4)
           AND (cardinality($5::uuid[]) = 0 OR EXISTS (
               SELECT FROM extraction_entity l WHERE l.extraction_id = e.id AND l.entity_id = ANY($5)))
           AND ($7::uuid IS NULL OR e.id = $7)
           AND starts_with(s.uri, $8)
           AND ($9::text IS NULL OR e.type = $9)
           AND ($10::real IS NULL OR e.confidence < $10)
         ORDER BY e.id LIMIT $6",
        filter.project_id.as_uuid(),
        after,
        filter.chunk_id,
        filter.job_id.map(JobId::as_uuid),
        &filter.entity_ids(),
        limit,
        filter.id.map(ExtractionId::as_uuid),
        filter.uri_prefix,
        filter.kind,
        filter.confidence_below
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Fact {
            id: ExtractionId::from_uuid(row.id),
            project_id: ProjectId::from_uuid(row.project_id),
            chunk_id: row.chunk_id,
            source_uri: row.uri,
            job_id: JobId::from_uuid(row.job_id),
            kind: row.kind,
            statement: row.statement,
            subject: row.subject,
            predicate: row.predicate,
            object: row.object,
            confidence: row.confidence,
            quote: row.quote,
            quote_start: row.quote_start,
            quote_end: row.quote_end,
            model: row.model,
            created_at: row.created_at,
        })
        .collect())
}

/// Returns an entity of a project.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn entity(db: &Db, project: ProjectId, id: EntityId) -> Result<Option<Entity>> {
    let row = sqlx::query!(
        r#"SELECT e.type AS kind, e.canonical, e.aliases,
                  (SELECT count(DISTINCT l.extraction_id) FROM extraction_entity l WHERE l.entity_id = e.id) AS "facts!"
           FROM entity e WHERE e.project_id = $1 AND e.id = $2"#,
        project.as_uuid(),
        id.as_uuid()
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Entity {
        id,
        project_id: project,
        kind: row.kind,
        canonical: row.canonical,
        aliases: row.aliases,
        facts: row.facts,
    }))
}

/// Lists entities of a project by id, from after `after`; only those whose canonical name is
/// `canonical`, if it is not empty.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn list_entities(
    db: &Db,
    project: ProjectId,
    canonical: &str,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Entity>> {
    let rows = sqlx::query!(
        r#"SELECT e.id, e.project_id, e.type AS kind, e.canonical, e.aliases,
                  (SELECT count(DISTINCT l.extraction_id) FROM extraction_entity l WHERE l.entity_id = e.id) AS "facts!"
           FROM entity e
           WHERE e.project_id = $1 AND e.id > $2 AND ($3 = '' OR e.canonical = $3)
           ORDER BY e.id LIMIT $4"#,
        project.as_uuid(),
        after,
        canonical,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Entity {
            id: EntityId::from_uuid(row.id),
            project_id: ProjectId::from_uuid(row.project_id),
            kind: row.kind,
            canonical: row.canonical,
            aliases: row.aliases,
            facts: row.facts,
        })
        .collect())
}
