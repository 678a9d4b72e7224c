//! Does what a schedule says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use waybill_testkit::Mode;

use crate::{
    faults::{Action, Fault, Link, Process},
    history::History,
    oracle::Oracle,
    process::Body,
    transaction,
    world::World,
};

/// A wipe is tried so often: its call goes straight to the store, which may just be starting.
const WIPE_ATTEMPTS: u32 = 20;
const WIPE_PAUSE: Duration = Duration::from_millis(500);

/// When the collection was wiped, by the clock of the history.
#[derive(Debug, Default)]
pub(crate) struct Wipes(Mutex<Vec<(Duration, Duration)>>);

impl Wipes {
    fn add(&self, from: Duration, to: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((from, to));
    }

    /// Says whether one went on at some moment from `from` to `to`.
    pub(crate) fn any_between(&self, from: Duration, to: Duration) -> bool {
        let wipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wipes.iter().any(|(begun, ended)| *begun <= to && *ended >= from)
    }
}

/// Everything that faults are done to.
#[derive(Debug)]
pub(crate) struct Striker {
    pub(crate) world: Arc<World>,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) history: Arc<History>,
    pub(crate) wipes: Arc<Wipes>,
    /// Ends every fault.
    pub(crate) heal: CancellationToken,
}

impl Striker {
    /// Goes through the schedule until `stop`, then heals, and returns when nothing is broken.
    pub(crate) async fn run(
        self: Arc<Self>,
        schedule: Vec<Fault>,
        length: Duration,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut strikes = JoinSet::new();
        for fault in schedule {
            if stop.run_until_cancelled(sleep_until(begun + fault.at)).await.is_none() {
                break;
            }
            let striker = Arc::clone(&self);
            strikes.spawn(async move {
                striker.strike(fault).await.with_context(|| format!("fault {}: {}", fault.number, fault.action))
            });
            while let Some(ended) = strikes.try_join_next() {
                ended??;
            }
        }
        stop.run_until_cancelled(sleep_until(begun + length)).await;
        self.heal.cancel();
        while let Some(ended) = strikes.join_next().await {
            ended??;
        }
        self.world.heal_links();
        Ok(())
    }

    /// Waits out a fault, or less.
    async fn hold(&self, lasts: Duration) {
        self.heal.run_until_cancelled(sleep(lasts)).await;
    }

    async fn strike(&self, fault: Fault) -> anyhow::Result<()> {
        let who = format!("fault {}", fault.number);
        let action = fault.action;
        let begun = json!({ "fault": action.to_string(), "lasts_s": fault.lasts.as_secs_f64() });
        match action {
            Action::Kill(process) => {
                let mut body = self.world.body(process).lock().await;
                self.begin(&who, action, begun);
                body.kill().await?;
                self.hold(fault.lasts).await;
                body.start().await?;
            }
            Action::Restart(process) => {
                let mut body = self.world.body(process).lock().await;
                self.begin(&who, action, begun);
                body.stop().await?;
                body.start().await?;
            }
            Action::Freeze(process) => {
                let body = self.world.body(process).lock().await;
                self.begin(&who, action, begun);
                body.freeze()?;
                self.hold(fault.lasts).await;
                body.thaw()?;
            }
            Action::Cut(link) => {
                self.begin(&who, action, begun);
                self.world.links[&link].cut();
            }
            Action::Refuse(link) => self.break_link(&who, fault, link, Mode::Refuse, begun).await,
            Action::Delay(link, each_ms) => {
                self.break_link(&who, fault, link, Mode::Delay(Duration::from_millis(each_ms)), begun).await;
            }
            Action::BlackHole(link) => self.break_link(&who, fault, link, Mode::BlackHole, begun).await,
            Action::HalfOpen(link) => self.break_link(&who, fault, link, Mode::HalfOpen, begun).await,
            Action::FlushRedis => {
                let body = self.world.body(Process::Redis).lock().await;
                self.begin(&who, action, begun);
                if let Body::Redis(redis) = &*body {
                    redis.flush().await?;
                }
            }
            Action::WipeCollection => self.wipe(&who, action, begun).await?,
            Action::LongTransaction { commits } => {
                self.begin(&who, action, begun);
                let uri = format!("long/{}", fault.number);
                let held = self.hold(fault.lasts);
                let ended = transaction::hold(&self.world.db_url, &self.oracle, &uri, commits, held).await?;
                self.history.note(&who, "transaction", json!({ "uri": uri, "ended": ended }));
            }
        }
        self.history.note(&who, "over", json!({ "fault": action.to_string() }));
        Ok(())
    }

    fn begin(&self, who: &str, action: Action, details: serde_json::Value) {
        self.history.note(who, "begins", details);
        self.history.count(&format!("fault: {}", action.kind()));
        self.history.count("faults");
    }

    async fn break_link(&self, who: &str, fault: Fault, link: Link, mode: Mode, details: serde_json::Value) {
        self.begin(who, fault.action, details);
        let proxy = &self.world.links[&link];
        proxy.set(mode);
        self.hold(fault.lasts).await;
        proxy.set(Mode::Pass);
    }

    async fn wipe(&self, who: &str, action: Action, details: serde_json::Value) -> anyhow::Result<()> {
        // Held, so that Qdrant is there.
        let _body = self.world.body(Process::Qdrant).lock().await;
        self.begin(who, action, details);
        let begun = self.history.now();
        let mut attempt = 1;
        let outcome = loop {
            match self.world.wipe_collection().await {
                Err(_) if attempt < WIPE_ATTEMPTS => {
                    attempt += 1;
                    sleep(WIPE_PAUSE).await;
                }
                outcome => break outcome,
            }
        };
        self.wipes.add(begun, self.history.now());
        outcome
    }
}
