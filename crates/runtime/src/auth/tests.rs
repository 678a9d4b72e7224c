use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use prost_reflect::ReflectMessage;
use tokio::sync::Barrier;
use tonic_types::StatusExt as _;

use super::*;

const EMBED: &str = "/waybill.embedding.v1.EmbeddingService/Embed";
const PUT: &str = "/waybill.ingestion.v1.IngestionService/PutSource";
const SERVICE_KEY: &str = "service-service-service-service-";

/// A store of keys that counts how often it is asked.
#[derive(Default)]
struct Store {
    asked: AtomicUsize,
    is_away: Mutex<bool>,
    known: Mutex<HashMap<[u8; 32], KeyRecord>>,
    /// Where questions wait for each other, if they do.
    meet: Option<Barrier>,
}

#[async_trait]
impl KeySource for Store {
    async fn find(&self, hash: &[u8; 32]) -> anyhow::Result<Option<KeyRecord>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if *self.is_away.lock().unwrap() {
            bail!("nobody answers at postgres://me:hunter2@db");
        }
        if let Some(meet) = &self.meet {
            meet.wait().await;
        }
        Ok(self.known.lock().unwrap().get(hash).cloned())
    }
}

impl Store {
    fn add(&self, key: &str, role: Role, state: KeyState) {
        let caller = Caller::new("somebody", Some("abcdefgh"), role, None);
        let record = KeyRecord { caller, state, limits: KeyLimits::default() };
        self.known.lock().unwrap().insert(key::hash(key), record);
    }

    fn add_limited(&self, key: &str, concurrent_calls: u32) {
        self.add(key, Role::Writer, KeyState::Active);
        let limits = KeyLimits { concurrent_calls: Some(concurrent_calls), ..KeyLimits::default() };
        self.known.lock().unwrap().get_mut(&key::hash(key)).unwrap().limits = limits;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn guard(store: &Arc<Store>, cache: Duration) -> Guard {
    let options = KeyOptions { cache, service_key: Secret::new(SERVICE_KEY), ..KeyOptions::default() };
    Guard::keys(Arc::clone(store) as Arc<dyn KeySource>, &options)
}

fn access(role: Role) -> Access {
    let (input, output) = (().descriptor(), ().descriptor());
    Access { role, scope: Scope::None, audited: false, input, output }
}

async fn admit(guard: &Guard, method: &str, access: Option<&Access>, key: &str) -> Result<Admitted, Denied> {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    guard.admit(method, access, &headers).await
}

fn reason(denied: &Denied) -> (Code, String) {
    (denied.status.code(), denied.status.get_details_error_info().unwrap().reason)
}

#[tokio::test]
async fn the_store_is_asked_once_in_a_while() {
    let store = Arc::new(Store::default());
    store.add("known", Role::Writer, KeyState::Active);
    let guard = guard(&store, Duration::from_secs(3_600));
    for _ in 0..5 {
        admit(&guard, PUT, Some(&access(Role::Writer)), "known").await.unwrap();
        admit(&guard, PUT, Some(&access(Role::Writer)), "guess").await.unwrap_err();
    }
    assert_eq!(store.asked(), 2, "once about each key, also one that there isn't");
}

#[tokio::test]
async fn what_the_store_says_anew_counts_when_its_last_word_is_old() {
    let store = Arc::new(Store::default());
    store.add("key", Role::Writer, KeyState::Active);
    let guard = guard(&store, Duration::ZERO);
    admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
    for (state, said) in [(KeyState::Revoked, "KEY_REVOKED"), (KeyState::Expired, "KEY_EXPIRED")] {
        store.add("key", Role::Writer, state);
        let denied = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap_err();
        assert_eq!(reason(&denied), (Code::Unauthenticated, said.to_owned()));
    }
}

#[tokio::test]
async fn nobody_is_let_in_unseen_while_the_store_is_away() {
    let store = Arc::new(Store::default());
    store.add("key", Role::Operator, KeyState::Active);
    let guard = guard(&store, Duration::ZERO);
    *store.is_away.lock().unwrap() = true;
    let denied = admit(&guard, PUT, Some(&access(Role::Reader)), "key").await.unwrap_err();
    assert_eq!(reason(&denied), (Code::Unavailable, "KEYS_UNAVAILABLE".to_owned()));
    assert!(denied.status.get_details_retry_info().is_some());
    assert!(!denied.status.message().contains("hunter2"), "{}", denied.status);
    *store.is_away.lock().unwrap() = false;
    admit(&guard, PUT, Some(&access(Role::Reader)), "key").await.unwrap();
}

#[tokio::test]
async fn what_goes_on_outlasts_the_store_but_not_its_key() {
    let store = Arc::new(Store::default());
    store.add("key", Role::Writer, KeyState::Active);
    let guard = guard(&store, Duration::from_millis(1));
    let admitted = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
    let asked = store.asked();
    *store.is_away.lock().unwrap() = true;
    let mut lost = Box::pin(admitted.lease.lost());
    while store.asked() < asked + 3 {
        assert!(futures::poll!(&mut lost).is_pending(), "nobody has said anything against it");
        tokio::task::yield_now().await;
    }
    *store.is_away.lock().unwrap() = false;
    store.add("key", Role::Writer, KeyState::Expired);
    assert_eq!(reason(&lost.await), (Code::Unauthenticated, "KEY_EXPIRED".to_owned()));
}

#[tokio::test]
async fn a_limit_holds_across_questions_to_the_store() {
    let store = Arc::new(Store::default());
    store.add_limited("key", 1);
    let guard = guard(&store, Duration::ZERO);
    let first = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
    let denied = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap_err();
    assert_eq!(denied.reason, "concurrency");
    drop(first);
    admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
}

#[tokio::test]
async fn a_limit_that_is_lowered_knows_of_the_calls_under_way() {
    let store = Arc::new(Store::default());
    store.add_limited("key", 2);
    let guard = guard(&store, Duration::ZERO);
    let first = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
    store.add_limited("key", 1);
    let denied = admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap_err();
    assert_eq!(denied.reason, "concurrency");
    drop(first);
    admit(&guard, PUT, Some(&access(Role::Writer)), "key").await.unwrap();
}

/// Both ask the store before either has its answer.
#[tokio::test]
async fn of_first_calls_at_once_all_count() {
    let store = Arc::new(Store { meet: Some(Barrier::new(2)), ..Store::default() });
    store.add_limited("key", 2);
    let guard = guard(&store, Duration::from_secs(3_600));
    let access = access(Role::Writer);
    let call = || admit(&guard, PUT, Some(&access), "key");
    let (first, second) = tokio::join!(call(), call());
    assert_eq!(store.asked(), 2);
    let _under_way = (first.unwrap(), second.unwrap());
    assert_eq!(call().await.unwrap_err().reason, "concurrency");
}

#[tokio::test]
async fn a_method_that_says_nothing_of_callers_is_refused() {
    let store = Arc::new(Store::default());
    store.add("key", Role::Operator, KeyState::Active);
    let guard = guard(&store, Duration::ZERO);
    let denied = admit(&guard, PUT, None, "key").await.unwrap_err();
    assert_eq!(denied.status.code(), Code::PermissionDenied);
    admit(&guard, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", None, "key").await.unwrap();
    guard.admit("/grpc.health.v1.Health/Check", None, &HeaderMap::new()).await.unwrap();
    let described = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    guard.admit(described, None, &HeaderMap::new()).await.unwrap_err();
}

#[tokio::test]
async fn the_key_that_services_share_is_for_embedding_alone() {
    let store = Arc::new(Store::default());
    let guard = guard(&store, Duration::ZERO);
    admit(&guard, EMBED, Some(&access(Role::Writer)), SERVICE_KEY).await.unwrap();
    let denied = admit(&guard, PUT, Some(&access(Role::Reader)), SERVICE_KEY).await.unwrap_err();
    assert_eq!(denied.reason, "role");
    assert_eq!(store.asked(), 0);
}

#[tokio::test]
async fn a_key_comes_one_way() {
    let guard = guard(&Arc::default(), Duration::ZERO);
    let denied = |headers: HeaderMap| {
        let guard = guard.clone();
        async move { reason(&guard.admit(PUT, Some(&access(Role::Reader)), &headers).await.unwrap_err()).1 }
    };
    assert_eq!(denied(HeaderMap::new()).await, "KEY_MISSING");
    let with = |values: &[&str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    };
    for values in [&["Basic eDp5"][..], &["Bearer"], &["Bearer  "], &["Bearer a", "Bearer b"]] {
        assert_eq!(denied(with(values)).await, "KEY_MALFORMED", "{values:?}");
    }
    assert_eq!(denied(with(&["bearer a"])).await, "UNKNOWN_KEY");
}
