use std::time::Duration;

use deadpool_redis::{
    PoolError, TimeoutType,
    redis::{ErrorKind, RedisError},
};
use waybill_domain::ErrorClass;

/// Why Redis did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The configuration can't be used.
    #[error("redis configuration: {0}")]
    Config(String),
    /// The server can't be reached, or the connection broke.
    #[error("redis unavailable: {0}; check that it runs and can be reached")]
    Unavailable(String),
    /// Every connection is in use.
    #[error("all {0} connections to redis are in use: raise the pool size, or make fewer calls at a time")]
    Busy(usize),
    /// No answer in time. A change may or may not have happened; do it again, it is harmless.
    #[error("no answer from redis within {0:?}")]
    Timeout(Duration),
    /// The server is up and can't serve now: it loads its data, or is no master.
    #[error("redis can't serve now ({code}): {message}; try again, or point the url at the master")]
    NotServing {
        /// What the server answered.
        code: String,
        /// What it said.
        message: String,
    },
    /// The stream or its consumer group vanished during the call. Call again: it is made anew.
    #[error("the redis stream or its consumer group is gone, as after a flush: call again, it is created anew")]
    GroupMissing,
    /// The server has no memory left for another message.
    #[error("redis is out of memory: let the workers catch up, or raise its maxmemory")]
    OutOfMemory,
    /// The server refuses this client.
    #[error("redis refuses this client: {0}; check the url's password and what the user may do")]
    Denied(String),
    /// The server can't do what it was asked, today or tomorrow.
    #[error("redis rejected the call ({code}): {message}; check that no one else uses the key prefix")]
    Rejected {
        /// What the server answered.
        code: String,
        /// What it said.
        message: String,
    },
    /// The server's answer lacks what the protocol promises.
    #[error("unusable answer from redis: {0}; check that the url names a Redis 6.2 or later")]
    BadAnswer(&'static str),
}

/// The codes that matter here. Redis 6 hides the code of a script's error in its text.
const CODES: [&str; 19] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOGROUP",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "UNKILLABLE",
    "WRONGPASS",
    "WRONGTYPE",
];

/// How much of a server's message is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

impl QueueError {
    /// Says what the failure means for a retry.
    ///
    /// Every call can be done twice, so that a timeout is `Transient` and not `Unknown`.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable(_)
            | Self::Busy(_)
            | Self::Timeout(_)
            | Self::NotServing { .. }
            | Self::GroupMissing
            | Self::BadAnswer(_) => ErrorClass::Transient,
            Self::OutOfMemory => ErrorClass::Throttled,
            Self::Config(_) | Self::Denied(_) | Self::Rejected { .. } => ErrorClass::Permanent,
        }
    }

    /// Sorts what the client reports. Neither it nor the server ever quotes the password.
    pub(crate) fn from_redis(error: &RedisError) -> Self {
        let message = || error.detail().unwrap_or("no message").chars().take(MAX_MESSAGE_CHARS).collect::<String>();
        // A refusal at the door comes as the answer to AUTH, and passes all the same.
        if error.detail().is_some_and(|detail| detail.contains("max number of clients")) {
            return Self::NotServing { code: "ERR".to_owned(), message: message() };
        }
        match code(error) {
            Some("OOM") => Self::OutOfMemory,
            Some("NOGROUP" | "UNBLOCKED") => Self::GroupMissing,
            Some("NOAUTH" | "NOPERM" | "WRONGPASS") => Self::Denied(message()),
            Some(
                code @ ("BUSY" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "MISCONF" | "NOREPLICAS" | "NOSCRIPT"
                | "READONLY" | "TRYAGAIN" | "UNKILLABLE"),
            ) => Self::NotServing { code: code.to_owned(), message: message() },
            Some(code) => Self::Rejected { code: code.to_owned(), message: message() },
            None => match error.kind() {
                ErrorKind::AuthenticationFailed => Self::Denied(message()),
                ErrorKind::InvalidClientConfig => Self::Config(message()),
                ErrorKind::UnexpectedReturnType => Self::BadAnswer("not of the expected form"),
                ErrorKind::Parse => Self::BadAnswer("not the Redis protocol"),
                _ => Self::Unavailable(error.to_string().chars().take(MAX_MESSAGE_CHARS).collect()),
            },
        }
    }

    /// Sorts a failure to get a connection; `size` is how many there may be.
    pub(crate) fn from_pool(error: &PoolError, size: usize, limit: Duration) -> Self {
        match error {
            PoolError::Backend(error) => Self::from_redis(error),
            PoolError::Timeout(TimeoutType::Wait) => Self::Busy(size),
            PoolError::Timeout(_) => Self::Timeout(limit),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Returns the code of the server's error; `None` if it is not the server's.
fn code(error: &RedisError) -> Option<&str> {
    let code = error.code()?;
    if code != "ERR" {
        return Some(code);
    }
    let hidden = error
        .detail()
        .filter(|detail| detail.starts_with("Error running script"))
        .and_then(|detail| detail.split_whitespace().find_map(|word| known(word.trim_start_matches('-'))));
    Some(hidden.unwrap_or(code))
}

fn known(word: &str) -> Option<&'static str> {
    CODES.into_iter().find(|code| *code == word)
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::make_extension_error;

    use super::*;

    fn sorted(code: &str, detail: &str) -> QueueError {
        QueueError::from_redis(&make_extension_error(code.to_owned(), Some(detail.to_owned())))
    }

    #[test]
    fn codes_are_sorted() {
        for (code, class) in [
            ("LOADING", ErrorClass::Transient),
            ("MASTERDOWN", ErrorClass::Transient),
            ("READONLY", ErrorClass::Transient),
            ("CLUSTERDOWN", ErrorClass::Transient),
            ("NOGROUP", ErrorClass::Transient),
            ("OOM", ErrorClass::Throttled),
            ("WRONGTYPE", ErrorClass::Permanent),
            ("NOAUTH", ErrorClass::Permanent),
            ("ERR", ErrorClass::Permanent),
        ] {
            assert_eq!(sorted(code, "for some reason").class(), class, "{code}");
        }
    }

    #[test]
    fn a_code_in_a_scripts_error_is_found() {
        let detail = "Error running script (call to f_1b2): @user_script:4: -OOM command not allowed";
        assert!(matches!(sorted("ERR", detail), QueueError::OutOfMemory));
    }

    #[test]
    fn too_many_clients_is_no_fault_of_the_password() {
        assert_eq!(sorted("ERR", "max number of clients reached").class(), ErrorClass::Transient);
    }
}
