use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use waybill_local_stores::{DataDir, Durability, PostgresBinaries, PostgresOptions, PrivatePostgres, WhenParentDies};

use crate::support::{Holder, eventually, is_alive, postmaster, processes_in, sql, temp_dir};

fn options() -> PostgresOptions {
    PostgresOptions { durability: Durability::Volatile, ..Default::default() }
}

#[tokio::test]
async fn stop_leaves_nothing_running_and_the_next_start_finds_the_data() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let postgres = PrivatePostgres::start(&data_dir, PostgresOptions::default()).await.unwrap();
    let pid = postgres.pid().unwrap();
    assert!(is_alive(pid));
    sql(&postgres.url(), "CREATE TABLE t AS SELECT 'kept' AS v").unwrap();

    postgres.stop().await.unwrap();
    assert!(!is_alive(pid));
    assert_eq!(processes_in(dir.path()), Vec::<u32>::new());

    let postgres = PrivatePostgres::start(&data_dir, PostgresOptions::default()).await.unwrap();
    assert_eq!(sql(&postgres.url(), "SELECT v FROM t").unwrap(), "kept");
}

#[tokio::test]
async fn a_killed_server_restarts_at_its_port_with_what_it_acknowledged() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let mut postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    let (url, port) = (postgres.url(), postgres.port());
    sql(&url, "CREATE TABLE t (v int)").unwrap();
    for round in 0..3 {
        sql(&url, &format!("INSERT INTO t VALUES ({round})")).unwrap();
        postgres.kill9().unwrap();
        assert_eq!(postgres.pid(), None);
        postgres.restart().await.unwrap();
        assert_eq!((postgres.url(), postgres.port()), (url.clone(), port));
    }
    assert_eq!(sql(&url, "SELECT string_agg(v::text, ',') FROM t").unwrap(), "0,1,2");
}

#[tokio::test]
async fn drop_ends_the_server() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    let pid = postgres.pid().unwrap();
    drop(postgres);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn it_wants_the_password_and_speaks_utf8() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    let url = postgres.url();

    let bare = format!("postgres://waybill@127.0.0.1:{}/waybill", postgres.port());
    let error = sql(&bare, "SELECT 1").unwrap_err().to_string();
    assert!(error.contains("password"), "{error}");
    let wrong = bare.replace("waybill@", "waybill:wrong@");
    let error = sql(&wrong, "SELECT 1").unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");

    assert_eq!(sql(&url, "SHOW server_encoding").unwrap(), "UTF8");
    assert_eq!(sql(&url, "SELECT upper('é'), 'Z' < 'a'").unwrap(), "É|t");

    let password = std::fs::read_to_string(dir.path().join("postgres.password")).unwrap();
    assert!(url.contains(&password));
    assert!(!format!("{postgres:?}").contains(&password));
    for file in ["postgres.password", "postgres.log", "lock"] {
        let mode = dir.path().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn when_its_process_is_killed_the_server_is_stopped() {
    let dir = temp_dir();
    let holder = Holder::start(dir.path(), &[]).unwrap();
    let pid = postmaster(dir.path());
    holder.end(Signal::SIGKILL);
    eventually("the guard stops the server", || !is_alive(pid)).await;
    eventually("nothing else is left", || processes_in(dir.path()).is_empty()).await;
}

#[tokio::test]
async fn an_orphan_of_a_killed_process_is_ended_at_the_next_start() {
    let dir = temp_dir();
    let holder = Holder::start(dir.path(), &["--leave-running"]).unwrap();
    let orphan = postmaster(dir.path());
    sql(&holder.postgres_url, "CREATE TABLE t AS SELECT 7 AS v").unwrap();
    holder.end(Signal::SIGKILL);
    assert!(is_alive(orphan));

    let data_dir = DataDir::lock(dir.path()).unwrap();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    assert!(!is_alive(orphan));
    assert_eq!(sql(&postgres.url(), "SELECT v FROM t").unwrap(), "7");
    drop(postgres);
    // Its Redis is an orphan still, if there is one.
    if waybill_local_stores::RedisBinary::find().is_ok() {
        let redis = waybill_local_stores::PrivateRedis::start(&data_dir, Default::default());
        redis.await.unwrap().stop().await.unwrap();
    }
    assert_eq!(processes_in(dir.path()), Vec::<u32>::new());
}

#[tokio::test]
async fn sigterm_stops_it_in_good_order() {
    let dir = temp_dir();
    let holder = Holder::start(dir.path(), &[]).unwrap();
    assert!(holder.end(Signal::SIGTERM));
    assert_eq!(processes_in(dir.path()), Vec::<u32>::new());
    let log = std::fs::read_to_string(dir.path().join("postgres.log")).unwrap();
    assert!(log.contains("database system is shut down"), "{log}");
}

#[tokio::test]
async fn a_stale_pid_file_with_the_id_of_a_stranger_hurts_neither() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let mut postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    postgres.kill9().unwrap();
    drop(postgres);
    let path = dir.path().join("postgres/cluster/postmaster.pid");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(&path, format!("{}\n{rest}", stranger.id())).unwrap();

    let started = PrivatePostgres::start(&data_dir, options()).await;
    let spared = is_alive(stranger.id());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(spared);
    started.unwrap();
}

#[tokio::test]
async fn a_cluster_left_half_made_is_made_anew() {
    let dir = temp_dir();
    let half = dir.path().join("postgres/cluster.unfinished");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("PG_VERSION"), "15\n").unwrap();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    PrivatePostgres::start(&data_dir, options()).await.unwrap();
    assert!(!half.exists());
}

#[tokio::test]
async fn removing_its_files_with_the_process_is_left_to_the_guard() {
    let dir = temp_dir();
    let inner = dir.path().join("inner");
    let data_dir = DataDir::lock(&inner).unwrap();
    let options = PostgresOptions { when_parent_dies: WhenParentDies::StopAndRemove(inner.clone()), ..options() };
    let postgres = PrivatePostgres::start(&data_dir, options).await.unwrap();
    // An orderly stop dismisses the guard: nothing is removed.
    postgres.stop().await.unwrap();
    assert!(inner.join("postgres/cluster").is_dir());
}

#[tokio::test]
async fn root_runs_it_as_somebody_else_even_in_a_closed_home() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let data_dir = DataDir::lock(home.path().join(".local/share/waybill")).unwrap();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    let link = data_dir.path().join("postgres");
    let outside = link.read_link().unwrap();
    assert!(outside.starts_with("/var/lib/waybill"), "{}", outside.display());

    let status = std::fs::read_to_string(format!("/proc/{}/status", postgres.pid().unwrap()));
    if let Ok(status) = status {
        let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
        let groups = status.lines().find(|line| line.starts_with("Groups:")).unwrap();
        assert_eq!(groups.trim_start_matches("Groups:").trim(), "");
    }
    let mode = home.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "the home stays closed");

    sql(&postgres.url(), "CREATE TABLE t AS SELECT 1 AS v").unwrap();
    postgres.stop().await.unwrap();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    assert_eq!(sql(&postgres.url(), "SELECT v FROM t").unwrap(), "1");
    assert_eq!(link.read_link().unwrap(), outside);
    drop(postgres);
    std::fs::remove_dir_all(outside).unwrap();
}

#[tokio::test]
async fn a_start_is_quick_enough_for_a_test_of_its_own() {
    let dir = temp_dir();
    let data_dir = DataDir::lock(dir.path()).unwrap();
    let begun = std::time::Instant::now();
    let postgres = PrivatePostgres::start(&data_dir, options()).await.unwrap();
    let took = begun.elapsed();
    // Measured: about a second. What this catches is a wait for something that never comes.
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(PostgresBinaries::find().unwrap().major() >= 15);
    drop(postgres);
}
