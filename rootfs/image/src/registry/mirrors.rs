//! Mirrors: other hosts that have what a registry has, and are asked before it.

use std::fmt;
use std::str::FromStr;

use super::endpoint::{Endpoint, Scheme};
use crate::Reference;

/// The mirrors of registries, each registry's in the order in which they are asked.
///
/// As text: `REGISTRY=MIRROR` with commas or white space between. A mirror is
/// `[http://|https://]HOST[:PORT][/PREFIX]`; the prefix goes before the repository's name. Without
/// `http://` a mirror speaks TLS, as registries do, unless it is on this machine. A registry's name
/// may come several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors(Vec<(String, Mirror)>);

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    scheme: Option<Scheme>,
    host: String,
    prefix: Option<String>,
}

/// Why a text names no mirrors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entry:?} names no mirror ({reason}): entries are as docker.io=https://mirror.example or \
     quay.io=localhost:5000/prefix"
)]
pub struct MirrorsError {
    entry: String,
    reason: &'static str,
}

impl Mirrors {
    /// The variable in hrun's environment that names them.
    pub const VARIABLE: &str = "HRUN_MIRRORS";

    pub(crate) fn of<'a>(&'a self, registry: &'a str) -> impl Iterator<Item = &'a Mirror> {
        self.0
            .iter()
            .filter(move |(name, _)| name == registry)
            .map(|(_, mirror)| mirror)
    }
}

impl FromStr for Mirrors {
    type Err = MirrorsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(|c: char| c == ',' || c.is_whitespace())
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                parse(entry).map_err(|reason| MirrorsError {
                    entry: without_secret(entry),
                    reason,
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// An entry as a message may show it: before an @ there would be a password.
fn without_secret(entry: &str) -> String {
    match entry.rsplit_once('@') {
        Some((_, rest)) => format!("...@{rest}"),
        None => entry.to_owned(),
    }
}

fn parse(entry: &str) -> Result<(String, Mirror), &'static str> {
    let (registry, mirror) = entry.split_once('=').ok_or("there is no =")?;
    if registry.contains('/') {
        return Err("before the = stands a registry's host and nothing else");
    }
    let registry = Reference::registry_of(registry).map_err(|_| "the registry is no host")?;
    let (scheme, rest) = match mirror.split_once("://") {
        Some(("http", rest)) => (Some(Scheme::Http), rest),
        Some(("https", rest)) => (Some(Scheme::Https), rest),
        Some(_) => return Err("there is only http:// and https://"),
        None => (None, mirror),
    };
    let (host, prefix) = match rest.split_once('/') {
        Some((host, prefix)) => (host, prefix.trim_end_matches('/')),
        None => (rest, ""),
    };
    if host.contains('@') {
        return Err("credentials are kept by `hrun login`");
    }
    let host = Reference::registry_of(host).map_err(|_| "the mirror is no host")?;
    if !prefix.is_empty() {
        Reference::check_repository(prefix).map_err(|_| "the prefix is no name of a repository")?;
    }
    Ok((
        registry,
        Mirror {
            scheme,
            host,
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
        },
    ))
}

impl Mirror {
    /// How it is asked.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::mirror(&self.host, self.scheme)
    }

    /// What it calls the image that its registry calls `reference`.
    pub(crate) fn name(&self, reference: &Reference) -> Reference {
        reference.moved(&self.host, self.prefix.as_deref())
    }
}

/// As it was given.
impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scheme) = self.scheme {
            write!(f, "{}://", scheme.name())?;
        }
        f.write_str(&self.host)?;
        match &self.prefix {
            Some(prefix) => write!(f, "/{prefix}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, registry: &str) -> Vec<String> {
        let mirrors: Mirrors = text.parse().unwrap();
        mirrors.of(registry).map(Mirror::to_string).collect()
    }

    #[test]
    fn each_registry_has_its_mirrors_in_order() {
        let text = "docker.io=http://localhost:5001, quay.io=https://mirror.example\n\
                    docker.io=mirror.example/hub/,index.docker.io=[::1]:5000";
        assert_eq!(
            of(text, "docker.io"),
            ["http://localhost:5001", "mirror.example/hub", "[::1]:5000"]
        );
        assert_eq!(of(text, "quay.io"), ["https://mirror.example"]);
        assert!(of(text, "ghcr.io").is_empty());
        assert!(of(" , ", "docker.io").is_empty());
    }

    #[test]
    fn what_names_no_mirror_is_refused_and_shown() {
        for (entry, words) in [
            ("docker.io", "no ="),
            ("=mirror.example", "registry is no host"),
            ("quay.io/team=mirror.example", "nothing else"),
            ("docker.io=", "mirror is no host"),
            (
                "docker.io=ftp://mirror.example",
                "only http:// and https://",
            ),
            ("docker.io=https://", "mirror is no host"),
            ("docker.io=https://me:secret@mirror.example", "hrun login"),
            ("docker.io=mirror.example/../v2", "prefix"),
            ("docker.io=mirror.example/a?b", "prefix"),
            ("docker.io=mirror.example:port", "mirror is no host"),
        ] {
            let text = format!("ghcr.io=mirror.example,{entry}");
            let message = text.parse::<Mirrors>().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
            let rest = entry.rsplit('@').next().unwrap();
            assert!(message.contains(rest), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_prefix_goes_before_the_repository() {
        let mirrors: Mirrors = "docker.io=mirror/hub/cache".parse().unwrap();
        let mirror = mirrors.of("docker.io").next().unwrap();
        let name = mirror.name(&"busybox:1".parse().unwrap());
        assert_eq!(name.registry(), "mirror");
        assert_eq!(name.repository(), "hub/cache/library/busybox");
        assert_eq!(name.tag(), Some("1"));
    }
}
