//! What became of each passage.

use tonic::Status;
use waybill_api::extraction::v1::{self as proto, ListRequestsRequest, ListRequestsResponse};
use waybill_domain::JobId;
use waybill_runtime::status;
use waybill_storage::requests::{self, EntitiesState, Request, RequestFilter, RequestState};

use super::{Grpc, optional_uuid, page, page_size, page_token, storage, timestamp};

/// Lists requests.
pub(super) async fn list(grpc: &Grpc, request: ListRequestsRequest) -> Result<ListRequestsResponse, Status> {
    let size = page_size(request.page_size)?;
    let after = page_token(&request.page_token)?;
    let job_id = optional_uuid("job_id", &request.job_id)?.map(JobId::from_uuid);
    let chunk_id = optional_uuid("chunk_id", &request.chunk_id)?;
    if job_id.is_none() && chunk_id.is_none() {
        return Err(status::invalid_argument("job_id", "is missing, and so is chunk_id: give one or both"));
    }
    let state = match proto::RequestState::try_from(request.state) {
        Ok(proto::RequestState::Unspecified) => None,
        Ok(state) => RequestState::ALL.into_iter().find(|known| state_to_proto(*known) == state),
        Err(_) => {
            let description = format!("is {}: must be a RequestState, 0 to 6", request.state);
            return Err(status::invalid_argument("state", description));
        }
    };
    let project_id = grpc.project(&request.project).await?;
    let filter = RequestFilter { project_id, job_id, chunk_id, state };
    let found = requests::list(&grpc.db, filter, after, size + 1).await.map_err(|error| storage(&error))?;
    let (found, next_page_token) = page(found, size, |request| request.id.simple().to_string());
    Ok(ListRequestsResponse { requests: found.into_iter().map(to_proto).collect(), next_page_token })
}

fn to_proto(request: Request) -> proto::ExtractionRequest {
    let entities_state = match request.entities_state {
        EntitiesState::None => proto::EntitiesState::None,
        EntitiesState::Partial => proto::EntitiesState::Partial,
        EntitiesState::Complete => proto::EntitiesState::Complete,
    };
    proto::ExtractionRequest {
        id: request.id.to_string(),
        job_id: request.job_id.to_string(),
        chunk_id: request.chunk_id.to_string(),
        source_uri: request.source_uri,
        state: state_to_proto(request.state).into(),
        attempts: request.attempts,
        last_error: request.last_error.unwrap_or_default(),
        last_error_class: request.last_error_class.unwrap_or_default(),
        model: request.model.unwrap_or_default(),
        prompt_tokens: request.prompt_tokens,
        completion_tokens: request.completion_tokens,
        cost: request.cost,
        fact_count: request.facts,
        dropped_facts: request.facts_dropped.into_iter().collect(),
        entities_state: entities_state.into(),
        dropped_entities: request.entities_dropped.into_iter().collect(),
        create_time: Some(timestamp(request.created_at)),
        update_time: Some(timestamp(request.updated_at)),
    }
}

const fn state_to_proto(state: RequestState) -> proto::RequestState {
    match state {
        RequestState::Pending => proto::RequestState::Pending,
        RequestState::Queued => proto::RequestState::Queued,
        RequestState::Running => proto::RequestState::Running,
        RequestState::Done => proto::RequestState::Done,
        RequestState::Dead => proto::RequestState::Dead,
        RequestState::Cancelled => proto::RequestState::Cancelled,
    }
}
