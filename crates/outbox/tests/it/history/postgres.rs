//! What the histories take for Postgres: positions, transactions and what is committed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use waybill_domain::Lane;
use waybill_outbox::Key;
use waybill_storage::outbox::{Snapshot, Tail};

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) seq: i64,
    pub(super) key: Key,
    pub(super) xid: u64,
}

#[derive(Debug, Default)]
pub(super) struct Postgres {
    pub(super) last_seq: i64,
    pub(super) next_xid: u64,
    pub(super) running: BTreeMap<u64, Vec<Row>>,
    pub(super) last_ended: u64,
    /// Committed rows by position, with the moment of their commit.
    pub(super) log: BTreeMap<i64, (Row, u64)>,
    /// How often each key was changed, by committed transactions.
    pub(super) versions: HashMap<Key, u64>,
    pub(super) moment: u64,
    pub(super) cursors: BTreeMap<Lane, (i64, i64, Option<usize>)>,
    /// Keys that wait for another try, with the failures so far.
    pub(super) retries: BTreeMap<Key, u32>,
    pub(super) letters: BTreeSet<Key>,
}

impl Postgres {
    pub(super) fn begin(&mut self) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.running.insert(xid, Vec::new());
        xid
    }

    pub(super) fn write(&mut self, xid: u64, key: Key) {
        self.last_seq += 1;
        let row = Row { seq: self.last_seq, key, xid };
        if let Some(rows) = self.running.get_mut(&xid) {
            rows.push(row);
        }
    }

    pub(super) fn end(&mut self, xid: u64, commit: bool) {
        self.moment += 1;
        self.last_ended = self.last_ended.max(xid);
        for row in self.running.remove(&xid).unwrap_or_default() {
            if commit {
                *self.versions.entry(row.key).or_default() += 1;
                self.log.insert(row.seq, (row, self.moment));
            }
        }
    }

    pub(super) fn nth_writer(&self, n: usize) -> Option<u64> {
        let count = self.running.len();
        self.running.keys().nth(n.checked_rem(count)?).copied()
    }

    pub(super) fn tail(&self) -> Tail {
        let xmax = self.last_ended + 1;
        let running = self.running.keys().copied().filter(|&xid| xid < xmax).collect();
        Tail { last_seq: self.last_seq, snapshot: Snapshot { xmax, running }, paused_at: None, is_bulk: false }
    }
}
