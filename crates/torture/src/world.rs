//! Every service and every store in a process of its own, and a proxy on each way between two.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::{sync::Mutex, time::sleep};
use tokio_util::sync::CancellationToken;
use waybill_testkit::{FaultProxy, Mode, TestDb, TestPostgres, TestRedis};
use waybill_vectors::{DEFAULT_ALIAS, QdrantConfig, Vectors};

use crate::{
    faults::{Link, Process},
    history::History,
    process::{Body, Launch, Life},
    warden::Warden,
};

/// Where the ports of services are looked for: below those that the system gives to outgoing
/// connections, or one of these would take the port of a service that is down.
const PORTS: std::ops::Range<u16> = 21_000..32_000;

/// How often it is looked for services that have ended by themselves.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Where things are that a run needs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder of the programs `waybill` and `qdrant-local`.
    pub programs: PathBuf,
    /// The folder of the model `wordllama`.
    pub model: PathBuf,
    /// The folder that everything is written to.
    pub dir: PathBuf,
    /// A Qdrant that isn't ours, `http://host:port`. Its collection of the model is deleted.
    pub qdrant: Option<String>,
}

/// The running system.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) db_url: String,
    pub(crate) redis_url: String,
    /// Straight to the store.
    pub(crate) vectors: Vectors,
    /// What clients connect to, faults included.
    pub(crate) ingestion_url: String,
    pub(crate) search_url: String,
    /// Straight to the services, for us.
    pub(crate) extraction_url: String,
    pub(crate) relay_urls: [String; 2],
    pub(crate) links: BTreeMap<Link, FaultProxy>,
    /// Dropped before the server that it is on.
    _db: TestDb,
    bodies: BTreeMap<Process, Mutex<Body>>,
    history: Arc<History>,
}

impl World {
    /// Starts everything.
    pub(crate) async fn start(place: &Place, scrubs: bool, history: Arc<History>) -> anyhow::Result<Self> {
        ensure!(place.model.is_dir(), "{} is missing: run `cargo xtask fetch-models`", place.model.display());
        let warden = Arc::new(Warden::start()?);
        let postgres = TestPostgres::own().await?;
        let db = postgres.database().await?;
        let redis = TestRedis::own().await?;
        let mut ports = Ports(PORTS.start + u16::try_from(std::process::id() % u32::from(PORTS.len() as u16 / 2))?);
        let mut addresses = BTreeMap::new();
        for process in Process::SERVICES {
            addresses.insert(process, ports.next()?);
        }
        addresses.insert(Process::Postgres, local(postgres.server().port()));
        addresses.insert(Process::Redis, local(port_of(&redis.url())?));
        let qdrant = match &place.qdrant {
            None => ports.next()?,
            Some(url) => resolve(url).await?,
        };
        addresses.insert(Process::Qdrant, qdrant);

        let mut links = BTreeMap::new();
        for link in Link::ALL {
            links.insert(link, FaultProxy::start(addresses[&link.to]).await?);
        }
        let (db_url, redis_url) = (db.url.clone(), redis.url());
        let launch = |name: String, program: &str, arguments: Vec<_>, ready| Launch {
            log: place.dir.join(format!("{name}.log")),
            name,
            program: place.programs.join(program),
            arguments,
            env: ("WAYBILL_LOG", "info"),
            ready,
        };
        let mut bodies = BTreeMap::new();
        let qdrant_body = if place.qdrant.is_some() {
            Body::Foreign
        } else {
            let data = place.dir.join("qdrant");
            let arguments = vec!["--data-dir".into(), data.into(), "--listen".into(), qdrant.to_string().into()];
            let launch = Launch {
                env: ("RUST_LOG", "warn"),
                ..launch(Process::Qdrant.to_string(), "qdrant-local", arguments, "127.0.0.1:")
            };
            Body::Program(Box::new(Life::new(launch, Arc::clone(&history), Arc::clone(&warden))))
        };
        bodies.insert(Process::Qdrant, Mutex::new(qdrant_body));
        for process in Process::SERVICES {
            let config = place.dir.join(format!("{process}.toml"));
            let of = Configured { process, addresses: &addresses, links: &links, place, scrubs };
            fs::write(&config, of.toml(&db_url, &redis_url)).with_context(|| format!("write {}", config.display()))?;
            let service = if process.is_relay() { "relay".to_owned() } else { process.to_string() };
            let arguments = vec!["serve".into(), service.into(), "--config".into(), config.into()];
            let launch = launch(process.to_string(), "waybill", arguments, "serving");
            let life = Life::new(launch, Arc::clone(&history), Arc::clone(&warden));
            bodies.insert(process, Mutex::new(Body::Program(Box::new(life))));
        }
        bodies.insert(Process::Postgres, Mutex::new(Body::Postgres(Box::new(postgres))));
        bodies.insert(Process::Redis, Mutex::new(Body::Redis(Box::new(redis))));

        let url = |address: SocketAddr| format!("http://{address}");
        let through = |from: Option<Process>, to: Process| url(links[&Link { from, to }].addr());
        let world = Self {
            db_url,
            redis_url,
            vectors: Vectors::connect(&QdrantConfig::new(url(qdrant)))?,
            ingestion_url: through(None, Process::Ingestion),
            search_url: through(None, Process::Embedding),
            extraction_url: url(addresses[&Process::Extraction]),
            relay_urls: [url(addresses[&Process::RelayA]), url(addresses[&Process::RelayB])],
            links,
            _db: db,
            bodies,
            history,
        };
        world.body(Process::Qdrant).lock().await.start().await?;
        if place.qdrant.is_some() {
            world.wipe_collection().await?;
        }
        for process in Process::SERVICES {
            world.body(process).lock().await.start().await?;
        }
        Ok(world)
    }

    /// Returns what runs under a name. Whoever holds it is the only one to touch it.
    pub(crate) fn body(&self, process: Process) -> &Mutex<Body> {
        &self.bodies[&process]
    }

    /// Starts services again that have ended by themselves, until `stopping`.
    pub(crate) async fn watch(&self, stopping: CancellationToken) -> anyhow::Result<()> {
        while stopping.run_until_cancelled(sleep(WATCH_EVERY)).await.is_some() {
            for body in self.bodies.values() {
                // One that is being killed is in somebody's hands.
                let Ok(mut body) = body.try_lock() else { continue };
                if let Body::Program(life) = &mut *body
                    && life.died()?
                {
                    body.start().await?;
                }
            }
        }
        Ok(())
    }

    /// Deletes the live collection with its alias.
    pub(crate) async fn wipe_collection(&self) -> anyhow::Result<()> {
        if let Some(collection) = self.vectors.alias_target(DEFAULT_ALIAS).await? {
            self.vectors.delete_collection(&collection).await?;
        }
        Ok(())
    }

    /// Lets everything pass.
    pub(crate) fn heal_links(&self) {
        for proxy in self.links.values() {
            proxy.set(Mode::Pass);
        }
    }

    /// Ends the services in good order, and says which did not. The stores go with this.
    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        self.history.note("torture", "ending", json!({}));
        for process in Process::SERVICES {
            self.body(process).lock().await.stop().await?;
        }
        let mut qdrant = self.body(Process::Qdrant).lock().await;
        if matches!(*qdrant, Body::Program(_)) {
            qdrant.stop().await?;
        }
        Ok(())
    }
}

/// What one service is configured with.
struct Configured<'a> {
    process: Process,
    addresses: &'a BTreeMap<Process, SocketAddr>,
    links: &'a BTreeMap<Link, FaultProxy>,
    place: &'a Place,
    scrubs: bool,
}

impl Configured<'_> {
    /// Returns the address at which the service reaches another: its own proxy if there is one.
    fn reaches(&self, to: Process) -> SocketAddr {
        let link = Link { from: Some(self.process), to };
        self.links.get(&link).map_or(self.addresses[&to], FaultProxy::addr)
    }

    fn toml(&self, db_url: &str, redis_url: &str) -> String {
        let through =
            |url: &str, to: Process| url.replace(&self.addresses[&to].to_string(), &self.reaches(to).to_string());
        let listen = self.addresses[&self.process];
        let section = if self.process.is_relay() { "relay".to_owned() } else { self.process.to_string() };
        // Leases and waits are short, so that each fault is over within seconds; what a run is
        // about does not depend on their length.
        format!(
            r#"[database]
url = "{database}"
acquire_timeout_ms = 5000
[redis]
url = "{redis}"
[qdrant]
url = "http://{qdrant}"
timeout_ms = 5000
[listen]
{section} = "{listen}"
[endpoints]
embedding = "http://{embedding}"
[embedding.model]
kind = "local"
[embedding.model.local]
path = "{model}"
[relay]
embed_timeout_ms = 10000
[relay.engine]
lease_ms = 3000
grace_ms = 500
batch_keys_max = 64
retry_max_ms = 1000
breaker_open_ms = 2000
probe_timeout_ms = 3000
key_retry_max_ms = 3000
statement_timeout_ms = 5000
[relay.scrub]
period_s = 0
check_s = {check_s}
[extraction]
provider = "rules"
heartbeat_ms = 300
reclaim_after_ms = 2000
sweep_every_ms = 500
sweep_age_ms = 2000
"#,
            database = through(db_url, Process::Postgres),
            redis = through(redis_url, Process::Redis),
            qdrant = self.reaches(Process::Qdrant),
            embedding = self.reaches(Process::Embedding),
            model = self.place.model.display(),
            check_s = u8::from(self.scrubs),
        )
    }
}

struct Ports(u16);

impl Ports {
    /// Returns the next port that nobody listens on.
    fn next(&mut self) -> anyhow::Result<SocketAddr> {
        while self.0 < PORTS.end {
            self.0 += 1;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, self.0)).is_ok() {
                return Ok(local(self.0));
            }
        }
        anyhow::bail!("no port is free in {PORTS:?}")
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Reads the port of `scheme://user:password@host:port/database`.
fn port_of(url: &str) -> anyhow::Result<u16> {
    let place = url.rsplit('@').next().and_then(|place| place.split('/').next());
    let port = place.and_then(|place| place.rsplit(':').next()).and_then(|port| port.parse().ok());
    port.context("a url without a port")
}

async fn resolve(url: &str) -> anyhow::Result<SocketAddr> {
    let place = url.strip_prefix("http://").context("the Qdrant to test against must be http://HOST:PORT")?;
    let mut found =
        tokio::net::lookup_host(place.trim_end_matches('/')).await.with_context(|| format!("find {url}"))?;
    found.next().with_context(|| format!("{url} has no address"))
}

/// Makes an empty folder at `path`.
pub(crate) fn fresh_dir(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}
