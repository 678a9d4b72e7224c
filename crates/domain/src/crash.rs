//! Points at which tests have a process die, to see that nothing is lost there.
//!
//! They are in programs that are built together with tests and nowhere else: the feature
//! `failpoints` is switched on by a dev-dependency, and `cargo xtask tidy` refuses any other
//! way. Without it, [`CrashPoint::hit`] is empty.

use std::str::FromStr;

/// A moment between two steps of which only one has been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// Rows of the log have been read; nothing is delivered.
    Read,
    /// Texts have been embedded; nothing is sent.
    Embed,
    /// The sink has confirmed; nothing is settled.
    Send,
    /// All of a settle has been written; it is not committed.
    SettleBeforeCommit,
    /// A settle is committed; the engine does not know.
    SettleAfterCommit,
    /// Redis has been told to forget requests; their letters are still there.
    RedriveBeforeStatement,
    /// A step of a redrive is committed; the caller does not know, and more are to come.
    RedriveAfterStatement,
    /// A repair has taken claims back and made outbox rows; it is not committed.
    Repair,
    /// What was not indexed in time is taken back in Postgres; the vector store shows it.
    Compensation,
    /// A new collection has taken the old one's place; Postgres does not know.
    AliasMoved,
}

impl CrashPoint {
    /// Every point.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Embed,
        Self::Send,
        Self::SettleBeforeCommit,
        Self::SettleAfterCommit,
        Self::RedriveBeforeStatement,
        Self::RedriveAfterStatement,
        Self::Repair,
        Self::Compensation,
        Self::AliasMoved,
    ];

    /// Returns its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Embed => "embed",
            Self::Send => "send",
            Self::SettleBeforeCommit => "settle_before_commit",
            Self::SettleAfterCommit => "settle_after_commit",
            Self::RedriveBeforeStatement => "redrive_before_statement",
            Self::RedriveAfterStatement => "redrive_after_statement",
            Self::Repair => "repair",
            Self::Compensation => "compensation",
            Self::AliasMoved => "alias_moved",
        }
    }

    /// Has the process die if it was armed for this.
    pub fn hit(self) {
        #[cfg(feature = "failpoints")]
        armed::hit(self);
    }
}

/// When a process is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// Where.
    pub point: CrashPoint,
    /// At which hit, from 1 on.
    pub at_hit: u64,
}

impl Crash {
    /// Calls `die` there, which is to end the process. Does nothing in a program that ships. Of
    /// several calls, the first counts.
    pub fn arm(self, die: fn() -> !) {
        #[cfg(feature = "failpoints")]
        armed::arm(self, die);
        #[cfg(not(feature = "failpoints"))]
        let _never = die;
    }
}

impl FromStr for Crash {
    type Err = String;

    /// Reads `send`, or `send:3` for the third hit.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, at_hit) = text.split_once(':').unwrap_or((text, "1"));
        let point = CrashPoint::ALL.into_iter().find(|point| point.as_str() == name);
        let at_hit = at_hit.parse().ok().filter(|&hit| hit > 0);
        match (point, at_hit) {
            (Some(point), Some(at_hit)) => Ok(Self { point, at_hit }),
            _ => Err(format!(
                "{text:?} is no crash point: expected one such as \"send\", or \"send:3\" for the third hit"
            )),
        }
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    use super::{Crash, CrashPoint};

    static ARMED: OnceLock<(Crash, fn() -> !)> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);

    pub(super) fn arm(crash: Crash, die: fn() -> !) {
        let _first_counts = ARMED.set((crash, die));
    }

    pub(super) fn hit(point: CrashPoint) {
        let Some((crash, die)) = ARMED.get().filter(|(crash, _)| crash.point == point) else {
            return;
        };
        if HITS.fetch_add(1, Ordering::Relaxed) + 1 == crash.at_hit {
            die();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_names_a_point_and_a_hit() {
        for point in CrashPoint::ALL {
            assert_eq!(point.as_str().parse(), Ok(Crash { point, at_hit: 1 }));
        }
        assert_eq!("send:3".parse(), Ok(Crash { point: CrashPoint::Send, at_hit: 3 }));
        for bad in ["", "sent", "send:", "send:0", "send:-1", ":1"] {
            assert!(bad.parse::<Crash>().is_err(), "{bad:?}");
        }
    }
}
