use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;
use waybill_local_stores::{DataDir, PrivateRedis, RedisOptions};

use crate::support::{Holder, eventually, is_alive, processes_in, temp_dir};

/// Sends commands in line form, after the password of `url`; returns the answers.
fn ask(url: &str, commands: &str) -> String {
    let rest = url.strip_prefix("redis://:").unwrap();
    let (password, address) = rest.trim_end_matches("/0").split_once('@').unwrap();
    talk(address, &format!("AUTH {password}\r\n{commands}QUIT\r\n"))
}

fn talk(address: &str, text: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn stop_leaves_nothing_running_and_the_next_start_finds_the_data() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let redis = PrivateRedis::start(&data_dir, RedisOptions::default()).await.unwrap();
    let pid = redis.pid().unwrap();
    assert_eq!(ask(&redis.url(), "SET k kept\r\n"), "+OK\r\n+OK\r\n+OK\r\n");

    redis.stop().await.unwrap();
    assert!(!is_alive(pid));
    assert_eq!(processes_in(dir.path()), Vec::<u32>::new());

    let redis = PrivateRedis::start(&data_dir, RedisOptions::default()).await.unwrap();
    assert!(ask(&redis.url(), "GET k\r\n").contains("kept"));
}

#[tokio::test]
async fn a_killed_server_restarts_at_its_port() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let mut redis = PrivateRedis::start(&data_dir, RedisOptions::default()).await.unwrap();
    let url = redis.url();
    // What the process has written is the system's, so it survives the process.
    ask(&url, "SET k kept\r\n");
    redis.kill9().unwrap();
    assert_eq!(redis.pid(), None);
    redis.restart().await.unwrap();
    assert_eq!(redis.url(), url);
    assert!(ask(&url, "GET k\r\n").contains("kept"));
}

#[tokio::test]
async fn it_wants_the_password_and_evicts_nothing() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let redis = PrivateRedis::start(&data_dir, RedisOptions::default()).await.unwrap();
    let answer = talk(&format!("127.0.0.1:{}", redis.port()), "GET k\r\nQUIT\r\n");
    assert!(answer.starts_with("-NOAUTH"), "{answer}");
    let answer = ask(&redis.url(), "CONFIG GET maxmemory-policy\r\nCONFIG GET appendonly\r\n");
    assert!(answer.contains("noeviction"), "{answer}");
    assert!(answer.contains("yes"), "{answer}");
    let bound = ask(&redis.url(), "CONFIG GET bind\r\n");
    assert!(bound.contains("127.0.0.1"), "{bound}");
}

#[tokio::test]
async fn an_orphan_of_a_killed_process_is_ended_at_the_next_start() {
    let dir = temp_dir();
    let holder = Holder::start(dir.path(), &["--leave-running"]).unwrap();
    let pid_file = dir.path().join("redis/redis.pid");
    let orphan: u32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    holder.end(Signal::SIGKILL);
    assert!(is_alive(orphan));

    let data_dir = DataDir::lock(dir.path()).unwrap();
    let redis = PrivateRedis::start(&data_dir, RedisOptions::default()).await.unwrap();
    assert!(!is_alive(orphan));
    drop(redis);
    // And its Postgres.
    let postgres = waybill_local_stores::PrivatePostgres::start(&data_dir, Default::default());
    postgres.await.unwrap().stop().await.unwrap();
    eventually("nothing is left", || processes_in(dir.path()).is_empty()).await;
}
