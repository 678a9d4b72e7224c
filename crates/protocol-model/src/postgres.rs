//! What Postgres does: transactions, the outbox, and the statements of leases and settles.

use crate::{
    Config, Cursor, Mutation,
    state::{Database, Mask, Op, Tx, TxPhase, Write, bit, number, small},
};

impl Tx {
    /// Says whether it has an xid and has not ended.
    fn is_running(self, mutation: Mutation) -> bool {
        match self.phase {
            TxPhase::Begun => mutation != Mutation::SeqBeforeXid,
            TxPhase::Sequenced => true,
            TxPhase::Waiting | TxPhase::Committed | TxPhase::Aborted => false,
        }
    }

    fn has_ended(self) -> bool {
        matches!(self.phase, TxPhase::Committed | TxPhase::Aborted)
    }

    fn locks(self, mutation: Mutation) -> bool {
        match self.phase {
            TxPhase::Begun => mutation != Mutation::VersionBeforeLock,
            TxPhase::Sequenced => true,
            TxPhase::Waiting | TxPhase::Committed | TxPhase::Aborted => false,
        }
    }
}

impl Database {
    /// Returns the writer that begins next: they do so in the order of their xids.
    pub(crate) fn next_tx(&self) -> Option<usize> {
        self.txs.iter().position(|tx| tx.phase == TxPhase::Waiting)
    }

    fn is_locked(&self, key: u8, mutation: Mutation) -> bool {
        self.txs.iter().any(|tx| tx.key == key && tx.locks(mutation))
    }

    fn can_write(&self, key: u8, op: Op, mutation: Mutation) -> bool {
        !self.is_locked(key, mutation) && (op == Op::Put || self.rows[usize::from(key)] != 0)
    }

    /// Says whether a transaction may begin with this. A row is locked before its trigger takes
    /// a version.
    pub(crate) fn can_begin(&self, key: u8, op: Op, mutation: Mutation) -> bool {
        mutation == Mutation::VersionBeforeLock || self.can_write(key, op, mutation)
    }

    /// Begins a transaction: xid, lock, version.
    pub(crate) fn begin(&mut self, tx: usize, key: u8, op: Op, mutation: Mutation) {
        let seq = if mutation == Mutation::SeqBeforeXid { self.next_seq() } else { 0 };
        self.txs[tx] = Tx { phase: TxPhase::Begun, key, op, seq };
    }

    fn next_seq(&mut self) -> u8 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Inserts the outbox row.
    pub(crate) fn sequence(&mut self, tx: usize, mutation: Mutation) -> Option<()> {
        let Tx { key, op, seq, .. } = self.txs[tx];
        if mutation == Mutation::VersionBeforeLock && !self.can_write(key, op, mutation) {
            return None;
        }
        let seq = if seq == 0 { self.next_seq() } else { seq };
        self.txs[tx] = Tx { phase: TxPhase::Sequenced, key, op, seq };
        Some(())
    }

    pub(crate) fn commit(&mut self, tx: usize) {
        let Tx { key, op, seq, .. } = self.txs[tx];
        self.rows[usize::from(key)] = if op == Op::Put { small(tx + 1) } else { 0 };
        // What is only history is forgotten, so that fewer states differ.
        self.txs[tx] = Tx { phase: TxPhase::Committed, key, op: Op::Put, seq };
    }

    pub(crate) fn abort(&mut self, tx: usize) {
        self.txs[tx] = Tx { phase: TxPhase::Aborted, ..Tx::default() };
    }

    /// Lists the transactions that a fence taken now has to wait for.
    pub(crate) fn running(&self, mutation: Mutation) -> Mask {
        let last_ended = self.txs.iter().rposition(|tx| tx.has_ended());
        let in_view = |tx: usize| match mutation {
            Mutation::NoFence => false,
            Mutation::FenceFromXmax => last_ended.is_some_and(|last| tx < last),
            _ => true,
        };
        (0..self.txs.len())
            .filter(|&tx| self.txs[tx].is_running(mutation) && in_view(tx))
            .fold(0, |set, tx| set | bit(small(tx + 1)))
    }

    /// Lists the transactions that have ended.
    pub(crate) fn ended(&self) -> Mask {
        (0..self.txs.len()).filter(|&tx| self.txs[tx].has_ended()).fold(0, |set, tx| set | bit(small(tx + 1)))
    }

    /// Lists the visible outbox rows: position and key.
    pub(crate) fn outbox(&self) -> impl Iterator<Item = (u8, usize)> {
        self.txs.iter().filter(|tx| tx.phase == TxPhase::Committed).map(|tx| (tx.seq, usize::from(tx.key)))
    }

    /// Returns the last version handed out.
    pub(crate) fn last_version(&self) -> u8 {
        small(self.next_tx().unwrap_or(self.txs.len()))
    }

    /// Returns the highest version that the outbox rows at these positions speak of. (A delete
    /// has no version of its own here: the one it skips stands for the row's last.)
    pub(crate) fn highest_version(&self, covers: Mask) -> u8 {
        let highest = self.txs.iter().rposition(|tx| tx.seq != 0 && covers & bit(tx.seq) != 0);
        highest.map_or(0, |tx| small(tx + 1))
    }

    /// Renews a lease, unless it is no longer the relay's.
    pub(crate) fn renew(&mut self, lane: usize, relay: usize, epoch: u8, term: u8) -> bool {
        let cursor = &mut self.cursors[lane];
        let stands = cursor.is_held(relay, epoch);
        if stands {
            cursor.lease = term;
        }
        stands
    }

    /// Says whether a relay may take a lane: nobody holds it, its lease has run out, or it is
    /// the relay's own from before it lost track of it.
    pub(crate) fn is_free(&self, lane: usize, relay: usize, config: &Config) -> bool {
        let cursor = &self.cursors[lane];
        let is_free = cursor.owner == 0 || cursor.lease == 0 || cursor.owner == number(relay);
        is_free && cursor.epoch < config.epochs
    }

    /// Takes a lane.
    pub(crate) fn take(&mut self, lane: usize, relay: usize, config: &Config) -> Option<Cursor> {
        if !self.is_free(lane, relay, config) {
            return None;
        }
        let cursor = &mut self.cursors[lane];
        *cursor = Cursor { owner: number(relay), epoch: cursor.epoch + 1, lease: config.term, ..*cursor };
        Some(*cursor)
    }

    /// Records what was confirmed of a key, if the lease stands.
    pub(crate) fn settle(&mut self, key: usize, covers: Mask, shown: Write) {
        let index = &mut self.index[key];
        match shown {
            Write::Upsert(version) => {
                index.version = index.version.max(version);
                index.deleted = false;
            }
            Write::Delete(_) => index.deleted = true,
        }
        self.settled |= covers;
    }
}

impl Cursor {
    /// Says whether a relay holds the lane in this epoch, run out or not.
    pub(crate) fn is_held(&self, relay: usize, epoch: u8) -> bool {
        self.owner == number(relay) && self.epoch == epoch
    }
}
