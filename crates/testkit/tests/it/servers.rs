use waybill_testkit::{Program, Signal, TestPostgres, TestRedis, eventually, psql, signal};

use crate::DEADLINE;

#[tokio::test]
async fn a_server_of_its_own_is_killed_and_comes_back() {
    let mut postgres = TestPostgres::own().await.unwrap();
    let db = postgres.database().await.unwrap();
    psql(&db.url, "CREATE TABLE t AS SELECT 5 AS v").await.unwrap();
    postgres.server_mut().kill9().unwrap();
    assert!(psql(&db.url, "SELECT v FROM t").await.is_err());
    postgres.server_mut().restart().await.unwrap();
    assert_eq!(psql(&db.url, "SELECT v FROM t").await.unwrap(), "5");
    assert_eq!(psql(&db.url, "SHOW fsync").await.unwrap(), "on");

    let dir = postgres.dir();
    drop(db);
    drop(postgres);
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_run_that_is_killed_leaves_neither_server_nor_files() {
    let script = "echo url=$WAYBILL_TEST_POSTGRES_URL; exec tail -f /dev/null";
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_with-test-stores"));
    program.args(["/bin/sh", "-c", script]).env_remove("WAYBILL_TEST_POSTGRES_URL");
    let mut program = Program::spawn(program).unwrap();
    let line = program.line("url=", DEADLINE).await.unwrap();
    let url = line.trim_start_matches("url=").to_owned();
    let pid_file = psql(&url, "SHOW data_directory").await.unwrap() + "/postmaster.pid";
    let data = psql(&url, "SHOW data_directory").await.unwrap();
    let postmaster = std::fs::read_to_string(pid_file).unwrap();
    let postmaster: u32 = postmaster.lines().next().unwrap().parse().unwrap();

    program.kill9().await.unwrap();
    eventually("the server is gone", DEADLINE, async || signal(postmaster, Signal::SIGCONT).is_err()).await;
    eventually("its files are gone", DEADLINE, async || !std::path::Path::new(&data).exists()).await;
}

#[tokio::test]
async fn redis_servers_are_shared_or_owned() {
    let (url, prefix) = TestRedis::shared().await.unwrap();
    let (same, other) = TestRedis::shared().await.unwrap();
    assert_eq!(url, same);
    assert_ne!(prefix, other);

    let mut own = TestRedis::own().await.unwrap();
    assert_ne!(own.url(), url);
    own.server_mut().kill9().unwrap();
    own.server_mut().restart().await.unwrap();
}
