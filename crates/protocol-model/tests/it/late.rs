//! What is built, when a request outlives its deadline: its relay was frozen between the permit
//! and the request, or a connection broke that carried it.
//!
//! The guards of the sink are the second line, and this is how far they reach: an upsert never
//! replaces a newer version, and a delete never takes one that was begun after it. Two things
//! they don't prevent, which is why permits and deadlines are there. Where a test here says that
//! something is broken, a better guard would show by making it fail.

use crate::{Config, Mutation, holds, may_take_long, name, small, visit};

#[test]
fn a_late_upsert_can_show_a_deleted_key_again_and_nothing_else() {
    // The point is gone, so there is no version that the upsert could be compared with.
    let world = Config { relays: 2, writes: 2, late_requests: 1, ..small() };
    let found = visit(world);
    assert_eq!(found.broken, [name::NO_RESURRECTION]);
    for name in [name::ALL_CLOSED, name::LATE_UPSERT_REFUSED, name::HANDED_OVER_IN_FLIGHT] {
        assert!(found.occurring.contains(name), "does not occur: {name}");
    }
}

#[test]
fn a_late_delete_leaves_a_key_alone_that_came_back() {
    let world = Config { writes: 3, late_requests: 1, faults: 1, ..small() };
    let found = visit(world);
    assert_eq!(found.broken, [name::NO_RESURRECTION]);
    for name in [name::ALL_CLOSED, name::LATE_UPSERT_REFUSED, name::LATE_DELETE_REFUSED, name::RECREATED] {
        assert!(found.occurring.contains(name), "does not occur: {name}");
    }
}

#[test]
fn a_late_delete_can_hide_a_key_that_was_just_coming_back() {
    // Its writer had its version when the bound was read, and had not committed when the rows
    // were read: the bound is not below the version.
    let found = visit(came_back(Mutation::None));
    assert_eq!(found.broken, [name::NO_RESURRECTION, name::INDEX_IS_SHOWN, name::NO_LOST_CHANGE]);
}

#[test]
fn a_bound_out_of_the_outbox_would_prevent_that() {
    assert_eq!(visit(came_back(Mutation::BoundOfCoveredRows)).broken, [name::NO_RESURRECTION]);
}

#[test]
fn tombstones_in_the_sink_would_prevent_both() {
    holds(came_back(Mutation::Tombstones), &[name::ALL_CLOSED, name::LATE_UPSERT_REFUSED, name::LATE_DELETE_REFUSED]);
    let world = Config { relays: 2, writes: 2, late_requests: 1, mutation: Mutation::Tombstones, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_UPSERT_REFUSED, name::HANDED_OVER_IN_FLIGHT]);
}

#[test]
fn a_late_request_meets_a_second_relay_and_a_key_that_came_back_when_there_is_time() {
    if !may_take_long() {
        eprintln!("left out: it takes long");
        return;
    }
    let found = visit(Config { relays: 2, writes: 3, late_requests: 1, ..small() });
    assert_eq!(found.broken, [name::NO_RESURRECTION]);
}

fn came_back(mutation: Mutation) -> Config {
    Config { writes: 3, slow_writers: true, late_requests: 1, epochs: 1, mutation, ..small() }
}
