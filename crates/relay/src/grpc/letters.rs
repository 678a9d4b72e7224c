//! Dead letters: listing them, having their keys delivered again, forgetting them.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;
use waybill_api::relay::v1::{
    self as proto, DeadLetterFilter, DisposeDeadLettersRequest, DisposeDeadLettersResponse, GetDeadLetterRequest,
    ListDeadLettersRequest, ListDeadLettersResponse,
};
use waybill_domain::{CrashPoint, InvalidName, Kind, ProjectName, SinkName};
use waybill_llm_queue::{LlmQueue, Priority};
use waybill_runtime::status;
use waybill_storage::{
    Db,
    failures::{self, DeadLetter, Disposal, LetterFilter},
    projects,
};

use super::{
    RelayGrpc,
    operate::{short, sink, text},
    storage, timestamp,
};

const PAGE_DEFAULT: i64 = 100;
const PAGE_MAX: i64 = 1_000;
const IDS_MAX: usize = 1_000;
const TEXT_BYTES_MAX: usize = 256;
/// Letters taken in one statement.
const STEP: i64 = 500;

impl RelayGrpc {
    pub(super) async fn letters(&self, request: ListDeadLettersRequest) -> Result<ListDeadLettersResponse, Status> {
        let limit = match i64::from(request.page_size) {
            0 => PAGE_DEFAULT,
            size @ 1..=PAGE_MAX => size,
            size => {
                return Err(status::invalid_argument(
                    "page_size",
                    format!("is {size}: 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}"),
                ));
            }
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<Uuid>().map_err(|_| {
                status::invalid_argument("page_token", "is none: give the next_page_token of the page before")
            })?),
        };
        let filter = self.filter(&request.filter.unwrap_or_default()).await?;
        let letters = failures::letters(&self.db, &filter, after, limit).await.map_err(|error| storage(&error))?;
        let is_full = i64::try_from(letters.len()).is_ok_and(|count| count == limit);
        let next_page_token = letters.last().filter(|_| is_full).map(|letter| letter.id.to_string());
        Ok(ListDeadLettersResponse {
            dead_letters: letters.into_iter().map(letter).collect(),
            next_page_token: next_page_token.unwrap_or_default(),
        })
    }

    pub(super) async fn letter(&self, request: &GetDeadLetterRequest) -> Result<proto::DeadLetter, Status> {
        let filter = LetterFilter { ids: Some(vec![id("id", &request.id)?]), ..LetterFilter::default() };
        let letters = failures::letters(&self.db, &filter, None, 1).await.map_err(|error| storage(&error))?;
        letters.into_iter().next().map(letter).ok_or_else(|| status::not_found("dead letter", &request.id))
    }

    pub(super) async fn dispose(
        &self,
        request: DisposeDeadLettersRequest,
        disposal: Disposal,
    ) -> Result<ReceiverStream<Result<DisposeDeadLettersResponse, Status>>, Status> {
        if request.ids.len() > IDS_MAX {
            return Err(status::invalid_argument("ids", format!("has {}: at most {IDS_MAX}", request.ids.len())));
        }
        let mut filter = self.filter(&request.filter.unwrap_or_default()).await?;
        if !request.ids.is_empty() {
            let ids = request.ids.iter().enumerate().map(|(n, text)| id(&format!("ids[{n}]"), text));
            filter.ids = Some(ids.collect::<Result<_, _>>()?);
        }
        if filter == LetterFilter::default() && !request.all {
            return Err(status::invalid_argument("filter", "narrows nothing: give ids or a filter, or set all"));
        }
        // A key that is given up again at once is not taken again: this would never end.
        let now = failures::now(&self.db).await.map_err(|error| storage(&error))?;
        filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
        let (sender, receiver) = mpsc::channel(1);
        let (db, queue, bell, stopping) =
            (self.db.clone(), self.queue.clone(), self.bell.clone(), self.stopping.clone());
        tokio::spawn(async move {
            let (mut count, mut after) = (0, None);
            loop {
                let step = stopping.run_until_cancelled(step(&db, &queue, &filter, after, disposal)).await;
                let answer = match step {
                    Some(Ok((taken, last))) => {
                        bell.ring();
                        count += taken;
                        after = last;
                        let count = i64::try_from(count).unwrap_or(i64::MAX);
                        Ok(DisposeDeadLettersResponse { count, done: last.is_none() })
                    }
                    Some(Err(status)) => Err(status),
                    None => Err(status::unavailable("SHUTTING_DOWN", "the relay is stopping: ask another one", None)),
                };
                let ends = answer.as_ref().map_or(true, |answer| answer.done);
                // Whoever has hung up wants no more of them.
                if sender.send(answer).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    async fn filter(&self, filter: &DeadLetterFilter) -> Result<LetterFilter, Status> {
        text("filter.text", &filter.text, 0, TEXT_BYTES_MAX)?;
        let given = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        let kind = match filter.kind.as_str() {
            "" => None,
            name => Some(name.parse::<Kind>().map_err(|_| {
                let problem = format!("is {:?}: chunk, extraction, entity or llm_request", short(name));
                status::invalid_argument("filter.kind", problem)
            })?),
        };
        let sink = if filter.sink.is_empty() { None } else { Some(sink("filter.sink", &filter.sink)?) };
        let class = filter.error_class.as_str();
        if !matches!(class, "" | "transient" | "throttled" | "permanent" | "unknown") {
            let problem = format!("is {:?}: transient, throttled, permanent or unknown", short(class));
            return Err(status::invalid_argument("filter.error_class", problem));
        }
        let project_id = if filter.project.is_empty() {
            None
        } else {
            let name: ProjectName = filter
                .project
                .parse()
                .map_err(|error: InvalidName| status::invalid_argument("filter.project", error.to_string()))?;
            let found = projects::find(&self.db, &name).await.map_err(|error| storage(&error))?;
            Some(found.ok_or_else(|| status::not_found("project", &name))?)
        };
        Ok(LetterFilter {
            ids: None,
            sink,
            kind,
            project_id,
            error_class: given(class),
            since: time("filter.since", filter.since)?,
            until: time("filter.until", filter.until)?,
            text: given(&filter.text),
        })
    }
}

/// Takes some of the letters after `after`; returns how many, and the last that was looked at,
/// if there was any. Another caller may have taken them: then there may still be more.
async fn step(
    db: &Db,
    queue: &LlmQueue,
    filter: &LetterFilter,
    after: Option<Uuid>,
    disposal: Disposal,
) -> Result<(u64, Option<Uuid>), Status> {
    let letters = failures::letters(db, filter, after, STEP).await.map_err(|error| storage(&error))?;
    let Some(last) = letters.last().map(|letter| letter.id) else {
        return Ok((0, None));
    };
    if disposal == Disposal::Redrive {
        // Redis remembers requests it has had, so that none is sent twice. These are wanted again.
        let of = |letter: &&DeadLetter| letter.sink == SinkName::Llm && letter.kind == Kind::LlmRequest;
        let requests: Vec<Uuid> = letters.iter().filter(of).map(|letter| letter.key).collect();
        for priority in Priority::ALL {
            queue.forget(priority, &requests).await.map_err(|error| {
                tracing::warn!(%error, "redis was not told to forget requests");
                status::from_class(error.class(), "redis doesn't answer", None)
            })?;
        }
        CrashPoint::RedriveBeforeStatement.hit();
    }
    let ids = letters.iter().map(|letter| letter.id).collect();
    let filter = LetterFilter { ids: Some(ids), ..LetterFilter::default() };
    let taken = failures::dispose(db, &filter, disposal, STEP).await.map_err(|error| storage(&error))?;
    if disposal == Disposal::Redrive {
        CrashPoint::RedriveAfterStatement.hit();
    }
    Ok((taken, Some(last)))
}

fn id(field: &str, value: &str) -> Result<Uuid, Status> {
    value
        .parse()
        .map_err(|_| status::invalid_argument(field, format!("is {:?}: the id of a dead letter", short(value))))
}

fn time(field: &str, value: Option<prost_types::Timestamp>) -> Result<Option<chrono::DateTime<chrono::Utc>>, Status> {
    let Some(value) = value else {
        return Ok(None);
    };
    let nanos = u32::try_from(value.nanos).ok();
    let time = nanos.and_then(|nanos| chrono::DateTime::from_timestamp(value.seconds, nanos));
    // Postgres reaches less far than the type.
    let in_range = |time: &chrono::DateTime<chrono::Utc>| (0..=9_999).contains(&chrono::Datelike::year(time));
    time.filter(in_range).map(Some).ok_or_else(|| status::invalid_argument(field, "is no time of the years 0 to 9999"))
}

fn letter(letter: DeadLetter) -> proto::DeadLetter {
    proto::DeadLetter {
        id: letter.id.to_string(),
        sink: letter.sink.as_str().to_owned(),
        kind: letter.kind.as_str().to_owned(),
        key: letter.key.to_string(),
        project_id: letter.project_id.to_string(),
        project: letter.project.unwrap_or_default(),
        error: letter.error,
        error_class: letter.error_class,
        attempts: letter.attempts,
        excerpt: letter.excerpt.unwrap_or_default(),
        model: letter.model.unwrap_or_default(),
        prompt_version: letter.prompt_version.unwrap_or_default(),
        trace_id: letter.trace_id.unwrap_or_default(),
        first_failure_time: Some(timestamp(letter.first_failed_at)),
        last_failure_time: Some(timestamp(letter.last_failed_at)),
    }
}
