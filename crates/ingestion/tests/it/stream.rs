use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use waybill_api::ingestion::v1::{
    Acknowledge, PutOutcome, PutSourceRequest, PutSourcesRequest, PutSourcesResponse,
    put_sources_response::Result as Answer,
};
use waybill_ingestion::Config;
use waybill_testkit::eventually;

use crate::support::{Fixture, item, outcome, text};

async fn open(t: &Fixture) -> (mpsc::Sender<PutSourcesRequest>, Streaming<PutSourcesResponse>) {
    let (sender, receiver) = mpsc::channel(1_000);
    let answers = t.client.clone().put_sources(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (sender, answers)
}

/// Reads all answers: sequence and outcome, or the field at fault.
async fn told(mut answers: Streaming<PutSourcesResponse>) -> Vec<(i64, String)> {
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        told.push(match answer.result.unwrap() {
            Answer::Put(put) => {
                (answer.sequence, outcome(&put).as_str_name().trim_start_matches("PUT_OUTCOME_").to_owned())
            }
            Answer::Error(error) => {
                assert!(error.message.contains(&error.field), "{error:?}");
                (answer.sequence, format!("{:?} {}", Code::from_i32(error.code), error.field))
            }
        });
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_item_is_answered_in_order_and_a_bad_one_holds_up_no_other() {
    let t = Fixture::new().await;
    t.put(text("known", "Known.")).await;
    let (sender, answers) = open(&t).await;
    let items = [
        text("new", "New."),
        text("known", "Known."),
        text("bad", " \n"),
        PutSourceRequest { project: "nobody".to_owned(), ..text("a", "Text.") },
        text("", "Text."),
        PutSourceRequest { acknowledge: Acknowledge::Indexed.into(), ..text("a", "Text.") },
        PutSourceRequest { acknowledge: Acknowledge::AllOrNothing.into(), ..text("a", "Text.") },
        // One after the other, whatever group they come into.
        text("new", "Newer."),
        text("new", "New."),
        text("new", "New."),
    ];
    for (sequence, source) in items.into_iter().enumerate() {
        sender.send(item(i64::try_from(sequence).unwrap(), source)).await.unwrap();
    }
    sender.send(PutSourcesRequest { sequence: 99, source: None }).await.unwrap();
    drop(sender);
    let expected = [
        (0, "CREATED"),
        (1, "UNCHANGED"),
        (2, "InvalidArgument source.body"),
        (3, "NotFound source.project"),
        (4, "InvalidArgument source.uri"),
        (5, "InvalidArgument source.acknowledge"),
        (6, "InvalidArgument source.acknowledge"),
        (7, "CHANGED"),
        (8, "CHANGED"),
        (9, "UNCHANGED"),
        (99, "InvalidArgument source"),
    ];
    assert_eq!(told(answers).await, expected.map(|(sequence, told)| (sequence, told.to_owned())));
    assert_eq!(t.sql("SELECT text FROM source WHERE uri = 'new'").await, "New.");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_one_uri_wins_over_groups() {
    let t = Fixture::with(Config { group_items: 2, ..Config::default() }).await;
    t.put(text("a", "Number 0.")).await;
    let (sender, answers) = open(&t).await;
    // Back to what was stored before: each is a change of the one before it.
    for sequence in 1..=40 {
        sender.send(item(sequence, text("a", &format!("Number {}.", sequence % 2)))).await.unwrap();
    }
    drop(sender);
    let told = told(answers).await;
    assert!(told.iter().all(|(_, told)| told == "CHANGED"), "{told:?}");
    assert_eq!(t.sql("SELECT text FROM source").await, "Number 0.");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_items_come_through_in_groups() {
    let t = Fixture::new().await;
    let (sender, answers) = open(&t).await;
    let feeder = tokio::spawn(async move {
        for sequence in 0..500 {
            sender.send(item(sequence, text(&format!("u{sequence}"), &format!("Text {sequence}.")))).await.unwrap();
        }
    });
    let told = told(answers).await;
    feeder.await.unwrap();
    assert!(told.iter().map(|(sequence, _)| *sequence).eq(0..500));
    assert_eq!(t.sql("SELECT count(*) FROM chunk").await, "500");
    let transactions: i64 = t.sql("SELECT count(DISTINCT xmin::text) FROM source").await.parse().unwrap();
    assert!(transactions < 100, "{transactions} transactions for 500 items");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_larger_than_what_is_left_waits_for_its_own_group() {
    let config =
        Config { max_body_bytes: 64 << 10, max_bytes_in_flight: 64 << 10, group_idle_ms: 10_000, ..Config::default() };
    let t = Fixture::with(config).await;
    let (sender, answers) = open(&t).await;
    for sequence in 0..4 {
        sender
            .send(item(sequence, text(&format!("u{sequence}"), &format!("{sequence} ").repeat(25_000))))
            .await
            .unwrap();
    }
    drop(sender);
    assert_eq!(told(answers).await.len(), 4);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_loses_only_what_was_not_committed() {
    let t = Fixture::new().await;
    let (sender, mut answers) = open(&t).await;
    sender.send(item(1, text("a", "Text."))).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);
    drop((sender, answers));
    assert_eq!(t.sql("SELECT uri FROM source").await, "a");
    let put = t.put(text("b", "Text.")).await;
    assert_eq!(outcome(&put), PutOutcome::Created, "the service goes on");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_finishes_the_group_and_says_where_to_go_on() {
    let t = Fixture::with(Config { group_idle_ms: 10_000, ..Config::default() }).await;
    let (sender, mut answers) = open(&t).await;
    sender.send(item(7, text("a", "Text."))).await.unwrap();
    // A full group behind it shows that the first items were read.
    for sequence in 8..80 {
        sender.send(item(sequence, text(&format!("u{sequence}"), "Text."))).await.unwrap();
    }
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 7);
    t.shutdown.trigger();
    let mut last = 7;
    let status = loop {
        match answers.message().await {
            Ok(Some(answer)) => last = answer.sequence,
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&format!("after sequence {last}")), "{} {last}", status.message());
    let stored = t.sql("SELECT count(*) FROM source").await;
    assert_eq!(stored, (last - 6).to_string(), "what was answered is stored, and nothing else");
    drop(sender);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_too_many_is_told_to_come_again() {
    let t = Fixture::with(Config { max_streams: 1, ..Config::default() }).await;
    let (sender, answers) = open(&t).await;
    let (_second, receiver) = mpsc::channel(1);
    let refused = t.client.clone().put_sources(ReceiverStream::<PutSourcesRequest>::new(receiver)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ingestion.max_streams"), "{}", refused.message());
    drop((sender, answers));
    eventually("the place is free again", Duration::from_secs(20), async || {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        t.client.clone().put_sources(ReceiverStream::<PutSourcesRequest>::new(receiver)).await.is_ok()
    })
    .await;
    t.stop().await;
}
