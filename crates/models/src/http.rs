//! What the HTTP providers share: one client with limits, and one reading of failures.

use std::time::Duration;

use chrono::DateTime;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use waybill_domain::without_echo;
use waybill_tls::ClientTls;

use crate::{
    ModelError,
    config::{config_error, tls_error},
};

/// How long a connection may take to open. A server that is there answers in far less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read: 512 vectors of 4,096 numbers, written out, are 40 MB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much of an error's body is read; the message stands at its beginning.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// How much of a server's error message is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The longest wait that is taken from a server. One that asks for a day has a wrong
/// clock or a quota that a person should look at.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// A server at a base URL, with limits on time, size and requests under way.
pub(crate) struct Server {
    provider: &'static str,
    client: Client,
    base: Url,
    tls: ClientTls,
    key: Option<SecretString>,
    timeout_ms: u64,
    slots: Semaphore,
}

/// What [`Server::new`] needs to know.
pub(crate) struct ServerOptions<'a> {
    pub(crate) provider: &'static str,
    pub(crate) base_url: &'a str,
    pub(crate) url_key: &'static str,
    pub(crate) tls: ClientTls,
    pub(crate) key: Option<SecretString>,
    pub(crate) timeout_ms: u64,
    pub(crate) concurrency: usize,
}

impl Server {
    pub(crate) fn new(options: ServerOptions<'_>) -> Result<Self, ModelError> {
        let invalid = |problem: String| config_error(options.url_key, problem, "write http://host:port");
        // A base without a slash at its end would lose its last segment in `join`.
        let base = format!("{}/", options.base_url.trim_end_matches('/'));
        let base = Url::parse(&base).map_err(|error| invalid(error.to_string()))?;
        let tls = options.tls.for_http().map_err(|error| tls_error(options.tls.section(), &error))?;
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(Duration::from_millis(options.timeout_ms))
            .tls_backend_preconfigured(tls)
            // An API has no reason to redirect, and the key must not follow.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| invalid(describe(error, &options.tls)))?;
        Ok(Self {
            provider: options.provider,
            client,
            base,
            tls: options.tls,
            key: options.key,
            timeout_ms: options.timeout_ms,
            slots: Semaphore::new(options.concurrency),
        })
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, ModelError> {
        let url = self.url(path)?;
        self.send(self.client.post(url).json(body), Some(body)).await
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ModelError> {
        let url = self.url(path)?;
        self.send(self.client.get(url), None).await
    }

    /// Makes the error for an answer that arrived whole but cannot be used.
    pub(crate) fn bad_answer(&self, problem: impl Into<String>) -> ModelError {
        ModelError::BadAnswer { provider: self.provider, problem: problem.into() }
    }

    fn url(&self, path: &str) -> Result<Url, ModelError> {
        self.base.join(path).map_err(|error| self.unavailable(error.to_string()))
    }

    fn unavailable(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Unavailable { provider: self.provider, reason: reason.into() }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        sent: Option<&serde_json::Value>,
    ) -> Result<T, ModelError> {
        let _slot = self.slots.acquire().await.map_err(|_closed| self.unavailable("the provider is shutting down"))?;
        let request = match &self.key {
            Some(key) => request.header(AUTHORIZATION, self.bearer(key)?),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.broken(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response, sent).await);
        }
        let body = self.read(response, MAX_ANSWER_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| {
            if error.is_eof() {
                return self.unavailable("the answer ends in the middle");
            }
            // Its text may quote the body, which is nobody's secret but can be long: the place will do.
            self.bad_answer(format!("not the expected JSON at line {} column {}", error.line(), error.column()))
        })
    }

    fn bearer(&self, key: &SecretString) -> Result<HeaderValue, ModelError> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
            .map_err(|_invalid| self.unavailable("the key does not fit into a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn read(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, ModelError> {
        let too_long = || self.bad_answer(format!("longer than {limit} bytes"));
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(error))? {
            if body.len() + chunk.len() > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads a failure on the way: no connection, a broken one, no answer in time.
    fn broken(&self, error: reqwest::Error) -> ModelError {
        if error.is_timeout() {
            return ModelError::Timeout { provider: self.provider, timeout_ms: self.timeout_ms };
        }
        self.unavailable(describe(error, &self.tls))
    }

    /// Reads a status that is not 2xx.
    async fn refused(&self, response: Response, sent: Option<&serde_json::Value>) -> ModelError {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        if status == StatusCode::TOO_MANY_REQUESTS
            || (status == StatusCode::SERVICE_UNAVAILABLE && retry_after.is_some())
        {
            return ModelError::Throttled { provider: self.provider, retry_after };
        }
        let message = without_echo(self.error_message(response).await, sent.map(texts).unwrap_or_default());
        if status.is_server_error() || is_passing(status) {
            return self.unavailable(format!("status {status}: {message}"));
        }
        if status.is_redirection() {
            return self.bad_answer(format!("status {status}: redirects are not followed"));
        }
        ModelError::Rejected { provider: self.provider, status: status.as_u16(), message }
    }

    async fn error_message(&self, response: Response) -> String {
        let Ok(body) = self.read(response, MAX_ERROR_BYTES).await else {
            return "no readable message".to_owned();
        };
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        // OpenAI nests it, TEI and others have it at the top.
        let message = json
            .pointer("/error/message")
            .or_else(|| json.get("error"))
            .or_else(|| json.get("message"))
            .and_then(serde_json::Value::as_str)
            .unwrap_or("no message");
        let mut message: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
        if let Some(key) = &self.key {
            message = message.replace(key.expose_secret(), "[redacted]");
        }
        message
    }
}

/// Lists every text in a request's body.
fn texts(body: &serde_json::Value) -> Vec<&str> {
    match body {
        serde_json::Value::String(text) => vec![text],
        serde_json::Value::Array(items) => items.iter().flat_map(texts).collect(),
        serde_json::Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Refuses vectors that are not as many, as long or as finite as they must be.
pub(crate) fn check_vectors(
    server: &Server,
    vectors: &[Vec<f32>],
    count: usize,
    dimensions: Option<usize>,
) -> Result<(), ModelError> {
    if vectors.len() != count {
        let got = vectors.len();
        return Err(server.bad_answer(format!("{got} vectors for {count} texts")));
    }
    let Some(expected) = dimensions.or_else(|| vectors.first().map(Vec::len)) else {
        return Ok(());
    };
    for vector in vectors {
        if vector.len() != expected || expected == 0 {
            let got = vector.len();
            return Err(server.bad_answer(format!("a vector of {got} numbers, not {expected}")));
        }
        if !vector.iter().all(|value| value.is_finite()) {
            return Err(server.bad_answer("a vector with a number that is not finite"));
        }
    }
    Ok(())
}

/// Statuses of the 4xx range that say nothing about the request itself.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        // TEI answers 424 when its model fails.
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::FAILED_DEPENDENCY
    )
}

/// Reads `Retry-After`, in seconds or as a date.
///
/// A date is taken against the server's own `Date`, so that no clock of ours has to
/// agree with it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let value = text(RETRY_AFTER)?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = DateTime::parse_from_rfc2822(value).ok()?;
            let now = DateTime::parse_from_rfc2822(text(DATE)?.trim()).ok()?;
            (until - now).to_std().unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Writes an error with its causes, without the URL, and which settings to look at.
fn describe(error: reqwest::Error, tls: &ClientTls) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if let Some(hint) = tls.hint(&error) {
        text.push_str("; ");
        text.push_str(&hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
    }

    #[test]
    fn retry_after_is_read_as_a_date_against_the_servers_clock() {
        let headers =
            headers(&[("date", "Wed, 21 Oct 2015 07:28:00 GMT"), ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT")]);
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(30)));
    }

    #[test]
    fn retry_after_in_the_past_is_no_wait() {
        let headers =
            headers(&[("date", "Wed, 21 Oct 2015 07:28:30 GMT"), ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]);
        assert_eq!(retry_after(&headers), Some(Duration::ZERO));
    }

    #[test]
    fn retry_after_is_clamped() {
        assert_eq!(retry_after(&headers(&[("retry-after", "86400")])), Some(MAX_RETRY_AFTER));
    }

    #[test]
    fn retry_after_that_makes_no_sense_is_ignored() {
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
        assert_eq!(retry_after(&headers(&[])), None);
    }
}
