//! What goes wrong, and when: a schedule made from a seed, without clock or IO, so that a seed
//! always means the same faults.

use std::{collections::BTreeMap, fmt, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// The mean time from one fault to the next: an hour holds 1,200 of them.
const MEAN_GAP: Duration = Duration::from_millis(3_000);

/// The first fault comes when the clients have written something.
const FIRST_AT: Duration = Duration::from_millis(3_000);

/// No fault but a transaction lasts longer: longer than a lease and than most timeouts.
const LASTS_MAX_MS: u64 = 8_000;

/// How long a transaction is held open, at the most.
const TRANSACTION_MAX_MS: u64 = 20_000;

/// After a process was down or frozen it is left alone for so long, to come up.
const RECOVERY: Duration = Duration::from_millis(3_000);

/// From one wiped collection to the next: each needs a comparison of everything to mend.
const WIPES_APART: Duration = Duration::from_secs(60);

/// How often a second store may go while one is away: "at most one at a time, mostly".
const SECOND_STORE_CHANCE: f64 = 0.1;

/// Draws for one fault until one fits. More than enough: links alone are 15 targets.
const DRAWS_MAX: usize = 64;

/// A program of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// `waybill serve ingestion`.
    Ingestion,
    /// `waybill serve extraction`.
    Extraction,
    /// `waybill serve embedding`: embedding and search.
    Embedding,
    /// `waybill serve relay`.
    RelayA,
    /// The other relay.
    RelayB,
    /// The source of truth.
    Postgres,
    /// The work queue.
    Redis,
    /// The vector store.
    Qdrant,
}

impl Process {
    /// The services.
    pub const SERVICES: [Self; 5] = [Self::Ingestion, Self::Extraction, Self::Embedding, Self::RelayA, Self::RelayB];

    /// The stores.
    pub const STORES: [Self; 3] = [Self::Postgres, Self::Redis, Self::Qdrant];

    /// Says whether it is one of the relays, which hold leases.
    #[must_use]
    pub const fn is_relay(self) -> bool {
        matches!(self, Self::RelayA | Self::RelayB)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingestion => "ingestion",
            Self::Extraction => "extraction",
            Self::Embedding => "embedding",
            Self::RelayA => "relay-a",
            Self::RelayB => "relay-b",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Qdrant => "qdrant",
        })
    }
}

/// The way from one process to another, with a proxy of its own in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Who connects; `None` for the clients.
    pub from: Option<Process>,
    /// Whom to.
    pub to: Process,
}

impl Link {
    const fn of(from: Process, to: Process) -> Self {
        Self { from: Some(from), to }
    }

    const fn of_clients(to: Process) -> Self {
        Self { from: None, to }
    }

    /// Every link there is.
    pub const ALL: [Self; 15] = [
        Self::of(Process::Ingestion, Process::Postgres),
        Self::of(Process::Extraction, Process::Postgres),
        Self::of(Process::Embedding, Process::Postgres),
        Self::of(Process::RelayA, Process::Postgres),
        Self::of(Process::RelayB, Process::Postgres),
        Self::of(Process::Extraction, Process::Redis),
        Self::of(Process::RelayA, Process::Redis),
        Self::of(Process::RelayB, Process::Redis),
        Self::of(Process::Embedding, Process::Qdrant),
        Self::of(Process::RelayA, Process::Qdrant),
        Self::of(Process::RelayB, Process::Qdrant),
        Self::of(Process::RelayA, Process::Embedding),
        Self::of(Process::RelayB, Process::Embedding),
        Self::of_clients(Process::Ingestion),
        Self::of_clients(Process::Embedding),
    ];
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, "{from} to {}", self.to),
            None => write!(f, "clients to {}", self.to),
        }
    }
}

/// What is done to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL, and a new start.
    Kill(Process),
    /// An orderly stop, and a new start.
    Restart(Process),
    /// SIGSTOP, and SIGCONT.
    Freeze(Process),
    /// Resets the connections that are open.
    Cut(Link),
    /// Resets every connection.
    Refuse(Link),
    /// Lets each read pass later, by so many milliseconds.
    Delay(Link, u64),
    /// Lets nothing pass, and everything when it is over.
    BlackHole(Link),
    /// Lets requests pass, and answers when it is over.
    HalfOpen(Link),
    /// FLUSHALL.
    FlushRedis,
    /// Deletes the live collection and its alias.
    WipeCollection,
    /// A transaction that writes outbox rows and stays open.
    LongTransaction {
        /// Whether it commits in the end.
        commits: bool,
    },
}

impl Action {
    /// Names the kind of fault, for counting.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Kill(Process::Postgres | Process::Redis | Process::Qdrant) => "SIGKILL of a store",
            Self::Kill(_) => "SIGKILL of a service",
            Self::Restart(Process::Postgres | Process::Redis | Process::Qdrant) => "restart of a store",
            Self::Restart(_) => "restart of a service",
            Self::Freeze(Process::Postgres | Process::Redis | Process::Qdrant) => "SIGSTOP of a store",
            Self::Freeze(_) => "SIGSTOP of a service",
            Self::Cut(_) => "connections cut",
            Self::Refuse(_) => "connections refused",
            Self::Delay(..) => "connections delayed",
            Self::BlackHole(_) => "connections that pass nothing",
            Self::HalfOpen(_) => "connections half open",
            Self::FlushRedis => "FLUSHALL",
            Self::WipeCollection => "collection wiped",
            Self::LongTransaction { .. } => "long transaction",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Kill(process) | Self::Restart(process) | Self::Freeze(process) => Target::Process(process),
            Self::Cut(link)
            | Self::Refuse(link)
            | Self::Delay(link, _)
            | Self::BlackHole(link)
            | Self::HalfOpen(link) => Target::Link(link),
            Self::FlushRedis => Target::Process(Process::Redis),
            Self::WipeCollection => Target::Process(Process::Qdrant),
            Self::LongTransaction { .. } => Target::Transaction,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(process) => write!(f, "SIGKILL {process}"),
            Self::Restart(process) => write!(f, "restart {process}"),
            Self::Freeze(process) => write!(f, "SIGSTOP {process}"),
            Self::Cut(link) => write!(f, "cut {link}"),
            Self::Refuse(link) => write!(f, "refuse {link}"),
            Self::Delay(link, each_ms) => write!(f, "delay {link} by {each_ms} ms"),
            Self::BlackHole(link) => write!(f, "black hole {link}"),
            Self::HalfOpen(link) => write!(f, "half open {link}"),
            Self::FlushRedis => f.write_str("FLUSHALL redis"),
            Self::WipeCollection => f.write_str("wipe the collection"),
            Self::LongTransaction { commits: true } => f.write_str("long transaction that commits"),
            Self::LongTransaction { commits: false } => f.write_str("long transaction that aborts"),
        }
    }
}

/// One fault of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// From 1, in the order of `at`.
    pub number: usize,
    /// When it begins, from the start of the schedule.
    pub at: Duration,
    /// How long it lasts; a process needs longer to come up again.
    pub lasts: Duration,
    /// What it is.
    pub action: Action,
}

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Menu {
    /// Whether the live collection may be deleted.
    pub wipes: bool,
    /// Whether Qdrant is a process of ours, to be killed.
    pub qdrant_is_ours: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Process(Process),
    Link(Link),
    Transaction,
}

/// Makes the schedule of `seed`: ascending by `at`, and nothing goes on beyond `length`.
///
/// A process, a link and the transaction have one fault at a time; different ones overlap.
#[must_use]
pub fn schedule(seed: u64, length: Duration, menu: Menu) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut busy: BTreeMap<Target, Duration> = BTreeMap::new();
    let mut wiped_at: Option<Duration> = None;
    let mut at = FIRST_AT;
    while at < length {
        for _ in 0..DRAWS_MAX {
            let action = draw(&mut random);
            let lasts = lasts(&mut random, action).min(length - at);
            let target = action.target();
            let is_busy = |target: Target| busy.get(&target).is_some_and(|until| *until > at);
            let other_store_is_away = matches!(target, Target::Process(process) if Process::STORES.contains(&process))
                && Process::STORES.iter().any(|store| is_busy(Target::Process(*store)));
            let is_possible = match action {
                Action::WipeCollection => menu.wipes && wiped_at.is_none_or(|wiped| at - wiped >= WIPES_APART),
                Action::Kill(process) | Action::Restart(process) | Action::Freeze(process) => {
                    process != Process::Qdrant || menu.qdrant_is_ours
                }
                _ => true,
            };
            let second_is_allowed = random.random_bool(SECOND_STORE_CHANCE);
            if !is_possible || is_busy(target) || other_store_is_away && !second_is_allowed {
                continue;
            }
            let rest = if matches!(target, Target::Process(_)) { RECOVERY } else { Duration::ZERO };
            busy.insert(target, at + lasts + rest);
            if action == Action::WipeCollection {
                wiped_at = Some(at);
            }
            faults.push(Fault { number: faults.len() + 1, at, lasts, action });
            break;
        }
        at += MEAN_GAP.mul_f64(random.random_range(0.2..1.8));
    }
    faults
}

fn draw(random: &mut StdRng) -> Action {
    let service = Process::SERVICES[random.random_range(0..Process::SERVICES.len())];
    let store = Process::STORES[random.random_range(0..Process::STORES.len())];
    let link = Link::ALL[random.random_range(0..Link::ALL.len())];
    // Parts of a hundred.
    match random.random_range(0..100) {
        0..16 => Action::Kill(service),
        16..20 => Action::Restart(service),
        20..33 => Action::Freeze(service),
        33..40 => Action::Kill(store),
        40..44 => Action::Restart(store),
        44..49 => Action::Freeze(store),
        49..58 => Action::Cut(link),
        58..64 => Action::Refuse(link),
        64..71 => Action::Delay(link, random.random_range(20..=300)),
        71..79 => Action::BlackHole(link),
        79..87 => Action::HalfOpen(link),
        87..91 => Action::FlushRedis,
        91..96 => Action::WipeCollection,
        _ => Action::LongTransaction { commits: random.random_bool(0.6) },
    }
}

fn lasts(random: &mut StdRng, action: Action) -> Duration {
    let milliseconds = match action {
        Action::Cut(_) | Action::FlushRedis | Action::WipeCollection => 0,
        Action::Kill(_) | Action::Restart(_) => random.random_range(200..=3_000),
        // Half of the relays sleep over the end of their lease and wake up without lanes.
        Action::Freeze(process) if process.is_relay() && random.random_bool(0.5) => {
            random.random_range(4_000..=LASTS_MAX_MS)
        }
        Action::LongTransaction { .. } => random.random_range(2_000..=TRANSACTION_MAX_MS),
        _ => random.random_range(200..=LASTS_MAX_MS),
    };
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const ALL: Menu = Menu { wipes: true, qdrant_is_ours: true };

    #[test]
    fn a_seed_always_means_the_same_faults() {
        assert_eq!(schedule(7, HOUR, ALL), schedule(7, HOUR, ALL));
        assert_ne!(schedule(7, HOUR, ALL), schedule(8, HOUR, ALL));
    }

    #[test]
    fn an_hour_holds_more_than_a_thousand_faults_of_every_kind_and_target() {
        for seed in 0..20 {
            let faults = schedule(seed, HOUR, ALL);
            assert!(faults.len() > 1_000, "{} faults", faults.len());
            let kinds: BTreeSet<_> = faults.iter().map(|fault| fault.action.kind()).collect();
            assert_eq!(kinds.len(), 14, "{kinds:?}");
            let targets: BTreeSet<_> = faults.iter().map(|fault| fault.action.target()).collect();
            assert_eq!(targets.len(), 8 + Link::ALL.len() + 1);
        }
    }

    #[test]
    fn nothing_overlaps_on_one_target_or_goes_on_after_the_end() {
        for seed in 0..20 {
            let mut until: BTreeMap<Target, Duration> = BTreeMap::new();
            let mut last = Duration::ZERO;
            for fault in schedule(seed, HOUR, ALL) {
                assert!(fault.at >= last && fault.at + fault.lasts <= HOUR, "{fault:?}");
                last = fault.at;
                let before = until.insert(fault.action.target(), fault.at + fault.lasts);
                assert!(before.is_none_or(|before| before <= fault.at), "{fault:?}");
            }
        }
    }

    #[test]
    fn what_is_not_on_the_menu_does_not_happen() {
        let menu = Menu { wipes: false, qdrant_is_ours: false };
        let faults = schedule(3, HOUR, menu);
        assert!(faults.len() > 1_000);
        assert!(faults.iter().all(|fault| fault.action != Action::WipeCollection));
        assert!(faults.iter().all(|fault| fault.action.target() != Target::Process(Process::Qdrant)));
    }
}
