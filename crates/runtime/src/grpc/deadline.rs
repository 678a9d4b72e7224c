use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// Kept back of what a call has left, so that the answer arrives before the caller (and tonic,
/// on this side) gives up: a fifth, at most this much.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
const ANSWER_SHARE: u32 = 5;

/// Returns until when a handler may wait and still answer before the call's deadline; `None`
/// if the caller set none. To be asked when the handler begins.
///
/// tonic drops a handler at the deadline without a word about what it waited for.
#[must_use]
pub fn answer_by(metadata: &MetadataMap) -> Option<Instant> {
    let left = parse(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Some(Instant::now() + (left - (left / ANSWER_SHARE).min(ANSWER_MARGIN)))
}

/// Reads at most eight digits and a unit, as the gRPC protocol has it.
fn parse(text: &str) -> Option<Duration> {
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > 8 || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(parse("30000000u"), Some(Duration::from_secs(30)));
        for bad in ["", "S", "2", "2s", "-2S", "+2S", "123456789S", "2 S", "2é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_answer_is_due_before_the_deadline() {
        let mut metadata = MetadataMap::new();
        assert_eq!(answer_by(&metadata), None);
        for (timeout, wait_ms) in [("1S", 800), ("10S", 9_500)] {
            metadata.insert("grpc-timeout", timeout.parse().unwrap());
            let wait = Duration::from_millis(wait_ms);
            let (before, by) = (Instant::now(), answer_by(&metadata).unwrap());
            assert!((before + wait..=Instant::now() + wait).contains(&by), "{timeout}");
        }
    }
}
