//! Restart policies: whether a container whose command has ended is started again, and when.
//!
//! The words are docker's. There is no daemon: who restarts a container is the process that owns it.
//! When that died, or the host was started anew, it is for `hrun start --boot`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// How long the first pause is; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Who ran for so long is no container that fails at once: the pauses begin anew.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Whenever its command ends.
    Always,
    /// The same; but what a user has stopped is not started when the host is.
    UnlessStopped,
    /// When its command fails.
    OnFailure {
        /// At most so often, if there is a limit.
        max: Option<u32>,
    },
}

/// Text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid restart policy {0:?}: no, always, unless-stopped, on-failure and on-failure:NUMBER are \
     known"
)]
pub(crate) struct RestartPolicyError(String);

impl RestartPolicy {
    /// Whether a container that ended with this status, after having been started again so often,
    /// is started once more.
    pub(crate) fn restarts(self, code: u8, before: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { max } => code != 0 && max.is_none_or(|max| before < max),
        }
    }

    /// Whether a container that has ended, by a user's will or not, is started when the host is.
    pub(crate) fn starts_at_boot(self, stopped: bool) -> bool {
        match self {
            Self::No | Self::OnFailure { .. } => false,
            Self::Always => true,
            Self::UnlessStopped => !stopped,
        }
    }

    /// How often it is started again at most, if there is a limit.
    pub(crate) fn max(self) -> Option<u32> {
        match self {
            Self::OnFailure { max } => max,
            Self::No | Self::Always | Self::UnlessStopped => None,
        }
    }

    /// docker's word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
            Self::OnFailure { .. } => "on-failure",
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = RestartPolicyError;

    fn from_str(text: &str) -> Result<Self, RestartPolicyError> {
        let refused = || RestartPolicyError(text.into());
        Ok(match text.split_once(':') {
            None => match text {
                "no" => Self::No,
                "always" => Self::Always,
                "unless-stopped" => Self::UnlessStopped,
                "on-failure" => Self::OnFailure { max: None },
                _ => return Err(refused()),
            },
            Some(("on-failure", number)) => {
                let number: u32 = number.parse().map_err(|_| refused())?;
                // As docker has it, none is no limit.
                let max = Some(number).filter(|number| *number > 0);
                Self::OnFailure { max }
            }
            Some(_) => return Err(refused()),
        })
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self.max() {
            Some(max) => write!(f, ":{max}"),
            None => Ok(()),
        }
    }
}

/// The pauses between an end and the next start.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// The pause after a command that ran for so long.
    pub(crate) fn after(&mut self, run: Duration) -> Duration {
        if run >= GOOD_RUN {
            self.0 = FIRST_PAUSE;
        }
        let pause = self.0;
        self.0 = LONGEST_PAUSE.min(pause * 2);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> RestartPolicy {
        text.parse().unwrap()
    }

    #[test]
    fn policies_are_read_and_written_in_dockers_words() {
        for text in [
            "no",
            "always",
            "unless-stopped",
            "on-failure",
            "on-failure:3",
        ] {
            assert_eq!(policy(text).to_string(), text);
        }
        assert_eq!(policy("on-failure:0"), policy("on-failure"));
        for bad in ["", "never", "always:3", "on-failure:", "on-failure:-1"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_failure_counts_and_only_so_often() {
        assert!(!policy("no").restarts(1, 0));
        assert!(policy("always").restarts(0, 1000));
        assert!(policy("unless-stopped").restarts(0, 1000));
        let some = policy("on-failure:2");
        assert!(!some.restarts(0, 0));
        assert!(some.restarts(1, 0) && some.restarts(1, 1));
        assert!(!some.restarts(1, 2));
        assert!(policy("on-failure").restarts(1, 1000));
    }

    #[test]
    fn with_the_host_starts_what_nobody_stopped() {
        let starts = |text, stopped| policy(text).starts_at_boot(stopped);
        assert!(starts("always", true) && starts("always", false));
        assert!(!starts("unless-stopped", true) && starts("unless-stopped", false));
        assert!(!starts("on-failure", false) && !starts("no", false));
    }

    #[test]
    fn pauses_grow_to_a_minute_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::new();
        let short = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..12).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9..], [51200, 60000, 60000]);
        assert_eq!(backoff.after(GOOD_RUN), FIRST_PAUSE);
        assert_eq!(backoff.after(short), FIRST_PAUSE * 2);
    }
}
