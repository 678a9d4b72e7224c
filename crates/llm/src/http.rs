//! One client with limits, and one reading of failures.

use std::time::Duration;

use chrono::DateTime;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use waybill_domain::without_echo;
use waybill_tls::ClientTls;

use crate::{
    LlmError, OpenAiConfig,
    config::{TLS, config_error, tls_error},
    limits::MAX_ANSWER_BYTES,
};

/// How long a connection may take to open. A server that is there answers in far less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of an error's body is read; the message stands at its beginning.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// How much of a server's error message is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The longest wait that is taken from a server. One that asks for a day has a wrong
/// clock or a quota that a person should look at.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What servers say where they can't use a `response_format`: OpenAI and vLLM name it or its
/// schema, llama.cpp the grammar that it makes of it.
const FORMAT_WORDS: [&[u8]; 3] = [b"response_format", b"schema", b"grammar"];

/// The path of a server's completions.
pub(crate) struct Server {
    client: Client,
    url: Url,
    tls: ClientTls,
    key: Option<SecretString>,
}

/// A failed request.
pub(crate) struct Failure {
    pub(crate) error: LlmError,
    /// Whether the server refused the request over its `response_format`.
    pub(crate) over_format: bool,
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

impl From<LlmError> for Failure {
    fn from(error: LlmError) -> Self {
        Self { error, over_format: false }
    }
}

impl Server {
    pub(crate) fn new(config: &OpenAiConfig) -> Result<Self, LlmError> {
        let invalid = |problem: String| config_error("openai.base_url", problem, "write http://host:port/v1");
        let url = format!("{}/chat/completions", config.base_url.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| invalid(error.to_string()))?;
        let tls = config.tls.of(TLS);
        let for_http = tls.for_http().map_err(|error| tls_error(&error))?;
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(Duration::from_millis(config.timeout_ms))
            .tls_backend_preconfigured(for_http)
            // An API has no reason to redirect, and the key must not follow.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| invalid(describe(error, &tls)))?;
        Ok(Self { client, url, tls, key: config.read_key()? })
    }

    /// Sends a request and returns the body of a good answer.
    pub(crate) async fn post(&self, body: &serde_json::Value) -> Result<Vec<u8>, Failure> {
        let mut request = self.client.post(self.url.clone()).json(body);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, bearer(key)?);
        }
        let response = request.send().await.map_err(|error| self.broken(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response, body).await);
        }
        Ok(self.read(response, MAX_ANSWER_BYTES).await?)
    }

    /// Makes the error for an answer that arrived whole but cannot be used.
    pub(crate) fn bad_answer(&self, problem: impl Into<String>, answer: &str) -> LlmError {
        LlmError::bad_answer(problem, &self.without_key(answer))
    }

    /// Reads a status that is not 2xx.
    async fn refused(&self, response: Response, sent: &serde_json::Value) -> Failure {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        if status == StatusCode::TOO_MANY_REQUESTS
            || (status == StatusCode::SERVICE_UNAVAILABLE && retry_after.is_some())
        {
            return LlmError::Throttled { retry_after }.into();
        }
        let body = self.read(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let message = without_echo(self.error_message(&body), texts(sent));
        if status.is_server_error() || is_passing(status) {
            return LlmError::Unavailable(format!("status {status}: {message}")).into();
        }
        if status.is_redirection() {
            let message = "redirects are not followed; correct openai.base_url".to_owned();
            return LlmError::Refused { status: status.as_u16(), message }.into();
        }
        let over_format = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
            && FORMAT_WORDS.iter().any(|word| contains(&body, word));
        Failure { error: LlmError::Refused { status: status.as_u16(), message }, over_format }
    }

    fn error_message(&self, body: &[u8]) -> String {
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        // OpenAI nests it, others have it at the top.
        let message = json
            .pointer("/error/message")
            .or_else(|| json.get("error"))
            .or_else(|| json.get("message"))
            .or_else(|| json.get("detail"))
            .and_then(serde_json::Value::as_str)
            .unwrap_or("no message");
        // The key goes before the text is cut, or a piece of it might stay.
        self.without_key(message).chars().filter(|char| !char.is_control()).take(MAX_MESSAGE_CHARS).collect()
    }

    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.expose_secret(), "[redacted]"),
            None => text.to_owned(),
        }
    }

    async fn read(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, LlmError> {
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(LlmError::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(error))? {
            if body.len() + chunk.len() > limit {
                return Err(LlmError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads a failure on the way: no connection, a broken one, no answer in time.
    fn broken(&self, error: reqwest::Error) -> LlmError {
        if error.is_timeout() {
            return LlmError::Timeout;
        }
        LlmError::Unavailable(describe(error, &self.tls))
    }
}

fn bearer(key: &SecretString) -> Result<HeaderValue, LlmError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
        .map_err(|_invalid| config_error("openai.api_key", "does not fit into a header", "check the key"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn contains(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// Statuses of the 4xx range that say nothing about the request itself.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::FAILED_DEPENDENCY)
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
    fn retry_after_is_read_in_seconds_or_as_a_date() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers(&[("retry-after", "86400")])), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
        let date = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        let later = ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT");
        assert_eq!(retry_after(&headers(&[date, later])), Some(Duration::from_secs(30)));
        let earlier = ("retry-after", "Wed, 21 Oct 2015 07:27:30 GMT");
        assert_eq!(retry_after(&headers(&[date, earlier])), Some(Duration::ZERO));
    }
}
