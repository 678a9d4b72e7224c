//! What must hold in every state, and what must occur in some.

use stateright::Property;

use crate::{
    Config,
    state::{Phase, Relay, State, TxPhase, Write, bit, small},
};

/// The names of the properties.
pub mod name {
    /// Once all of a key's rows are settled, the sink shows the row as it is.
    pub const NO_LOST_CHANGE: &str = "no change is lost";
    /// Once all of a deleted key's rows are settled, the sink shows nothing of it.
    pub const NO_RESURRECTION: &str = "a deleted key is not shown again";
    /// Of all deliveries of a key, one at the most can still change the sink. Requests that
    /// outlive their deadline don't count.
    pub const NO_OVERLAP: &str = "deliveries of a key don't overlap";
    /// Whatever is at or below `closed_seq` is settled or was rolled back.
    pub const CLOSED_IS_SETTLED: &str = "closed passes no unsettled or invisible row";
    /// A settle under a lease that no longer stands changes nothing.
    pub const STALE_SETTLE: &str = "a settle of an old epoch changes nothing";
    /// If `index_state` has the row's version, the sink shows it.
    pub const INDEX_IS_SHOWN: &str = "index_state claims nothing that isn't shown";
    /// Once all of a key's rows are settled, `index_state` has the row's version, or a tombstone.
    pub const INDEX_AGREES: &str = "index_state agrees with what is settled";
    /// The relay that holds a lane knows of each row that is due, or has yet to look for it.
    pub const NONE_FORGOTTEN: &str = "no due row is forgotten";

    /// Everything was written, delivered, settled and closed.
    pub const ALL_CLOSED: &str = "everything is closed";
    /// A late upsert will find a higher version.
    pub const LATE_UPSERT_REFUSED: &str = "a late upsert is refused";
    /// A late delete will find a version above its bound.
    pub const LATE_DELETE_REFUSED: &str = "a late delete is refused";
    /// A row has become visible in a part of the log that was read before.
    pub const LATE_COMMIT_FOUND: &str = "a late commit is found";
    /// A lane has another owner while a request of the one before is on the wire.
    pub const HANDED_OVER_IN_FLIGHT: &str = "a lane changes hands with a request under way";
    /// A relay has something to send, and its lease has run out.
    pub const PERMIT_REFUSED: &str = "a permit is refused";
    /// A settle is under way whose lease doesn't stand any more.
    pub const SETTLE_REFUSED: &str = "a settle is refused";
    /// A key is back after it was deleted and settled.
    pub const RECREATED: &str = "a deleted key comes back";
}

pub(crate) fn all() -> Vec<Property<Config>> {
    vec![
        Property::always(name::NO_LOST_CHANGE, |config: &Config, state: &State| {
            settled_keys(config, state).all(|key| state.db.rows[key] == 0 || state.sink[key] == state.db.rows[key])
        }),
        Property::always(name::NO_RESURRECTION, |config: &Config, state: &State| {
            settled_keys(config, state).all(|key| state.db.rows[key] != 0 || state.sink[key] == 0)
        }),
        Property::always(name::NO_OVERLAP, |config: &Config, state: &State| {
            (0..config.key_lanes.len()).all(|key| live_deliveries(config, state, key) <= 1)
        }),
        Property::always(name::CLOSED_IS_SETTLED, |config: &Config, state: &State| {
            state.db.txs.iter().filter(|tx| tx.seq != 0).all(|tx| {
                let closed = state.db.cursors[config.key_lanes[usize::from(tx.key)]].closed;
                tx.seq > closed || (tx.phase == TxPhase::Committed && state.db.settled & bit(tx.seq) != 0)
            })
        }),
        Property::always(name::STALE_SETTLE, |_, state: &State| !state.stale_settle),
        Property::always(name::INDEX_IS_SHOWN, |config: &Config, state: &State| {
            (0..config.key_lanes.len()).all(|key| {
                let (row, index) = (state.db.rows[key], state.db.index[key]);
                row == 0 || index.deleted || index.version < row || state.sink[key] == row
            })
        }),
        Property::always(name::INDEX_AGREES, |config: &Config, state: &State| {
            settled_keys(config, state).all(|key| {
                let (row, index) = (state.db.rows[key], state.db.index[key]);
                if row == 0 { index.deleted || index.version == 0 } else { !index.deleted && index.version == row }
            })
        }),
        Property::always(name::NONE_FORGOTTEN, |config: &Config, state: &State| {
            state.relays.iter().enumerate().all(|(index, relay)| forgets_none(config, state, index, relay))
        }),
        Property::sometimes(name::ALL_CLOSED, |_, state: &State| {
            let db = &state.db;
            db.next_tx().is_none()
                && db.running(crate::Mutation::None) == 0
                && db.cursors.iter().all(|cursor| cursor.closed == db.last_seq)
                && db.rows.iter().any(|&row| row != 0)
        }),
        Property::sometimes(name::LATE_UPSERT_REFUSED, |_, state: &State| {
            state.wire.iter().any(|request| {
                let shown = state.sink[usize::from(request.key)];
                request.late && matches!(request.write, Write::Upsert(version) if shown > version)
            })
        }),
        Property::sometimes(name::LATE_DELETE_REFUSED, |_, state: &State| {
            state.wire.iter().any(|request| {
                let shown = state.sink[usize::from(request.key)];
                request.late && matches!(request.write, Write::Delete(bound) if shown > bound)
            })
        }),
        Property::sometimes(name::LATE_COMMIT_FOUND, |config: &Config, state: &State| {
            state.relays.iter().any(|relay| has_late_commit(config, state, relay))
        }),
        Property::sometimes(name::HANDED_OVER_IN_FLIGHT, |config: &Config, state: &State| {
            state.wire.iter().any(|request| {
                let cursor = &state.db.cursors[config.key_lanes[usize::from(request.key)]];
                cursor.owner != 0 && cursor.epoch > request.epoch
            })
        }),
        Property::sometimes(name::PERMIT_REFUSED, |config: &Config, state: &State| {
            state.relays.iter().any(|relay| {
                relay.keys.iter().zip(&config.key_lanes).any(|(key, &lane)| {
                    key.delivery.as_ref().is_some_and(|delivery| {
                        matches!(delivery.phase, Phase::Loaded(_)) && !relay.permits(lane, delivery.epoch)
                    })
                })
            })
        }),
        Property::sometimes(name::SETTLE_REFUSED, |config: &Config, state: &State| {
            state.relays.iter().enumerate().any(|(index, relay)| {
                relay.settling.as_ref().is_some_and(|settlement| {
                    settlement.parts.iter().any(|&(key, epoch, ..)| {
                        !state.db.cursors[config.key_lanes[usize::from(key)]].is_held(index, epoch)
                    })
                })
            })
        }),
        Property::sometimes(name::RECREATED, |config: &Config, state: &State| {
            (0..config.key_lanes.len())
                .any(|key| state.db.index[key].deleted && state.db.index[key].version != 0 && state.db.rows[key] != 0)
        }),
    ]
}

/// Lists the keys of which every visible row is settled.
fn settled_keys<'a>(config: &'a Config, state: &'a State) -> impl Iterator<Item = usize> + 'a {
    (0..config.key_lanes.len())
        .filter(|&key| state.db.outbox().all(|(seq, of)| of != key || state.db.settled & bit(seq) != 0))
}

/// Counts the deliveries of a key that can still change the sink: those that may be sent, and
/// requests within their deadline.
fn live_deliveries(config: &Config, state: &State, key: usize) -> usize {
    let lane = config.key_lanes[key];
    let unsent = state.relays.iter().filter(|relay| {
        relay.keys[key].delivery.as_ref().is_some_and(|delivery| {
            matches!(delivery.phase, Phase::Absent(_) | Phase::Loaded(_)) && relay.permits(lane, delivery.epoch)
        })
    });
    let sent = state.wire.iter().filter(|request| usize::from(request.key) == key && !request.late);
    unsent.count() + sent.count()
}

fn forgets_none(config: &Config, state: &State, index: usize, relay: &Relay) -> bool {
    state.db.outbox().all(|(seq, key)| {
        let lane = config.key_lanes[key];
        let Some(log) = &relay.lanes[lane] else { return true };
        if !state.db.cursors[lane].is_held(index, log.epoch) || state.db.settled & bit(seq) != 0 {
            return true;
        }
        let covered = relay.keys[key].delivery.as_ref().map_or(0, |delivery| delivery.covers);
        if log.unsettled & bit(seq) != 0 {
            return (relay.keys[key].waiting | covered) & bit(seq) != 0;
        }
        seq > relay.reader.scanned || is_looked_for(state, relay, seq)
    })
}

/// Says whether the segment of a position is going to be read again because of its writer.
fn is_looked_for(state: &State, relay: &Relay, seq: u8) -> bool {
    let writer = state.db.txs.iter().position(|tx| tx.seq == seq);
    let writer = writer.map_or(0, |tx| bit(small(tx + 1)));
    relay.reader.segments.iter().enumerate().any(|(at, segment)| {
        let is_in = relay.reader.start_of(at) < seq && seq <= segment.upto;
        is_in && (segment.due || segment.running & writer != 0)
    })
}

fn has_late_commit(config: &Config, state: &State, relay: &Relay) -> bool {
    state.db.outbox().any(|(seq, key)| {
        relay.lanes[config.key_lanes[key]].as_ref().is_some_and(|log| {
            seq <= relay.reader.scanned
                && seq > log.verified
                && log.seen & bit(seq) == 0
                && is_looked_for(state, relay, seq)
        })
    })
}
