use std::collections::HashSet;
use std::time::Duration;

use waybill_testkit::corpus::{Form, document, documents};
use waybill_testkit::eventually;

use crate::DEADLINE;

/// For waits that are to fail.
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn eventually_returns_as_soon_as_the_condition_holds() {
    let mut asked = 0;
    eventually("the third answer is yes", DEADLINE, async || {
        asked += 1;
        asked == 3
    })
    .await;
    assert_eq!(asked, 3);
}

#[tokio::test]
#[should_panic(expected = "the reason")]
async fn eventually_gives_up_with_the_reason() {
    eventually("the reason", SHORT, async || false).await;
}

#[tokio::test]
#[should_panic(expected = "never answers")]
async fn eventually_gives_up_on_a_condition_that_never_answers() {
    eventually("never answers", SHORT, std::future::pending).await;
}

#[test]
fn a_corpus_is_made_of_its_seed_alone() {
    let corpus = documents(7, 60).collect::<Vec<_>>();
    assert_eq!(corpus, documents(7, 60).collect::<Vec<_>>());
    assert_eq!(corpus[41], document(7, 41));
    assert!(documents(8, 60).all(|other| !corpus.contains(&other)));

    let uris = corpus.iter().map(|document| &document.uri).collect::<HashSet<_>>();
    assert_eq!(uris.len(), 60);
    for form in [Form::Text, Form::Markdown, Form::Html] {
        assert_eq!(corpus.iter().filter(|document| document.form == form).count(), 20);
    }
    for document in &corpus {
        let with_needle = corpus
            .iter()
            .filter(|other| other.body.split(|c: char| !c.is_alphanumeric()).any(|word| word == document.needle));
        assert_eq!(with_needle.count(), 1, "{}", document.needle);
        assert!((200..20_000).contains(&document.body.len()), "{}", document.body.len());
    }
}
