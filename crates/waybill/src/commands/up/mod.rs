//! `waybill up`: every service in one process, over stores of its own.
//!
//! The order is: configuration, data directory, ports, stores, schema, services, and back.
//! Whatever can be refused is refused before a store starts.

mod banner;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(not(feature = "embedded"))]
mod external;
mod health;
mod model;
mod ports;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use console::style;
use tokio::time::Instant;
use waybill_runtime::{Shutdown, Signals, Tasks, telemetry};
use waybill_storage::Db;

use self::banner::Banner;
#[cfg(feature = "embedded")]
use self::embedded::{Home, Stores};
#[cfg(not(feature = "embedded"))]
use self::external::{Home, Stores};
use self::ports::Ports;
use self::steps::{Done, step};
use crate::access::{self, AuthMode, Front};
use crate::app_config::{AppConfig, LogFormat};
use crate::cli::UpArgs;
use crate::endpoints::{self, Endpoints, StoreUrls};
use crate::out::{Out, ReaderGone};
use crate::process::{AdminPort, Watch};
use crate::{paths, services, text};

/// Runs the command, until a signal or until a service fails.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut config = AppConfig::load(args.source.config.as_deref())?;
    if args.insecure_no_keys {
        config.auth.mode = AuthMode::Open;
    }
    let data_dir = paths::data_dir(args.data_dir.data_dir.as_deref())?;
    model::choose(&mut config, args.model_dir.as_deref(), &data_dir)?;
    let telemetry = telemetry::start("waybill", log_format(config.log.format), &config.telemetry)?;
    let signals = telemetry.signals();
    signals.components.hold(UP, "its services are being started");
    let shutdown = Shutdown::on_signals(config.shutdown.deadline()).context("watch for signals")?;

    let home = Home::take(&data_dir)?;
    let admin_port = if args.free_ports { 0 } else { ADMIN_PORT };
    let admin = AdminPort::open(&config, admin_port, &telemetry).await?;
    let ports = Ports::bind(&args).await?;
    let files = Files::of(&home, &args);
    let version = env!("CARGO_PKG_VERSION");
    eprintln!("waybill {version}, data in {}", home.path().display());

    let soft = shutdown.soft();
    let mut running = tokio::select! {
        running = Box::pin(Running::start(&home, config, ports, signals, &shutdown)) => running?,
        // Nothing was promised to anybody yet: the stores are dropped where they are.
        () = soft.cancelled() => {
            eprintln!("stopped before it was up");
            return Ok(());
        }
    };
    running.endpoints.admin = admin.as_ref().map(AdminPort::url);
    let announced = announce(&running, &files, &args, begun);
    if announced.is_ok() {
        running.until_stopping(&shutdown).await;
    }
    files.remove();
    let stopped = running.stop().await;
    // The first error is the cause.
    announced.and(stopped)
}

/// Lines for machines would stand between our own lines for people.
fn log_format(configured: LogFormat) -> telemetry::Format {
    match configured {
        LogFormat::Auto => telemetry::Format::Human,
        named => named.into(),
    }
}

/// Where metrics and health are, unless the port is taken or another is configured.
const ADMIN_PORT: u16 = 7710;

/// Who holds the process not ready until all services answer.
const UP: &str = "up";

/// The files by which others find this process.
struct Files {
    data_dir: PathBuf,
    endpoints: PathBuf,
    ready: Option<PathBuf>,
}

impl Files {
    fn of(home: &Home, args: &UpArgs) -> Self {
        let data_dir = home.path().to_owned();
        Self { endpoints: endpoints::file_in(&data_dir), data_dir, ready: args.ready_file.clone() }
    }

    fn write(&self, endpoints: &Endpoints, stores: &StoreUrls) -> anyhow::Result<()> {
        stores.write(&self.data_dir)?;
        endpoints.write(&self.endpoints)?;
        match &self.ready {
            Some(path) => endpoints.write(path),
            None => Ok(()),
        }
    }

    fn remove(&self) {
        Endpoints::remove(&self.endpoints);
        Endpoints::remove(&endpoints::stores_file_in(&self.data_dir));
        if let Some(path) = &self.ready {
            Endpoints::remove(path);
        }
    }
}

fn announce(running: &Running, files: &Files, args: &UpArgs, begun: Instant) -> anyhow::Result<()> {
    files.write(&running.endpoints, &running.urls)?;
    let host = args.listen_host;
    match (host.is_loopback(), running.asks_for_keys) {
        (_, true) => eprintln!("callers need an API key: `waybill keys create` makes one"),
        (false, false) => eprintln!("note: {host} is open to the network, and nobody is asked who they are"),
        (true, false) => {}
    }
    let banner = Banner {
        endpoints: &running.endpoints,
        data_dir: &files.data_dir,
        is_default_dir: is_default(&files.data_dir),
        model: &running.model,
        took: begun.elapsed(),
    };
    match banner.print(&mut Out::new()) {
        // Nobody has to read the banner for the services to run.
        Err(error) if error.is::<ReaderGone>() => Ok(()),
        result => result,
    }
}

fn is_default(data_dir: &Path) -> bool {
    let default = paths::data_dir(None).and_then(|path| Ok(path.canonicalize()?));
    default.is_ok_and(|default| default == data_dir)
}

/// A system that is up.
///
/// Services stop in two groups, so that the relay can still embed what it has in flight.
struct Running {
    endpoints: Endpoints,
    urls: StoreUrls,
    asks_for_keys: bool,
    model: String,
    stores: Stores,
    db: Db,
    signals: Signals,
    front: Group,
    back: Group,
}

/// Services that stop together.
struct Group {
    shutdown: Shutdown,
    tasks: Tasks,
}

impl Group {
    fn new(process: &Shutdown) -> Self {
        let shutdown = Shutdown::manual(process.deadline());
        tokio::spawn({
            let (hard, shutdown) = (process.hard(), shutdown.clone());
            async move {
                hard.cancelled().await;
                shutdown.trigger_hard();
            }
        });
        Self { tasks: shutdown.tasks(), shutdown }
    }

    fn run(&self, name: &'static str, service: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(name, async move {
            service.await?;
            anyhow::ensure!(shutdown.is_stopping(), "it ended by itself");
            Ok(())
        });
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.trigger();
        self.tasks.finish().await
    }
}

impl Running {
    async fn start(
        home: &Home,
        mut config: AppConfig,
        ports: Ports,
        signals: Signals,
        process: &Shutdown,
    ) -> anyhow::Result<Self> {
        let stores = Box::pin(Stores::start(home, &mut config)).await?;
        let db = Db::connect(&config.db("waybill-up")?).context("read database.url")?;
        step("schema", "migrating", async {
            db.migrate().await.context("migrate the database")?;
            Ok(Done::new((), format!("version {}", waybill_storage::SCHEMA_VERSION)))
        })
        .await?;
        if config.auth.service_key.is_empty() {
            // Nobody else needs to know it: all that call each other are in this process.
            config.auth.service_key = access::random_secret()?;
        }
        let door = Front::open(&config, &db, &ports.addresses()?).await;
        let door = match door {
            Ok(door) => door,
            Err(error) => {
                db.close().await;
                stores.stop().await;
                return Err(error);
            }
        };
        let urls = StoreUrls {
            database: config.database.url.clone(),
            redis: config.redis.url.clone(),
            qdrant: config.qdrant.url.clone(),
        };
        let (front, back) = (Group::new(process), Group::new(process));
        let running = Self {
            endpoints: ports.endpoints(door.is_secure())?,
            urls,
            asks_for_keys: door.asks_for_keys(),
            model: model::describe(&config),
            stores,
            db,
            signals,
            front,
            back,
        };
        match running.start_services(config, ports, &door).await {
            Ok(()) => Ok(running),
            // What made a service fail is what stopping it returns.
            Err(error) => Err(running.stop().await.err().unwrap_or(error)),
        }
    }

    async fn start_services(&self, config: AppConfig, ports: Ports, door: &Front) -> anyhow::Result<()> {
        let Self { db, front, back, endpoints, signals, .. } = self;
        let config = Arc::new(config);
        let [ingestion_listener, embedding_listener, extraction_listener, relay_listener] =
            [ports.ingestion, ports.embedding, ports.extraction, ports.relay].map(|port| door.listener(port));
        Watch::new(signals, &back.shutdown).postgres(db);
        back.run("embedding", {
            let (config, db, signals, stop) = (Arc::clone(&config), db.clone(), signals.clone(), back.shutdown.clone());
            async move { services::embedding(&config, db, &signals, embedding_listener, stop).await }
        });
        front.run("ingestion", {
            let (config, db, signals, stop) =
                (Arc::clone(&config), db.clone(), signals.clone(), front.shutdown.clone());
            async move { services::ingestion(&config, db, &signals, ingestion_listener, stop).await }
        });
        let between = access::between_services(&config);
        let embedding = waybill_runtime::grpc::peer(&endpoints.embedding, &between)?;
        front.run("relay", {
            let (config, db, signals, stop) =
                (Arc::clone(&config), db.clone(), signals.clone(), front.shutdown.clone());
            async move { services::relay(&config, db, embedding, &signals, relay_listener, stop).await }
        });
        front.run("extraction", {
            let (config, db, signals, stop) =
                (Arc::clone(&config), db.clone(), signals.clone(), front.shutdown.clone());
            async move { services::extraction(&config, db, &signals, extraction_listener, stop).await }
        });
        step("services", "loading the model", async {
            let urls = [&endpoints.ingestion, &endpoints.embedding, &endpoints.extraction, &endpoints.relay];
            let failed = async {
                tokio::select! {
                    () = front.shutdown.soft().cancelled_owned() => {}
                    () = back.shutdown.soft().cancelled_owned() => {}
                }
            };
            tokio::select! {
                ready = health::all_serving(&urls, &between) => ready.map(|()| {
                    signals.components.release(UP);
                    Done::new((), "all answer")
                }),
                () = failed => Err(anyhow::anyhow!("a service ended by itself")),
            }
        })
        .await
    }

    /// Waits for a signal, or for a service that fails.
    async fn until_stopping(&self, process: &Shutdown) {
        tokio::select! {
            () = process.soft().cancelled_owned() => {}
            () = self.front.shutdown.soft().cancelled_owned() => {}
            () = self.back.shutdown.soft().cancelled_owned() => {}
        }
    }

    /// Stops the services, those that use others first, then the stores.
    async fn stop(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        eprintln!("{}", style("stopping: finishing what is in flight").for_stderr().dim());
        let front = self.front.stop().await;
        let back = self.back.stop().await;
        self.db.close().await;
        self.stores.stop().await;
        eprintln!("stopped in {}", text::span(begun.elapsed()));
        front.and(back)
    }
}
