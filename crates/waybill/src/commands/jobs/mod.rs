//! `waybill jobs`.

pub(super) mod follow;
pub(super) mod progress;
mod requests;
pub(super) mod show;

use std::time::Duration;

use console::style;
use tonic::Status;
use waybill_api::extraction::v1::extraction_service_client::ExtractionServiceClient;
use waybill_api::extraction::v1::{CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest};

use self::follow::follow;
use self::progress::Progress;
use crate::cli::JobsArgs;
use crate::client::{self, Target};
use crate::exit;
use crate::out::Out;
use crate::screen::Screen;
use waybill_runtime::grpc::Peer;

/// Time between two looks at the list: counting the requests of large jobs is work.
const EVERY: Duration = Duration::from_secs(1);

/// Runs the command. Returns the exit code: a job that was followed and did not get done
/// makes it 1.
pub(crate) async fn run(args: JobsArgs) -> anyhow::Result<u8> {
    let (client, target) = client::extraction(&args.endpoint)?;
    let view = View { client, target, project: args.project.project, limit: args.limit, as_json: args.json };
    match (args.cancel, args.id) {
        (Some(id), _) => view.cancel(id).await?,
        (None, Some(id)) if args.requests => view.requests(id, args.state).await?,
        (None, Some(id)) if args.watch => return view.follow(id).await,
        (None, Some(id)) => view.one(id).await?,
        (None, None) if args.watch => view.watch().await?,
        (None, None) => view.list().await?,
    }
    Ok(0)
}

struct View {
    client: ExtractionServiceClient<Peer>,
    target: Target,
    project: String,
    limit: u16,
    as_json: bool,
}

impl View {
    async fn list(mut self) -> anyhow::Result<()> {
        let (jobs, more) = self.ask().await.map_err(|status| self.target.explain(&status))?;
        if jobs.is_empty() {
            // Not a result, so not for stdout.
            eprintln!("no jobs yet: `waybill extract` starts one");
            return Ok(());
        }
        let mut out = Out::new();
        if self.as_json {
            for job in &jobs {
                out.json(&show::as_json(job))?;
            }
        } else {
            out.text(&show::table(&jobs))?;
        }
        out.flush()?;
        if more {
            eprintln!("there are more: --limit shows more than {}", self.limit);
        }
        Ok(())
    }

    /// Asks again and again. A service that is away for a while is shown as such.
    async fn watch(mut self) -> anyhow::Result<()> {
        let mut screen = Screen::new();
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last: Option<Vec<Job>> = None;
        loop {
            ticks.tick().await;
            match self.ask().await {
                Ok((jobs, _)) if self.as_json => {
                    let before = last.unwrap_or_default();
                    print_json(jobs.iter().filter(|job| !before.contains(job)))?;
                    last = Some(jobs);
                }
                Ok((jobs, _)) => {
                    screen.show(&show::table(&jobs))?;
                    last = Some(jobs);
                }
                Err(status) if last.is_some() => {
                    let error = self.target.explain(&status);
                    if self.as_json {
                        eprintln!("no answer: {error:#}");
                    } else {
                        screen.show(&format!("{} {error:#}\n", style("no answer:").red()))?;
                    }
                }
                Err(status) => return Err(self.target.explain(&status)),
            }
        }
    }

    async fn one(mut self, id: String) -> anyhow::Result<()> {
        let job = self.get(id).await?;
        self.print(&job)
    }

    async fn follow(mut self, id: String) -> anyhow::Result<u8> {
        let job = self.get(id).await?;
        let mut progress = Progress::begin(&job);
        let as_json = self.as_json;
        let see = |job: &Job| if as_json { print_json([job]) } else { Ok(()) };
        let ended = follow(&mut self.client, &self.target, &job.id, &mut progress, see).await;
        progress.end();
        let job = ended?;
        if !as_json {
            self.print(&job)?;
        }
        Ok(if job.state() == JobState::Done { 0 } else { exit::FAILED })
    }

    async fn cancel(mut self, id: String) -> anyhow::Result<()> {
        let job = self.client.cancel_job(CancelJobRequest { id }).await;
        let job = job.map_err(|status| self.target.explain(&status))?;
        self.print(&job.into_inner())
    }

    /// The newest jobs, and whether there are more.
    async fn ask(&mut self) -> Result<(Vec<Job>, bool), Status> {
        let project = self.project.clone();
        let request = ListJobsRequest { project, page_size: self.limit.into(), page_token: String::new() };
        let page = self.client.list_jobs(request).await?.into_inner();
        Ok((page.jobs, !page.next_page_token.is_empty()))
    }

    async fn get(&mut self, id: String) -> anyhow::Result<Job> {
        let job = self.client.get_job(GetJobRequest { id }).await;
        Ok(job.map_err(|status| self.target.explain(&status))?.into_inner())
    }

    fn print(&self, job: &Job) -> anyhow::Result<()> {
        if self.as_json {
            return print_json([job]);
        }
        let mut out = Out::new();
        out.text(&show::rows(job))?;
        out.flush()
    }
}

fn print_json<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> anyhow::Result<()> {
    let mut out = Out::new();
    for job in jobs {
        out.json(&show::as_json(job))?;
    }
    out.flush()
}
