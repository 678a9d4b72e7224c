use super::*;

const LIMITS: QueueLimits = QueueLimits { texts: 4, bytes: 1_000 };
const BATCH: BatchLimits = BatchLimits { texts: 3, tokens: 100, tokens_per_text: 60 };

fn text(text: &str) -> (TextHash, String) {
    (TextHash::of(text), text.to_owned())
}

fn submit(queue: &mut Queue, texts: &[&str], purpose: Purpose) -> Vec<oneshot::Receiver<Outcome>> {
    queue.submit(texts.iter().map(|t| text(t)).collect(), purpose).unwrap()
}

fn taken(queue: &mut Queue) -> Option<Vec<String>> {
    queue.take(&BATCH, false).map(|batch| batch.texts)
}

#[test]
fn batches_take_from_many_callers_in_order() {
    let mut queue = Queue::new(LIMITS);
    let _a = submit(&mut queue, &["a1", "a2"], Purpose::Document);
    let _b = submit(&mut queue, &["b1", "b2"], Purpose::Document);
    assert_eq!(taken(&mut queue).unwrap(), ["a1", "a2", "b1"]);
    assert_eq!(taken(&mut queue).unwrap(), ["b2"]);
    assert_eq!(taken(&mut queue), None);
}

#[test]
fn queries_go_first_and_have_room_of_their_own() {
    let mut queue = Queue::new(LIMITS);
    let _documents = submit(&mut queue, &["1", "2", "3", "4"], Purpose::Document);
    assert!(matches!(queue.submit(vec![text("5")], Purpose::Document), Err(Full)));
    let _query = submit(&mut queue, &["q"], Purpose::Query);
    let first = queue.take(&BATCH, true).unwrap();
    assert_eq!((first.purpose, first.texts), (Purpose::Query, vec!["q".to_owned()]));
    assert!(queue.take(&BATCH, true).is_none(), "documents are not for this worker");
    assert_eq!(queue.take(&BATCH, false).unwrap().purpose, Purpose::Document);
}

#[test]
fn a_text_asked_for_twice_is_embedded_once() {
    let mut queue = Queue::new(LIMITS);
    let mut receivers = submit(&mut queue, &["same", "same"], Purpose::Document);
    receivers.extend(submit(&mut queue, &["same"], Purpose::Document));
    assert_eq!(taken(&mut queue).unwrap(), ["same"]);
    // Under way: joined still.
    receivers.extend(submit(&mut queue, &["same"], Purpose::Document));
    assert_eq!(taken(&mut queue), None);
    queue.complete(&(TextHash::of("same"), Purpose::Document), &Ok(Arc::from([1_u8])));
    for mut receiver in receivers {
        assert_eq!(&*receiver.try_recv().unwrap().unwrap(), [1]);
    }
    // Another purpose is another vector.
    let _a = submit(&mut queue, &["same"], Purpose::Document);
    let _b = submit(&mut queue, &["same"], Purpose::Query);
    assert_eq!(queue.waiting(), 2);
}

#[test]
fn a_full_line_takes_all_of_a_request_or_nothing() {
    let mut queue = Queue::new(LIMITS);
    let _three = submit(&mut queue, &["1", "2", "3"], Purpose::Document);
    let refused = queue.submit(vec![text("4"), text("5")], Purpose::Document);
    assert_eq!(refused.err(), Some(Full));
    assert_eq!(queue.waiting(), 3);
    // What is there already needs no room.
    let _joined = submit(&mut queue, &["1", "2", "3", "4"], Purpose::Document);
    assert_eq!(queue.waiting(), 4);
}

#[test]
fn bytes_are_limited_too() {
    let mut queue = Queue::new(LIMITS);
    let _one = submit(&mut queue, &[&"x".repeat(900)], Purpose::Document);
    assert!(queue.submit(vec![text(&"y".repeat(101))], Purpose::Document).is_err());
    let _fits = submit(&mut queue, &[&"z".repeat(100)], Purpose::Document);
    assert_eq!(taken(&mut queue).unwrap().len(), 2);
    // Taking gave the room back; and an empty line refuses nothing.
    let _huge = submit(&mut queue, &[&"x".repeat(5_000)], Purpose::Document);
}

#[test]
fn texts_of_callers_who_left_are_skipped_and_make_room() {
    let mut queue = Queue::new(LIMITS);
    let gone = submit(&mut queue, &["gone 1", "shared", "gone 2"], Purpose::Document);
    let mut stays = submit(&mut queue, &["shared", "stays"], Purpose::Document);
    drop(gone);
    let _new = submit(&mut queue, &["new 1", "new 2"], Purpose::Document);
    assert_eq!(taken(&mut queue).unwrap(), ["shared", "stays", "new 1"]);

    let shared = (TextHash::of("shared"), Purpose::Document);
    assert!(queue.still_wanted(&shared));
    stays.remove(0);
    assert!(!queue.still_wanted(&shared));
}

#[test]
fn tokens_bound_a_batch_but_never_below_one_text() {
    let mut queue = Queue::new(QueueLimits { texts: 10, bytes: 100_000 });
    // 51 tokens each; the third counts 60, as the model reads no more of it.
    let texts = ["a".repeat(200), "b".repeat(200), "c".repeat(90_000)];
    let _all = submit(&mut queue, &texts.iter().map(String::as_str).collect::<Vec<_>>(), Purpose::Document);
    assert_eq!(taken(&mut queue).unwrap().len(), 1);
    assert_eq!(taken(&mut queue).unwrap().len(), 1);
    assert_eq!(taken(&mut queue).unwrap().len(), 1);
}
