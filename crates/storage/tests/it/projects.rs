use waybill_domain::ProjectId;
use waybill_storage::projects;

use crate::support::{Fixture, source};

#[tokio::test]
async fn a_project_is_made_once_and_found_by_name() {
    let t = Fixture::new().await;
    let name = "docs-2".parse().unwrap();
    let made = projects::create(&t.db, &name).await.unwrap().unwrap();
    assert_eq!(made.id, ProjectId::derive(&name));
    assert_eq!(projects::create(&t.db, &name).await.unwrap(), None, "the name is taken");
    assert_eq!(projects::get(&t.db, &name).await.unwrap(), Some((made.clone(), 0)));
    assert_eq!(projects::find(&t.db, &name).await.unwrap(), Some(made.id));
    assert_eq!(projects::get(&t.db, &"other".parse().unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn projects_are_listed_by_name_in_pages() {
    let t = Fixture::new().await;
    for name in ["a", "z", "p-1"] {
        projects::create(&t.db, &name.parse().unwrap()).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = projects::list(&t.db, after.as_deref(), None, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        seen.extend(page.into_iter().map(|project| project.name));
    }
    assert_eq!(seen, ["a", "p", "p-1", "z"]);
}

#[tokio::test]
async fn deleting_a_project_takes_everything_in_it_and_dirties_its_chunks() {
    let t = Fixture::new().await;
    for uri in ["a", "b"] {
        t.put(source(t.project, uri, &["one", "two"])).await;
    }
    t.forget_outbox().await;
    let name = "p".parse().unwrap();
    assert_eq!(projects::delete(&t.db, &name, Some(r#"{"x-request-id":"r"}"#)).await.unwrap(), Some(2));
    assert_eq!(t.number("SELECT count(*) FROM source").await + t.number("SELECT count(*) FROM chunk").await, 0);
    assert_eq!(t.number("SELECT count(DISTINCT key) FROM outbox WHERE headers LIKE '%request-id%'").await, 4);
    assert_eq!(projects::delete(&t.db, &name, None).await.unwrap(), None, "it is gone");
}
