//! What sets a VM apart from the other clones of its template, verified by what its agent says.
//!
//! The agent starts nothing before it has carried out what makes the VM different; this is the
//! host's own look at it. Which host name and machine-id a container has is not up to the guest:
//! the VMM and the agent's request set them.

use std::time::Duration;

use crate::clock;

/// How far a guest's wall clock may be off.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);

/// A VM that could be taken for another one, or lives in another time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NotPersonal {
    /// Its kernel goes by another address.
    #[error("The VM has the context identifier {found} instead of {wanted}: it was ended")]
    Cid { wanted: u32, found: u32 },
    /// Its clock was not set, or wrongly.
    #[error("The clock of the VM is off by {0:?}: it was ended")]
    Clock(Duration),
}

/// What a VM was told to be.
#[derive(Debug)]
pub(crate) struct Identity {
    cid: u32,
    told_ns: u64,
}

impl Identity {
    /// A VM that is told right now to have this context identifier, and what time it is.
    pub(crate) fn new(cid: u32) -> Self {
        Self {
            cid,
            told_ns: clock::realtime_ns(),
        }
    }

    /// Compares that with what it says of itself: its context identifier, and its wall clock in
    /// nanoseconds since the Unix epoch at some moment since it was told.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub(crate) fn verify(&self, cid: u32, realtime_ns: u64) -> Result<(), NotPersonal> {
        self.verify_at(clock::realtime_ns(), cid, realtime_ns)
    }

    fn verify_at(&self, now_ns: u64, cid: u32, realtime_ns: u64) -> Result<(), NotPersonal> {
        if cid != self.cid {
            return Err(NotPersonal::Cid {
                wanted: self.cid,
                found: cid,
            });
        }
        let behind = self.told_ns.saturating_sub(realtime_ns);
        let off = Duration::from_nanos(behind.max(realtime_ns.saturating_sub(now_ns)));
        if off > CLOCK_TOLERANCE {
            return Err(NotPersonal::Clock(off));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn verify(cid: u32, realtime_ns: u64) -> Result<(), NotPersonal> {
        let identity = Identity {
            cid: 7,
            told_ns: 100 * SECOND,
        };
        identity.verify_at(102 * SECOND, cid, realtime_ns)
    }

    #[test]
    fn a_vm_that_is_what_it_was_told_to_be_passes() {
        for tenths in 999..=1021 {
            assert_eq!(verify(7, tenths * SECOND / 10), Ok(()));
        }
    }

    #[test]
    fn another_address_or_time_is_found_out() {
        let cid = NotPersonal::Cid {
            wanted: 7,
            found: 3,
        };
        assert_eq!(verify(3, 100 * SECOND), Err(cid));
        let second = NotPersonal::Clock(Duration::from_secs(1));
        for seconds in [99, 103] {
            assert_eq!(
                verify(7, seconds * SECOND),
                Err(NotPersonal::Clock(Duration::from_secs(1)))
            );
        }
        assert_eq!(
            second.to_string(),
            "The clock of the VM is off by 1s: it was ended"
        );
    }
}
