//! A model for tests: a server that speaks OpenAI's `POST /v1/embeddings`. Each word of a text
//! counts in one of the dimensions, so texts with the same words are near each other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) const DIMENSIONS: usize = 64;

/// The server. Clones share it.
#[derive(Clone)]
pub(crate) struct FakeModel {
    pub(crate) url: String,
    state: Arc<State>,
}

struct State {
    /// The texts of each request, in the order they came.
    calls: Mutex<Vec<Vec<String>>>,
    /// Answers to give before any vector: status and Retry-After.
    refusals: Mutex<VecDeque<(u16, Option<u64>)>>,
    open: watch::Sender<bool>,
}

impl FakeModel {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state =
            Arc::new(State { calls: Mutex::default(), refusals: Mutex::default(), open: watch::Sender::new(true) });
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self { url, state }
    }

    /// Lets requests wait, or lets them all pass.
    pub(crate) fn set_open(&self, open: bool) {
        self.state.open.send_replace(open);
    }

    /// Answers the next request with `status`.
    pub(crate) fn refuse_next(&self, status: u16, retry_after_s: Option<u64>) {
        self.state.refusals.lock().unwrap().push_back((status, retry_after_s));
    }

    /// Lists the texts of each request so far.
    pub(crate) fn calls(&self) -> Vec<Vec<String>> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Counts the texts it embedded, or was about to.
    pub(crate) fn texts(&self) -> usize {
        self.calls().iter().map(Vec::len).sum()
    }
}

/// Answers requests on one connection until it is closed.
async fn serve(stream: TcpStream, state: Arc<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let request: Value = serde_json::from_slice(&body).unwrap();
        let texts: Vec<String> = serde_json::from_value(request["input"].clone()).unwrap();
        state.calls.lock().unwrap().push(texts.clone());
        state.open.subscribe().wait_for(|open| *open).await.unwrap();
        let refusal = state.refusals.lock().unwrap().pop_front();
        let answer = match refusal {
            Some((status, retry_after)) => {
                let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
                format!("HTTP/1.1 {status} Refused\r\n{header}Content-Length: 2\r\n\r\n{{}}")
            }
            None => {
                let data: Vec<Value> = texts
                    .iter()
                    .enumerate()
                    .map(|(index, text)| json!({"index": index, "embedding": vector(text)}))
                    .collect();
                let body = json!({"data": data}).to_string();
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
        };
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}

fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.01; DIMENSIONS];
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let hash = word
            .to_lowercase()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        vector[hash as usize % DIMENSIONS] += 1.0;
    }
    vector
}
