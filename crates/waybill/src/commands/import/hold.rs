//! `--coordinated` and `--bulk`: what the relays do otherwise while very much is loaded.
//!
//! Both stand for a time only, and are renewed while this runs: if it is killed, they end by
//! themselves.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::Status;
use uuid::Uuid;
use waybill_api::relay::v1::relay_service_client::RelayServiceClient;
use waybill_api::relay::v1::{
    BeginBulkLoadRequest, DrainRequest, DrainResponse, EndBulkLoadRequest, PauseRequest, ResumeRequest,
};
use waybill_domain::SinkName;
use waybill_runtime::grpc::Peer;

use crate::cli::ImportArgs;
use crate::client::{self, Target};
use crate::commands::relay::{by_whom, myself};
use crate::{slow, text};

/// How long relays keep to it without a word from here.
const TTL: Duration = Duration::from_secs(60);

/// How often they are told. A relay that is restarted is away for less.
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// How long deliveries under way are waited for.
const DRAIN: Duration = Duration::from_secs(120);

/// How often, and how long apart, ending it is tried.
const END_ATTEMPTS: u32 = 20;
const END_PAUSE: Duration = Duration::from_millis(500);

/// What relays were asked for, until it is ended.
pub(super) struct Hold {
    wish: Wish,
    client: RelayServiceClient<Peer>,
    target: Target,
    renewing: JoinHandle<()>,
}

/// What relays are asked for.
#[derive(Debug, Clone)]
enum Wish {
    /// To deliver nothing to these.
    Pause { sinks: Vec<SinkName>, paused_by: String },
    /// To make room.
    Bulk { id: String },
}

impl Hold {
    /// Asks the relays for what the arguments say, if anything.
    pub(super) async fn begin(args: &ImportArgs, job: Uuid) -> anyhow::Result<Option<Self>> {
        if !args.coordinated && !args.bulk {
            return Ok(None);
        }
        let (mut client, target) = client::relay(args.relay_endpoint.as_deref(), &args.endpoint)?;
        let wish = if args.bulk {
            Wish::Bulk { id: format!("import {job}") }
        } else {
            pause(&mut client, &target, job).await?
        };
        wish.tell(&mut client).await.map_err(|status| target.explain(&status))?;
        let renewing = tokio::spawn(renew(wish.clone(), client.clone()));
        let mut hold = Self { wish, client, target, renewing };
        if let Err(error) = hold.drain().await {
            // What it began it ends.
            hold.end().await?;
            return Err(error);
        }
        Ok(Some(hold))
    }

    /// Waits until what was under way has ended.
    async fn drain(&mut self) -> anyhow::Result<()> {
        let Wish::Pause { sinks, .. } = &self.wish else {
            eprintln!("bulk mode: relays deliver in larger batches until the import ends");
            return Ok(());
        };
        let begun = Instant::now();
        for sink in sinks {
            let timeout = Some(prost_types::Duration { seconds: DRAIN.as_secs().cast_signed(), nanos: 0 });
            let request = DrainRequest { sink: sink.as_str().to_owned(), timeout, until_still: true };
            let answers = self.client.drain(request).await.map_err(|status| self.target.explain(&status))?;
            let describe = |_: &DrainResponse| format!("{sink}: waiting for what is under way");
            let (last, broken) = slow::last(answers.into_inner(), describe).await;
            if let Some(status) = broken {
                return Err(self.target.explain(&status));
            }
            if !last.is_some_and(|last| last.still || last.drained) {
                eprintln!("{sink}: something is still under way after {}, loading all the same", text::span(DRAIN));
            }
        }
        let names: Vec<&str> = sinks.iter().map(|sink| sink.as_str()).collect();
        if !names.is_empty() {
            eprintln!("paused {}, nothing is under way after {}", names.join(" and "), text::span(begun.elapsed()));
        }
        Ok(())
    }

    /// Has relays go on as before. To be called on every way out.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.renewing.abort();
        let mut attempt = 1;
        loop {
            match self.wish.take_back(&mut self.client).await {
                Ok(()) => break,
                Err(status) if client::may_pass(status.code()) && attempt < END_ATTEMPTS => {
                    attempt += 1;
                    sleep(END_PAUSE).await;
                }
                Err(status) => {
                    let error = self.target.explain(&status);
                    let hint = format!("the relays go on by themselves within {}", text::span(TTL));
                    return Err(error.context(hint));
                }
            }
        }
        match &self.wish {
            Wish::Pause { sinks, .. } if !sinks.is_empty() => eprintln!("resumed delivery"),
            Wish::Pause { .. } => {}
            Wish::Bulk { .. } => eprintln!("bulk mode ended"),
        }
        Ok(())
    }
}

impl Wish {
    async fn tell(&self, client: &mut RelayServiceClient<Peer>) -> Result<(), Status> {
        let ttl = Some(prost_types::Duration { seconds: TTL.as_secs().cast_signed(), nanos: 0 });
        match self {
            Self::Pause { sinks, paused_by } => {
                for sink in sinks {
                    client.pause(pause_request(*sink, paused_by)).await?;
                }
            }
            Self::Bulk { id } => {
                client.begin_bulk_load(BeginBulkLoadRequest { id: id.clone(), ttl }).await?;
            }
        }
        Ok(())
    }

    async fn take_back(&self, client: &mut RelayServiceClient<Peer>) -> Result<(), Status> {
        match self {
            Self::Pause { sinks, paused_by } => {
                for sink in sinks {
                    let request = ResumeRequest { sink: sink.as_str().to_owned(), paused_by: paused_by.clone() };
                    client.resume(request).await?;
                }
            }
            Self::Bulk { id } => {
                client.end_bulk_load(EndBulkLoadRequest { id: id.clone() }).await?;
            }
        }
        Ok(())
    }
}

/// Pauses what nobody has paused.
async fn pause(client: &mut RelayServiceClient<Peer>, target: &Target, job: Uuid) -> anyhow::Result<Wish> {
    let paused_by = name(job);
    let mut sinks = Vec::new();
    for sink in [SinkName::Qdrant, SinkName::Llm] {
        let answer = client.pause(pause_request(sink, &paused_by)).await;
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                // What was paused before it is not left so.
                let begun = Wish::Pause { sinks, paused_by };
                let _ended_by_itself = begun.take_back(client).await;
                return Err(target.explain(&status));
            }
        };
        match answer.pause {
            Some(pause) if pause.paused_by != paused_by => {
                eprintln!("{sink} was paused already, {}: it stays so", by_whom(&pause));
            }
            _ => sinks.push(sink),
        }
    }
    Ok(Wish::Pause { sinks, paused_by })
}

fn pause_request(sink: SinkName, paused_by: &str) -> PauseRequest {
    PauseRequest {
        sink: sink.as_str().to_owned(),
        paused_by: paused_by.to_owned(),
        reason: "bulk load".to_owned(),
        ttl: Some(prost_types::Duration { seconds: TTL.as_secs().cast_signed(), nanos: 0 }),
    }
}

/// Of this import alone: another one must not resume what this one has paused.
fn name(job: Uuid) -> String {
    format!("import {job} of {}", myself()).chars().take(100).collect()
}

async fn renew(wish: Wish, mut client: RelayServiceClient<Peer>) {
    let mut told = Instant::now();
    loop {
        sleep(RENEW_EVERY).await;
        match wish.tell(&mut client).await {
            Ok(()) => told = Instant::now(),
            Err(status) if told.elapsed() > TTL => {
                eprintln!("the relay doesn't answer ({}): it goes on as before while this loads", status.message());
            }
            Err(_) => {}
        }
    }
}
