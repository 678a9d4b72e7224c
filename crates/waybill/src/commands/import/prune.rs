//! `--prune`: sources that the input does not have any more.

use std::collections::HashSet;

use tonic::Code;
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;
use waybill_api::ingestion::v1::{DeleteSourceRequest, ListSourcesRequest, SourceState};
use waybill_runtime::grpc::Peer;

use crate::client::Target;

/// The most a page may hold.
const PAGE: i32 = 1_000;

/// Deletes the sources under `prefix` that are not in `seen`. Returns how many.
pub(super) async fn run(
    mut client: IngestionServiceClient<Peer>,
    target: &Target,
    project: &str,
    prefix: &str,
    seen: &HashSet<String>,
) -> anyhow::Result<u64> {
    let mut pruned = 0;
    let mut page_token = String::new();
    loop {
        let request = ListSourcesRequest {
            project: project.to_owned(),
            page_size: PAGE,
            page_token,
            uri_prefix: prefix.to_owned(),
            state: SourceState::Unspecified.into(),
        };
        let page = client.list_sources(request).await.map_err(|status| target.explain(&status))?;
        let page = page.into_inner();
        for source in page.sources {
            if seen.contains(&source.uri) {
                continue;
            }
            // As it was listed: what somebody has changed since is not ours to delete.
            let if_version = Some(source.version);
            let request = DeleteSourceRequest { project: project.to_owned(), uri: source.uri, if_version };
            match client.delete_source(request).await {
                Ok(_) => pruned += 1,
                // Somebody else was faster.
                Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {}
                Err(status) => return Err(target.explain(&status)),
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(pruned);
        }
        page_token = page.next_page_token;
    }
}
