//! Jobs as tables, lines and JSON.

use std::fmt::Write as _;
use std::time::Duration;

use console::style;
use serde_json::{Value, json};
use waybill_api::extraction::v1::{Job, JobState};

use crate::{text, values};

/// Returns how many requests a job has.
pub(crate) fn total(job: &Job) -> u64 {
    let open = [job.pending_count, job.queued_count, job.running_count];
    settled(job) + open.into_iter().map(i64::unsigned_abs).sum::<u64>()
}

/// Returns how many requests nobody will work on any more.
pub(crate) fn settled(job: &Job) -> u64 {
    [job.done_count, job.dead_count, job.cancelled_count].into_iter().map(i64::unsigned_abs).sum()
}

/// One line a job, under a heading.
pub(super) fn table(jobs: &[Job]) -> String {
    let mut table = String::new();
    let heading = format!("{:<36}  {:<9}  {:>19}  {:>9}  CREATED", "ID", "STATE", "DONE/TOTAL", "FACTS");
    // Writing to a String can't fail.
    let _ = writeln!(table, "{}", style(heading).bold());
    for job in jobs {
        let done = format!("{}/{}", text::count(job.done_count.unsigned_abs()), text::count(total(job)));
        let _ = writeln!(
            table,
            "{:<36}  {:<9}  {done:>19}  {:>9}  {}",
            job.id,
            state(job.state()),
            text::count(job.fact_count.unsigned_abs()),
            created(job),
        );
    }
    if jobs.is_empty() {
        table.push_str("no jobs\n");
    }
    table
}

/// Everything about one job.
pub(crate) fn rows(job: &Job) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, value: &str| {
        // Writing to a String can't fail.
        let _ = writeln!(rows, "{name:<10} {value}");
    };
    row("id", &job.id);
    row("state", state(job.state()));
    row("created", &created(job));
    row("requests", &text::count(total(job)));
    for (name, count) in [
        ("  pending", job.pending_count),
        ("  queued", job.queued_count),
        ("  running", job.running_count),
        ("  done", job.done_count),
        ("  dead", job.dead_count),
        ("  cancelled", job.cancelled_count),
    ] {
        if count != 0 {
            row(name, &text::count(count.unsigned_abs()));
        }
    }
    row("facts", &text::count(job.fact_count.unsigned_abs()));
    row("dropped", &text::count(job.dropped_fact_count.unsigned_abs()));
    row("entities", &entities(job));
    if let Some(usage) = usage(job) {
        row("used", &usage);
    }
    rows
}

/// What a job came to.
pub(crate) fn summary(job: &Job, took: Duration) -> String {
    let state = match job.state() {
        JobState::Failed => style(state(job.state())).red(),
        named => style(state(named)),
    };
    let mut summary = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        summary,
        "{}, {} dropped",
        style(format!("{} facts", text::count(job.fact_count.unsigned_abs()))).bold(),
        text::count(job.dropped_fact_count.unsigned_abs()),
    );
    let _ = write!(
        summary,
        "job {} {state} in {}: {} requests done, {} dead",
        job.id,
        text::span(took),
        text::count(job.done_count.unsigned_abs()),
        text::count(job.dead_count.unsigned_abs()),
    );
    if job.cancelled_count != 0 {
        let _ = write!(summary, ", {} cancelled", text::count(job.cancelled_count.unsigned_abs()));
    }
    summary.push('\n');
    if let Some(usage) = usage(job) {
        let _ = writeln!(summary, "{usage}");
    }
    summary
}

/// A job as JSON.
pub(crate) fn as_json(job: &Job) -> Value {
    json!({
        "id": job.id,
        "state": state(job.state()),
        "request_count": total(job),
        "pending_count": job.pending_count,
        "queued_count": job.queued_count,
        "running_count": job.running_count,
        "done_count": job.done_count,
        "dead_count": job.dead_count,
        "cancelled_count": job.cancelled_count,
        "fact_count": job.fact_count,
        "dropped_fact_count": job.dropped_fact_count,
        "entities_none_count": job.entities_none_count,
        "entities_partial_count": job.entities_partial_count,
        "entities_complete_count": job.entities_complete_count,
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "cost": job.cost,
        "create_time": job.create_time.as_ref().map(values::time),
    })
}

/// Of how many requests the entities are stored.
fn entities(job: &Job) -> String {
    let count = |count: i64| text::count(count.unsigned_abs());
    let (complete, partial) = (count(job.entities_complete_count), count(job.entities_partial_count));
    format!("all of {complete} requests, some of {partial}, none of {}", count(job.entities_none_count))
}

/// A job's tokens and what they cost, if it took any: `rules` takes none.
fn usage(job: &Job) -> Option<String> {
    if job.prompt_tokens == 0 && job.completion_tokens == 0 {
        return None;
    }
    let read = text::count(job.prompt_tokens.unsigned_abs());
    let written = text::count(job.completion_tokens.unsigned_abs());
    // In whatever currency the prices are.
    let cost = if job.cost > 0.0 { format!(", cost {:.4}", job.cost) } else { String::new() };
    Some(format!("{read} tokens read, {written} written{cost}"))
}

fn created(job: &Job) -> String {
    job.create_time.as_ref().map(values::time).unwrap_or_default()
}

const fn state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            id: "j1".to_owned(),
            state: JobState::Running.into(),
            pending_count: 1_000,
            running_count: 4,
            done_count: 200,
            dead_count: 6,
            fact_count: 1_234,
            ..Job::default()
        }
    }

    #[test]
    fn the_table_says_how_far_a_job_is() {
        let table = table(&[job()]);
        for part in ["j1", "running", "200/1,210", "1,234"] {
            assert!(table.contains(part), "{part} in {table}");
        }
        assert!(super::table(&[]).contains("no jobs"));
    }

    #[test]
    fn what_was_used_is_said_if_something_was() {
        let took = Duration::from_millis(2_500);
        let free = summary(&job(), took);
        assert!(free.contains("200 requests done, 6 dead") && free.contains("2.5 s"), "{free}");
        assert!(!free.contains("tokens") && !rows(&job()).contains("tokens"), "{free}");
        let paid = summary(&Job { prompt_tokens: 12_345, completion_tokens: 67, cost: 0.5, ..job() }, took);
        assert!(paid.contains("12,345 tokens read, 67 written, cost 0.5000"), "{paid}");
    }

    #[test]
    fn only_the_states_that_requests_are_in_are_listed() {
        let rows = rows(&job());
        assert!(rows.contains("  dead") && !rows.contains("  queued"), "{rows}");
    }
}
