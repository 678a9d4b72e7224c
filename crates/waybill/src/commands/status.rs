//! `waybill status`.

use std::fmt::Write as _;
use std::time::Duration;

use console::style;
use serde_json::{Value, json};
use tonic::Status;
use waybill_api::relay::v1::relay_service_client::RelayServiceClient;
use waybill_api::relay::v1::{GetStatusRequest, GetStatusResponse, LaneStatus, ScrubStatus, SinkStatus};

use super::relay::{by_whom, pause_as_json};
use crate::cli::StatusArgs;
use crate::client::{self, Target};
use crate::out::Out;
use crate::screen::Screen;
use crate::{text, values};
use waybill_runtime::grpc::Peer;

/// The relay reads counters and cursors: an answer takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs the command.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let (client, target) = client::relay(args.endpoint.endpoint.as_deref(), &args.endpoint)?;
    let view = View { client, target, lanes: args.lanes, as_json: args.json };
    if args.watch { view.watch(Duration::from_secs(args.interval)).await } else { view.once().await }
}

struct View {
    client: RelayServiceClient<Peer>,
    target: Target,
    lanes: bool,
    as_json: bool,
}

impl View {
    async fn once(mut self) -> anyhow::Result<()> {
        let response = self.ask().await.map_err(|status| self.target.explain(&status))?;
        let mut out = Out::new();
        out.text(&self.render(response))?;
        out.flush()
    }

    /// Asks again and again. A relay that is away for a while is shown as such: that is
    /// when somebody watches.
    async fn watch(mut self, every: Duration) -> anyhow::Result<()> {
        let mut screen = Screen::new();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut answered = false;
        loop {
            ticks.tick().await;
            match self.ask().await {
                Ok(response) => {
                    answered = true;
                    screen.show(&self.render(response))?;
                }
                Err(status) if answered => {
                    let error = self.target.explain(&status);
                    screen.show(&format!("{} {error:#}\n", style("no answer:").red()))?;
                }
                Err(status) => return Err(self.target.explain(&status)),
            }
        }
    }

    async fn ask(&mut self) -> Result<GetStatusResponse, Status> {
        let mut request = tonic::Request::new(GetStatusRequest { with_lanes: self.lanes });
        request.set_timeout(DEADLINE);
        Ok(self.client.get_status(request).await?.into_inner())
    }

    fn render(&self, response: GetStatusResponse) -> String {
        if self.as_json { format!("{}\n", as_json(response)) } else { table(&response) }
    }
}

fn table(response: &GetStatusResponse) -> String {
    let mut table = String::new();
    let heading = format!(
        "{:<10} {:>10} {:>12} {:>12} {:>12} {:>10} {:>8} {:>8}",
        "SINK", "LAG ROWS", "OLDEST", "CONFIRMED/S", "CONFIRMED", "IN FLIGHT", "RETRIES", "DEAD"
    );
    // Writing to a String can't fail.
    let _ = writeln!(table, "{}", style(heading).bold());
    for sink in &response.sinks {
        let _ = writeln!(
            table,
            "{:<10} {:>10} {:>12} {:>12.1} {:>12} {:>10} {:>8} {:>8}",
            sink.sink,
            lag(sink.lag_rows, sink.lag_rows_capped),
            sink.oldest_unconfirmed.as_ref().map_or_else(|| "-".to_owned(), age),
            sink.confirmed_per_second,
            text::count(sink.confirmed_total.unsigned_abs()),
            text::count(sink.in_flight.unsigned_abs()),
            text::count(sink.retry_count.unsigned_abs()),
            text::count(sink.dead_letter_count.unsigned_abs()),
        );
    }
    for sink in &response.sinks {
        details(&mut table, sink);
    }
    if response.sinks.is_empty() {
        table.push_str("no sinks\n");
    }
    if let Some(scrub) = &response.scrub {
        let _ = writeln!(table, "{:<10} {}", "verify", compared(scrub, response.observe_time.as_ref()));
    }
    if let Some(build) = &response.build {
        let keys = text::count(build.keys.unsigned_abs());
        let state = if build.moved { "searches use it" } else { "`waybill reindex --all --model` goes on with it" };
        let _ = writeln!(table, "{:<10} for {}: {keys} keys queued, {state}", "build", text::one_line(&build.model));
    }
    table
}

/// What the comparison in the background came to.
fn compared(scrub: &ScrubStatus, now: Option<&prost_types::Timestamp>) -> String {
    let under_way = scrub.start_time.map(|_| format!("under way ({:.0} %)", scrub.share * 100.0));
    let last = scrub.last_end_time.as_ref().map(|ended| {
        let age = now.map_or(0, |now| now.seconds - ended.seconds).max(0).unsigned_abs();
        let counts = scrub.last_counts.unwrap_or_default();
        let found = match (counts.findings, counts.repaired) {
            (0, _) => "equal".to_owned(),
            (found, 0) => format!("{} differ", text::count(found.unsigned_abs())),
            (found, _) => format!("{} differed and were delivered again", text::count(found.unsigned_abs())),
        };
        format!("{found}, {} ago", text::span(Duration::from_secs(age)))
    });
    match (under_way, last) {
        (None, None) => "not compared yet".to_owned(),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(under_way), Some(last)) => format!("{under_way}; before: {last}"),
    }
}

fn details(table: &mut String, sink: &SinkStatus) {
    let owners =
        sink.owners.iter().map(|owner| format!("{} ({} lanes)", text::one_line(&owner.instance), owner.lane_count));
    let owners = owners.collect::<Vec<_>>().join(", ");
    let owners = if owners.is_empty() { "nobody: is a relay running?".to_owned() } else { owners };
    let _ = writeln!(table, "{:<10} delivered by {owners}", sink.sink);
    let name = &sink.sink;
    if let Some(pause) = &sink.pause {
        let paused = style("paused").yellow();
        let _ = writeln!(table, "{name:<10} {paused} {}: `waybill relay resume {name}`", by_whom(pause));
    }
    // One of an older version says nothing.
    if !matches!(sink.breaker.as_str(), "" | "closed") {
        let breaker = style(format!("breaker {}:", text::one_line(&sink.breaker))).yellow();
        let _ = writeln!(table, "{name:<10} {breaker} left alone after failures in a row, probed now and then");
    }
    if sink.dead_letter_count > 0 {
        let given_up = style("given up:").red();
        let _ = writeln!(table, "{name:<10} {given_up} `waybill dlq ls --sink {name}` says what and why");
    }
    if !sink.last_error.is_empty() {
        let error = text::one_line(&sink.last_error);
        let _ = writeln!(table, "{:<10} {} {error}", sink.sink, style("last error:").red());
    }
    if sink.lanes.is_empty() {
        return;
    }
    let heading = format!("{:>6} {:>14} {:>10} {:>8}  OWNER", "LANE", "CLOSED", "LAG ROWS", "EPOCH");
    let _ = writeln!(table, "{}", style(heading).dim());
    for lane in &sink.lanes {
        let owner = if lane.owner.is_empty() { "-".to_owned() } else { text::one_line(&lane.owner) };
        let _ = writeln!(
            table,
            "{:>6} {:>14} {:>10} {:>8}  {owner}",
            lane.lane, lane.closed_seq, lane.lag_rows, lane.epoch
        );
    }
}

fn lag(rows: i64, capped: bool) -> String {
    let more = if capped { "+" } else { "" };
    format!("{}{more}", text::count(rows.unsigned_abs()))
}

fn age(age: &prost_types::Duration) -> String {
    text::span(duration(age))
}

/// A negative age is a clock that was set back: as good as none.
pub(crate) fn duration(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}

fn as_json(response: GetStatusResponse) -> Value {
    json!({
        "instance": response.instance,
        "observe_time": response.observe_time.as_ref().map(values::time),
        "sinks": response.sinks.into_iter().map(sink_as_json).collect::<Vec<_>>(),
        "build": response.build.as_ref().map(|build| json!({
            "model": build.model,
            "start_time": build.start_time.as_ref().map(values::time),
            "keys": build.keys,
            "moved": build.moved,
        })),
        "verify": response.scrub.map(|scrub| scrub_as_json(&scrub)),
    })
}

fn scrub_as_json(scrub: &ScrubStatus) -> Value {
    let last = scrub.last_end_time.as_ref().map(|ended| {
        let counts = scrub.last_counts.unwrap_or_default();
        json!({
            "end_time": values::time(ended),
            "finding_count": counts.findings,
            "repaired_count": counts.repaired,
            "by_kind": super::verify::by_kind(&scrub.last_by_kind),
        })
    });
    json!({"start_time": scrub.start_time.as_ref().map(values::time), "share": scrub.share, "last": last})
}

fn sink_as_json(sink: SinkStatus) -> Value {
    let owners = sink.owners.iter().map(|owner| {
        json!({
            "instance": owner.instance,
            "lane_count": owner.lane_count,
            "lease_until": owner.lease_until.as_ref().map(values::time),
        })
    });
    json!({
        "sink": sink.sink,
        "lag_rows": sink.lag_rows,
        "lag_rows_capped": sink.lag_rows_capped,
        "oldest_unconfirmed_s": sink.oldest_unconfirmed.as_ref().map(|age| duration(age).as_secs_f64()),
        "confirmed_per_second": sink.confirmed_per_second,
        "confirmed_total": sink.confirmed_total,
        "in_flight": sink.in_flight,
        "last_error": sink.last_error,
        "breaker": sink.breaker,
        "pause": sink.pause.as_ref().map(pause_as_json),
        "retry_count": sink.retry_count,
        "dead_letter_count": sink.dead_letter_count,
        "owners": owners.collect::<Vec<_>>(),
        "lanes": sink.lanes.iter().map(lane_as_json).collect::<Vec<_>>(),
    })
}

fn lane_as_json(lane: &LaneStatus) -> Value {
    json!({
        "lane": lane.lane,
        "owner": lane.owner,
        "epoch": lane.epoch,
        "closed_seq": lane.closed_seq,
        "lag_rows": lane.lag_rows,
    })
}

#[cfg(test)]
mod tests {
    use waybill_api::relay::v1::{Owner, Pause};

    use super::*;

    fn sink() -> SinkStatus {
        SinkStatus {
            sink: "qdrant".to_owned(),
            lag_rows: 100_000,
            lag_rows_capped: true,
            oldest_unconfirmed: Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }),
            confirmed_per_second: 812.34,
            owners: vec![Owner { instance: "a".to_owned(), lane_count: 64, lease_until: None }],
            ..SinkStatus::default()
        }
    }

    #[test]
    fn the_table_says_how_far_behind_a_sink_is() {
        let response = GetStatusResponse { sinks: vec![sink()], ..GetStatusResponse::default() };
        let table = table(&response);
        for part in ["100,000+", "2.5 s", "812.3", "a (64 lanes)"] {
            assert!(table.contains(part), "{part} in {table}");
        }
    }

    #[test]
    fn what_stands_still_is_said_with_the_way_out() {
        let pause = Pause { paused_by: "ada@host".to_owned(), reason: "moving".to_owned(), ..Pause::default() };
        let stuck = SinkStatus {
            pause: Some(pause),
            breaker: "open".to_owned(),
            retry_count: 12,
            dead_letter_count: 3_400,
            ..sink()
        };
        let all = table(&GetStatusResponse { sinks: vec![stuck], ..GetStatusResponse::default() });
        for part in ["ada@host", "(moving)", "waybill relay resume qdrant", "breaker open", " 12 ", "3,400", "dlq ls"] {
            assert!(all.contains(part), "{part} in {all}");
        }
        for line in all.lines() {
            assert!(console::measure_text_width(line) <= 100, "{line}");
        }
        let well = SinkStatus { breaker: "closed".to_owned(), ..sink() };
        let well = table(&GetStatusResponse { sinks: vec![well], ..GetStatusResponse::default() });
        assert!(!well.contains("breaker") && !well.contains("paused") && !well.contains("given up"), "{well}");
    }

    #[test]
    fn nobody_delivering_is_said() {
        let sink = SinkStatus { owners: Vec::new(), ..sink() };
        let response = GetStatusResponse { sinks: vec![sink], ..GetStatusResponse::default() };
        assert!(table(&response).contains("is a relay running?"));
    }
}
