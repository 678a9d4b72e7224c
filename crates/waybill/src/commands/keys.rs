//! `waybill keys` and `waybill audit`: straight at the database, as the first key can't be made
//! with a key.

use anyhow::Context;
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::json;
use waybill_domain::{ProjectName, Role};
use waybill_runtime::auth::ApiKey;
use waybill_storage::keys::{self, KeyLimits, NewKey};
use waybill_storage::{Db, audit};

use crate::app_config::AppConfig;
use crate::cli::{AuditArgs, DatabaseArgs, KeyRole, KeysCommand, KeysCreateArgs};
use crate::commands::relay::myself;
use crate::exit::Usage;
use crate::out::Out;
use crate::{endpoints, paths, text};

const MAX_NAME_CHARS: usize = 128;

/// Runs the command.
pub(crate) async fn run(command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create(args) => create(args).await,
        KeysCommand::List { database, all, json } => list(&database, all, json).await,
        KeysCommand::Revoke { prefix, database } => revoke(&prefix, &database).await,
    }
}

/// Connects to the database that is configured, else to that of the `waybill up` that runs here.
pub(super) async fn connect(args: &DatabaseArgs) -> anyhow::Result<Db> {
    let mut config = AppConfig::load(args.source.config.as_deref())?;
    if config.database.url.is_empty()
        && let Ok(data_dir) = paths::data_dir(args.data_dir.data_dir.as_deref())
        && let Some(stores) = endpoints::read_stores(&data_dir)?
    {
        config.database.url = stores.database;
    }
    let database = config.db("waybill-admin").map_err(|error| {
        anyhow::Error::new(error).context("find the database: no `waybill up` runs here, and none is configured")
    })?;
    let db = Db::connect(&database).context("read database.url")?;
    db.check_schema().await.context("check the schema of the database")?;
    Ok(db)
}

/// Notes that a command changes something, runs it, and notes how that ended.
async fn audited<T>(
    db: &Db,
    action: &str,
    request: serde_json::Value,
    doing: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let (actor, request) = (myself(), request.to_string());
    let id = uuid::Uuid::now_v7().to_string();
    let begun = audit::Begun { actor: &actor, key_prefix: None, action, request: &request, request_id: &id };
    let row = audit::begin(db, &begun).await.context("write to the audit log")?;
    let done = doing.await;
    let (outcome, result) = match &done {
        Ok(_) => ("Ok", String::new()),
        Err(error) => ("Internal", format!("{error:#}")),
    };
    audit::end(db, row, outcome, &result).await.context("write to the audit log")?;
    done
}

async fn create(args: KeysCreateArgs) -> anyhow::Result<()> {
    let name = args.name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(Usage(format!("a key's name has 1 to {MAX_NAME_CHARS} characters")).into());
    }
    let role = match args.role {
        KeyRole::Reader => Role::Reader,
        KeyRole::Writer => Role::Writer,
        KeyRole::Operator => Role::Operator,
    };
    if role == Role::Operator && !args.project.is_empty() {
        return Err(Usage("an operator's key is for all projects: leave --project out".to_owned()).into());
    }
    let projects = args.project.iter().map(|name| {
        let parsed: Result<ProjectName, _> = name.parse();
        parsed.map(|name| name.to_string()).map_err(|error| Usage(format!("--project {name:?} {error}")))
    });
    let projects = projects.collect::<Result<Vec<_>, _>>()?;

    let mut random = [0; ApiKey::RANDOM_BYTES];
    SysRng.try_fill_bytes(&mut random).context("read random bytes")?;
    let key = ApiKey::from_random(&random);
    let created_by = myself();
    let db = connect(&args.database).await?;
    let new = NewKey {
        prefix: key.prefix(),
        hash: key.hash(),
        name,
        role,
        projects: (!projects.is_empty()).then_some(&projects[..]),
        limits: KeyLimits {
            requests_per_second: args.requests_per_second.map(Into::into),
            concurrent_calls: args.concurrent_calls.map(Into::into),
            max_message_bytes: args.max_message_bytes,
        },
        created_by: &created_by,
        valid_s: args.expires.map(|span| i64::try_from(span.as_secs()).unwrap_or(i64::MAX)),
    };
    let request = json!({"prefix": key.prefix(), "name": name, "role": role, "projects": new.projects});
    audited(&db, "keys create", request, async { keys::create(&db, &new).await.context("store the key") }).await?;
    db.close().await;

    let mut out = Out::new();
    if args.json {
        out.json(&json!({"key": key.expose(), "prefix": key.prefix(), "name": name, "role": role,
                         "projects": new.projects}))?;
        return out.flush();
    }
    out.line(key.expose())?;
    out.flush()?;
    let reach = if projects.is_empty() { "all projects".to_owned() } else { projects.join(", ") };
    eprintln!("key {} for {name:?}: {role} of {reach}. It is not shown again.", key.prefix());
    eprintln!("use it: WAYBILL_API_KEY=wbk_..., or metadata \"authorization: Bearer wbk_...\"");
    Ok(())
}

async fn list(database: &DatabaseArgs, all: bool, as_json: bool) -> anyhow::Result<()> {
    let db = connect(database).await?;
    let found = keys::list(&db, all).await.context("list keys")?;
    db.close().await;
    let mut out = Out::new();
    if found.is_empty() {
        eprintln!("no keys yet: `waybill keys create NAME --role writer` makes one");
    }
    for key in found {
        let state = match (key.revoked_at, key.is_expired) {
            (Some(_), _) => "revoked",
            (None, true) => "expired",
            (None, false) => "active",
        };
        if as_json {
            out.json(&json!({
                "prefix": key.prefix, "name": key.name, "role": key.role, "projects": key.projects, "state": state,
                "requests_per_second": key.limits.requests_per_second,
                "concurrent_calls": key.limits.concurrent_calls,
                "max_message_bytes": key.limits.max_message_bytes,
                "create_time": key.created_at, "created_by": key.created_by, "expire_time": key.expires_at,
                "revoke_time": key.revoked_at,
            }))?;
            continue;
        }
        let reach = key.projects.map_or_else(|| "all projects".to_owned(), |projects| projects.join(","));
        let until = match (state, key.expires_at) {
            ("active", Some(at)) => format!("until {}", at.format("%Y-%m-%d")),
            (state, _) => state.to_owned(),
        };
        let name = text::one_line(&key.name);
        let made = key.created_at.format("%Y-%m-%d");
        out.line(format_args!(
            "{}  {:<8}  {name:<24}  {reach:<24}  {until:<16}  made {made}",
            key.prefix,
            key.role.as_str()
        ))?;
    }
    out.flush()
}

async fn revoke(prefix: &str, database: &DatabaseArgs) -> anyhow::Result<()> {
    // Somebody may have the whole key at hand.
    let named = prefix.strip_prefix("wbk_").unwrap_or(prefix);
    let named = named.split('_').next().unwrap_or(named);
    let db = connect(database).await?;
    let me = myself();
    let revoking = async {
        let done = keys::revoke(&db, named, &me).await.context("revoke the key")?;
        done.ok_or_else(|| anyhow::anyhow!("there is no key {named:?}: `waybill keys list --all` lists all"))
    };
    let (name, is_new) = audited(&db, "keys revoke", json!({"prefix": named}), revoking).await?;
    db.close().await;
    let mut out = Out::new();
    let name = text::one_line(&name);
    match is_new {
        true => out.line(format_args!(
            "revoked {named} ({name}): within auth.cache_ms (5 s if it is not set) nobody is let in with it"
        ))?,
        false => out.line(format_args!("{named} ({name}) was revoked already"))?,
    }
    out.flush()
}

/// Runs `waybill audit`.
pub(crate) async fn audit(args: AuditArgs) -> anyhow::Result<()> {
    let db = connect(&args.database).await?;
    let filter = audit::Filter {
        actor: args.by,
        action: args.action,
        within_s: args.since.map(|span| i64::try_from(span.as_secs()).unwrap_or(i64::MAX)),
        before: None,
    };
    let found = audit::list(&db, &filter, args.limit.into()).await.context("read the audit log")?;
    db.close().await;
    let mut out = Out::new();
    if found.is_empty() {
        eprintln!("nothing of that kind in the audit log");
    }
    for entry in found {
        if args.json {
            out.json(&json!({
                "id": entry.id, "time": entry.at, "actor": entry.actor, "key_prefix": entry.key_prefix,
                "action": entry.action, "request": entry.request, "request_id": entry.request_id,
                "end_time": entry.ended_at, "outcome": entry.outcome, "result": entry.result,
            }))?;
            continue;
        }
        let who = match &entry.key_prefix {
            Some(prefix) => format!("{} ({prefix})", text::one_line(&entry.actor)),
            None => text::one_line(&entry.actor),
        };
        let action = entry.action.rsplit('.').next().unwrap_or(&entry.action);
        let outcome = entry.outcome.as_deref().unwrap_or("no end");
        let at = entry.at.format("%Y-%m-%d %H:%M:%S");
        out.line(format_args!("{at}  {who:<28}  {action:<32}  {outcome}"))?;
        out.line(format_args!("    {}", text::one_line(&entry.request)))?;
        if let Some(result) = entry.result.filter(|result| !result.is_empty()) {
            out.line(format_args!("    {}", text::one_line(&result)))?;
        }
    }
    out.flush()
}
