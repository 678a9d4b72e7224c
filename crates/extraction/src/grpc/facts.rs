//! Listing facts, and rejecting them.

use tonic::Status;
use uuid::Uuid;
use waybill_api::extraction::v1::{
    self as proto, ListExtractionsRequest, ListExtractionsResponse, RejectExtractionsRequest, RejectFilter,
};
use waybill_domain::{JobId, ProjectId};
use waybill_runtime::status;
use waybill_storage::extractions::{self, Fact, FactFilter};

use super::{
    Grpc, MAX_PAGE, MAX_URI_BYTES, optional_uuid, outbox_headers, page, page_size, page_token, storage, timestamp, uuid,
};

const MAX_REJECTED: usize = 1_000;
/// The longest type and the longest name of an entity that are looked for: longer than any stored.
const MAX_NAME_BYTES: usize = 1_024;

/// Lists facts.
pub(super) async fn list(grpc: &Grpc, request: ListExtractionsRequest) -> Result<ListExtractionsResponse, Status> {
    let size = page_size(request.page_size)?;
    let after = page_token(&request.page_token)?;
    let asked = RejectFilter {
        chunk_id: request.chunk_id,
        uri_prefix: request.uri_prefix,
        job_id: request.job_id,
        r#type: request.r#type,
        entity: request.entity,
        confidence_below: request.confidence_below,
        all: false,
    };
    let filter = check(&asked, "")?;
    let project = grpc.project(&request.project).await?;
    let facts = match complete(grpc, project, filter, &asked.entity).await? {
        Some(filter) => {
            extractions::list_facts(&grpc.db, &filter, after, size + 1).await.map_err(|error| storage(&error))?
        }
        None => Vec::new(),
    };
    let (facts, next_page_token) = page(facts, size, |fact| fact.id.as_uuid().simple().to_string());
    Ok(ListExtractionsResponse { extractions: facts.into_iter().map(to_proto).collect(), next_page_token })
}

/// Rejects facts by their ids or by a filter, and returns how many.
pub(super) async fn reject(grpc: &Grpc, request: RejectExtractionsRequest) -> Result<i64, Status> {
    let rejected = match &request.filter {
        Some(_) if !request.ids.is_empty() => {
            return Err(status::invalid_argument("filter", "stands beside ids: send one of the two"));
        }
        Some(filter) => by_filter(grpc, &request.project, filter).await?,
        None => by_ids(grpc, &request).await?,
    };
    Ok(i64::try_from(rejected).unwrap_or(i64::MAX))
}

async fn by_ids(grpc: &Grpc, request: &RejectExtractionsRequest) -> Result<u64, Status> {
    let count = request.ids.len();
    if count == 0 || count > MAX_REJECTED {
        return Err(status::invalid_argument(
            "ids",
            format!("has {count} entries: send 1 to {MAX_REJECTED}, or a filter"),
        ));
    }
    let ids = request.ids.iter().enumerate().map(|(place, id)| uuid(&format!("ids[{place}]"), id));
    let ids = ids.collect::<Result<Vec<Uuid>, Status>>()?;
    let project = grpc.project(&request.project).await?;
    let rejected = extractions::reject(&grpc.db, project, &ids, outbox_headers().as_deref()).await;
    grpc.bell.ring();
    rejected.map_err(|error| storage(&error))
}

async fn by_filter(grpc: &Grpc, project: &str, asked: &RejectFilter) -> Result<u64, Status> {
    let filter = check(asked, "filter.")?;
    let says_nothing = *asked == RejectFilter { all: asked.all, ..RejectFilter::default() };
    if says_nothing != asked.all {
        let description = match asked.all {
            true => "stands beside other conditions: leave it out, or them",
            false => "says nothing: name what is to be rejected, or set all to reject every fact of the project",
        };
        return Err(status::invalid_argument(if asked.all { "filter.all" } else { "filter" }, description));
    }
    let project = grpc.project(project).await?;
    let Some(filter) = complete(grpc, project, filter, &asked.entity).await? else { return Ok(0) };
    let headers = outbox_headers();
    let (mut rejected, mut after) = (0, Some(Uuid::nil()));
    // One transaction a step. A caller that goes away ends it between two.
    while let Some(from) = after {
        let (count, next) = extractions::reject_step(&grpc.db, &filter, from, headers.as_deref())
            .await
            .map_err(|error| storage(&error))?;
        rejected += count;
        after = next;
        grpc.bell.ring();
    }
    Ok(rejected)
}

/// Reads all of a filter but its project and its entity, which are looked up. `prefix` goes in
/// front of the fields' names.
fn check(asked: &RejectFilter, prefix: &str) -> Result<FactFilter, Status> {
    let field = |name: &str| format!("{prefix}{name}");
    for (name, text, most) in [
        ("uri_prefix", &asked.uri_prefix, MAX_URI_BYTES),
        ("type", &asked.r#type, MAX_NAME_BYTES),
        ("entity", &asked.entity, MAX_NAME_BYTES),
    ] {
        if text.len() > most {
            return Err(status::invalid_argument(field(name), format!("has {} bytes: at most {most}", text.len())));
        }
        if text.contains('\0') {
            return Err(status::invalid_argument(field(name), "has a NUL: leave it out"));
        }
    }
    if let Some(below) = asked.confidence_below
        && !(0.0..=1.0).contains(&below)
    {
        return Err(status::invalid_argument(field("confidence_below"), format!("is {below}: must be 0 to 1")));
    }
    Ok(FactFilter {
        chunk_id: optional_uuid(&field("chunk_id"), &asked.chunk_id)?,
        uri_prefix: asked.uri_prefix.clone(),
        job_id: optional_uuid(&field("job_id"), &asked.job_id)?.map(JobId::from_uuid),
        kind: Some(asked.r#type.clone()).filter(|kind| !kind.is_empty()),
        confidence_below: asked.confidence_below,
        ..FactFilter::all(ProjectId::from_uuid(Uuid::nil()))
    })
}

/// Looks the entity up, if one is named. `None` if there is none of that name: no fact is meant.
async fn complete(
    grpc: &Grpc,
    project_id: ProjectId,
    filter: FactFilter,
    entity: &str,
) -> Result<Option<FactFilter>, Status> {
    if entity.is_empty() {
        return Ok(Some(FactFilter { project_id, ..filter }));
    }
    let canonical = waybill_llm::canonical_name(entity);
    if canonical.is_empty() {
        return Err(status::invalid_argument("entity", "has nothing but white space: name an entity, or leave it out"));
    }
    // One name may be of several types.
    let found = extractions::list_entities(&grpc.db, project_id, &canonical, Uuid::nil(), MAX_PAGE).await;
    let entities: Vec<_> = found.map_err(|error| storage(&error))?.iter().map(|entity| entity.id).collect();
    Ok((!entities.is_empty()).then_some(FactFilter { project_id, entities, ..filter }))
}

/// Makes a fact's message.
pub(super) fn to_proto(fact: Fact) -> proto::Extraction {
    proto::Extraction {
        id: fact.id.to_string(),
        r#type: fact.kind,
        statement: fact.statement,
        subject: fact.subject.unwrap_or_default(),
        predicate: fact.predicate.unwrap_or_default(),
        object: fact.object.unwrap_or_default(),
        confidence: fact.confidence,
        quote: fact.quote,
        quote_start: fact.quote_start,
        quote_end: fact.quote_end,
        chunk_id: fact.chunk_id.to_string(),
        source_uri: fact.source_uri,
        job_id: fact.job_id.to_string(),
        model: fact.model,
        create_time: Some(timestamp(fact.created_at)),
    }
}
