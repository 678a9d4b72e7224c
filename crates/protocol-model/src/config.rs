/// How large the world is, what may go wrong in it, and which rule of the protocol is broken.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many relays there are. Lanes are dealt to them in turn at the start.
    pub relays: usize,
    /// The lane of each key, counted from 0. There are as many keys as entries.
    pub key_lanes: Vec<usize>,
    /// How many transactions write, each one row of one key.
    pub writes: usize,
    /// Whether a writer's steps (xid and version, position in the log, commit) are apart. If
    /// not, each transaction is over in one step.
    pub slow_writers: bool,
    /// Whether writers may roll back.
    pub aborts: bool,
    /// The term of a lease, in ticks.
    pub term: u8,
    /// The end of a lease that its holder doesn't use, in ticks.
    pub grace: u8,
    /// The highest epoch of a lane; all begin with 1.
    pub epochs: u8,
    /// How often something breaks: a relay crashes, it loses its lanes with its reader's
    /// connection, or an answer of the sink or of Postgres is lost.
    pub faults: u8,
    /// How many requests may outlive their deadline: their relay was frozen with the permit in
    /// its hand, or a broken connection gave no answer while they went on.
    pub late_requests: u8,
    /// What is built differently.
    pub mutation: Mutation,
}

impl Config {
    /// Returns how many lanes there are.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.key_lanes.iter().max().map_or(0, |highest| highest + 1)
    }

    /// Returns how long after it was asked for a lease is relied on, in ticks.
    #[must_use]
    pub fn usable(&self) -> u8 {
        if self.mutation == Mutation::NoGracePeriod { self.term } else { self.term.saturating_sub(self.grace) }
    }
}

/// A rule that is left out, to see what it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// None: what is built.
    None,
    /// A settle asks for neither owner nor epoch.
    NoEpochCheck,
    /// A lease is relied on for its whole term.
    NoGracePeriod,
    /// A delivery is sent without asking for its permit.
    NoPermit,
    /// A fence takes the snapshot's `xmax` in place of an xid of its own.
    FenceFromXmax,
    /// A fence doesn't ask who is writing.
    NoFence,
    /// A segment is verified when its writers have ended, without being read again.
    SegmentReadOnce,
    /// Writers take their position before their xid.
    SeqBeforeXid,
    /// A lane is closed up to where it is verified, settled or not.
    ClosedIgnoresUnsettled,
    /// What was sent counts as confirmed.
    SettleBeforeConfirm,
    /// A row carries the state its key had when it was read.
    StateReadBeforeDelivery,
    /// A delivery settles the rows that were read while it was under way, too.
    SettleRowsReadMeanwhile,
    /// A lane that is lost takes with it the knowledge of its deliveries under way.
    ForgetDeliveriesOfLostLanes,
    /// An upsert replaces whatever is there.
    UnconditionalUpsert,
    /// A delete takes whatever is there.
    UnboundedDelete,
    /// The bound of a delete is read after the rows were found gone.
    BoundReadAfterRows,
    /// A writer takes its version before it has the row.
    VersionBeforeLock,
    /// An improvement: a delete is bounded by the highest version that its outbox rows speak of.
    BoundOfCoveredRows,
    /// An improvement: the sink keeps a tombstone with that bound, which late upserts meet.
    Tombstones,
}
