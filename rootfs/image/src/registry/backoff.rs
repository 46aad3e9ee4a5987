//! When to try again: after longer and longer waits, or when the server says.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(20);

/// How much is borne before it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// Failures in a row, without a byte of progress between them.
    failures_max: u32,
    /// Failures to connect: a network that comes back, not a wrong name.
    pub(super) connect_failures_max: u32,
    /// A server that wants to be left alone for longer is obeyed by giving up.
    obeyed_max: Duration,
}

impl Patience {
    /// Nobody else can be asked.
    pub(super) const ALONE: Self = Self {
        failures_max: 6,
        connect_failures_max: 3,
        obeyed_max: Duration::from_secs(120),
    };
    /// Somebody else can.
    pub(super) const AMONG_OTHERS: Self = Self {
        failures_max: 2,
        connect_failures_max: 1,
        obeyed_max: Duration::from_secs(2),
    };
}

/// Counts the failures of one request.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    TryAfter(Duration),
    GiveUp,
    /// The server wants to be left alone for this long.
    TooLong(Duration),
}

impl Backoff {
    /// Something came of the last attempt: the next failure is a first one.
    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure. `retry_after` is what the server said about it.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, patience: Patience) -> Verdict {
        self.failures += 1;
        if self.failures >= patience.failures_max {
            return Verdict::GiveUp;
        }
        if let Some(wait) = retry_after {
            return if wait > patience.obeyed_max {
                Verdict::TooLong(wait)
            } else {
                Verdict::TryAfter(wait)
            };
        }
        let wait = (FIRST * 2u32.pow(self.failures - 1)).min(LONGEST);
        // Up to half of it by chance: those who failed together shall not come back together.
        let chance = u32::from(RandomState::new().hash_one(0u8).to_le_bytes()[0]);
        Verdict::TryAfter(wait - wait * chance / 512)
    }
}

/// Reads `Retry-After`: seconds, or a date.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    // A date that has passed means now.
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_end() {
        let mut backoff = Backoff::default();
        let mut expected = FIRST;
        for _ in 1..Patience::ALONE.failures_max {
            let Verdict::TryAfter(wait) = backoff.failed(None, Patience::ALONE) else {
                panic!("given up too early");
            };
            assert!(wait <= expected && wait >= expected / 2, "{wait:?}");
            expected = (expected * 2).min(LONGEST);
        }
        assert_eq!(backoff.failed(None, Patience::ALONE), Verdict::GiveUp);
    }

    #[test]
    fn progress_begins_a_new_count() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_ne!(backoff.failed(None, Patience::ALONE), Verdict::GiveUp);
            backoff.progressed();
        }
    }

    #[test]
    fn the_server_s_word_is_obeyed_within_reason() {
        let mut backoff = Backoff::default();
        let wait = Duration::from_secs(7);
        let mut said = |wait| backoff.failed(Some(wait), Patience::ALONE);
        assert_eq!(said(wait), Verdict::TryAfter(wait));
        let hours = Duration::from_secs(7200);
        assert_eq!(said(hours), Verdict::TooLong(hours));
        let among_others = Backoff::default().failed(Some(wait), Patience::AMONG_OTHERS);
        assert_eq!(among_others, Verdict::TooLong(wait));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text| parse_retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(read(" 30 "), Some(30));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-1"), None);
    }
}
