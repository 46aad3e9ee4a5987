//! `--security-opt` and `--sysctl`.

use std::path::PathBuf;

/// What a container's processes are kept from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) no_new_privileges: bool,
    /// File of a profile of system calls.
    pub(crate) seccomp: Option<PathBuf>,
}

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecurityError {
    /// Not known, or not to be had.
    #[error(
        "Unknown security option {0:?}: known are no-new-privileges, seccomp=FILE and \
         seccomp=unconfined"
    )]
    Unknown(String),
    /// Not of the form.
    #[error("Invalid sysctl {0:?}: give NAME=VALUE, such as net.core.somaxconn=1024")]
    Sysctl(String),
}

/// Parses what `--security-opt` says, in docker's forms: `name=value` and `name:value`.
pub(crate) fn parse(options: &[String]) -> Result<Security, SecurityError> {
    let mut security = Security::default();
    for option in options {
        let (name, value) = match option.split_once(['=', ':']) {
            Some((name, value)) => (name, Some(value)),
            None => (&**option, None),
        };
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => security.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => security.no_new_privileges = false,
            // Without a profile nothing is filtered: the kernel is the container's own.
            ("seccomp", Some("unconfined")) => security.seccomp = None,
            ("seccomp", Some(file)) if !file.is_empty() => security.seccomp = Some(file.into()),
            // There is nothing of the kind in a guest to be switched off.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            _ => return Err(SecurityError::Unknown(option.clone())),
        }
    }
    Ok(security)
}

/// Parses one kernel parameter and its value.
pub(crate) fn sysctl(text: &str) -> Result<(String, String), SecurityError> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| SecurityError::Sysctl(text.into()))?;
    Ok((name.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_dockers() {
        let parse = |options: &[&str]| {
            let owned: Vec<_> = options.iter().map(ToString::to_string).collect();
            super::parse(&owned)
        };
        let security = parse(&["no-new-privileges", "seccomp=/p.json", "label=disable"]).unwrap();
        assert!(security.no_new_privileges);
        assert_eq!(security.seccomp, Some("/p.json".into()));
        let security = parse(&["no-new-privileges:false", "seccomp=unconfined"]).unwrap();
        assert_eq!(security, Security::default());
        for bad in [
            "apparmor=mine",
            "seccomp",
            "seccomp=",
            "no-new-privileges=1",
        ] {
            let error = parse(&[bad]).unwrap_err();
            assert_eq!(error, SecurityError::Unknown(bad.into()));
        }
    }

    #[test]
    fn parameters_have_names_and_values() {
        let pair = ("kernel.msgmax".to_owned(), "a=b".to_owned());
        assert_eq!(sysctl("kernel.msgmax=a=b"), Ok(pair));
        assert!(sysctl("kernel.msgmax").is_err() && sysctl("=1").is_err());
    }
}
