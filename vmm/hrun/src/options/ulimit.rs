//! `--ulimit NAME=SOFT[:HARD]`.

use agent_protocol::Rlimit;

/// Names as in `ulimit` of docker and `RLIMIT_*` of Linux on x86-64 (asm-generic/resource.h).
const RESOURCES: [(&str, u32); 16] = [
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];

/// A limit that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UlimitError {
    /// Not of the form.
    #[error("Invalid ulimit {0:?}: give NAME=SOFT[:HARD], such as nofile=1024:4096")]
    Form(String),
    /// The name is none.
    #[error("Unknown ulimit {0:?}: known are {known}", known = known())]
    Name(String),
    /// Linux refuses it.
    #[error("Invalid ulimit {0:?}: the soft limit is beyond the hard one")]
    Order(String),
}

fn known() -> String {
    RESOURCES.map(|(name, _)| name).join(", ")
}

fn number(name: &str) -> Option<u32> {
    let known = RESOURCES.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number)
}

/// The number of a limit by its name in Linux and the OCI specification, such as `RLIMIT_NOFILE`.
pub(crate) fn resource(name: &str) -> Option<u32> {
    number(&name.strip_prefix("RLIMIT_")?.to_ascii_lowercase())
}

/// Parses one limit; `-1` and `unlimited` are no limit.
pub(crate) fn parse(text: &str) -> Result<Rlimit, UlimitError> {
    let form = || UlimitError::Form(text.into());
    let (name, values) = text.split_once('=').ok_or_else(form)?;
    let resource = number(name).ok_or_else(|| UlimitError::Name(name.into()))?;
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse::<u64>().map_err(|_| form()),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (value(soft)?, value(hard)?),
        None => (value(values)?, value(values)?),
    };
    if soft > hard {
        return Err(UlimitError::Order(text.into()));
    }
    Ok(Rlimit {
        resource,
        soft,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_both_limits() {
        let limit = parse("nofile=1024").unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (7, 1024, 1024));
    }

    #[test]
    fn minus_one_is_no_limit() {
        let limit = parse("core=0:-1").unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (4, 0, u64::MAX));
    }

    #[test]
    fn nonsense_is_refused_by_its_kind() {
        assert!(matches!(parse("nofile"), Err(UlimitError::Form(_))));
        assert!(matches!(parse("nofile=x"), Err(UlimitError::Form(_))));
        assert!(matches!(parse("nofiles=1"), Err(UlimitError::Name(_))));
        assert!(matches!(parse("nofile=2:1"), Err(UlimitError::Order(_))));
    }
}
