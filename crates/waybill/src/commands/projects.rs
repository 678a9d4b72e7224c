//! `waybill projects`.

use serde_json::json;
use tonic::Code;
use waybill_api::ingestion::v1::{CreateProjectRequest, DeleteProjectRequest, GetProjectRequest, ListProjectsRequest};

use crate::ask;
use crate::cli::{EndpointArgs, ProjectsCommand};
use crate::client;
use crate::out::Out;
use crate::{text, values};

/// The most a page may hold.
const PAGE: i32 = 1_000;

/// Runs the command.
pub(crate) async fn run(command: ProjectsCommand) -> anyhow::Result<()> {
    match command {
        ProjectsCommand::Ls { endpoint, json } => list(&endpoint, json).await,
        ProjectsCommand::Create { name, endpoint } => create(name, &endpoint).await,
        ProjectsCommand::Delete { name, yes, endpoint } => delete(name, yes, &endpoint).await,
    }
}

async fn list(endpoint: &EndpointArgs, as_json: bool) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    let mut out = Out::new();
    let mut page_token = String::new();
    let mut found = false;
    loop {
        let request = ListProjectsRequest { page_size: PAGE, page_token };
        let page = client.list_projects(request).await.map_err(|status| target.explain(&status))?;
        let page = page.into_inner();
        for project in page.projects {
            found = true;
            let create_time = project.create_time.as_ref().map(values::time).unwrap_or_default();
            if as_json {
                out.json(&json!({"name": project.name, "id": project.id, "create_time": create_time}))?;
            } else {
                out.line(format_args!("{:<32}  {create_time}", project.name))?;
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    out.flush()?;
    if !found {
        eprintln!("no projects yet: `waybill import` or `waybill projects create` makes one");
    }
    Ok(())
}

async fn create(name: String, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    let request = CreateProjectRequest { name };
    let project = client.create_project(request).await.map_err(|status| target.explain(&status))?;
    let mut out = Out::new();
    out.line(format_args!("created {}", project.into_inner().name))?;
    out.flush()
}

async fn delete(name: String, yes: bool, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    if !yes {
        let request = GetProjectRequest { name: name.clone() };
        let project = client.get_project(request).await.map_err(|status| target.explain(&status))?;
        let sources = project.into_inner().source_count.unwrap_or_default();
        if !ask::confirm(&format!("delete project {name:?} with {sources} sources?"))? {
            eprintln!("nothing deleted");
            return Ok(());
        }
    }
    let request = DeleteProjectRequest { name: name.clone() };
    let deleted = client.delete_project(request).await.map_err(|status| target.explain(&status))?;
    let mut out = Out::new();
    let sources = deleted.into_inner().deleted_source_count;
    out.line(format_args!("deleted {name}, {} sources", text::count(sources.unsigned_abs())))?;
    out.flush()
}

/// Creates a project if it isn't there. Returns whether it was created.
pub(crate) async fn ensure(
    client: &mut waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient<
        waybill_runtime::grpc::Peer,
    >,
    name: &str,
) -> Result<bool, tonic::Status> {
    match client.get_project(GetProjectRequest { name: name.to_owned() }).await {
        Ok(_) => return Ok(false),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status),
    }
    match client.create_project(CreateProjectRequest { name: name.to_owned() }).await {
        Ok(_) => Ok(true),
        // Somebody else was faster.
        Err(status) if status.code() == Code::AlreadyExists => Ok(false),
        Err(status) => Err(status),
    }
}
