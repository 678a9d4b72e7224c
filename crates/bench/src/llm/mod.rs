//! `waybill-bench llm`: requests from the outbox to Redis, beside their ceiling, and how soon
//! a worker has one.
//!
//! Every round commits a job with a request for each of many chunks, and measures how long the
//! relay takes until it has recorded all their messages: reading the log, loading rows, the
//! script that adds messages and remembers them, the settle. The same messages are then added
//! once more, straight by pipelined XADD, to another stream of the same server: nothing that
//! has to go through that server can be faster. Both begin with an empty server.
//!
//! The latency is taken first, while the tables are small and nobody cleans up after a round.

mod ceiling;
mod latency;
mod resp;
mod stage;

use anyhow::ensure;
use serde::Serialize;

use self::latency::Latency;
pub(crate) use self::latency::percentile;
use self::stage::Stage;
use crate::eval::median;

/// Delivered before the rounds, so that the relay has found its batch size.
const WARM_UP_MESSAGES: usize = 2_000;

/// A stream holds no more by default, and here nobody takes any out.
const MESSAGES_MAX: usize = 100_000;

/// Arguments of `waybill-bench llm`.
#[derive(Debug, clap::Args)]
pub(crate) struct LlmArgs {
    /// Messages in a round
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Requests whose way to a worker is timed, one after another
    #[arg(long, default_value_t = 300)]
    requests: usize,
}

/// What came out, in messages a second.
#[derive(Debug, Serialize)]
pub(crate) struct LlmResult {
    messages: usize,
    /// Of each round.
    relay: Vec<f64>,
    relay_median: f64,
    /// Of each number of connections, its median over the rounds.
    ceilings: Vec<CeilingResult>,
    /// The best of them.
    ceiling: f64,
    ratio: f64,
    latency: Latency,
}

#[derive(Debug, Serialize)]
struct CeilingResult {
    connections: usize,
    median: f64,
}

/// Times single requests, then runs all rounds, the relay's and the ceiling's in turn.
///
/// # Errors
/// If a server can't be started, or a message was not delivered.
pub(crate) async fn run(args: &LlmArgs) -> anyhow::Result<LlmResult> {
    ensure!(args.rounds > 0 && args.requests > 0, "nothing to measure: rounds and requests are 1 or more");
    ensure!(
        (1..=MESSAGES_MAX).contains(&args.messages),
        "{} messages don't fit in a stream: take 1 to {MESSAGES_MAX}",
        args.messages
    );
    let stage = Stage::set(args.messages.max(WARM_UP_MESSAGES)).await?;

    let latency = latency::measure(&stage, args.requests).await?;
    stage.clear().await?;
    stage.deliver(WARM_UP_MESSAGES).await?;

    let mut relay = Vec::new();
    let mut sent = ceiling::CONNECTIONS.map(|connections| (connections, Vec::new()));
    for number in 1..=args.rounds {
        stage.clear().await?;
        let delivered = stage.deliver(args.messages).await?;
        let rate = args.messages as f64 / delivered.took.as_secs_f64();
        eprintln!("round {number} of {}: relay {rate:.0} messages/s", args.rounds);
        relay.push(rate);

        for (connections, rates) in &mut sent {
            stage.clear().await?;
            let took = ceiling::send(&stage.redis_url(), &delivered.messages, *connections).await?;
            rates.push(args.messages as f64 / took.as_secs_f64());
        }
    }
    stage.strike().await?;

    let ceilings: Vec<_> = sent
        .into_iter()
        .map(|(connections, mut rates)| CeilingResult { connections, median: median(&mut rates) })
        .collect();
    let best = ceilings.iter().map(|ceiling| ceiling.median).fold(0.0, f64::max);
    let relay_median = median(&mut relay.clone());
    Ok(LlmResult {
        messages: args.messages,
        relay,
        relay_median,
        ceilings,
        ceiling: best,
        ratio: relay_median / best.max(1.0),
        latency,
    })
}
