use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use waybill_local_stores::{DataDir, StoreError};

use crate::support::{Holder, eventually, processes_in, temp_dir};

#[test]
fn a_second_lock_is_refused_and_names_the_holder() {
    let dir = temp_dir();
    let held = DataDir::lock(dir.path()).unwrap();

    let error = DataDir::lock(dir.path()).unwrap_err();
    let StoreError::InUse { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");

    drop(held);
    DataDir::lock(dir.path()).unwrap();
}

#[test]
fn directories_are_made_and_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let dir = temp_dir();
    let held = DataDir::lock(dir.path().join("a/b/waybill")).unwrap();
    let mode = held.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o066, 0, "{mode:o}");
}

#[test]
fn a_child_process_does_not_keep_the_lock() {
    let dir = temp_dir();
    let held = DataDir::lock(dir.path()).unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    drop(held);
    let again = DataDir::lock(dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    again.unwrap();
}

#[test]
fn a_child_that_is_just_being_started_does_not_keep_the_lock() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let dir = temp_dir();
        let outcome = (0..500).try_for_each(|_| DataDir::lock(dir.path()).map(drop));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[tokio::test]
async fn another_process_is_refused_with_the_pid_of_the_first_and_a_killed_one_is_forgotten() {
    let dir = temp_dir();
    let holder = Holder::start(dir.path(), &[]).unwrap();

    let error = DataDir::lock(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", holder.pid())), "{error}");
    let second = Command::new(env!("CARGO_BIN_EXE_private-stores")).arg(dir.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&holder.pid().to_string()), "{said}");

    holder.end(Signal::SIGKILL);
    DataDir::lock(dir.path()).unwrap();
    // The guards do their work after the lock is free.
    eventually("the guards stop the servers", || processes_in(dir.path()).is_empty()).await;
}
