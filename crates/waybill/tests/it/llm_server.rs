//! A language model that can't be had here. It speaks the real protocol (chat completions
//! over HTTP/1.1), answers the same passage with the same facts, and misbehaves as it is told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep_until,
};

/// What the server does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers after so long.
    Answer(Duration),
    /// 429 with Retry-After.
    Throttle,
    /// 429 with Retry-After of a second.
    Pause,
    /// 500.
    Fail,
    /// Hangs up in the middle of the answer.
    Cut,
    /// Answers what is no JSON.
    Rubbish,
    /// 400: no call of this passage will ever do.
    Refuse,
}

/// A running server. Ends when dropped.
pub(crate) struct LlmServer {
    pub(crate) url: String,
    calls: Arc<Mutex<HashMap<String, usize>>>,
    task: JoinHandle<()>,
}

impl LlmServer {
    /// Starts a server; `mood` is told the passage and how many calls of it came before.
    pub(crate) async fn start(mood: impl Fn(&str, usize) -> Mood + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(HashMap::new()));
        let (shared, mood) = (Arc::clone(&calls), Arc::new(mood));
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (seen, mood) = (Arc::clone(&shared), Arc::clone(&mood));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(body) = read_request(&mut stream).await {
                        let passage = passage(&body);
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            let calls: &mut usize = seen.entry(passage.clone()).or_default();
                            *calls += 1;
                            *calls - 1
                        };
                        let mood = mood(&passage, number);
                        if !reply(&mut stream, &passage, mood).await {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, calls, task }
    }

    /// How many calls came in.
    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().values().sum()
    }
}

impl Drop for LlmServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The facts of a passage, as (statement, quote): its sentences, whatever they say. Statements
/// have single spaces, quotes those of the passage.
pub(crate) fn facts_of(passage: &str) -> Vec<(String, String)> {
    passage
        .split_inclusive(". ")
        .map(str::trim)
        .filter(|sentence| sentence.split_whitespace().count() >= 4)
        .take(5)
        .map(|sentence| {
            let words: Vec<&str> = sentence.split_whitespace().collect();
            (format!("It says: {}", words.join(" ")), sentence.to_owned())
        })
        .collect()
}

fn content(passage: &str) -> String {
    let mut facts: Vec<Value> = facts_of(passage)
        .into_iter()
        .map(|(statement, quote)| {
            let name = quote.split_whitespace().next().unwrap_or_default();
            json!({"kind": "statement", "statement": statement, "subject": null, "predicate": null, "object": null,
                   "confidence": 0.9, "quote": quote, "entities": [{"kind": "term", "name": name, "role": "mention"}]})
        })
        .collect();
    // Made up: no passage has these words, so it must never be stored.
    facts
        .push(json!({"kind": "statement", "statement": "invented", "subject": null, "predicate": null, "object": null,
                      "confidence": 1, "quote": "words that nobody wrote", "entities": []}));
    json!({"facts": facts}).to_string()
}

fn passage(body: &Value) -> String {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text =
        messages.iter().filter_map(|message| message["content"].as_str()).find(|text| text.contains("<passage>\n"));
    let text = text.unwrap_or_default();
    let inner = text.split_once("<passage>\n").and_then(|(_, rest)| rest.rsplit_once("\n</passage>"));
    inner.map_or("", |(passage, _)| passage).to_owned()
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// Says whether the connection goes on.
async fn reply(stream: &mut BufReader<TcpStream>, passage: &str, mood: Mood) -> bool {
    let completion = |content: String| {
        json!({"id": "c", "object": "chat.completion", "created": 1_700_000_000, "model": "test",
               "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
               "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}})
        .to_string()
    };
    let error = json!({"error": {"message": "on purpose", "type": "error"}}).to_string();
    let (status, header, body) = match mood {
        Mood::Answer(after) => {
            // The latency of the model is what the test is about, not a wait for anything.
            sleep_until(tokio::time::Instant::now() + after).await;
            (200, "", completion(content(passage)))
        }
        Mood::Throttle => (429, "retry-after: 0\r\n", error),
        Mood::Pause => (429, "retry-after: 1\r\n", error),
        Mood::Fail => (500, "", error),
        // Some servers quote what they refuse.
        Mood::Refuse => (422, "", json!({"error": {"message": format!("unusable input: {passage}")}}).to_string()),
        Mood::Rubbish => (200, "", completion("I'd rather talk about the weather.".to_owned())),
        Mood::Cut => {
            let _cut = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"id\":").await;
            return false;
        }
    };
    let head = format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{header}\r\n",
        body.len()
    );
    stream.get_mut().write_all((head + &body).as_bytes()).await.is_ok()
}
