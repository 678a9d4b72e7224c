use std::sync::Arc;

use chrono::{DateTime, Utc};
use waybill_storage::outbox::OutboxRow;

/// Transactions that are remembered of one key: it changes more often only under a loop, and
/// then the first ones tell where that began.
const ORIGINS_OF_KEY_MAX: usize = 4;

/// Rows of the log that ask for one key, and where they come from.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    pub(super) seqs: Vec<i64>,
    /// When the first of their transactions began.
    pub(super) since: Option<DateTime<Utc>>,
    /// The headers of their transactions, as far as they are remembered.
    pub(super) origins: Vec<Arc<str>>,
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    pub(super) fn push(&mut self, row: &OutboxRow) {
        self.seqs.push(row.seq);
        self.begin_by(Some(row.created_at));
        if let Some(headers) = &row.headers {
            add_origin(&mut self.origins, headers, ORIGINS_OF_KEY_MAX);
        }
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.seqs.extend(other.seqs);
        self.begin_by(other.since);
        for headers in &other.origins {
            add_origin(&mut self.origins, headers, ORIGINS_OF_KEY_MAX);
        }
    }

    fn begin_by(&mut self, since: Option<DateTime<Utc>>) {
        self.since = [self.since, since].into_iter().flatten().min();
    }
}

/// Adds a transaction's headers, unless they are there or there are enough.
pub(super) fn add_origin(origins: &mut Vec<Arc<str>>, headers: &Arc<str>, most: usize) {
    if origins.len() < most && !origins.contains(headers) {
        origins.push(Arc::clone(headers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_remembered_once_and_not_without_end() {
        let mut origins = Vec::new();
        for headers in ["a", "b", "a", "c", "d"] {
            add_origin(&mut origins, &Arc::from(headers), 3);
        }
        let origins: Vec<&str> = origins.iter().map(|headers| &**headers).collect();
        assert_eq!(origins, ["a", "b", "c"]);
    }
}
