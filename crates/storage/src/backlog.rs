//! How many changes a sink has yet to confirm: an estimate that is cheap however many.

use rand::RngExt;
use waybill_domain::SinkName;

use crate::{Db, Result};

/// This many of the newest positions are all looked at: a small backlog is counted.
const COUNTED: i64 = 256;

/// Positions looked at in each stretch behind them, each stretch twice as long as the one
/// before. A long backlog fills most of its stretches, so the error stays at some per cent.
const SAMPLES: u32 = 16;

/// Positions of the log to look at, and how many each stands for.
#[derive(Debug, Default, PartialEq)]
struct Sample {
    seqs: Vec<i64>,
    weights: Vec<f64>,
}

/// Estimates how many outbox rows of `sink` name a key that it has yet to confirm as it is now.
/// A key that has changed several times since counts as often.
///
/// A row that is settled behind somebody's long transaction does not count: positions are
/// sampled, and each is looked up by its key. Looks at some hundred positions, however long the log.
///
/// # Errors
/// If Postgres is away or a statement fails.
pub async fn estimate(db: &Db, sink: SinkName) -> Result<u64> {
    let span = sqlx::query!(
        r#"SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_seq) AS "head!",
                  coalesce((SELECT min(closed_seq) FROM outbox_cursor WHERE sink = $1), 0) AS "closed!""#,
        sink.as_str()
    )
    .fetch_one(db.pool())
    .await?;
    if span.head <= span.closed {
        return Ok(0);
    }
    let sample = sample(span.closed, span.head, &mut rand::rng());
    // LIMIT keeps the planner from making a join of it, see `sources::read`.
    let dirty = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(p.weight) FILTER (WHERE d.dirty), 0) AS "dirty!"
           FROM unnest($2::bigint[], $3::double precision[]) AS p (seq, weight)
           CROSS JOIN LATERAL (
               SELECT o.kind, o.key, o.created_at FROM outbox o WHERE o.sink = $1 AND o.seq = p.seq LIMIT 1) AS o
           CROSS JOIN LATERAL unconfirmed($1, o.kind, o.key, o.created_at) AS d"#,
        sink.as_str(),
        &sample.seqs,
        &sample.weights
    )
    .fetch_one(db.pool())
    .await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of weights, none below 0")]
    Ok(dirty.round() as u64)
}

/// Chooses positions in (`closed`, `head`]. A position without a row (of another sink, or of a
/// transaction that was rolled back) will count nothing.
#[expect(clippy::cast_precision_loss, reason = "stretches are estimates")]
fn sample(closed: i64, head: i64, rng: &mut impl rand::Rng) -> Sample {
    let counted = (head - closed).min(COUNTED);
    let mut sample = Sample::default();
    for seq in head - counted + 1..=head {
        sample.seqs.push(seq);
        sample.weights.push(1.0);
    }
    let mut top = head - counted;
    let mut length = COUNTED;
    while top > closed {
        let bottom = top.saturating_sub(length).max(closed);
        let weight = (top - bottom) as f64 / f64::from(SAMPLES);
        for _ in 0..SAMPLES {
            sample.seqs.push(rng.random_range(bottom + 1..=top));
            sample.weights.push(weight);
        }
        top = bottom;
        length = length.saturating_mul(2);
    }
    sample
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_sample_stands_for_the_whole_and_stays_small() {
        let mut rng = StdRng::seed_from_u64(1);
        for (closed, head) in [(0, 1), (5, 5 + COUNTED), (0, 257), (1_000, 50_000), (0, 1 << 40)] {
            let sample = sample(closed, head, &mut rng);
            assert!(sample.seqs.len() <= 800, "{}", sample.seqs.len());
            assert!(sample.seqs.iter().all(|seq| (closed + 1..=head).contains(seq)));
            let whole: f64 = sample.weights.iter().sum();
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let length = (head - closed) as f64;
            assert!((whole - length).abs() < 1e-6 * length, "{whole} for {length}");
        }
    }
}
