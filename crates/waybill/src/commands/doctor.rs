//! `waybill doctor`: looks at everything that is known to bite, and says what to do.

use std::time::Duration;

use console::style;
use serde_json::json;
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use waybill_domain::{Checkup, Verdict};
use waybill_llm_queue::LlmQueue;
use waybill_runtime::grpc::peer;
use waybill_storage::{Db, doctor, keys};
use waybill_vectors::Vectors;

use crate::access::{self, AuthMode};
use crate::app_config::AppConfig;
use crate::cli::DoctorArgs;
use crate::endpoints::{self, Endpoints};
use crate::exit;
use crate::out::Out;
use crate::{paths, text};

/// A service that is well answers in milliseconds.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// What was found of one part of the system.
struct Part {
    name: &'static str,
    found: Vec<Checkup>,
}

/// Runs the command. Returns the exit code: something that doesn't work makes it 1.
pub(crate) async fn run(args: DoctorArgs) -> anyhow::Result<u8> {
    let mut config = AppConfig::load(args.database.source.config.as_deref())?;
    let running = take_from_up(&mut config, &args)?;
    let mut parts = vec![Part { name: "configuration", found: configuration(&config, &args) }];
    let (postgres, redis, qdrant) = tokio::join!(postgres(&config), redis(&config), qdrant(&config));
    parts.push(Part { name: "postgres", found: postgres });
    parts.push(Part { name: "redis", found: redis });
    parts.push(Part { name: "qdrant", found: qdrant });
    parts.push(Part { name: "services", found: services(&config, running.as_ref()).await });

    let worst = parts.iter().flat_map(|part| &part.found).map(|checkup| checkup.verdict).max();
    print(&parts, args.json)?;
    Ok(if worst == Some(Verdict::Bad) { exit::FAILED } else { 0 })
}

/// Where nothing is configured, looks at what the `waybill up` of this machine runs.
fn take_from_up(config: &mut AppConfig, args: &DoctorArgs) -> anyhow::Result<Option<Endpoints>> {
    let Ok(data_dir) = paths::data_dir(args.database.data_dir.data_dir.as_deref()) else {
        return Ok(None);
    };
    let Some(running) = Endpoints::read(&endpoints::file_in(&data_dir))? else {
        return Ok(None);
    };
    let Some(stores) = endpoints::read_stores(&data_dir)? else {
        return Ok(Some(running));
    };
    for (own, running) in [
        (&mut config.database.url, stores.database),
        (&mut config.redis.url, stores.redis),
        (&mut config.qdrant.url, stores.qdrant),
    ] {
        if own.is_empty() {
            *own = running;
        }
    }
    Ok(Some(running))
}

fn configuration(config: &AppConfig, args: &DoctorArgs) -> Vec<Checkup> {
    let file = args.database.source.config.as_deref();
    let from = file.map_or_else(|| "defaults and environment".to_owned(), |file| file.display().to_string());
    let mut found = vec![Checkup::good("layers", from)];
    for (section, read) in config.certificates() {
        found.push(match read {
            Ok(false) if section == "tls" && config.auth.mode == AuthMode::Keys => {
                let fix =
                    "set tls.cert_file and tls.key_file, or end TLS in front of the services: keys travel as they are";
                Checkup::risk(section, "off", fix)
            }
            Ok(false) if section == "tls" => Checkup::good(section, "off"),
            // Most need none.
            Ok(false) => continue,
            Ok(true) => Checkup::good(section, "its files can be used"),
            Err(error) => {
                let [key, value] = [error.key, error.value].map(Option::unwrap_or_default);
                Checkup::bad(section, format!("{key} = {value}: {}", error.problem), error.fix)
            }
        });
    }
    if config.auth.mode == AuthMode::Open {
        let fix = "set auth.mode to \"keys\", unless nobody else reaches the listeners";
        found.push(Checkup::risk("keys", "everybody is let in", fix));
    }
    if !config.auth.bootstrap_key.is_empty() {
        let fix = "make an operator's key with `waybill keys create`, and take auth.bootstrap_key out";
        found.push(Checkup::risk("bootstrap key", "set", fix));
    }
    found
}

async fn postgres(config: &AppConfig) -> Vec<Checkup> {
    let db = match config.db("waybill-doctor").map_err(anyhow::Error::new).and_then(|db| Ok(Db::connect(&db)?)) {
        Ok(db) => db,
        Err(error) => return vec![missing(&error)],
    };
    let mut found = doctor::checkup(&db, config.database.max_connections).await;
    if config.auth.mode == AuthMode::Keys && config.auth.bootstrap_key.is_empty() {
        match keys::any(&db).await {
            Ok(true) => found.push(Checkup::good("keys", "there are some")),
            Ok(false) => found.push(Checkup::bad("keys", "there is none", "`waybill keys create` makes one")),
            // Said already.
            Err(_) => {}
        }
    }
    db.close().await;
    found
}

async fn redis(config: &AppConfig) -> Vec<Checkup> {
    match config.queue().map_err(anyhow::Error::new).and_then(|queue| Ok(LlmQueue::connect(&queue)?)) {
        Ok(queue) => queue.checkup().await,
        Err(error) => vec![missing(&error)],
    }
}

async fn qdrant(config: &AppConfig) -> Vec<Checkup> {
    match config.qdrant().map_err(anyhow::Error::new).and_then(|qdrant| Ok(Vectors::connect(&qdrant)?)) {
        Ok(vectors) => vectors.checkup(&config.relay.alias).await,
        Err(error) => vec![missing(&error)],
    }
}

fn missing(error: &anyhow::Error) -> Checkup {
    let text = format!("{error:#}");
    let (found, fix) = text.rsplit_once("; ").unwrap_or((&text, "name it in the configuration"));
    Checkup::bad("configuration", found, fix)
}

async fn services(config: &AppConfig, running: Option<&Endpoints>) -> Vec<Checkup> {
    let urls = match running {
        Some(running) => vec![
            ("ingestion", running.ingestion.clone()),
            ("embedding", running.embedding.clone()),
            ("extraction", running.extraction.clone()),
            ("relay", running.relay.clone()),
        ],
        // The others are nowhere in the configuration: nobody needs to find them but clients.
        None => vec![("embedding", config.endpoints.embedding.clone())],
    };
    let mut found = Vec::new();
    for (name, url) in urls {
        let fix = format!("check that it runs (`waybill serve {name}`), its log, and endpoints.{name}");
        found.push(match serving(config, &url).await {
            Ok(true) => Checkup::good(name, url),
            Ok(false) => Checkup::bad(name, format!("{url} says that it does not serve"), fix),
            Err(error) => Checkup::bad(name, format!("{url}: {error:#}"), fix),
        });
    }
    found
}

async fn serving(config: &AppConfig, url: &str) -> anyhow::Result<bool> {
    let mut client = HealthClient::new(peer(url, &access::between_services(config))?);
    let answer = timeout(HEALTH_TIMEOUT, client.check(HealthCheckRequest::default())).await??;
    Ok(answer.get_ref().status() == ServingStatus::Serving)
}

fn print(parts: &[Part], as_json: bool) -> anyhow::Result<()> {
    let mut out = Out::new();
    if as_json {
        let parts: serde_json::Map<_, _> = parts.iter().map(|part| (part.name.to_owned(), json!(part.found))).collect();
        out.json(&parts)?;
        return out.flush();
    }
    for part in parts {
        out.line(style(part.name).bold())?;
        for checkup in &part.found {
            let mark = match checkup.verdict {
                Verdict::Good => style("good").green(),
                Verdict::Risk => style("risk").yellow(),
                Verdict::Bad => style("BAD ").red().bold(),
            };
            out.line(format_args!("  {mark}  {:<14}  {}", checkup.subject, text::one_line(&checkup.found)))?;
            if !checkup.fix.is_empty() {
                for line in text::wrap(&checkup.fix, text::width().saturating_sub(24)) {
                    out.line(format_args!("        {:<14}  {}", "", style(line).dim()))?;
                }
            }
        }
    }
    let count = |verdict| parts.iter().flat_map(|part| &part.found).filter(|found| found.verdict == verdict).count();
    let (bad, risk) = (count(Verdict::Bad), count(Verdict::Risk));
    out.line("")?;
    match (bad, risk) {
        (0, 0) => out.line("all is well")?,
        (bad, risk) => out.line(format_args!("{bad} broken, {risk} that will hurt one day"))?,
    }
    out.flush()
}
