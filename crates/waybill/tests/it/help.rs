//! What the binary says about itself.

use crate::program::{assert_has, run};

#[test]
fn help_shows_where_to_start_and_the_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let help = run(home.path(), &["--help"]).expect_code(0);
    assert_has(&help.stdout, &["waybill up", "waybill import", "waybill search", "waybill extract", "Exit codes:"]);
    for command in [
        "up", "import", "search", "extract", "jobs", "facts", "status", "verify", "recover", "reindex", "relay", "dlq",
        "projects", "sources", "doctor", "keys", "audit", "serve", "migrate", "config",
    ] {
        assert_has(&help.stdout, &[&format!("\n  {command} ")]);
    }
}

#[test]
fn commands_show_examples() {
    let home = tempfile::tempdir().unwrap();
    for command in [
        "up", "import", "search", "extract", "jobs", "facts", "verify", "recover", "reindex", "doctor", "audit",
        "serve", "config",
    ] {
        let help = run(home.path(), &[command, "--help"]).expect_code(0);
        assert_has(&help.stdout, &["Examples:", &format!("waybill {command}")]);
    }
}

#[test]
fn operators_commands_show_examples() {
    let home = tempfile::tempdir().unwrap();
    for command in [
        "keys create",
        "relay pause",
        "relay resume",
        "relay drain",
        "dlq ls",
        "dlq show",
        "dlq redrive",
        "dlq discard",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = run(home.path(), &args).expect_code(0);
        assert_has(&help.stdout, &["Examples:", &format!("waybill {command}")]);
    }
}

#[test]
fn help_says_that_the_default_provider_is_no_language_model() {
    let home = tempfile::tempdir().unwrap();
    for command in ["extract", "facts"] {
        let help = run(home.path(), &[command, "--help"]).expect_code(0);
        assert_has(&help.stdout, &["`rules`", "not a language model"]);
    }
}

#[test]
fn wrong_usage_ends_with_2_and_a_hint() {
    let home = tempfile::tempdir().unwrap();
    let wrong = run(home.path(), &["serch", "x"]).expect_code(2);
    assert_has(&wrong.stderr, &["search"]);
    let wrong = run(home.path(), &["search", "x", "--filter", "nonsense"]).expect_code(2);
    assert_has(&wrong.stderr, &["KEY=VALUE"]);
    let wrong = run(home.path(), &["import", "x", "--prune"]).expect_code(2);
    assert_has(&wrong.stderr, &["--uri-prefix"]);
    let wrong = run(home.path(), &["extract", "--priority", "urgent"]).expect_code(2);
    assert_has(&wrong.stderr, &["high, normal, low"]);
    let wrong = run(home.path(), &["jobs", "x", "--cancel", "x"]).expect_code(2);
    assert_has(&wrong.stderr, &["--cancel"]);
    let wrong = run(home.path(), &["reindex"]).expect_code(2);
    assert_has(&wrong.stderr, &["--project"]);
    let wrong = run(home.path(), &["reindex", "--source", "x", "--all"]).expect_code(2);
    assert_has(&wrong.stderr, &["--all"]);
    let wrong = run(home.path(), &["facts", "--entities", "--entity", "x"]).expect_code(2);
    assert_has(&wrong.stderr, &["--entities"]);
}
