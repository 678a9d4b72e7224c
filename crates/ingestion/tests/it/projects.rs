use tonic::Code;
use waybill_api::ingestion::v1::{CreateProjectRequest, DeleteProjectRequest, GetProjectRequest, ListProjectsRequest};

use crate::support::{Fixture, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_are_made_found_listed_and_deleted() {
    let t = Fixture::new().await;
    let mut client = t.client.clone();
    for name in ["a", "b", "c"] {
        client.create_project(CreateProjectRequest { name: name.to_owned() }).await.unwrap();
    }
    let taken = client.create_project(CreateProjectRequest { name: "a".to_owned() }).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    t.put(text("one", "Text.")).await;
    let found = client.get_project(GetProjectRequest { name: "p".to_owned() }).await.unwrap().into_inner();
    assert_eq!((found.name.as_str(), found.source_count), ("p", Some(1)));
    assert!(found.create_time.is_some());

    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client.list_projects(ListProjectsRequest { page_size: 3, page_token }).await.unwrap().into_inner();
        names.extend(page.projects.into_iter().map(|project| project.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "p"]);

    let request = DeleteProjectRequest { name: "p".to_owned() };
    assert_eq!(client.delete_project(request.clone()).await.unwrap().into_inner().deleted_source_count, 1);
    assert_eq!(client.delete_project(request).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        client.get_project(GetProjectRequest { name: "p".to_owned() }).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(t.sql("SELECT count(*) FROM chunk").await, "0");
    t.stop().await;
}
