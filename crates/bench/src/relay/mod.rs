//! `waybill-bench relay`: points from the outbox to Qdrant, beside their ceiling.
//!
//! Every round writes the rows of new chunks, in one transaction, and measures how long the
//! relay takes until it has confirmed them all: reading the log, loading rows, asking the
//! embedding service (which answers from its cache in Postgres), BM25, the conditional
//! upsert, the settle. The points that came of it are read back and sent once more, straight
//! by `qdrant-client`, unconditionally, to the same server: nothing that has to go through
//! that server can be faster. Both begin with an empty collection, as a server's speed
//! depends on what it holds.

mod ceiling;
pub(crate) mod rows;
mod stage;

use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;

use self::ceiling::{Ceiling, Shape};
use self::rows::Round;
pub(crate) use self::rows::texts;
pub(crate) use self::stage::Stage;
use crate::eval::median;

/// Delivered before anything is measured, so that connections are there and the relay has
/// found its batch size.
const WARM_UP_POINTS: usize = 2_000;

/// Delivered before each round, so that the collection is there again.
const FIRST_POINTS: usize = 64;

/// Arguments of `waybill-bench relay`.
#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// Points in a round
    #[arg(long, default_value_t = 20_000)]
    points: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder of the embedding model; it is loaded, and then the cache answers for it
    #[arg(long, value_name = "DIR")]
    model_dir: PathBuf,
    /// A Qdrant to use instead of qdrant-local
    #[arg(long, value_name = "URL")]
    qdrant: Option<String>,
}

/// What came out, in points a second.
#[derive(Debug, Serialize)]
pub(crate) struct RelayResult {
    points: usize,
    dimensions: usize,
    /// Of each round.
    relay: Vec<f64>,
    relay_median: f64,
    /// Of each way of sending, its median over the rounds.
    ceilings: Vec<CeilingResult>,
    /// The best of them.
    ceiling: f64,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct CeilingResult {
    batch: usize,
    streams: usize,
    median: f64,
}

/// Runs all rounds, the relay's and the ceiling's in turn.
///
/// # Errors
/// If a server can't be started, or a point was not delivered.
pub(crate) async fn run(args: &RelayArgs) -> anyhow::Result<RelayResult> {
    ensure!(args.points > 0 && args.rounds > 0, "nothing to measure: points and rounds are 1 or more");
    let stage = Stage::set(&args.model_dir, args.qdrant.as_deref()).await?;
    let ceiling = Ceiling::connect(stage.qdrant_url())?;

    let texts = rows::texts(args.points.max(WARM_UP_POINTS));
    stage.fill_cache(&texts).await?;
    let warm_up = Round::new(0, texts.get(..WARM_UP_POINTS).unwrap_or_default());
    stage.deliver(&warm_up).await?;

    let mut relay = Vec::new();
    let mut sent: Vec<(Shape, Vec<f64>)> = Shape::all().map(|shape| (shape, Vec::new())).collect();
    for number in 1..=args.rounds {
        ceiling.clear(stage.collection()).await?;
        stage.deliver(&Round::new(args.rounds + number, texts.get(..FIRST_POINTS).unwrap_or_default())).await?;
        let round = Round::new(number, texts.get(..args.points).unwrap_or_default());
        let took = stage.deliver(&round).await?;
        let rate = args.points as f64 / took.as_secs_f64();
        eprintln!("round {number} of {}: relay {rate:.0} points/s", args.rounds);
        relay.push(rate);

        let points = ceiling.read_back(stage.collection(), &round).await?;
        ensure!(points.len() == args.points, "{} of {} points arrived", points.len(), args.points);
        for (shape, rates) in &mut sent {
            let took = ceiling.send(&points, *shape, stage.dimensions()).await?;
            rates.push(args.points as f64 / took.as_secs_f64());
        }
    }
    let dimensions = stage.dimensions();
    stage.strike().await?;

    let ceilings: Vec<_> = sent
        .into_iter()
        .map(|(shape, mut rates)| CeilingResult {
            batch: shape.batch,
            streams: shape.streams,
            median: median(&mut rates),
        })
        .collect();
    let best = ceilings.iter().map(|ceiling| ceiling.median).fold(0.0, f64::max);
    let relay_median = median(&mut relay.clone());
    Ok(RelayResult {
        points: args.points,
        dimensions,
        relay,
        relay_median,
        ceilings,
        ceiling: best,
        ratio: relay_median / best.max(1.0),
    })
}
