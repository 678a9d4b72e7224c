//! What a search hit says.

use uuid::Uuid;
use waybill_domain::SourceId;
use waybill_storage::hydrate;

use crate::support::Fixture;

async fn write(fixture: &Fixture, uri: &str, chunk: Uuid) -> SourceId {
    let source = SourceId::derive(fixture.project, uri);
    fixture
        .sql(&format!(
            "INSERT INTO source (id, project_id, uri, title, media_type, metadata, content_hash, text, state, chunker)
             VALUES ('{source}', '{}', '{uri}', 'Title', 'text', '{{\"lang\": \"en\"}}', sha256('x'), 'the text', 'chunked', 'test');
             INSERT INTO chunk (id, project_id, source_id, ordinal, headings, text, text_hash, start_byte, end_byte, token_count)
             VALUES ('{chunk}', '{}', '{source}', 0, '{{Outer,Inner}}', 'text', sha256('text'), 4, 8, 1)",
            fixture.project, fixture.project,
        ))
        .await;
    source
}

#[tokio::test]
async fn a_chunk_comes_with_its_source() {
    let fixture = Fixture::new().await;
    let (id, missing) = (Uuid::from_u128(1), Uuid::from_u128(2));
    write(&fixture, "a", id).await;
    let chunks = hydrate::chunks(&fixture.db, &[missing, id, id]).await.unwrap();
    let [chunk] = chunks.as_slice() else { panic!("not one: {chunks:?}") };
    assert_eq!((chunk.id, chunk.project_id), (id, fixture.project));
    assert_eq!(chunk.version, fixture.number("SELECT version FROM chunk").await);
    assert_eq!(
        (chunk.text.as_str(), chunk.headings.as_slice()),
        ("text", ["Outer".to_owned(), "Inner".to_owned()].as_slice())
    );
    assert_eq!((chunk.start_byte, chunk.end_byte), (4, 8));
    assert_eq!((chunk.source_uri.as_str(), chunk.source_title.as_str()), ("a", "Title"));
    assert_eq!(chunk.metadata["lang"], "en");
    assert_eq!(hydrate::chunks(&fixture.db, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn metadata_that_is_no_object_is_nothing() {
    let fixture = Fixture::new().await;
    let id = Uuid::from_u128(1);
    write(&fixture, "a", id).await;
    fixture.sql("UPDATE source SET metadata = '[1]'").await;
    assert!(hydrate::chunks(&fixture.db, &[id]).await.unwrap()[0].metadata.is_empty());
}

#[tokio::test]
async fn sources_are_found_by_uri_within_their_project() {
    let fixture = Fixture::new().await;
    let a = write(&fixture, "a", Uuid::from_u128(1)).await;
    let b = write(&fixture, "b", Uuid::from_u128(2)).await;
    let uris = ["b", "missing", "a", "A"].map(str::to_owned);
    let mut found = hydrate::source_ids(&fixture.db, fixture.project, &uris).await.unwrap();
    found.sort_unstable();
    let mut expected = [a, b];
    expected.sort_unstable();
    assert_eq!(found, expected);

    let other = waybill_domain::ProjectId::derive(&"other".parse().unwrap());
    assert_eq!(hydrate::source_ids(&fixture.db, other, &uris).await.unwrap(), []);
}
