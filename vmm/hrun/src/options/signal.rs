//! Signals as people name them: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.

/// Names and numbers of Linux on x86-64 (signal(7)).
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", KILL as i32),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
];

pub(crate) const KILL: u8 = 9;
pub(crate) const TERM: i32 = 15;

/// The first real-time signal that the C library leaves to programs, and the last.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A word that is no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {0}")]
pub(crate) struct SignalError(String);

/// The number of a signal.
pub(crate) fn parse(text: &str) -> Result<i32, SignalError> {
    let refused = || SignalError(text.into());
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX)
            .contains(&number)
            .then_some(number)
            .ok_or_else(refused);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| {
        let distance: i32 = rest.get(1..)?.parse().ok()?;
        let number = base.checked_add(sign.checked_mul(distance)?)?;
        (distance >= 0 && (RTMIN..=RTMAX).contains(&number)).then_some(number)
    };
    let found = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number);
    found
        .or_else(|| (name == "RTMAX").then_some(RTMAX))
        .or_else(|| {
            let rest = name.strip_prefix("RTMIN")?;
            rest.starts_with('+').then(|| real_time(rest, RTMIN, 1))?
        })
        .or_else(|| {
            let rest = name.strip_prefix("RTMAX")?;
            rest.starts_with('-').then(|| real_time(rest, RTMAX, -1))?
        })
        .ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_many_names() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(TERM), "{text}");
        }
        assert_eq!(parse("RTMIN"), Ok(34));
        assert_eq!(parse("SIGRTMIN+3"), Ok(37));
        assert_eq!(parse("RTMAX-1"), Ok(63));
        assert_eq!(parse("rtmax"), Ok(64));
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "", "0", "-1", "65", "SIG", "FOO", "RTMIN+", "RTMIN+31", "RTMIN-1", "RTMAX+1",
            "RTMAX--1", "RTMIN+é",
        ] {
            assert_eq!(parse(text), Err(SignalError(text.into())));
        }
    }
}
