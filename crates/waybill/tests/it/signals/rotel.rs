//! A real OpenTelemetry collector that prints what it receives.

use std::path::{Path, PathBuf};
use std::process::Command;

use waybill_testkit::Program;

use crate::world::{PATIENCE, free_port};

/// A span, as far as tests look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) trace: String,
    pub(super) id: String,
    pub(super) parent: String,
    pub(super) name: String,
    /// Trace and span of each.
    pub(super) links: Vec<(String, String)>,
}

/// A running collector. Ends when dropped.
pub(super) struct Rotel {
    program: Program,
    pub(super) endpoint: String,
}

impl Rotel {
    pub(super) async fn start(dir: &Path) -> Self {
        Self::start_at(dir, free_port()).await
    }

    /// Starts it at a port of our choice.
    pub(super) async fn start_at(dir: &Path, grpc: u16) -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let agent = std::env::var_os("WAYBILL_TEST_ROTEL")
            .map_or_else(|| workspace.join("target/rotel/agent/rotel-agent"), PathBuf::from);
        assert!(agent.is_file(), "{} is missing: run `cargo xtask setup`", agent.display());
        let http = free_port();
        let mut command = Command::new(agent);
        command
            .args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"])
            .args(["--debug-log", "traces", "--debug-log", "metrics"])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .arg("--pid-file")
            .arg(dir.join("rotel.pid"))
            .arg("--log-file")
            .arg(dir.join("rotel.log"));
        let program = Program::spawn(command.into()).unwrap();
        program.line("Starting Rotel", PATIENCE).await.unwrap();
        Self { program, endpoint: format!("http://127.0.0.1:{grpc}") }
    }

    /// Everything that it has printed.
    pub(super) fn text(&self) -> String {
        self.program.output().join("\n")
    }

    /// The spans that it has received so far.
    pub(super) fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut linked_trace = None;
        for line in self.program.output() {
            let line = line.trim();
            if line.starts_with("Span #") {
                spans.push(Span::default());
                continue;
            }
            let Some(span) = spans.last_mut() else { continue };
            let value = || line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default();
            match line.split(':').next().unwrap_or_default().trim() {
                "Trace ID" => span.trace = value(),
                "Parent ID" => span.parent = value(),
                "ID" => span.id = value(),
                "Name" => span.name = value(),
                "-> Trace ID" => linked_trace = Some(value()),
                "-> ID" => span.links.extend(linked_trace.take().map(|trace| (trace, value()))),
                _ => {}
            }
        }
        spans
    }
}
