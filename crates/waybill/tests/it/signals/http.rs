//! Just enough HTTP to ask the admin port.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waybill_testkit::Program;

use crate::world::PATIENCE;

/// Asks for `path` at `http://host:port` and returns the status and the body.
pub(crate) async fn get(url: &str, path: &str) -> (u16, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Sent whole or in chunks; the bodies asked for here are sent whole.
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    (status, body.to_owned())
}

/// Finds where a program's admin port is.
pub(crate) async fn admin_of(program: &Program) -> String {
    let line = program.line("admin port", PATIENCE).await.unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    format!("http://{}", line["listen"].as_str().unwrap())
}

/// Reads everything about the health.
pub(crate) async fn health(admin: &str) -> (u16, Value) {
    let (status, body) = get(admin, "/healthz?verbose=1").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Says how a component is; `None` if it is not known.
pub(crate) fn is_up(health: &Value, component: &str) -> Option<bool> {
    let components = health["components"].as_array()?;
    components.iter().find(|found| found["name"] == component)?["up"].as_bool()
}

/// Asks for `path` and returns the status alone.
pub(crate) async fn status_of(admin: &str, path: &str) -> u16 {
    get(admin, path).await.0
}

/// Adds up the series of a metric that have all the labels: `name{label="value",label="value"}`.
pub(crate) fn sum(scrape: &str, selector: &str) -> f64 {
    let (name, labels) = selector.split_once('{').unwrap_or((selector, ""));
    let wanted: Vec<&str> = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect();
    let series = scrape.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(series, _)| {
        let (of, labels) = series.split_once('{').unwrap_or((series, ""));
        of == name && wanted.iter().all(|label| labels.trim_end_matches('}').split(',').any(|has| has == *label))
    });
    series.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
}
