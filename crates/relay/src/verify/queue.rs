//! Compares the queue of LLM requests with Postgres.

use std::collections::BTreeMap;

use uuid::Uuid;
use waybill_domain::{Kind, SinkName};
use waybill_llm_queue::Priority;
use waybill_storage::{
    queue_state::{self, OpenRequest},
    repair::{self, Redelivery},
    requests::{self, QueuedRequest},
};

use super::{
    At, Pass, Verifier, VerifyError,
    report::{Finding, FindingKind},
    walk::successor,
};

impl Verifier {
    pub(super) async fn step_queue(&self, pass: &mut Pass, from: Uuid) -> Result<usize, VerifyError> {
        let limit = self.config.page_keys_max;
        let page = queue_state::open(&self.db, pass.project, from, limit.into()).await?;
        let looked = page.len();
        let next = page.last().filter(|_| looked >= limit as usize).and_then(|last| successor(last.id));
        let suspects = self.unknown(page).await?;
        let waiting = suspects.iter().filter(|request| request.stream_id.is_none()).count();
        // A request is finished in Postgres first, and then its message goes: one that is still
        // open had lost it.
        let lost = if suspects.is_empty() { suspects } else { queue_state::unchanged(&self.db, suspects).await? };

        let tally = &mut pass.report.tally;
        tally.requests += looked as u64;
        tally.undelivered += (waiting - lost.iter().filter(|request| request.stream_id.is_none()).count()) as u64;
        for request in &lost {
            let kind = if request.stream_id.is_some() { FindingKind::MissingInQueue } else { FindingKind::Unconfirmed };
            pass.report.add(&Finding {
                kind,
                key_kind: Kind::LlmRequest,
                id: request.id,
                project_id: Some(request.project_id),
                row_version: None,
                point_version: None,
            });
        }
        if pass.repair {
            self.send_again(&lost).await?;
            pass.report.tally.repaired += lost.len() as u64;
        }
        pass.at = next.map_or(At::End, At::Queue);
        Ok(looked)
    }

    /// Keeps the requests that Redis does not know, and those that it need not know yet.
    async fn unknown(&self, page: Vec<OpenRequest>) -> Result<Vec<OpenRequest>, VerifyError> {
        let (queued, mut suspects): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|request| request.stream_id.is_some());
        for (priority, requests) in by_priority(queued, |request| &request.priority) {
            let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
            let known = self.queue.knows(priority, &ids).await?;
            suspects.extend(requests.into_iter().zip(known).filter(|(_, known)| !known).map(|(request, _)| request));
        }
        Ok(suspects)
    }

    async fn send_again(&self, lost: &[OpenRequest]) -> Result<(), VerifyError> {
        let queued: Vec<QueuedRequest> = lost.iter().filter_map(OpenRequest::queued).collect();
        for (priority, requests) in by_priority(queued, |request| &request.priority) {
            let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
            // Else the queue would take the next message for one that it has.
            self.queue.forget(priority, &ids).await?;
            requests::lost(&self.db, &requests).await?;
        }
        let waiting: Vec<Redelivery> = lost
            .iter()
            .filter(|request| request.stream_id.is_none())
            .map(|request| Redelivery {
                kind: Kind::LlmRequest,
                key: request.id,
                project_id: request.project_id,
                claim: None,
                ahead: None,
            })
            .collect();
        repair::redeliver(&self.db, SinkName::Llm, &waiting).await?;
        Ok(())
    }
}

fn by_priority<T>(requests: Vec<T>, priority: impl Fn(&T) -> &str) -> BTreeMap<Priority, Vec<T>> {
    let mut sorted: BTreeMap<Priority, Vec<T>> = BTreeMap::new();
    for request in requests {
        // The schema allows these names and no others.
        let priority = priority(&request).parse().unwrap_or(Priority::Normal);
        sorted.entry(priority).or_default().push(request);
    }
    sorted
}
