//! `waybill extract`.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use waybill_api::extraction::v1::extraction_service_client::ExtractionServiceClient;
use waybill_api::extraction::v1::{
    ExtractionSettings, Job, JobState, Priority as WirePriority, StartExtractionRequest,
};
use waybill_domain::Backoff;

use super::jobs::follow::follow;
use super::jobs::progress::Progress;
use super::jobs::show;
use crate::cli::{ExtractArgs, Priority};
use crate::client::{self, Target, may_pass};
use crate::exit;
use crate::out::Out;
use waybill_runtime::grpc::Peer;

/// How often a start is tried. Few: nobody has waited for anything yet.
const TRIES: u32 = 4;

const RETRY: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(1) };

/// Runs the command. Returns the exit code: a job that did not get done makes it 1.
pub(crate) async fn run(args: ExtractArgs) -> anyhow::Result<u8> {
    let (mut client, target) = client::extraction(&args.endpoint)?;
    let begun = Instant::now();
    let job = start(&mut client, &target, request(&args)).await?;
    if show::total(&job) == 0 {
        eprintln!("nothing to read in project {:?}{}", args.project.project, why_nothing(&args));
    }
    let id = job.id.clone();
    if args.no_wait {
        print(&args, &job, None)?;
        eprintln!("`waybill jobs {id} --watch` follows it");
        return Ok(0);
    }

    let mut progress = Progress::begin(&job);
    let ended = tokio::select! {
        ended = follow(&mut client, &target, &id, &mut progress, |_| Ok(())) => Some(ended),
        Ok(()) = tokio::signal::ctrl_c() => None,
    };
    progress.end();
    let Some(ended) = ended else {
        eprintln!("the job goes on: `waybill jobs {id} --watch` follows it, `waybill jobs --cancel {id}` ends it");
        return Ok(exit::INTERRUPTED);
    };
    let job = ended.with_context(|| format!("job {id} is out of sight, and may go on"))?;
    print(&args, &job, Some(begun.elapsed()))?;
    Ok(if job.state() == JobState::Done { 0 } else { exit::FAILED })
}

/// Starts the job. An answer that is lost on the way does not make a second one: the
/// request's id is the same each time.
async fn start(
    client: &mut ExtractionServiceClient<Peer>,
    target: &Target,
    request: StartExtractionRequest,
) -> anyhow::Result<Job> {
    let mut failures = 0;
    loop {
        let status = match client.start_extraction(request.clone()).await {
            Ok(job) => return Ok(job.into_inner()),
            Err(status) => status,
        };
        failures += 1;
        if !may_pass(status.code()) || failures == TRIES {
            return Err(target.explain(&status));
        }
        let pause = RETRY.wait(failures, &mut rand::rng());
        sleep(pause).await;
    }
}

fn request(args: &ExtractArgs) -> StartExtractionRequest {
    let settings = ExtractionSettings {
        instructions: args.instructions.clone().unwrap_or_default(),
        fact_types: args.fact_types.clone(),
        entity_types: args.entity_types.clone(),
        model: args.model.clone().unwrap_or_default(),
    };
    StartExtractionRequest {
        project: args.project.project.clone(),
        follow: args.follow,
        uri_prefix: args.prefix.clone().unwrap_or_default(),
        settings: Some(settings),
        priority: priority(args.priority).into(),
        request_id: Uuid::now_v7().to_string(),
    }
}

const fn priority(priority: Priority) -> WirePriority {
    match priority {
        Priority::High => WirePriority::High,
        Priority::Normal => WirePriority::Normal,
        Priority::Low => WirePriority::Low,
    }
}

fn why_nothing(args: &ExtractArgs) -> &'static str {
    match args.prefix {
        Some(_) => ": no uri begins with --prefix (`waybill sources ls` lists them)",
        None => ": `waybill import` puts documents in",
    }
}

fn print(args: &ExtractArgs, job: &Job, took: Option<Duration>) -> anyhow::Result<()> {
    let mut out = Out::new();
    if args.json {
        out.json(&as_json(args, job, took))?;
    } else if let Some(took) = took {
        out.text(&show::summary(job, took))?;
    } else {
        out.text(&show::rows(job))?;
    }
    out.flush()
}

fn as_json(args: &ExtractArgs, job: &Job, took: Option<Duration>) -> Value {
    let mut value = show::as_json(job);
    if let Value::Object(object) = &mut value {
        object.insert("project".to_owned(), json!(args.project.project));
        object.insert("took_s".to_owned(), json!(took.map(|took| took.as_secs_f64())));
    }
    value
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> ExtractArgs {
        let args = ["waybill", "extract"].iter().chain(args);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Extract(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_asked_for_is_sent() {
        let args = parse(&[
            "--project",
            "p",
            "--prefix",
            "a/",
            "--type",
            "one",
            "--type",
            "two",
            "--entity-type",
            "person",
            "--instructions",
            "look",
            "--priority",
            "low",
            "--model",
            "large",
        ]);
        let request = request(&args);
        assert_eq!((request.project.as_str(), request.uri_prefix.as_str()), ("p", "a/"));
        assert_eq!(request.priority(), WirePriority::Low);
        let settings = request.settings.unwrap();
        assert_eq!(settings.fact_types, ["one", "two"]);
        assert_eq!(settings.entity_types, ["person"]);
        assert_eq!((settings.instructions.as_str(), settings.model.as_str()), ("look", "large"));
    }

    #[test]
    fn each_run_asks_for_a_job_of_its_own() {
        let args = parse(&[]);
        assert_ne!(request(&args).request_id, request(&args).request_id);
    }
}
