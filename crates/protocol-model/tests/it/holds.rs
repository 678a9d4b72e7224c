//! What is built, in worlds where no request outlives its deadline: everything holds.

use crate::{Config, holds, may_take_long, name, small};

#[test]
fn two_relays_and_writers_that_commit_out_of_order() {
    let world = Config { relays: 2, writes: 2, slow_writers: true, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_COMMIT_FOUND, name::PERMIT_REFUSED, name::SETTLE_REFUSED]);
}

#[test]
fn two_relays_of_which_one_crashes_or_gets_no_answer() {
    let world = Config { relays: 2, writes: 2, faults: 1, ..small() };
    holds(world, &[name::ALL_CLOSED, name::PERMIT_REFUSED, name::SETTLE_REFUSED]);
}

#[test]
fn two_relays_and_two_faults_over_three_epochs() {
    let world = Config { relays: 2, slow_writers: true, faults: 2, epochs: 3, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_COMMIT_FOUND, name::SETTLE_REFUSED]);
}

#[test]
fn two_relays_and_a_key_that_is_deleted_and_comes_back() {
    let world = Config { relays: 2, writes: 3, ..small() };
    holds(world, &[name::ALL_CLOSED, name::RECREATED, name::SETTLE_REFUSED]);
}

#[test]
fn two_relays_and_two_keys_of_one_lane() {
    let world = Config { relays: 2, key_lanes: vec![0, 0], writes: 2, ..small() };
    holds(world, &[name::ALL_CLOSED, name::PERMIT_REFUSED, name::SETTLE_REFUSED]);
}

#[test]
fn two_relays_and_two_lanes_that_change_hands() {
    let world = Config { relays: 2, key_lanes: vec![0, 1], slow_writers: true, ..small() };
    holds(world, &[name::PERMIT_REFUSED, name::SETTLE_REFUSED, name::LATE_COMMIT_FOUND]);
}

#[test]
fn two_relays_and_two_lanes_that_are_written_at_once() {
    let world = Config { relays: 2, key_lanes: vec![0, 1], writes: 2, epochs: 1, ..small() };
    holds(world, &[name::ALL_CLOSED, name::PERMIT_REFUSED]);
}

#[test]
fn three_relays_of_which_one_crashes() {
    let world = Config { relays: 3, epochs: 3, faults: 1, ..small() };
    holds(world, &[name::ALL_CLOSED, name::PERMIT_REFUSED, name::SETTLE_REFUSED]);
}

#[test]
fn three_relays_and_a_writer_that_commits_late() {
    let world = Config { relays: 3, slow_writers: true, epochs: 3, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_COMMIT_FOUND, name::SETTLE_REFUSED]);
}

#[test]
fn one_relay_that_crashes_and_writers_that_roll_back() {
    let world = Config { writes: 2, slow_writers: true, aborts: true, faults: 1, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_COMMIT_FOUND]);
}

#[test]
fn one_relay_and_three_writers_that_commit_out_of_order() {
    let world = Config { writes: 3, slow_writers: true, ..small() };
    holds(world, &[name::ALL_CLOSED, name::LATE_COMMIT_FOUND, name::RECREATED]);
}

#[test]
fn larger_worlds_when_there_is_time() {
    if !may_take_long() {
        eprintln!("left out: it takes long");
        return;
    }
    let all = [name::ALL_CLOSED, name::PERMIT_REFUSED, name::SETTLE_REFUSED];
    let two = Config { relays: 2, writes: 2, ..small() };
    holds(Config { slow_writers: true, faults: 1, ..two.clone() }, &all);
    holds(Config { faults: 2, ..two.clone() }, &all);
    holds(Config { slow_writers: true, term: 3, ..two }, &all);
}
