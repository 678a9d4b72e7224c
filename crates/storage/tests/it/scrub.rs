//! Who is on the pass in the background.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;
use waybill_domain::RelayId;
use waybill_storage::scrub;

use crate::support::Fixture;

const TERM: Duration = Duration::from_secs(60);
const DAY: Option<Duration> = Some(Duration::from_secs(86_400));

#[tokio::test]
async fn one_relay_is_on_the_pass_and_another_goes_on_with_it() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    let (one, two) = (RelayId::generate(), RelayId::generate());
    assert_eq!(scrub::take(db, one, None, TERM).await.unwrap(), None, "nobody asked, and it never is by itself");
    let (a, b) = tokio::join!(scrub::take(db, one, DAY, TERM), scrub::take(db, two, DAY, TERM));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.is_some() != b.is_some(), "{a:?} {b:?}");
    let (first, second, mut pass) = match (a, b) {
        (Some(pass), _) => (one, two, pass),
        (_, Some(pass)) => (two, one, pass),
        _ => unreachable!(),
    };
    assert_eq!((pass.position, &pass.tally), (Uuid::nil(), &json!({})));
    (pass.position, pass.tally) = (Uuid::from_u128(7), json!({"rows": 3}));
    assert!(scrub::advance(db, first, &pass, TERM).await.unwrap());
    assert_eq!(scrub::take(db, second, DAY, TERM).await.unwrap(), None);

    // The first is dead, or was frozen.
    fixture.sql("UPDATE relay_scrub SET lease_until = now() - interval '1 second'").await;
    assert_eq!(scrub::take(db, second, DAY, TERM).await.unwrap(), Some(pass.clone()));
    assert!(!scrub::advance(db, first, &pass, TERM).await.unwrap());
    assert!(!scrub::finish(db, first, &pass).await.unwrap());
    scrub::leave(db, second).await.unwrap();
    assert_eq!(scrub::take(db, first, DAY, TERM).await.unwrap(), Some(pass.clone()));

    assert!(scrub::finish(db, first, &pass).await.unwrap());
    let status = scrub::status(db).await.unwrap();
    assert_eq!(status.started_at, None);
    let (started_at, _, tally) = status.last.unwrap();
    assert_eq!((started_at, tally), (pass.started_at, json!({"rows": 3})));
    assert_eq!(scrub::take(db, first, DAY, TERM).await.unwrap(), None, "a day has not passed");
}

#[tokio::test]
async fn a_pass_that_was_asked_for_begins_after_that() {
    let fixture = Fixture::new().await;
    let (db, one) = (&fixture.db, RelayId::generate());
    scrub::want(db).await.unwrap();
    let pass = scrub::take(db, one, None, TERM).await.unwrap().unwrap();
    // Asked for once more while one is under way, which may have passed the place already.
    scrub::want(db).await.unwrap();
    assert!(scrub::finish(db, one, &pass).await.unwrap());
    let again = scrub::take(db, one, None, TERM).await.unwrap().unwrap();
    assert!(again.started_at > pass.started_at && again.position.is_nil());
    assert!(scrub::finish(db, one, &again).await.unwrap());
    assert_eq!(scrub::take(db, one, None, TERM).await.unwrap(), None);
}
