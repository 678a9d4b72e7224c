//! `waybill import`.
//!
//! A thread reads documents into a bounded channel; the sender keeps a bounded window of
//! them on the stream and counts the answers.

mod hold;
mod progress;
mod prune;
mod read;
mod report;
mod send;
mod upload;
mod wait;
mod walk;
mod window;

use std::path::Path;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;

use self::hold::Hold;
use self::progress::Progress;
use self::read::{Common, Item};
use self::report::Report;
use self::send::Sender;
use self::walk::{Plan, Rules};
use super::projects;
use crate::cli::ImportArgs;
use crate::client::{self, Target};
use crate::out::Out;
use crate::{exit, values};
use waybill_runtime::grpc::Peer;

/// Documents read ahead of the sender. A few hide the disk's latency; each may be of
/// `--max-size`.
const READ_AHEAD: usize = 16;

/// Runs the command. Returns the exit code: documents that failed make it 1.
pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<u8> {
    let from_stdin = args.path == Path::new("-");
    let max_bytes = args.max_size * 1024 * 1024;
    let rules = Rules { format: args.format, max_bytes };
    let plan = if from_stdin { Plan::default() } else { walk::plan(&args.path, rules)? };

    let (mut client, target) = client::ingestion(&args.endpoint)?;
    let project = args.project.project.as_str();
    if projects::ensure(&mut client, project).await.map_err(|status| target.explain(&status))? {
        eprintln!("created project {project}");
    }

    let common = Common {
        uri_prefix: args.uri_prefix.clone().unwrap_or_default(),
        metadata: values::from_pairs(&args.metadata),
        max_bytes,
    };
    let stop = stop_on_ctrl_c();
    let mut report = Report { job_id: Uuid::now_v7(), ..Report::default() };
    if args.prune {
        let skipped = plan.skipped.iter().map(|skipped| format!("{}{}", common.uri_prefix, skipped.uri));
        report.seen = Some(skipped.collect());
    }
    let hold = Hold::begin(&args, report.job_id).await?;
    let loaded = load(&args, plan, common, client, &target, &mut report, &stop).await;
    let ended = match hold {
        Some(hold) => hold.end().await,
        None => Ok(()),
    };
    if let Err(error) = loaded {
        // What was done is worth knowing even so.
        print(&args, &report)?;
        if let Err(error) = ended {
            eprintln!("{error:#}");
        }
        return Err(error.context("import stopped; run the same command again to go on"));
    }
    if let Err(error) = ended {
        print(&args, &report)?;
        return Err(error);
    }
    if args.wait && !report.interrupted {
        report.searchable_after = wait::until_searchable(&args, &stop).await?;
        report.interrupted = report.searchable_after.is_none();
    }
    print(&args, &report)?;
    if report.interrupted {
        eprintln!("interrupted: run the same command again to go on");
        return Ok(exit::INTERRUPTED);
    }
    Ok(if report.failed > 0 { exit::FAILED } else { 0 })
}

/// Sends everything, and deletes what `--prune` asks for.
async fn load(
    args: &ImportArgs,
    plan: Plan,
    common: Common,
    client: IngestionServiceClient<Peer>,
    target: &Target,
    report: &mut Report,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let project = args.project.project.as_str();
    let begun = Instant::now();
    let total = (args.path != Path::new("-")).then(|| plan.bytes());
    let mut progress = Progress::begin(total);
    let items = read_in_background(args, plan, common, report);
    let sent = Sender::new(client.clone(), target, project, report, &mut progress).run(items, stop).await;
    progress.end();
    report.took = begun.elapsed();
    sent?;
    if args.prune && !report.interrupted {
        match &report.seen {
            Some(seen) if report.failed == 0 => {
                let prefix = args.uri_prefix.as_deref().unwrap_or_default();
                report.pruned = prune::run(client, target, project, prefix, seen).await?;
            }
            _ => eprintln!("nothing deleted: --prune needs an import without failures"),
        }
    }
    Ok(())
}

fn read_in_background(args: &ImportArgs, plan: Plan, common: Common, report: &mut Report) -> mpsc::Receiver<Item> {
    let Plan { files, skipped } = plan;
    for refusal in skipped {
        report.skip(refusal);
    }
    let (sender, items) = mpsc::channel(READ_AHEAD);
    let format = args.format;
    let from_stdin = args.path == Path::new("-");
    // Not awaited: it ends when it has read everything or the receiver is gone. A read of a
    // terminal's stdin can't be interrupted, and must not keep the process.
    std::thread::spawn(move || {
        if from_stdin {
            read::stdin(format, &common, &sender);
        } else {
            read::files(files, &common, &sender);
        }
    });
    items
}

fn print(args: &ImportArgs, report: &Report) -> anyhow::Result<()> {
    let mut out = Out::new();
    let project = &args.project.project;
    if args.json {
        report.print_json(&mut out, project)?;
    } else {
        report.print(&mut out, project)?;
    }
    out.flush()
}

fn stop_on_ctrl_c() -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
            // A second one does not wait for anything.
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(exit::INTERRUPTED.into());
            }
        }
    });
    stop
}
