use crate::Config;

/// A set of positions or of transactions: bit `n` is position `n + 1` or transaction `n`.
pub(crate) type Mask = u8;

/// The owner of a cursor whose relay has crashed: it comes back under another id.
pub(crate) const DEAD: u8 = u8::MAX;

/// How much longer than its deadline a request may take to be applied, in ticks. The grace
/// period covers it.
pub(crate) const WIRE_SLACK: u8 = 1;

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// Postgres.
    pub db: Database,
    /// Each relay's memory.
    pub relays: Vec<Relay>,
    /// Requests to the sink that were neither applied nor lost, in order of their contents.
    pub wire: Vec<Request>,
    /// The version that the sink shows of each key; 0: nothing.
    pub sink: Vec<u8>,
    /// The version of each key's tombstone in the sink; 0: none, which is what is built.
    pub tombstones: Vec<u8>,
    /// How much may still break.
    pub faults_left: u8,
    /// How many requests may still outlive their deadline.
    pub late_left: u8,
    /// Whether a settle has changed anything under a lease that no longer stood.
    pub stale_settle: bool,
}

/// What Postgres holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Database {
    /// The writers, in the order in which they take their xids and versions: transaction `n`
    /// has version `n + 1`.
    pub txs: Vec<Tx>,
    /// The committed version of each key's row; 0: no row.
    pub rows: Vec<u8>,
    /// The last position handed out.
    pub last_seq: u8,
    /// `outbox_cursor`.
    pub cursors: Vec<Cursor>,
    /// `index_state`.
    pub index: Vec<Indexed>,
    /// The positions whose delivery was recorded by a settle. Nobody in the model looks at it.
    pub settled: u8,
}

/// A writer's transaction: one row changes, one outbox row says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tx {
    /// How far it is.
    pub phase: TxPhase,
    /// Which key it changes.
    pub key: u8,
    /// How.
    pub op: Op,
    /// Its position in the log; 0: none yet, or never seen by anybody.
    pub seq: u8,
}

/// How far a transaction is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TxPhase {
    /// Not begun.
    #[default]
    Waiting,
    /// It has its xid, its version and the row's lock.
    Begun,
    /// It has its position.
    Sequenced,
    /// Visible.
    Committed,
    /// Gone.
    Aborted,
}

/// What a transaction does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Op {
    /// Inserts or updates the row.
    #[default]
    Put,
    /// Deletes it.
    Delete,
}

/// A lane's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The relay's number counted from 1; 0: nobody.
    pub owner: u8,
    /// Grows with every change of owner.
    pub epoch: u8,
    /// What is left of the lease.
    pub lease: u8,
    /// Everything at or below it is settled.
    pub closed: u8,
}

/// What a settle recorded of a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Indexed {
    /// The version the sink confirmed.
    pub version: u8,
    /// Whether it confirmed that it shows nothing.
    pub deleted: bool,
}

/// A relay's memory. All of it is gone after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Relay {
    /// How long its leases are relied on.
    pub usable: u8,
    /// The epoch in which each lane is held; 0: not held. Permits and settles ask this.
    pub held: Vec<u8>,
    /// What is known of the rows of each lane. None for a lane that is being given up.
    pub lanes: Vec<Option<LaneLog>>,
    /// Where the log has been read.
    pub reader: Reader,
    /// The keys.
    pub keys: Vec<KeyLog>,
    /// The settle under way.
    pub settling: Option<Settlement>,
}

/// A lane in a relay's memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneLog {
    /// The epoch it was taken in.
    pub epoch: u8,
    /// Nothing unread is at or below it.
    pub verified: u8,
    /// Positions read above `verified`.
    pub seen: u8,
    /// Positions read and not settled.
    pub unsettled: u8,
    /// The cursor as it was last written.
    pub written: u8,
}

/// Where a relay has read the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    /// Everything at or below it is verified.
    pub verified: u8,
    /// Everything at or below it is verified or in a segment.
    pub scanned: u8,
    /// The first half of a fence: the log's end was read, the xid is not yet taken.
    pub fence: Option<u8>,
    /// A pass: up to where, and who was writing.
    pub pass: Option<(u8, u8)>,
    /// What was read and isn't verified, ascending and without gaps.
    pub segments: Vec<Segment>,
}

/// A part of the log, from the end of the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Where it ends.
    pub upto: u8,
    /// Who may have rows in it and has not been seen to end.
    pub running: u8,
    /// Whether it has to be read again.
    pub due: bool,
}

/// A key in a relay's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct KeyLog {
    /// Positions that the next delivery covers.
    pub waiting: u8,
    /// The delivery under way, also of a lane that was lost since.
    pub delivery: Option<Delivery>,
    /// The row's version when the first waiting row was read: only a mutation uses it.
    pub early: Option<u8>,
}

/// A delivery of one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delivery {
    /// The epoch in which its lane was held when it began.
    pub epoch: u8,
    /// The positions it covers; none if the lane was dropped since.
    pub covers: u8,
    /// How far it is.
    pub phase: Phase,
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No row was found, and then this version was the last one handed out.
    Absent(u8),
    /// It is known what to write.
    Loaded(Write),
    /// On the wire, or lost on it.
    Sent,
    /// The sink has confirmed.
    Confirmed(Write),
    /// Being settled.
    Settling(Write),
}

/// A change of the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// Shows this version, unless the sink shows it or a higher one.
    Upsert(u8),
    /// Shows nothing, unless the sink shows a higher version than this.
    Delete(u8),
}

/// A request on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// The relay that waits for the answer.
    pub waiter: Option<u8>,
    /// The key.
    pub key: u8,
    /// What to do.
    pub write: Write,
    /// The epoch it was sent in.
    pub epoch: u8,
    /// How long it can still be applied.
    pub left: u8,
    /// It can be applied at any time.
    pub late: bool,
}

/// A settle that was sent to Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settlement {
    /// Key, epoch, positions, and what the sink confirmed.
    pub parts: Vec<(u8, u8, u8, Write)>,
    /// Lane, epoch and `closed_seq`.
    pub cursors: Vec<(u8, u8, u8)>,
}

impl State {
    /// The beginning: nothing was ever written, and the lanes are dealt to the relays in turn.
    pub(crate) fn start(config: &Config) -> Self {
        let (lanes, keys) = (config.lanes(), config.key_lanes.len());
        let mut relays = vec![Relay::new(lanes, keys); config.relays];
        let mut cursors = Vec::with_capacity(lanes);
        for lane in 0..lanes {
            let relay = lane % config.relays;
            cursors.push(Cursor { owner: number(relay), epoch: 1, lease: config.term, closed: 0 });
            relays[relay].usable = config.usable();
            relays[relay].take_lane(lane, 1, 0);
        }
        Self {
            db: Database {
                txs: vec![Tx::default(); config.writes],
                rows: vec![0; keys],
                last_seq: 0,
                cursors,
                index: vec![Indexed::default(); keys],
                settled: 0,
            },
            relays,
            wire: Vec::new(),
            sink: vec![0; keys],
            tombstones: vec![0; keys],
            faults_left: config.faults,
            late_left: config.late_requests,
            stale_settle: false,
        }
    }
}

/// Returns the number that a cursor names a relay by.
pub(crate) fn number(relay: usize) -> u8 {
    small(relay + 1)
}

/// Everything here is counted on one hand.
pub(crate) fn small(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// Returns the set of one position.
pub(crate) const fn bit(seq: u8) -> Mask {
    1 << (seq - 1)
}

/// Returns the set of the positions in (`after`, `upto`].
pub(crate) fn range(after: u8, upto: u8) -> Mask {
    (after + 1..=upto).fold(0, |set, seq| set | bit(seq))
}
