use stateright::{Checker, Model};
use waybill_protocol_model::{Config, Mutation};
fn env(n: &str, d: usize) -> usize { std::env::var(n).ok().map_or(d, |v| v.parse().unwrap()) }
#[test]
fn explore() {
    let lanes = std::env::var("KL").unwrap_or("0".into()).split(',').map(|x| x.parse().unwrap()).collect();
    let c = Config { relays: env("R",2), key_lanes: lanes, writes: env("W",2), slow_writers: env("SLOW",1)==1, aborts: env("AB",0)==1, term: env("T",2) as u8, grace: 1, epochs: env("E",2) as u8, faults: env("F",0) as u8, late_requests: env("L",0) as u8, mutation: Mutation::None };
    let t = std::time::Instant::now();
    let ch = c.checker().threads(2).timeout(std::time::Duration::from_secs(env("TO",60) as u64)).spawn_bfs().join();
    println!("states {} unique {} done {} depth {} {:?}", ch.state_count(), ch.unique_state_count(), ch.is_done(), ch.max_depth(), t.elapsed());
    if std::env::var("TR").is_ok() { for (n, p) in ch.discoveries() { println!("== {n} {}:\n   {}", ch.discovery_classification(n), p.into_actions().iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join("\n   ")); } } else { for (n, _) in ch.discoveries() { println!("== {n} {}", ch.discovery_classification(n)); } }
}
