//! An HTTP/1.1 server on a socket of its own, which answers what a test tells it to.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What the server does with a request.
pub(crate) enum Reply {
    /// Answers with a status, extra header lines and a body.
    Answer(u16, &'static str, String),
    /// Announces more bytes than it sends, then hangs up.
    Truncated(String),
    /// Never answers.
    Silence,
}

impl Reply {
    pub(crate) fn ok(body: &Value) -> Self {
        Self::Answer(200, "", body.to_string())
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
    /// Returns how many texts it carries under `key`.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.body[key].as_array().map_or(0, Vec::len)
    }

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
    /// Starts a server that answers each request by `reply`.
    pub(crate) async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
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
                        seen.lock().unwrap().push(request.clone());
                        if !write_reply(&mut stream, reply(&request)).await {
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
        Reply::Truncated(body) => {
            let length = body.len() + 100;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            false
        }
        Reply::Silence => {
            std::future::pending::<()>().await;
            false
        }
    }
}
