//! Which part of the log to read next, so that no late commit is missed.
//!
//! A position is handed out before its transaction commits, so rows appear out of order.
//! The log is read in *passes*. Each begins with a fence: the last position M, then an xid Y
//! of the reader's own. Every transaction with a row at or below M has an xid below Y. Those
//! that were still running then are written down; the pass reads up to M and leaves a
//! *segment* behind, with their names on it. Whenever one of them ends, the segment is read
//! again; when none is left, the segment is verified: nothing more can appear in it.
//!
//! So a transaction that stays open for an hour keeps segments from being verified, and
//! nothing else: what others commit meanwhile is found as soon as they commit.

use std::collections::VecDeque;

use waybill_domain::Lane;
use waybill_storage::outbox::{Fence, Snapshot};

/// Segments kept apart; past it, neighbours are joined with the union of their writers.
const SEGMENTS_MAX: usize = 64;

/// A part of the log to be read now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where it comes from; hand it back with the rows.
    pub kind: PlanKind,
    /// Read above this position,
    pub after: i64,
    /// up to this one.
    pub upto: i64,
    /// The lanes to read.
    pub lanes: Vec<Lane>,
    /// Which life of the reader made it. Rows of an earlier life are ignored.
    pub(super) generation: u64,
}

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanKind {
    /// Rows not read before.
    Pass,
    /// A segment, once more. If the range holds exactly `seen` rows (`None`: unknown),
    /// nothing was missed and it need not be read.
    Recheck {
        /// Rows of the range that were read before.
        seen: Option<u64>,
    },
}

#[derive(Debug)]
struct Pass {
    at: i64,
    upto: i64,
    running: Vec<u64>,
}

#[derive(Debug)]
struct Segment {
    after: i64,
    upto: i64,
    /// Transactions that may have rows here and have not been seen to end.
    running: Vec<u64>,
    recheck: Recheck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recheck {
    No,
    Due,
    /// Under way, read up to `at`. `again`: another writer has ended since it began.
    Reading {
        at: i64,
        again: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Everything at or below it is verified.
    verified: i64,
    /// Everything at or below it is verified or in a segment.
    scanned: i64,
    pass: Option<Pass>,
    segments: VecDeque<Segment>,
    pub(super) generation: u64,
}

impl Reader {
    /// Begins anew above `from`.
    pub(super) fn restart(&mut self, from: i64) {
        *self = Self { verified: from, scanned: from, generation: self.generation + 1, ..Self::default() };
    }

    pub(super) fn verified(&self) -> i64 {
        self.verified
    }

    /// Says whether a pass up to `last_seq` would find anything new.
    pub(super) fn wants_pass(&self, last_seq: i64) -> bool {
        self.pass.is_none() && last_seq > self.scanned
    }

    pub(super) fn begin_pass(&mut self, fence: &Fence) {
        if !self.wants_pass(fence.tail.last_seq) {
            return;
        }
        self.pass = Some(Pass { at: self.scanned, upto: fence.tail.last_seq, running: running_below(fence) });
    }

    /// Takes note of which transactions have ended.
    pub(super) fn observe(&mut self, snapshot: &Snapshot) {
        for segment in &mut self.segments {
            let before = segment.running.len();
            segment.running.retain(|&xid| !snapshot.has_ended(xid));
            if segment.running.len() < before {
                segment.recheck = match segment.recheck {
                    Recheck::No | Recheck::Due => Recheck::Due,
                    Recheck::Reading { at, .. } => Recheck::Reading { at, again: true },
                };
            }
        }
        self.join_segments();
    }

    /// Says whether writers are being waited for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Returns the range to read now: late rows first, they have waited longest.
    pub(super) fn next(&mut self) -> Option<(i64, i64, bool)> {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.recheck != Recheck::No) {
            let at = match segment.recheck {
                Recheck::Reading { at, .. } => at,
                Recheck::No | Recheck::Due => {
                    segment.recheck = Recheck::Reading { at: segment.after, again: false };
                    segment.after
                }
            };
            return Some((at, segment.upto, true));
        }
        self.pass.as_ref().map(|pass| (pass.at, pass.upto, false))
    }

    /// Takes note that (`after`, `read_upto`] of the plan was read.
    pub(super) fn done(&mut self, kind: PlanKind, upto: i64, read_upto: i64) {
        match kind {
            PlanKind::Pass => {
                let Some(pass) = &mut self.pass else { return };
                pass.at = read_upto;
                if read_upto >= pass.upto
                    && let Some(pass) = self.pass.take()
                {
                    self.segments.push_back(Segment {
                        after: self.scanned,
                        upto: pass.upto,
                        running: pass.running,
                        recheck: Recheck::No,
                    });
                    self.scanned = pass.upto;
                }
            }
            PlanKind::Recheck { .. } => {
                let Some(segment) = self.segments.iter_mut().find(|segment| segment.upto == upto) else {
                    return;
                };
                if let Recheck::Reading { again, .. } = segment.recheck {
                    segment.recheck = match (read_upto >= segment.upto, again) {
                        (true, true) => Recheck::Due,
                        (true, false) => Recheck::No,
                        (false, again) => Recheck::Reading { at: read_upto, again },
                    };
                }
            }
        }
        while let Some(first) = self.segments.front()
            && first.running.is_empty()
            && first.recheck == Recheck::No
        {
            self.verified = first.upto;
            self.segments.pop_front();
        }
        self.join_segments();
    }

    fn join_segments(&mut self) {
        let mut joined: VecDeque<Segment> = VecDeque::with_capacity(self.segments.len());
        let crowded = self.segments.len() > SEGMENTS_MAX;
        for segment in self.segments.drain(..) {
            if let Some(last) = joined.back_mut()
                && last.recheck == Recheck::No
                && segment.recheck == Recheck::No
                && (crowded || last.running == segment.running)
            {
                last.upto = segment.upto;
                last.running.extend(segment.running);
                last.running.sort_unstable();
                last.running.dedup();
                continue;
            }
            joined.push_back(segment);
        }
        self.segments = joined;
    }
}

/// Lists the transactions that may have rows at or below the fence's position and had not
/// ended: those the snapshot names, and every xid from its `xmax` up to the fence's own.
///
/// `xmax` is one past the last transaction that *ended*; younger ones may be running, and
/// without them rows would be lost.
fn running_below(fence: &Fence) -> Vec<u64> {
    let snapshot = &fence.tail.snapshot;
    let named = snapshot.running.iter().copied().filter(|&xid| xid < fence.xid);
    named.chain(snapshot.xmax..fence.xid).collect()
}
