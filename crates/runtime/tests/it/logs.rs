//! What a call leaves in the log. One thread per test, so that each hears only its own.

use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::echo::{LONG, RawEcho, echo, start};

#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lines").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    pub(crate) fn with(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().expect("lines").clone()).expect("text");
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn each_call_is_one_line_and_failures_are_warnings() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = start(LONG).await;

    server.unary(echo("hello")).await.expect("call");
    let done = lines.with("call done");
    assert_eq!(done.len(), 1, "{done:?}");
    assert!(done[0].contains("DEBUG") && done[0].contains("method=/test.v1.Echo/Unary"), "{done:?}");
    assert!(done[0].contains("code=Ok") && done[0].contains("request_id="), "{done:?}");
    assert!(lines.with("hello").is_empty(), "no document text");

    server.unary(echo("panic")).await.expect_err("panics");
    assert_eq!(lines.with("handler panicked").len(), 1);
    let failed = lines.with("call failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].contains("WARN") && failed[0].contains("code=Internal"), "{failed:?}");

    // The caller's fault is no warning.
    server.unary(RawEcho { text: vec![0xff], item: None }).await.expect_err("malformed");
    assert_eq!(lines.with("call failed").len(), 1);
    assert_eq!(lines.with("code=InvalidArgument").len(), 1);
    server.stop().await;
}
