use waybill_testkit::{Program, Signal};

use crate::DEADLINE;

const NO_ENV: [(&str, &str); 0] = [];

fn shell(script: &str) -> Program {
    Program::start("/bin/sh", ["-c", script], NO_ENV).unwrap()
}

#[tokio::test]
async fn lines_of_both_streams_are_waited_for() {
    let mut program = shell("echo to stdout; echo to stderr >&2; exec tail -f /dev/null");
    assert_eq!(program.line("stdout", DEADLINE).await.unwrap(), "to stdout");
    assert_eq!(program.line("stderr", DEADLINE).await.unwrap(), "to stderr");
    // A line that is there already is found again.
    program.line("stdout", DEADLINE).await.unwrap();
    program.kill9().await.unwrap();
    assert_eq!(program.pid(), None);
}

#[tokio::test]
async fn a_line_that_never_comes_fails_with_what_was_said() {
    let program = shell("echo the last words");
    let error = program.line("ready", DEADLINE).await.unwrap_err().to_string();
    assert!(error.contains("the last words"), "{error}");
}

#[tokio::test]
async fn signals_arrive_and_the_end_is_seen() {
    let mut program = shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    program.line("ready", DEADLINE).await.unwrap();
    program.signal(Signal::SIGSTOP).unwrap();
    program.signal(Signal::SIGTERM).unwrap();
    program.signal(Signal::SIGCONT).unwrap();
    program.line("bye", DEADLINE).await.unwrap();
    assert_eq!(program.wait(DEADLINE).await.unwrap().code(), Some(3));
    assert!(program.signal(Signal::SIGTERM).is_err());
}

#[tokio::test]
async fn a_dropped_program_is_killed() {
    // The shell holds the pipe's only writing end for as long as it lives.
    let program = shell("echo $$; exec tail -f /dev/null");
    let pid: u32 = program.line("", DEADLINE).await.unwrap().parse().unwrap();
    drop(program);
    waybill_testkit::eventually("the process is gone", DEADLINE, async || {
        waybill_testkit::signal(pid, Signal::SIGCONT).is_err()
    })
    .await;
}

#[tokio::test]
async fn a_command_runs_with_the_stores_of_the_test_run() {
    let script = "test -n \"$WAYBILL_TEST_POSTGRES_URL\" && exit 7";
    let arguments = ["/bin/sh", "-c", script];
    let program = env!("CARGO_BIN_EXE_with-test-stores");
    let mut program = Program::start(program, arguments, NO_ENV).unwrap();
    assert_eq!(program.wait(DEADLINE).await.unwrap().code(), Some(7));
}
