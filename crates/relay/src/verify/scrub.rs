//! The comparison in the background: a pass over everything each period, by one relay at a time,
//! and a look at some keys now and then, so that a store that was lost is noticed soon.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waybill_domain::{RelayId, SinkName};
use waybill_storage::scrub::{self, ScrubPass};

use super::{
    Verifier, VerifyError,
    report::{Report, Tally},
};
use crate::config::ScrubConfig;

/// How long a pass stands without a word from its relay.
const TERM: Duration = Duration::from_secs(30);
/// How often its relay says how far it is.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often a pass is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);
/// Keys looked at in a check: from each of some random places the next few, of each kind. A store
/// that has lost a hundredth of its points is noticed two times in three.
const CHECK_PLACES: i32 = 10;
const CHECK_RUN: i64 = 10;

/// What runs in the background.
pub(crate) struct Scrubber {
    pub(crate) verifier: Verifier,
    pub(crate) config: ScrubConfig,
    pub(crate) owner: RelayId,
}

impl Scrubber {
    /// Works until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let checks = async {
            if self.config.check_s == 0 {
                return;
            }
            loop {
                sleep(Duration::from_secs(self.config.check_s)).await;
                if let Err(error) = Box::pin(self.check()).await {
                    tracing::debug!(%error, "points not checked, tried again");
                }
            }
        };
        let passes = async {
            loop {
                match Box::pin(self.pass()).await {
                    Ok(()) => sleep(LOOK_EVERY).await,
                    Err(error) => {
                        // The store is away: the engines say so already.
                        tracing::debug!(%error, class = %error.class(), "comparison interrupted, goes on");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        stopping.run_until_cancelled(async { tokio::join!(checks, passes) }).await;
        if let Err(error) = scrub::leave(&self.verifier.db, self.owner).await {
            tracing::debug!(%error, "comparison left to its lease");
        }
    }

    /// Takes a pass, if there is one to be taken, and goes on with it to its end.
    async fn pass(&self) -> Result<(), VerifyError> {
        let db = &self.verifier.db;
        let period = (self.config.period_s > 0).then(|| Duration::from_secs(self.config.period_s));
        let Some(mut mine) = scrub::take(db, self.owner, period, TERM).await? else { return Ok(()) };
        // What another version of this program counted may not be readable: then counting begins anew.
        let tally: Tally = serde_json::from_value(mine.tally.clone()).unwrap_or_default();
        let report = Report { tally, ..Report::default() };
        let mut pass = self.verifier.begin(None, self.config.repair, mine.position, report);
        tracing::debug!(position = %mine.position, "comparison begun");
        let mut saved_at = Instant::now();
        loop {
            match self.verifier.step(&mut pass).await {
                Ok(true) => {}
                Ok(false) => break,
                // What one store does is nothing to the comparison of the other.
                Err(VerifyError::Queue(error)) => {
                    tracing::warn!(%error, "queue not compared, it does not answer");
                    pass.end();
                }
                Err(error) => return Err(error),
            }
            if saved_at.elapsed() >= SAVE_EVERY {
                saved_at = Instant::now();
                note(&mut mine, pass.position(), &pass.report.tally);
                if !scrub::advance(db, self.owner, &mine, TERM).await? {
                    tracing::debug!("another relay goes on with the comparison");
                    return Ok(());
                }
            }
        }
        note(&mut mine, pass.position(), &pass.report.tally);
        if scrub::finish(db, self.owner, &mine).await? {
            log(&pass.report);
        }
        Ok(())
    }

    /// Looks at some confirmed keys, and asks for a pass if one of them is wrong.
    async fn check(&self) -> Result<(), VerifyError> {
        let verifier = &self.verifier;
        let keys = scrub_sample(verifier).await?;
        if keys.is_empty() {
            return Ok(());
        }
        if verifier.vectors.alias_target(&verifier.alias).await?.is_none() {
            // This relay may still write to the collection that it knew.
            verifier.sink.forget_target();
        }
        let (drifted, _) = verifier.confirm(&verifier.alias, &keys).await?;
        let Some((first, _)) = drifted.first() else { return Ok(()) };
        if !self.config.repair && self.is_known().await? {
            return Ok(());
        }
        tracing::warn!(
            found = drifted.len(),
            of = keys.len(),
            kind = ?first.kind,
            id = %first.id,
            "qdrant differs from postgres: everything is compared"
        );
        scrub::want(&verifier.db).await?;
        Ok(())
    }

    /// Says whether the last pass found drift, which nobody repairs.
    async fn is_known(&self) -> Result<bool, VerifyError> {
        let status = scrub::status(&self.verifier.db).await?;
        let tally = status.last.and_then(|(_, _, tally)| serde_json::from_value::<Tally>(tally).ok());
        Ok(tally.is_some_and(|tally| tally.found() > 0))
    }
}

async fn scrub_sample(verifier: &Verifier) -> Result<Vec<Uuid>, VerifyError> {
    Ok(waybill_storage::verify::sample(&verifier.db, SinkName::Qdrant, CHECK_PLACES, CHECK_RUN).await?)
}

fn note(mine: &mut ScrubPass, position: Uuid, tally: &Tally) {
    mine.position = position;
    mine.tally = serde_json::to_value(tally).unwrap_or_default();
}

fn log(report: &Report) {
    let tally = &report.tally;
    if tally.found() == 0 {
        tracing::info!(
            points = tally.points,
            rows = tally.rows,
            requests = tally.requests,
            undelivered = tally.undelivered,
            "stores compared, they are equal"
        );
        return;
    }
    tracing::warn!(
        points = tally.points,
        rows = tally.rows,
        requests = tally.requests,
        undelivered = tally.undelivered,
        repaired = tally.repaired,
        findings = ?tally.findings,
        "stores compared, they differed"
    );
}
