//! Who may call what, by hand: the protos have to say the same.

use waybill_domain::Role;

/// How a method is kept within the projects of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A foreign project is PERMISSION_DENIED.
    Project,
    /// What belongs to a foreign project is NOT_FOUND.
    Owned,
    /// The answer leaves foreign projects out.
    List,
    /// Nothing of a project is in it.
    None,
    /// Only keys that are good for all projects.
    All,
}

/// A method: who may call it, and two requests, of which the second is about the project `foreign`.
/// `{job}`, `{fact}`, `{entity}` and `{request}` stand for ids of that project, `{my job}` and
/// `{my request}` for some of `mine`.
pub(crate) struct Row {
    pub(crate) method: &'static str,
    pub(crate) role: Role,
    pub(crate) reach: Reach,
    pub(crate) mine: &'static str,
    pub(crate) foreign: &'static str,
}

const fn row(method: &'static str, role: Role, reach: Reach, mine: &'static str, foreign: &'static str) -> Row {
    Row { method, role, reach, mine, foreign }
}

/// Every method of every service.
pub(crate) fn rows() -> Vec<(String, Row)> {
    let services: [(&str, Vec<Row>); 5] = [
        ("waybill.ingestion.v1.IngestionService", ingestion()),
        ("waybill.embedding.v1.EmbeddingService", embedding()),
        ("waybill.embedding.v1.SearchService", search()),
        ("waybill.extraction.v1.ExtractionService", extraction()),
        ("waybill.relay.v1.RelayService", relay()),
    ];
    services
        .into_iter()
        .flat_map(|(service, rows)| rows.into_iter().map(move |row| (format!("/{service}/{}", row.method), row)))
        .collect()
}

fn ingestion() -> Vec<Row> {
    use Reach::{List, Project};
    use Role::{Reader, Writer};
    vec![
        row("CreateProject", Writer, Project, r#"{"name": "mine"}"#, r#"{"name": "foreign"}"#),
        row("GetProject", Reader, Project, r#"{"name": "mine"}"#, r#"{"name": "foreign"}"#),
        row("ListProjects", Reader, List, "{}", "{}"),
        row("DeleteProject", Writer, Project, r#"{"name": "gone"}"#, r#"{"name": "foreign"}"#),
        row(
            "PutSource",
            Writer,
            Project,
            r#"{"project": "mine", "uri": "a", "media_type": 1, "body": "YQ=="}"#,
            r#"{"uri": "a", "media_type": 1, "body": "YQ==", "project": "foreign"}"#,
        ),
        row(
            "UploadSource",
            Writer,
            Project,
            r#"{"header": {"project": "mine", "uri": "b", "media_type": 1}}"#,
            r#"{"header": {"project": "foreign", "uri": "b", "media_type": 1}}"#,
        ),
        row(
            "PutSources",
            Writer,
            Project,
            r#"{"sequence": 1, "source": {"project": "mine", "uri": "c", "media_type": 1, "body": "YQ=="}}"#,
            r#"{"sequence": 1, "source": {"project": "foreign", "uri": "c", "media_type": 1, "body": "YQ=="}}"#,
        ),
        row(
            "GetSource",
            Reader,
            Project,
            r#"{"project": "mine", "uri": "a"}"#,
            r#"{"project": "foreign", "uri": "a"}"#,
        ),
        row("ListSources", Reader, Project, r#"{"project": "mine"}"#, r#"{"project": "foreign"}"#),
        row(
            "DeleteSource",
            Writer,
            Project,
            r#"{"project": "mine", "uri": "none"}"#,
            r#"{"project": "foreign", "uri": "secret"}"#,
        ),
    ]
}

fn embedding() -> Vec<Row> {
    let texts = r#"{"texts": ["a"], "purpose": "PURPOSE_QUERY"}"#;
    vec![
        row("Embed", Role::Writer, Reach::None, texts, texts),
        row("EmbedStream", Role::Writer, Reach::None, texts, texts),
        row("ListModels", Role::Reader, Reach::None, "{}", "{}"),
    ]
}

fn search() -> Vec<Row> {
    let (mine, foreign) = (r#"{"project": "mine", "query": "q"}"#, r#"{"project": "foreign", "query": "q"}"#);
    vec![row("Search", Role::Reader, Reach::Project, mine, foreign)]
}

fn extraction() -> Vec<Row> {
    use Reach::{None, Owned, Project};
    use Role::{Reader, Writer};
    let (mine, foreign) = (r#"{"project": "mine"}"#, r#"{"project": "foreign"}"#);
    let (my_job, job) = (r#"{"id": "{my job}"}"#, r#"{"id": "{job}"}"#);
    vec![
        row("StartExtraction", Writer, Project, mine, foreign),
        row("GetJob", Reader, Owned, my_job, job),
        row("ListJobs", Reader, Project, mine, foreign),
        row(
            "ListRequests",
            Reader,
            Project,
            r#"{"project": "mine", "job_id": "{my job}"}"#,
            r#"{"project": "foreign", "job_id": "{job}"}"#,
        ),
        row("WatchJob", Reader, Owned, my_job, job),
        row("CancelJob", Writer, Owned, my_job, job),
        row("ListExtractions", Reader, Project, mine, foreign),
        row(
            "GetExtraction",
            Reader,
            Project,
            r#"{"project": "mine", "id": "{fact}"}"#,
            r#"{"project": "foreign", "id": "{fact}"}"#,
        ),
        row(
            "RejectExtractions",
            Writer,
            Project,
            r#"{"project": "mine", "ids": ["{fact}"]}"#,
            r#"{"project": "foreign", "ids": ["{fact}"]}"#,
        ),
        row(
            "GetEntity",
            Reader,
            Project,
            r#"{"project": "mine", "id": "{entity}"}"#,
            r#"{"project": "foreign", "id": "{entity}"}"#,
        ),
        row("ListEntities", Reader, Project, mine, foreign),
        row("GetWorkerStatus", Reader, None, "{}", "{}"),
        row(
            "BeginRequest",
            Writer,
            Owned,
            r#"{"request_id": "{my request}", "message_id": "1-1", "worker": "w"}"#,
            r#"{"request_id": "{request}", "message_id": "1-1", "worker": "w"}"#,
        ),
        row(
            "SubmitResponse",
            Writer,
            Owned,
            r#"{"request_id": "{my request}", "message_id": "1-1", "worker": "w", "model": "m", "answer_json": "{}"}"#,
            r#"{"request_id": "{request}", "message_id": "1-1", "worker": "w", "model": "m", "answer_json": "{}"}"#,
        ),
        row(
            "ReportFailure",
            Writer,
            Owned,
            r#"{"request_id": "{my request}", "message_id": "1-1", "worker": "w", "class": 1, "message": "m"}"#,
            r#"{"request_id": "{request}", "message_id": "1-1", "worker": "w", "class": 1, "message": "m"}"#,
        ),
    ]
}

fn relay() -> Vec<Row> {
    use Reach::{All, None};
    use Role::{Operator, Reader};
    let all = |method, request| row(method, Operator, All, request, request);
    vec![
        row("GetStatus", Reader, None, "{}", "{}"),
        all("Pause", r#"{"sink": "llm", "paused_by": "me", "reason": "to see"}"#),
        all("Resume", r#"{"sink": "llm"}"#),
        all("Drain", r#"{"sink": "qdrant", "timeout": "0.1s"}"#),
        all("BeginBulkLoad", r#"{"id": "load", "ttl": "10s"}"#),
        all("EndBulkLoad", r#"{"id": "load"}"#),
        all("ListDeadLetters", "{}"),
        all("GetDeadLetter", r#"{"id": "00000000-0000-0000-0000-000000000000"}"#),
        all("RedriveDeadLetters", r#"{"all": true}"#),
        all("DiscardDeadLetters", r#"{"all": true}"#),
        all("VerifyConsistency", r#"{"project": "mine"}"#),
        all("Recover", r#"{"project": "mine"}"#),
        all("Reindex", r#"{"project": "mine"}"#),
    ]
}
