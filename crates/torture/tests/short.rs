//! A short run of what `cargo xtask torture` does for an hour.

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;
use waybill_torture::{Options, Place, run};

/// As long as a test may take.
const SHORT: Duration = Duration::from_secs(60);

/// Under `cargo xtask test --long`.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_faults_loses_nothing() {
    let seed = std::env::var("WAYBILL_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42_u64);
    eprintln!("seed {seed}: set WAYBILL_TEST_SEED to repeat or to vary");
    let length = if std::env::var_os("WAYBILL_TEST_LONG").is_some() { LONG } else { SHORT };
    let torture = PathBuf::from(env!("CARGO_BIN_EXE_torture"));
    let programs = torture.parent().expect("a program is in a folder").to_owned();
    assert!(
        programs.join("waybill").exists() && programs.join("qdrant-local").exists(),
        "waybill or qdrant-local is not built: run the tests with `cargo xtask test`"
    );
    let model = std::env::var_os("WAYBILL_MODELS_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/models"), PathBuf::from)
        .join("wordllama");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("torture-{seed}"));
    let options = Options {
        seed,
        length,
        wipes: true,
        place: Place { programs, model, dir, qdrant: std::env::var("WAYBILL_TEST_QDRANT_URL").ok() },
        command: format!("cargo xtask torture --minutes {} --seed {seed}", length.as_secs() / 60),
    };
    let report = Box::pin(run(&options, CancellationToken::new())).await.expect("the run gets to its end");
    let text = report.markdown();
    assert!(report.is_good(), "{text}");
    let faults: u64 = report.faults.iter().map(|(_, count)| count).sum();
    assert!(faults >= 10, "enough went wrong: {text}");
    let count = |what: &str| report.operations.iter().find(|(name, _)| name == what).map_or(0, |(_, count)| *count);
    assert!(count("writes") > 20 && count("token searches answered") > 5, "clients got something done: {text}");
}
