//! Keys, roles, projects, limits and the audit, through the real services.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream;
use http::uri::PathAndQuery;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use waybill_api::FILE_DESCRIPTOR_SET;
use waybill_domain::Role;
use waybill_testkit::{Program, Signal, eventually};

use crate::access_table::{Reach, Row, rows};
use crate::place::{Place, STOP_LIMIT, UP_LIMIT, model};
use crate::program::{assert_has, run, waybill};
use crate::signals::http::{get, sum};

const SERVICE_KEY: &str = "service-service-service-service-";
const BOOTSTRAP_KEY: &str = "bootstrap-bootstrap-bootstrap-00";

/// Soon enough for a test, and longer than a call takes.
const CACHE_MS: &str = "300";

/// Messages as bytes: any method can be called with them.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// A system that asks for keys.
struct Guarded {
    place: Place,
    up: Program,
    endpoints: Value,
    pool: DescriptorPool,
}

impl Guarded {
    async fn start() -> Self {
        let place = Place::new();
        let up = place
            .up_with(&[
                ("WAYBILL_AUTH__MODE", "keys"),
                ("WAYBILL_AUTH__CACHE_MS", CACHE_MS),
                ("WAYBILL_AUTH__SERVICE_KEY", SERVICE_KEY),
                ("WAYBILL_AUTH__BOOTSTRAP_KEY", BOOTSTRAP_KEY),
                ("WAYBILL_LOG", "debug"),
            ])
            .await;
        let endpoints = std::fs::read_to_string(place.data_dir().join("endpoints.json")).unwrap();
        let endpoints = serde_json::from_str(&endpoints).unwrap();
        Self { place, up, endpoints, pool: DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap() }
    }

    /// Makes a key and returns it.
    async fn key(&self, name: &str, args: &[&str]) -> String {
        let made = self.place.json(&[&["keys", "create", name], args].concat()).await;
        made["key"].as_str().unwrap().to_owned()
    }

    fn method(&self, path: &str) -> MethodDescriptor {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap();
        let service = self.pool.get_service_by_name(service).unwrap();
        service.methods().find(|found| found.name() == method).unwrap()
    }

    fn channel(&self, path: &str) -> Channel {
        let service = path.split('.').nth(1).unwrap();
        let url = self.endpoints[service].as_str().unwrap();
        waybill_runtime::grpc::channel(url).unwrap()
    }

    /// Calls a method. Returns its first message.
    async fn call(&self, path: &str, key: Option<&str>, request: &str) -> Result<Value, Status> {
        let method = self.method(path);
        let mut json = serde_json::Deserializer::from_str(request);
        let message = DynamicMessage::deserialize(method.input(), &mut json).unwrap();
        let bytes = prost::Message::encode_to_vec(&message);
        let mut client = tonic::client::Grpc::new(self.channel(path));
        client.ready().await.unwrap();
        // On the wire a single call is a stream of one message.
        let mut request = Request::new(stream::iter([bytes]));
        if let Some(key) = key {
            request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        }
        let answers = client.streaming(request, PathAndQuery::try_from(path).unwrap(), Raw).await?;
        let first = answers.into_inner().message().await?.unwrap_or_default();
        let answer = DynamicMessage::decode(method.output(), &first[..]).unwrap();
        Ok(serde_json::to_value(&answer).unwrap())
    }

    async fn ok(&self, path: &str, key: &str, request: &str) -> Value {
        self.call(path, Some(key), request).await.unwrap_or_else(|status| panic!("{path}: {status}"))
    }

    /// Returns the code of a call, `Ok` if it was answered.
    async fn code(&self, path: &str, key: Option<&str>, request: &str) -> Code {
        self.call(path, key, request).await.map_or_else(|status| status.code(), |_| Code::Ok)
    }

    /// Puts something into a project and has facts found in it. Returns the ids.
    async fn fill(&self, key: &str, project: &str) -> Vec<(&'static str, String)> {
        let text = "Berlin is the capital of Germany. Marie Curie discovered polonium in 1898.";
        let body =
            "QmVybGluIGlzIHRoZSBjYXBpdGFsIG9mIEdlcm1hbnkuIE1hcmllIEN1cmllIGRpc2NvdmVyZWQgcG9sb25pdW0gaW4gMTg5OC4=";
        let put =
            json!({"project": project, "uri": "secret", "title": text, "media_type": 1, "body": body}).to_string();
        self.ok("/waybill.ingestion.v1.IngestionService/CreateProject", key, &json!({"name": project}).to_string())
            .await;
        self.ok("/waybill.ingestion.v1.IngestionService/PutSource", key, &put).await;
        let asked = json!({"project": project}).to_string();
        let extraction = "/waybill.extraction.v1.ExtractionService";
        let job = self.ok(&format!("{extraction}/StartExtraction"), key, &asked).await;
        let job = job["id"].as_str().unwrap().to_owned();
        let of_job = json!({"project": project, "jobId": job}).to_string();
        let requests = self.ok(&format!("{extraction}/ListRequests"), key, &of_job).await;
        let request = requests["requests"][0]["id"].as_str().unwrap().to_owned();
        let list = format!("{extraction}/ListExtractions");
        let facts = async || self.ok(&list, key, &asked).await["extractions"][0]["id"].as_str().map(str::to_owned);
        eventually("a fact is found", UP_LIMIT, async || facts().await.is_some()).await;
        let fact = facts().await.unwrap();
        let entities = self.ok(&format!("{extraction}/ListEntities"), key, &asked).await;
        let entity =
            entities["entities"][0]["id"].as_str().unwrap_or("00000000-0000-0000-0000-000000000000").to_owned();
        vec![("job", job), ("request", request), ("fact", fact), ("entity", entity)]
    }
}

fn filled(request: &str, mine: &[(&str, String)], foreign: &[(&str, String)]) -> String {
    let request = mine.iter().fold(request.to_owned(), |text, (name, id)| text.replace(&format!("{{my {name}}}"), id));
    foreign.iter().fold(request, |text, (name, id)| text.replace(&format!("{{{name}}}"), id))
}

/// A key, and what it should be good for.
struct Holder {
    name: &'static str,
    key: String,
    role: Role,
    /// Whether it is good for `mine` and `gone` only.
    limited: bool,
}

/// Says how a call should end; `None`: it is let in, whatever comes of it.
fn expected(row: &Row, holder: &Holder, is_foreign: bool) -> Option<Code> {
    if holder.role < row.role || (row.reach == Reach::All && holder.limited) {
        return Some(Code::PermissionDenied);
    }
    match row.reach {
        Reach::Project if is_foreign && holder.limited => Some(Code::PermissionDenied),
        Reach::Owned if is_foreign && holder.limited => Some(Code::NotFound),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_lets_in_whom_the_table_says_and_nobody_else() {
    let guarded = Guarded::start().await;
    let rows = rows();
    let named: BTreeSet<String> = rows.iter().map(|(path, _)| path.clone()).collect();
    let served: BTreeSet<String> = guarded
        .pool
        .services()
        .flat_map(|service| {
            let methods: Vec<_> =
                service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name())).collect();
            methods
        })
        .collect();
    assert_eq!(named, served, "each method stands in the table, and nothing else does");

    let limited = ["--project", "mine", "--project", "gone"];
    let holder = async |name, role, more: &[&str], of| Holder {
        name,
        key: guarded.key(name, &[&["--role", role], more].concat()).await,
        role: of,
        limited: !more.is_empty(),
    };
    let holders = [
        holder("reader", "reader", &limited, Role::Reader).await,
        holder("writer", "writer", &limited, Role::Writer).await,
        holder("reader of all", "reader", &[], Role::Reader).await,
        holder("operator", "operator", &[], Role::Operator).await,
        Holder { name: "bootstrap", key: BOOTSTRAP_KEY.to_owned(), role: Role::Operator, limited: false },
    ];
    let operator = &holders[3].key;
    let mine = guarded.fill(operator, "mine").await;
    let foreign = guarded.fill(operator, "foreign").await;

    let revoked = guarded.key("revoked", &["--role", "operator"]).await;
    guarded.place.run(&["keys", "revoke", &revoked[4..12]]).await.expect_code(0);
    let expired = guarded.key("expired", &["--role", "operator", "--expires", "1s"]).await;
    let status = "/waybill.relay.v1.RelayService/GetStatus";
    eventually("a key expires", UP_LIMIT, async || {
        guarded.code(status, Some(&expired), "{}").await == Code::Unauthenticated
    })
    .await;
    let last = revoked.len() - 1;
    let mistyped = format!("{}{}", &operator[..last], if operator.ends_with('a') { "b" } else { "a" });

    for (path, row) in &rows {
        let (of_mine, of_foreign) = (filled(row.mine, &mine, &foreign), filled(row.foreign, &mine, &foreign));
        for key in [None, Some(""), Some("x"), Some(&mistyped[..]), Some(&revoked), Some(&expired)] {
            let code = guarded.code(path, key, &of_mine).await;
            assert_eq!(code, Code::Unauthenticated, "{path} with {key:?}");
        }
        for holder in &holders {
            for (request, is_foreign) in [(&of_foreign, true), (&of_mine, false)] {
                // An operator may delete what others only try to.
                if is_foreign && !holder.limited {
                    continue;
                }
                let code = guarded.code(path, Some(&holder.key), request).await;
                let case = format!("{path} by {} with {request}: {code:?}", holder.name);
                match expected(row, holder, is_foreign) {
                    Some(wanted) => assert_eq!(code, wanted, "{case}"),
                    None => assert!(!matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{case}"),
                }
            }
        }
        let for_services = path.starts_with("/waybill.embedding.v1.EmbeddingService/");
        let code = guarded.code(path, Some(SERVICE_KEY), &of_mine).await;
        assert_eq!(code == Code::PermissionDenied, !for_services, "{path} with the services' key: {code:?}");
    }

    let list = "/waybill.ingestion.v1.IngestionService/ListProjects";
    let names = async |key: &str| guarded.ok(list, key, "{}").await.to_string();
    assert!(!names(&holders[0].key).await.contains("foreign"), "a list leaves out what the key is not good for");
    assert!(names(operator).await.contains("foreign"));
    // What was refused was not done.
    let secret = r#"{"project": "foreign", "uri": "secret"}"#;
    guarded.ok("/waybill.ingestion.v1.IngestionService/GetSource", operator, secret).await;

    let unknown = "/waybill.relay.v1.RelayService/None";
    let mut client = tonic::client::Grpc::new(guarded.channel(unknown));
    client.ready().await.unwrap();
    let asked = client.streaming(Request::new(stream::iter([vec![]])), PathAndQuery::from_static(unknown), Raw).await;
    assert_eq!(asked.unwrap_err().code(), Code::Unauthenticated, "what there is is not told to strangers");

    let printed = guarded.up.output().join("\n");
    for key in holders.iter().map(|holder| &holder.key[..]).chain([&revoked[..], SERVICE_KEY, &mistyped]) {
        assert!(!printed.contains(key), "no key is logged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_held_to_its_limits_and_is_good_until_it_is_revoked() {
    let guarded = Guarded::start().await;
    let status = "/waybill.relay.v1.RelayService/GetStatus";
    let put = "/waybill.ingestion.v1.IngestionService/PutSource";

    let slow = guarded.key("slow", &["--role", "reader", "--requests-per-second", "1"]).await;
    let mut refused = None;
    for _ in 0..30 {
        if let Err(status) = guarded.call(status, Some(&slow), "{}").await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("thirty calls at once are more than one a second");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "RATE_LIMITED");
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());

    let small = guarded.key("small", &["--role", "writer", "--max-message-bytes", "400"]).await;
    let of = |bytes: usize| {
        json!({"project": "p", "uri": "u", "media_type": 1, "body": "YWFh".repeat(bytes / 3)}).to_string()
    };
    let project = "/waybill.ingestion.v1.IngestionService/CreateProject";
    guarded.ok(project, &small, r#"{"name": "p"}"#).await;
    guarded.ok(put, &small, &of(300)).await;
    let refused = guarded.call(put, Some(&small), &of(600)).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    assert_has(refused.message(), &["400"]);

    let narrow = guarded.key("narrow", &["--role", "writer", "--concurrent-calls", "1"]).await;
    let stream = "/waybill.ingestion.v1.IngestionService/PutSources";
    let (sender, receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let mut open = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    open.metadata_mut().insert("authorization", format!("Bearer {narrow}").parse().unwrap());
    let mut client = tonic::client::Grpc::new(guarded.channel(stream));
    client.ready().await.unwrap();
    let answers = client.streaming(open, PathAndQuery::from_static(stream), Raw).await.unwrap();
    let refused = guarded.call(status_of_ingestion(), Some(&narrow), r#"{"name": "p"}"#).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "TOO_MANY_CALLS");
    drop((sender, answers));
    eventually("the place is free again", UP_LIMIT, async || {
        guarded.code(status_of_ingestion(), Some(&narrow), r#"{"name": "p"}"#).await == Code::Ok
    })
    .await;

    guarded.place.run(&["keys", "revoke", &small[..12]]).await.expect_code(0);
    eventually("a revoked key is refused", Duration::from_secs(20), async || {
        guarded.code(put, Some(&small), &of(10)).await == Code::Unauthenticated
    })
    .await;
    let listed = guarded.place.run(&["keys", "list", "--all"]).await.expect_code(0);
    assert_has(&listed.stdout, &["slow", "small", "revoked", "all projects", &slow[4..12]]);
    assert!(!listed.stdout.contains(&slow), "{}", listed.stdout);

    assert_eq!(guarded.code(put, None, &of(10)).await, Code::Unauthenticated);
    assert_eq!(guarded.code(put, Some("wbk_unknown"), &of(10)).await, Code::Unauthenticated);
    assert_eq!(guarded.code(project, Some(&narrow), r#"{"name": "p"}"#).await, Code::AlreadyExists);
    let reader = guarded.key("reader", &["--role", "reader"]).await;
    assert_eq!(guarded.code(put, Some(&reader), &of(10)).await, Code::PermissionDenied);
    let scrape = get(guarded.endpoints["admin"].as_str().unwrap(), "/metrics").await.1;
    for reason in ["concurrency", "missing", "rate", "revoked", "role", "size", "unknown"] {
        let denied = sum(&scrape, &format!("waybill_auth_denied_total{{reason={reason:?}}}"));
        assert!(denied >= 1.0, "{reason} is not counted:\n{scrape}");
    }
    let expired = sum(&scrape, r#"waybill_auth_denied_total{reason="expired"}"#);
    assert_eq!(expired, 0.0, "of this there was none");
}

/// Calls that outlast their key end with it: one that waits for its request, one that answers.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_ends_when_its_key_is_revoked() {
    let guarded = Guarded::start().await;
    guarded.ok("/waybill.ingestion.v1.IngestionService/CreateProject", BOOTSTRAP_KEY, r#"{"name": "p"}"#).await;
    let key = guarded.key("leaving", &["--role", "writer", "--concurrent-calls", "2"]).await;
    let begin = |method: &'static str| {
        let mut client = tonic::client::Grpc::new(guarded.channel(method));
        let bearer = format!("Bearer {key}");
        tokio::spawn(async move {
            loop {
                let (_open, receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
                let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
                request.metadata_mut().insert("authorization", bearer.parse().unwrap());
                client.ready().await.unwrap();
                let ended = match client.streaming(request, PathAndQuery::from_static(method), Raw).await {
                    Ok(answers) => answers.into_inner().message().await,
                    Err(status) => Err(status),
                };
                // The question below had its place.
                if !matches!(&ended, Err(status) if status.code() == Code::ResourceExhausted) {
                    return ended;
                }
            }
        })
    };
    let waits = begin("/waybill.ingestion.v1.IngestionService/PutSource");
    let answers = begin("/waybill.ingestion.v1.IngestionService/PutSources");
    eventually("both are under way", UP_LIMIT, async || {
        guarded.code(status_of_ingestion(), Some(&key), r#"{"name": "p"}"#).await == Code::ResourceExhausted
    })
    .await;
    guarded.place.run(&["keys", "revoke", &key[..12]]).await.expect_code(0);
    for call in [waits, answers] {
        let ended = tokio::time::timeout(Duration::from_secs(20), call).await.expect("it ends with its key").unwrap();
        let status = ended.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.get_details_error_info().unwrap().reason, "KEY_REVOKED");
    }
}

fn status_of_ingestion() -> &'static str {
    "/waybill.ingestion.v1.IngestionService/GetProject"
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_is_in_the_audit_log() {
    let guarded = Guarded::start().await;
    let operator = guarded.key("night shift", &["--role", "operator"]).await;
    let relay = |method| format!("/waybill.relay.v1.RelayService/{method}");
    guarded.ok(&relay("Pause"), &operator, r#"{"sink": "llm", "paused_by": "me", "reason": "to see"}"#).await;
    let bad = guarded.call(&relay("Pause"), Some(&operator), r#"{"sink": "nothing"}"#).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    guarded.ok(&relay("RedriveDeadLetters"), &operator, r#"{"filter": {"sink": "qdrant", "kind": "chunk"}}"#).await;
    // Reading is no action.
    guarded.ok(&relay("GetStatus"), &operator, "{}").await;

    let entries = async || guarded.place.json_lines(&["audit", "--by", "night shift", "--since", "1h"]).await;
    // The end is noted when the answer is on its way already.
    eventually("three actions have ended", UP_LIMIT, async || {
        let entries = entries().await;
        entries.len() == 3 && entries.iter().all(|entry| entry["outcome"].is_string())
    })
    .await;
    let entries = entries().await;
    let [redrive, refused, pause] = &entries[..] else { panic!("{entries:#?}") };
    assert_eq!(pause["action"], "waybill.relay.v1.RelayService/Pause");
    assert_eq!((&pause["key_prefix"], &pause["outcome"]), (&json!(operator[4..12]), &json!("Ok")));
    assert_has(pause["request"].as_str().unwrap(), &["llm", "to see"]);
    assert_has(pause["result"].as_str().unwrap(), &["changed"]);
    assert_eq!(refused["outcome"], "InvalidArgument");
    assert_has(refused["result"].as_str().unwrap(), &["sink"]);
    assert_has(redrive["request"].as_str().unwrap(), &["qdrant", "chunk"]);
    assert_has(redrive["result"].as_str().unwrap(), &["done"]);

    let made = guarded.place.json_lines(&["audit", "--action", "keys create"]).await;
    assert_eq!(made.len(), 1, "{made:#?}");
    assert_has(made[0]["request"].as_str().unwrap(), &["night shift", "operator"]);
    assert!(!made[0].to_string().contains(&operator), "the key itself is not noted");
    let human = guarded.place.run(&["audit"]).await.expect_code(0);
    assert_has(&human.stdout, &["night shift", "RelayService/Pause", "to see", "Ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_reach_is_not_opened_without_keys() {
    let place = Place::new();
    let up = |more: &[&str]| {
        let data_dir = place.data_dir().display().to_string();
        let model = model().display().to_string();
        let args = ["up", "--free-ports", "--listen-host", "0.0.0.0", "--data-dir", &data_dir, "--model-dir", &model];
        let mut command = waybill(place.dir());
        command.args(args).args(more);
        command
    };
    let home = place.dir().to_owned();
    let args: Vec<_> = up(&[]).get_args().map(ToOwned::to_owned).collect();
    let refused = tokio::task::spawn_blocking(move || run(&home, &args)).await.unwrap().expect_code(2);
    assert_has(&refused.stderr, &["0.0.0.0", "API key", "waybill keys create", "--insecure-no-keys"]);

    let mut open = Program::spawn(up(&["--insecure-no-keys"]).into()).unwrap();
    open.line("nobody is asked who they are", UP_LIMIT).await.unwrap();
    open.line("Waybill is up", UP_LIMIT).await.unwrap();
    let key = place.json(&["keys", "create", "me", "--role", "reader"]).await["key"].as_str().unwrap().to_owned();
    open.signal(Signal::SIGTERM).unwrap();
    open.wait(STOP_LIMIT).await.unwrap();

    let closed = Program::spawn(up(&[]).into()).unwrap();
    closed.line("Waybill is up", UP_LIMIT).await.unwrap();
    let refused = place.run(&["projects", "ls"]).await.expect_code(1);
    assert_has(&refused.stderr, &["API key", "WAYBILL_API_KEY"]);
    let file = place.dir().join("key");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    place.run(&["projects", "ls", "--api-key-file", file.to_str().unwrap()]).await.expect_code(0);
}
