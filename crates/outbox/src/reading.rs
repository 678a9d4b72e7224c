//! One step of reading the log, with the connection passed along.

use std::time::Duration;

use waybill_domain::{CrashPoint, SinkName};
use waybill_storage::{
    Db, Result,
    outbox::{Fence, OutboxReader, OutboxRow, Tail},
};

use crate::core::{Plan, PlanKind};

/// What to ask.
pub(crate) enum Step {
    /// Where the log ends.
    Tail,
    /// Where it ends, with a bound on who may have written up to there.
    Fence,
    /// The rows of a plan, at most so many.
    Read(Plan, i64),
}

/// What came back.
pub(crate) enum Answer {
    Tail(Tail),
    Fence(Fence),
    /// All rows of the plan's lanes above its start and up to this position.
    Rows(Plan, Vec<OutboxRow>, i64),
}

/// Takes a step. Gives the connection back unless it failed: what broke is not used again.
pub(crate) async fn read_step(
    db: Db,
    sink: SinkName,
    reader: Option<OutboxReader>,
    step: Step,
    timeout: Duration,
) -> (Option<OutboxReader>, Result<Answer>) {
    let reader = match reader {
        Some(reader) => Ok(reader),
        None => OutboxReader::open(&db, timeout).await,
    };
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(error) => return (None, Err(error)),
    };
    match ask(&mut reader, sink, step).await {
        Ok(answer) => (Some(reader), Ok(answer)),
        Err(error) => (None, Err(error)),
    }
}

async fn ask(reader: &mut OutboxReader, sink: SinkName, step: Step) -> Result<Answer> {
    match step {
        Step::Tail => Ok(Answer::Tail(reader.tail(sink).await?)),
        Step::Fence => Ok(Answer::Fence(reader.fence(sink).await?)),
        Step::Read(plan, limit) => {
            // Counting costs no transfer: most of the time nothing was missed.
            if let PlanKind::Recheck { seen: Some(seen) } = plan.kind
                && reader.count(sink, plan.after, plan.upto, &plan.lanes).await? == seen
            {
                let upto = plan.upto;
                return Ok(Answer::Rows(plan, Vec::new(), upto));
            }
            let rows = reader.read(sink, plan.after, plan.upto, &plan.lanes, limit).await?;
            if !rows.is_empty() {
                CrashPoint::Read.hit();
            }
            let full = i64::try_from(rows.len()).is_ok_and(|count| count >= limit);
            let upto = if full { rows.last().map_or(plan.upto, |row| row.seq) } else { plan.upto };
            Ok(Answer::Rows(plan, rows, upto))
        }
    }
}
