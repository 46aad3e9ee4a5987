//! What time it is in a guest: the host's wall clock and the guest's monotonic clock, read at the same
//! moment. Given this pair, a guest can set its wall clock whenever it comes to it.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The host's wall clock, in nanoseconds since the Unix epoch.
    pub(crate) realtime_ns: u64,
    /// The guest's monotonic clock, in nanoseconds since its boot.
    pub(crate) monotonic_ns: u64,
}

impl Moment {
    /// The guest's clock shows this now.
    pub(crate) fn now(monotonic_ns: u64) -> Self {
        Self {
            realtime_ns: realtime_ns(),
            monotonic_ns,
        }
    }

    /// What the guest's clock shows now.
    pub(crate) fn guest_now_ns(self) -> u64 {
        let since = realtime_ns().saturating_sub(self.realtime_ns);
        self.monotonic_ns.saturating_add(since)
    }
}

/// The host's wall clock, in nanoseconds since the Unix epoch.
pub(crate) fn realtime_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_on_together() {
        let moment = Moment::now(5);
        let earlier = Moment {
            realtime_ns: moment.realtime_ns - 1_000_000,
            ..moment
        };
        assert!(moment.guest_now_ns() >= 5);
        assert!(earlier.guest_now_ns() >= 1_000_005);
        // A host whose clock was set back does not take the guest's along.
        let ahead = Moment {
            realtime_ns: u64::MAX,
            ..moment
        };
        assert_eq!(ahead.guest_now_ns(), 5);
    }
}
