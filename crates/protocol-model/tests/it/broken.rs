//! Each rule of the protocol, left out: the checker finds what the rule is there for. A world
//! in which the rule is kept is visited first, so that it is the rule that makes the difference.

use crate::{Config, Mutation, breaks, name, small};

fn two_relays() -> Config {
    Config { relays: 2, ..small() }
}

fn slow_writers() -> Config {
    Config { writes: 2, slow_writers: true, ..small() }
}

/// Guards of the sink are for requests that outlive their deadline: without such, leases and
/// permits are enough.
fn late_request(writes: usize) -> Config {
    Config { writes, late_requests: 1, epochs: 1, ..small() }
}

#[test]
fn without_the_epoch_an_old_settle_is_recorded() {
    let world = Config { writes: 2, ..two_relays() };
    breaks(world.clone(), Mutation::NoEpochCheck, name::STALE_SETTLE);
    breaks(world, Mutation::NoEpochCheck, name::INDEX_AGREES);
}

#[test]
fn without_the_grace_period_deliveries_overlap() {
    breaks(two_relays(), Mutation::NoGracePeriod, name::NO_OVERLAP);
}

#[test]
fn without_permits_deliveries_overlap() {
    breaks(two_relays(), Mutation::NoPermit, name::NO_OVERLAP);
}

#[test]
fn a_relay_that_forgets_deliveries_of_lost_lanes_overlaps_with_itself() {
    let world = Config { faults: 1, ..small() };
    breaks(world, Mutation::ForgetDeliveriesOfLostLanes, name::NO_OVERLAP);
}

#[test]
fn a_fence_from_xmax_misses_running_writers() {
    breaks(slow_writers(), Mutation::FenceFromXmax, name::CLOSED_IS_SETTLED);
    breaks(slow_writers(), Mutation::FenceFromXmax, name::NONE_FORGOTTEN);
}

#[test]
fn without_a_fence_late_commits_are_missed() {
    breaks(slow_writers(), Mutation::NoFence, name::CLOSED_IS_SETTLED);
    breaks(slow_writers(), Mutation::NoFence, name::NONE_FORGOTTEN);
}

#[test]
fn a_segment_that_is_not_read_again_misses_late_commits() {
    breaks(slow_writers(), Mutation::SegmentReadOnce, name::CLOSED_IS_SETTLED);
    breaks(slow_writers(), Mutation::SegmentReadOnce, name::NONE_FORGOTTEN);
}

#[test]
fn a_position_taken_before_the_xid_slips_through_the_fence() {
    breaks(slow_writers(), Mutation::SeqBeforeXid, name::CLOSED_IS_SETTLED);
}

#[test]
fn a_cursor_that_passes_unsettled_rows_loses_them_in_a_crash() {
    breaks(small(), Mutation::ClosedIgnoresUnsettled, name::CLOSED_IS_SETTLED);
}

#[test]
fn what_is_settled_before_it_is_confirmed_is_claimed_and_not_shown() {
    breaks(small(), Mutation::SettleBeforeConfirm, name::INDEX_IS_SHOWN);
    breaks(small(), Mutation::SettleBeforeConfirm, name::NO_LOST_CHANGE);
}

#[test]
fn state_that_was_read_before_the_delivery_is_out_of_date() {
    let world = Config { writes: 2, ..small() };
    breaks(world, Mutation::StateReadBeforeDelivery, name::NO_LOST_CHANGE);
}

#[test]
fn rows_read_during_a_delivery_are_not_covered_by_it() {
    let world = Config { writes: 2, ..small() };
    breaks(world, Mutation::SettleRowsReadMeanwhile, name::NO_LOST_CHANGE);
}

#[test]
fn an_unconditional_upsert_brings_an_old_version_back() {
    breaks(late_request(2), Mutation::UnconditionalUpsert, name::NO_LOST_CHANGE);
}

#[test]
fn an_unbounded_delete_takes_a_key_that_came_back() {
    breaks(late_request(3), Mutation::UnboundedDelete, name::NO_LOST_CHANGE);
}

#[test]
fn a_bound_read_after_the_rows_takes_a_key_that_came_back() {
    breaks(late_request(3), Mutation::BoundReadAfterRows, name::NO_LOST_CHANGE);
}

#[test]
fn a_version_taken_before_the_row_is_had_is_refused_by_the_sink() {
    let world = Config { writes: 3, epochs: 1, ..slow_writers() };
    breaks(world, Mutation::VersionBeforeLock, name::NO_LOST_CHANGE);
}
