use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use waybill_runtime::Shutdown;

use crate::echo::{LONG, within};

#[tokio::test]
async fn hard_follows_soft_at_the_deadline_for_every_clone() {
    let shutdown = Shutdown::manual(Duration::from_millis(20));
    let (soft, hard) = (shutdown.soft(), shutdown.clone().hard());
    assert!(!shutdown.is_stopping());
    shutdown.trigger();
    within(soft.cancelled()).await;
    // The tokens outlive the handle.
    drop(shutdown);
    within(hard.cancelled()).await;
}

#[tokio::test]
async fn a_token_stops_only_its_holder() {
    let shutdown = Shutdown::manual(LONG);
    shutdown.soft().cancel();
    shutdown.hard().cancel();
    assert!(!shutdown.is_stopping());
    assert!(!shutdown.hard().is_cancelled());
}

#[tokio::test]
async fn tasks_are_waited_for_and_dropped_at_hard() {
    let shutdown = Shutdown::manual(LONG);
    let tasks = shutdown.tasks();
    let soft = shutdown.soft();
    let (done, finished) = tokio::sync::oneshot::channel();
    tasks.spawn("polite", async move {
        soft.cancelled().await;
        let _ = done.send(());
        Ok(())
    });
    tasks.spawn("deaf", std::future::pending());
    shutdown.trigger();
    within(finished).await.expect("the polite one ends at soft");
    let wait = tokio::spawn(tasks.finish());
    shutdown.trigger_hard();
    within(wait).await.expect("join").expect("a dropped task is no failure");
}

#[tokio::test]
async fn a_failed_task_stops_the_service_and_says_why() {
    let shutdown = Shutdown::manual(LONG);
    let tasks = shutdown.tasks();
    tasks.spawn("leases", async { anyhow::bail!("lane lost") });
    within(shutdown.soft().cancelled()).await;
    let error = within(tasks.finish()).await.expect_err("failed");
    assert_eq!(format!("{error:#}"), "run task leases: lane lost");
}

#[tokio::test]
async fn a_panicking_task_stops_the_service_and_says_why() {
    let shutdown = Shutdown::manual(LONG);
    let tasks = shutdown.tasks();
    tasks.spawn("trimmer", async { panic!("no lease") });
    let error = within(tasks.finish()).await.expect_err("panicked");
    assert_eq!(error.to_string(), "task trimmer panicked: no lease");
    assert!(shutdown.is_stopping());
}

#[tokio::test]
async fn the_first_signal_is_soft_and_the_second_hard() {
    let shutdown = Shutdown::on_signals(LONG).expect("handlers");
    raise(Signal::SIGTERM).expect("raise");
    within(shutdown.soft().cancelled()).await;
    assert!(!shutdown.hard().is_cancelled());
    raise(Signal::SIGINT).expect("raise");
    within(shutdown.hard().cancelled()).await;
}
