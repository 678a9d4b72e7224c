//! Putting sources: one transaction for a group, one answer for each of its items.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{Backoff, ErrorClass, PutOutcome};

use super::{
    NewSource, PutAnswer, PutError, PutResult, SourceKey, begin,
    chunks::Plan,
    requests::{Memory, recall, remember},
    rows::{self, Stored},
};
use crate::{Db, Result, StorageError};

/// How often a group is tried when Postgres took it back whole: a deadlock, or a source that
/// another transaction has just made or deleted. Each attempt loses to somebody who won, so
/// eight in a row mean a trouble that more of them won't cure.
const ATTEMPTS: u32 = 8;

/// Between attempts. The winner holds its locks for milliseconds.
const RETRY: Backoff = Backoff { base: Duration::from_millis(2), max: Duration::from_millis(100) };

impl NewSource {
    pub(super) fn chunk_count(&self) -> i64 {
        i64::try_from(self.chunks.len()).unwrap_or(i64::MAX)
    }
}

/// Answers what can be answered without the body: a retry that was answered before, a
/// source that would not change, a project that isn't there. `None` means: read it, cut it,
/// put it. Writes nothing and takes no lock.
///
/// # Errors
/// If Postgres is away or a statement fails.
pub async fn peek(db: &Db, keys: &[&SourceKey]) -> Result<Vec<Option<PutAnswer>>> {
    let mut connection = db.pool().acquire().await?;
    let sight = Sight::take(&mut connection, keys).await?;
    Ok(keys
        .iter()
        .map(|key| match sight.decide(key) {
            Decision::Answer(answer) => Some(answer),
            Decision::Remember(_) | Decision::Create | Decision::Replace => None,
        })
        .collect())
}

/// Stores sources, and answers each in the order given.
///
/// Items that can be done together are one transaction; two for the same source or under
/// the same request id follow each other. What would change nothing writes nothing: not
/// even an xid is taken, unless its request id has to be remembered. `headers`, a JSON
/// object, go into the outbox rows.
///
/// # Errors
/// If Postgres is away or keeps taking the transaction back. What was committed by then
/// stays: putting it again finds it unchanged. A put that Postgres refuses by itself is no
/// error of the group but an answer.
pub async fn put_group(db: &Db, items: &[NewSource], headers: Option<&str>) -> Result<Vec<PutAnswer>> {
    let mut answers: Vec<Option<PutAnswer>> = items.iter().map(|_| None).collect();
    for mut round in rounds(items) {
        // One order for all groups, so that they don't wait for each other in a circle.
        round.sort_by_key(|&index| items[index].key.source_id());
        let group: Vec<&NewSource> = round.iter().map(|&index| &items[index]).collect();
        for (index, answer) in round.iter().zip(put_round(db, &group, headers).await?) {
            answers[*index] = Some(answer);
        }
    }
    // Every index is in one round.
    Ok(answers.into_iter().flatten().collect())
}

/// Parts items into rounds, in which no source and no request id comes twice, and which keep
/// the order of those that share one.
fn rounds(items: &[NewSource]) -> Vec<Vec<usize>> {
    let mut rounds = Vec::new();
    let mut rest: Vec<usize> = (0..items.len()).collect();
    while !rest.is_empty() {
        let mut sources = HashSet::new();
        let mut requests = HashSet::new();
        let (round, later) = rest.into_iter().partition(|&index| {
            let key = &items[index].key;
            // Both are noted even of an item that has to wait: what shares one with it waits too.
            let new_source = sources.insert(key.source_id());
            let new_request = key.request.as_ref().is_none_or(|request| requests.insert((key.project_id, &request.id)));
            new_source && new_request
        });
        rounds.push(round);
        rest = later;
    }
    rounds
}

async fn put_round(db: &Db, items: &[&NewSource], headers: Option<&str>) -> Result<Vec<PutAnswer>> {
    match put_retrying(db, items, headers).await {
        Err(error) if error.class() == ErrorClass::Permanent && items.len() > 1 => {}
        Err(error) if error.class() == ErrorClass::Permanent => return Ok(vec![Err(error.into())]),
        done => return done,
    }
    // One of them is refused by Postgres itself: alone, each gets its own answer.
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        match put_retrying(db, &[item], headers).await {
            Ok(answer) => answers.extend(answer),
            Err(error) if error.class() == ErrorClass::Permanent => answers.push(Err(error.into())),
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}

async fn put_retrying(db: &Db, items: &[&NewSource], headers: Option<&str>) -> Result<Vec<PutAnswer>> {
    for attempt in 1.. {
        let lost = match put_once(db, items, headers).await {
            Ok(Some(answers)) => return Ok(answers),
            Ok(None) => StorageError::Contended,
            Err(error) if error.was_rolled_back() => error,
            Err(error) => return Err(error),
        };
        if attempt == ATTEMPTS {
            return Err(lost);
        }
        tracing::debug!(attempt, error = %lost, "put lost a race");
        tokio::time::sleep(RETRY.ceiling(attempt)).await;
    }
    Err(StorageError::Contended)
}

/// Tries once. `None` if another transaction made a source, deleted one or used a request id
/// between our look and our write.
async fn put_once(db: &Db, items: &[&NewSource], headers: Option<&str>) -> Result<Option<Vec<PutAnswer>>> {
    let mut tx = begin(db, headers).await?;
    let keys: Vec<&SourceKey> = items.iter().map(|item| &item.key).collect();
    let sight = Sight::take(&mut tx, &keys).await?;
    let mut answers: Vec<Option<PutAnswer>> = keys.iter().map(|key| sight.decide(key).answered()).collect();

    let open: Vec<&NewSource> =
        items.iter().zip(&answers).filter(|(_, answer)| answer.is_none()).map(|(item, _)| *item).collect();
    if !open.is_empty() {
        let Some(done) = write(&mut tx, &open).await? else {
            return Ok(None);
        };
        let mut done = done.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
            *answer = done.next();
        }
        tx.commit().await?;
    }
    Ok(Some(answers.into_iter().flatten().collect()))
}

/// Locks, looks again, and writes. `None` as in [`put_once`].
async fn write(connection: &mut PgConnection, items: &[&NewSource]) -> Result<Option<Vec<PutAnswer>>> {
    let locked = rows::lock(connection, items).await?;
    let keys: Vec<&SourceKey> = items.iter().map(|item| &item.key).collect();
    let sight = Sight::take(connection, &keys).await?;
    // A source that was committed after the lock was taken is in sight, but not locked: to
    // write it now would be to write beside its next writer.
    if sight.stored.keys().any(|id| !locked.contains(id)) {
        return Ok(None);
    }
    let decisions: Vec<Decision> = keys.iter().map(|key| sight.decide(key)).collect();
    let chosen = |wanted: fn(&Decision) -> bool| -> Vec<&NewSource> {
        items.iter().zip(&decisions).filter(|(_, decision)| wanted(decision)).map(|(item, _)| *item).collect()
    };
    let created = chosen(|decision| matches!(decision, Decision::Create));
    let replaced = chosen(|decision| matches!(decision, Decision::Replace));

    let mut versions = rows::insert(connection, &created).await?;
    if versions.len() < created.len() {
        return Ok(None);
    }
    let written = [created, replaced.clone()].concat();
    let plan = Plan::make(connection, &written).await?;
    plan.remove(connection).await?;
    versions.extend(rows::update(connection, &replaced).await?);
    let differences = plan.write(connection).await?;

    let mut answers = Vec::with_capacity(items.len());
    let mut done = Vec::new();
    for (item, decision) in items.iter().zip(decisions) {
        let outcome = match decision {
            Decision::Answer(answer) => {
                answers.push(answer);
                continue;
            }
            Decision::Remember(result) => {
                done.push((*item, result));
                answers.push(Ok(result));
                continue;
            }
            Decision::Create => PutOutcome::Created,
            Decision::Replace => PutOutcome::Changed,
        };
        let source_id = item.key.source_id();
        let Some(&version) = versions.get(&source_id.as_uuid()) else {
            return Ok(None);
        };
        let difference = differences.get(&source_id.as_uuid()).copied().unwrap_or_default();
        let result = PutResult {
            source_id,
            outcome,
            version,
            chunk_count: item.chunk_count(),
            chunks_added: difference.added,
            chunks_removed: difference.removed,
            provisional: item.key.provisional.is_some(),
        };
        done.push((*item, result));
        answers.push(Ok(result));
    }
    Ok(remember(connection, &done).await?.then_some(answers))
}

/// What to do with one item.
enum Decision {
    Answer(PutAnswer),
    /// Unchanged, but a retry of it must not overwrite what comes between.
    Remember(PutResult),
    Create,
    Replace,
}

impl Decision {
    fn answered(self) -> Option<PutAnswer> {
        match self {
            Self::Answer(answer) => Some(answer),
            Self::Remember(_) | Self::Create | Self::Replace => None,
        }
    }
}

/// What is stored, as far as it decides about a group.
struct Sight {
    projects: HashSet<Uuid>,
    memory: Memory,
    stored: HashMap<Uuid, Stored>,
}

impl Sight {
    async fn take(connection: &mut PgConnection, keys: &[&SourceKey]) -> Result<Self> {
        Ok(Self {
            projects: rows::existing_projects(connection, keys).await?,
            memory: recall(connection, keys).await?,
            stored: rows::compare(connection, keys).await?,
        })
    }

    fn decide(&self, key: &SourceKey) -> Decision {
        if !self.projects.contains(&key.project_id.as_uuid()) {
            return Decision::Answer(Err(PutError::NoProject));
        }
        if let Some(request) = &key.request
            && let Some(remembered) = self.memory.get(&(key.project_id.as_uuid(), request.id.clone()))
        {
            return Decision::Answer(remembered.answer(request));
        }
        let source_id = key.source_id();
        match self.stored.get(&source_id.as_uuid()) {
            None => Decision::Create,
            // Whoever asks: to change it would be to confirm it, or to lose it with the rest.
            Some(Stored { provisional: Some(left), .. }) => {
                Decision::Answer(Err(PutError::Provisional { left: *left }))
            }
            Some(_) if key.provisional.is_some() => Decision::Answer(Err(PutError::Exists)),
            Some(stored) if !stored.same => Decision::Replace,
            Some(stored) => {
                let result = PutResult {
                    source_id,
                    outcome: PutOutcome::Unchanged,
                    version: stored.version,
                    chunk_count: stored.chunk_count,
                    chunks_added: 0,
                    chunks_removed: 0,
                    provisional: false,
                };
                if key.request.is_some() { Decision::Remember(result) } else { Decision::Answer(Ok(result)) }
            }
        }
    }
}
