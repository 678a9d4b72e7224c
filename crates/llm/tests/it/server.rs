//! An HTTP/1.1 server on a socket of its own, which answers what a test tells it to.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the server does with a request.
pub(crate) enum Reply {
    /// Answers with a status, extra header lines and a body.
    Answer(u16, &'static str, String),
    /// Answers without saying how long the body is, and hangs up after it.
    Unannounced(String),
    /// Announces more bytes than it sends, then hangs up.
    Truncated(String),
    /// Never answers.
    Silence,
}

impl Reply {
    /// A completion in which the model wrote `content`.
    pub(crate) fn completion(content: &str) -> Self {
        Self::finished(content, "stop")
    }

    /// A completion that ended for a reason.
    pub(crate) fn finished(content: &str, reason: &str) -> Self {
        let body = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m-2024",
            "choices": [{
                "index": 0, "message": {"role": "assistant", "content": content, "refusal": null},
                "logprobs": null, "finish_reason": reason,
            }],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        });
        Self::Answer(200, "", body.to_string())
    }

    /// An error as OpenAI writes it.
    pub(crate) fn error(status: u16, headers: &'static str, message: &str) -> Self {
        let body = json!({"error": {"message": message, "type": "error", "param": null, "code": null}});
        Self::Answer(status, headers, body.to_string())
    }
}

/// What a client sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Value,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A running server. Ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server that answers each request by `reply`, which is told how many came before.
    pub(crate) async fn start(reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, reply) = (Arc::clone(&requests), Arc::new(reply));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, reply) = (Arc::clone(&seen), Arc::clone(&reply));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = read_request(&mut stream).await {
                        let number = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(request.clone());
                            seen.len() - 1
                        };
                        if !write_reply(&mut stream, reply(number, &request)).await {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, requests, task }
    }

    /// Returns the requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut request = Request { line: lines.remove(0), headers: lines, body: Value::Null };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// Says whether the connection goes on.
async fn write_reply(stream: &mut BufReader<TcpStream>, reply: Reply) -> bool {
    // A client that has read enough hangs up, so a failed write is no failure here.
    match reply {
        Reply::Answer(status, headers, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n{headers}\r\n"
            );
            let answer = format!("{head}{body}");
            stream.get_mut().write_all(answer.as_bytes()).await.is_ok()
        }
        Reply::Unannounced(body) => {
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}");
            stream.get_mut().write_all(answer.as_bytes()).await.ok();
            false
        }
        Reply::Truncated(body) => {
            let length = body.len() + 100;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.get_mut().write_all(answer.as_bytes()).await.ok();
            false
        }
        Reply::Silence => {
            std::future::pending::<()>().await;
            false
        }
    }
}
