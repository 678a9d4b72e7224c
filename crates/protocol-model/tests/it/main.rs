//! Runs the checker. Every test but those of [`broken`] visits all states of its world.

mod broken;
mod holds;
mod late;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};
use waybill_protocol_model::{Config, Mutation, name};

/// The small world that the others are made of: one relay, one key, one write, nothing breaks.
fn small() -> Config {
    Config {
        relays: 1,
        key_lanes: vec![0],
        writes: 1,
        slow_writers: false,
        aborts: false,
        term: 2,
        grace: 1,
        epochs: 2,
        faults: 0,
        late_requests: 0,
        mutation: Mutation::None,
    }
}

/// What was found in all states of a world.
struct Found {
    /// Properties that don't hold.
    broken: Vec<&'static str>,
    /// Things that do occur.
    occurring: BTreeSet<&'static str>,
}

/// Visits every state.
#[track_caller]
fn visit(config: Config) -> Found {
    let checker = config.clone().checker().threads(threads()).spawn_bfs().join();
    assert!(checker.is_done(), "not all states were visited");
    eprintln!(
        "{} states, {} steps, at most {} steps deep: {config:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    let (mut broken, mut occurring) = (Vec::new(), BTreeSet::new());
    for (name, path) in checker.discoveries() {
        if checker.discovery_classification(name).to_string() == "counterexample" {
            eprintln!("not so: {name}{}", trace(&path.into_actions()));
            broken.push(name);
        } else {
            occurring.insert(name);
        }
    }
    broken.sort_unstable();
    Found { broken, occurring }
}

/// Checks that everything holds in every state, and that `occurring` is among what occurs.
#[track_caller]
fn holds(config: Config, occurring: &[&'static str]) {
    let found = visit(config);
    assert!(found.broken.is_empty(), "broken: {:?}", found.broken);
    for name in occurring {
        assert!(found.occurring.contains(name), "does not occur: {name}");
    }
}

/// Checks that a property holds in a world, and doesn't once a rule of the protocol is broken.
#[track_caller]
fn breaks(config: Config, mutation: Mutation, property: &'static str) {
    let sound = visit(config.clone());
    assert!(!sound.broken.contains(&property), "{property}: does not even hold without {mutation:?}");
    let mutant = Config { mutation, ..config };
    let checker = mutant
        .checker()
        .threads(threads())
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
        .spawn_bfs()
        .join();
    let Some(path) = checker.discovery(property) else {
        panic!("{property}: holds under {mutation:?}, too, in all {} states", checker.unique_state_count());
    };
    eprintln!("{mutation:?} breaks {property:?}:{}", trace(&path.into_actions()));
}

fn trace(actions: &[waybill_protocol_model::Action]) -> String {
    actions.iter().map(|action| format!("\n    {action:?}")).collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Says whether tests may take long.
fn may_take_long() -> bool {
    std::env::var_os("WAYBILL_TEST_LONG").is_some()
}
