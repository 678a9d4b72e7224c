//! `waybill reindex`.

use serde_json::json;
use tokio::time::Instant;
use waybill_api::relay::v1::{ReindexPhase, ReindexRequest, SourceName, reindex_request::Scope};

use super::gauge::Gauge;
use crate::cli::ReindexArgs;
use crate::out::Out;
use crate::{client, text};

/// Runs the command.
pub(crate) async fn run(args: ReindexArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::relay(args.endpoint.endpoint.as_deref(), &args.endpoint)?;
    let begun = Instant::now();
    let mut gauge = Gauge::new();
    let answers = client.reindex(request(&args)).await.map_err(|status| target.explain(&status))?;
    let mut answers = answers.into_inner();
    let keys = loop {
        let answer = answers.message().await.map_err(|status| target.explain(&status))?;
        match answer {
            Some(answer) if answer.done => break answer.keys,
            Some(answer) => {
                let keys = text::count(answer.keys.unsigned_abs());
                gauge.see(answer.share, &format!("{keys} keys{}", phase(answer.phase())));
            }
            None => anyhow::bail!("the relay ended without saying that it is done: run the command again"),
        }
    };
    drop(gauge);
    let took = begun.elapsed();
    let mut out = Out::new();
    if args.json {
        out.json(&json!({"keys": keys, "took_s": took.as_secs_f64()}))?;
    } else {
        let keys = text::count(keys.unsigned_abs());
        match &args.model {
            _ if args.cancel_build => out.line("the build is cancelled, and its collection deleted")?,
            Some(model) if keys == "0" => out.line(format_args!("{} is in use already", text::one_line(model)))?,
            Some(model) => {
                let model = text::one_line(model);
                out.line(format_args!("{keys} keys are embedded by {model}, and searches use it"))?;
                out.line(format_args!(
                    "make it the default of the embedding service: a collection that is lost is made again for that"
                ))?;
            }
            None => {
                out.line(format_args!("{keys} keys are delivered again, `waybill status` shows how far that is"))?
            }
        }
    }
    out.flush()
}

fn request(args: &ReindexArgs) -> ReindexRequest {
    let scope = match (&args.project, &args.source) {
        _ if args.cancel_build => Scope::CancelBuild(true),
        (Some(project), Some(uri)) => Scope::Source(SourceName { project: project.clone(), uri: uri.clone() }),
        (Some(project), None) => Scope::Project(project.clone()),
        (None, _) => Scope::All(true),
    };
    ReindexRequest { scope: Some(scope), model: args.model.clone().unwrap_or_default() }
}

const fn phase(phase: ReindexPhase) -> &'static str {
    match phase {
        ReindexPhase::Unspecified | ReindexPhase::Queueing => " queued",
        ReindexPhase::Delivering => ", being embedded",
        ReindexPhase::Comparing => ", the new collection is compared",
        ReindexPhase::Moved => ", the alias is moved",
    }
}
