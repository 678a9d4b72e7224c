//! The cache of embeddings.

use waybill_domain::TextHash;
use waybill_storage::{
    Db,
    cache::{self, CachedVector, TOUCH_AFTER_DAYS},
};

use crate::support::{Fixture, connect};

fn hash(n: usize) -> TextHash {
    TextHash::of(n.to_string())
}

fn entries(numbers: std::ops::Range<usize>) -> Vec<(TextHash, Vec<u8>)> {
    numbers.map(|n| (hash(n), vec![u8::try_from(n % 256).unwrap(); 8])).collect()
}

async fn found(db: &Db, model: &str, numbers: &[usize]) -> Vec<Option<u8>> {
    let hashes: Vec<_> = numbers.iter().copied().map(hash).collect();
    let vectors = cache::lookup(db, model, &hashes).await.unwrap();
    vectors.into_iter().map(|vector| vector.map(|vector| vector.dense[0])).collect()
}

#[tokio::test]
async fn answers_keep_the_order_of_the_question() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    assert_eq!(cache::store(db, "m", &entries(0..5)).await.unwrap(), 5);
    assert_eq!(found(db, "m", &[4, 99, 0, 4, 99, 2]).await, [Some(4), None, Some(0), Some(4), None, Some(2)]);
    assert_eq!(found(db, "other", &[4]).await, [None]);
    assert_eq!(found(db, "m", &[]).await, []);
}

#[tokio::test]
async fn the_first_vector_stays() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    cache::store(db, "m", &[(hash(1), [7_u8])]).await.unwrap();
    // Twice within a batch, and once more than is there.
    let again = [(hash(2), [2_u8]), (hash(1), [8]), (hash(2), [3])];
    assert_eq!(cache::store(db, "m", &again).await.unwrap(), 1);
    assert_eq!(found(db, "m", &[1, 2]).await[0], Some(7));
    assert_eq!(cache::store(db, "other", &[(hash(1), [9_u8])]).await.unwrap(), 1);
    assert_eq!(found(db, "m", &[1]).await, [Some(7)]);
}

#[tokio::test]
async fn writers_of_the_same_keys_do_not_deadlock() {
    let fixture = Fixture::new().await;
    let db = connect(&fixture.database.url);
    let forward = entries(0..2_000);
    let backward: Vec<_> = forward.iter().rev().cloned().collect();
    let (a, b) = tokio::join!(cache::store(&db, "m", &forward), cache::store(&db, "m", &backward));
    assert_eq!(a.unwrap() + b.unwrap(), 2_000);
}

#[tokio::test]
async fn use_is_marked_once_in_a_while() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    cache::store(db, "m", &entries(0..3)).await.unwrap();
    let due = async |n: usize| {
        let vectors = cache::lookup(db, "m", &[hash(n)]).await.unwrap();
        vectors.into_iter().flatten().map(|CachedVector { touch_due, .. }| touch_due).next()
    };
    assert_eq!(due(0).await, Some(false));
    assert_eq!(cache::touch(db, "m", &[hash(0)]).await.unwrap(), 0);

    fixture.sql(&format!("UPDATE embedding_cache SET last_used_on = current_date - {TOUCH_AFTER_DAYS}")).await;
    assert_eq!(due(0).await, Some(true));
    assert_eq!(cache::touch(db, "m", &[hash(0), hash(1), hash(99)]).await.unwrap(), 2);
    assert_eq!((due(0).await, due(2).await), (Some(false), Some(true)));
}

#[tokio::test]
async fn eviction_by_age_takes_steps() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    cache::store(db, "m", &entries(0..10)).await.unwrap();
    fixture.sql("UPDATE embedding_cache SET last_used_on = current_date - 91 WHERE get_byte(dense, 0) < 7").await;
    fixture.sql("UPDATE embedding_cache SET last_used_on = current_date - 90 WHERE get_byte(dense, 0) = 7").await;
    assert_eq!(cache::evict_unused(db, 90, 4).await.unwrap(), 4);
    assert_eq!(cache::evict_unused(db, 90, 4).await.unwrap(), 3);
    assert_eq!(cache::evict_unused(db, 90, 4).await.unwrap(), 0);
    assert_eq!(found(db, "m", &[0, 6, 7, 8, 9]).await, [None, None, Some(7), Some(8), Some(9)]);
}

#[tokio::test]
async fn eviction_by_size_takes_the_oldest() {
    let fixture = Fixture::new().await;
    let db = &fixture.db;
    assert_eq!(cache::excess_rows(db, 1 << 20).await.unwrap(), 0, "an empty cache is never too large");
    let vectors: Vec<_> = (0..1_000).map(|n| (hash(n), vec![u8::try_from(n / 4).unwrap(); 780])).collect();
    cache::store(db, "m", &vectors).await.unwrap();
    // So that the number of rows is known now and not in a second.
    fixture.sql("ANALYZE embedding_cache").await;
    // A thousand bytes a row, so a hundred thousand hold a hundred.
    assert_eq!(cache::excess_rows(db, 100_000).await.unwrap(), 900);
    assert_eq!(cache::excess_rows(db, 2_000_000).await.unwrap(), 0);

    fixture.sql("UPDATE embedding_cache SET last_used_on = current_date - get_byte(dense, 0)").await;
    assert_eq!(cache::evict_oldest(db, 600).await.unwrap(), 600);
    assert_eq!(fixture.sql("SELECT count(*), max(get_byte(dense, 0)) FROM embedding_cache").await, "400|99");
}

#[tokio::test]
async fn a_lookup_uses_the_index_whatever_the_statistics_say() {
    let fixture = Fixture::new().await;
    cache::store(&fixture.db, "m", &entries(0..5_000)).await.unwrap();
    // The same text as the statement's own, with a batch of hashes.
    let plan = fixture
        .sql(
            "EXPLAIN SELECT text_hash, dense FROM embedding_cache
             WHERE model = 'm' AND text_hash = ANY(ARRAY(SELECT sha256(n::text::bytea) FROM generate_series(1, 500) AS n))",
        )
        .await;
    assert!(plan.contains("embedding_cache_pkey"), "{plan}");
    assert!(!plan.contains("Seq Scan on embedding_cache"), "{plan}");
}
