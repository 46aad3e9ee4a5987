//! `--cap-add`, `--cap-drop`: sets of capabilities by docker's rules.

use agent_protocol::Capabilities;

/// Their names, by number (capability.h of Linux), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability there is.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// All names, as the kernel and OCI documents have them.
pub(crate) fn names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// A capability that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown capability {0:?}: known are ALL, {known}", known = NAMES.join(", "))]
pub(crate) struct UnknownCapability(String);

/// The bits of a name: with `CAP_` or without, in capital letters or not; `ALL` for all.
pub(crate) fn parse(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(ALL);
    }
    let number = NAMES.iter().position(|known| *known == short);
    number
        .map(|number| 1 << number)
        .ok_or_else(|| UnknownCapability(name.into()))
}

/// Docker's set with these added and dropped. What is named beats `ALL` on the other side; of what
/// is named on both sides, dropping wins.
pub(crate) fn select(add: &[String], drop: &[String]) -> Result<u64, UnknownCapability> {
    let is_all = |set: &u64| *set == ALL;
    let parse = |names: &[String]| {
        let sets = names.iter().map(|name| parse(name));
        sets.collect::<Result<Vec<u64>, _>>()
    };
    let (add, drop) = (parse(add)?, parse(drop)?);
    let named = |sets: &[u64]| {
        let named = sets.iter().filter(|set| !is_all(set));
        named.fold(0, |all, set| all | set)
    };
    let base = match (add.iter().any(is_all), drop.iter().any(is_all)) {
        (true, _) => ALL,
        (false, true) => 0,
        (false, false) => Capabilities::DEFAULT.bounding,
    };
    Ok((base | named(&add)) & !named(&drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(add: &[&str], drop: &[&str]) -> u64 {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        select(&owned(add), &owned(drop)).unwrap()
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        assert_eq!(parse("CAP_CHOWN").unwrap(), 1);
        assert_eq!(parse("net_admin").unwrap(), 1 << 12);
        assert_eq!(parse("CHECKPOINT_RESTORE").unwrap(), 1 << 40);
        assert_eq!(parse("all").unwrap(), ALL);
        let error = parse("FLY").unwrap_err().to_string();
        assert!(
            error.contains("FLY") && error.contains("NET_ADMIN"),
            "{error}"
        );
    }

    #[test]
    fn sets_are_dockers_with_what_is_added_and_dropped() {
        let default = Capabilities::DEFAULT.bounding;
        assert_eq!(selected(&[], &[]), default);
        assert_eq!(
            selected(&["SYS_TIME"], &["KILL"]),
            (default | 1 << 25) & !(1 << 5)
        );
        assert_eq!(selected(&["KILL"], &["ALL"]), 1 << 5);
        assert_eq!(selected(&["ALL"], &["KILL"]), ALL & !(1 << 5));
        assert_eq!(selected(&["KILL"], &["KILL"]), default & !(1 << 5));
    }
}
