//! Image names: the grammar of the distribution project's `reference` package, and docker's short
//! forms.
//!
//! oci-spec has a parser too; it compiles a regular expression of 32 ms on first use (measured,
//! release build), which every `hrun run NAME` would pay. This one is a scan.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Registry and repository together, by the reference grammar.
const NAME_TOTAL_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;

/// The complete name of an image: registry, repository, and a tag, a digest or both.
///
/// Parsing completes short names as docker does: `busybox` is `docker.io/library/busybox:latest`.
/// `Display` gives the short form back, [`Reference::full`] the complete one. Serialised as the
/// complete form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a string is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not an image name: {reason}")]
pub struct ReferenceError {
    name: String,
    reason: &'static str,
}

/// As much of what is no name as a message can hold.
fn shown(text: &str) -> String {
    const MAX: usize = 200;
    text.chars().take(MAX).collect()
}

impl Reference {
    /// Host of the registry, with its port if it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository within its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest digest that pins the name, if any.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The complete form, `docker.io/library/busybox:latest`.
    pub fn full(&self) -> String {
        self.render(&format!("{}/{}", self.registry, self.repository))
    }

    /// Repository in its short form, without tag and digest: `busybox`.
    pub fn short_repository(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` would come back as `a/b`, another name.
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// The registry that `text` names: a host, perhaps with a port, as users type it for a login,
    /// or an address that begins with it.
    pub fn registry_of(text: &str) -> Result<String, ReferenceError> {
        let host = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        let host = host.split('/').next().unwrap_or_default();
        if host == LEGACY_DEFAULT_REGISTRY {
            return Ok(DEFAULT_REGISTRY.to_owned());
        }
        check_registry(host).map_err(|reason| ReferenceError {
            name: shown(text),
            reason,
        })?;
        Ok(host.to_owned())
    }

    /// The name as the store keeps it: beside a digest a tag says nothing.
    pub(crate) fn pinned(&self) -> Self {
        let mut name = self.clone();
        if name.digest.is_some() {
            name.tag = None;
        }
        name
    }

    /// The same image where another registry has it, below `prefix` if that has one.
    pub(crate) fn moved(&self, registry: &str, prefix: Option<&str>) -> Self {
        let mut name = self.clone();
        name.registry = registry.to_owned();
        if let Some(prefix) = prefix {
            name.repository = format!("{prefix}/{}", self.repository);
        }
        name
    }

    /// Whether `path` can be a repository's name, or its beginning.
    pub(crate) fn check_repository(path: &str) -> Result<(), ReferenceError> {
        check_repository(path).map_err(|reason| ReferenceError {
            name: shown(path),
            reason,
        })
    }

    /// The same repository with `tag`, and no digest.
    pub(crate) fn with_tag(name: &str, tag: &str) -> Result<Self, ReferenceError> {
        format!("{name}:{tag}").parse()
    }

    fn render(&self, name: &str) -> String {
        let mut text = name.to_owned();
        for (separator, part) in [(':', &self.tag), ('@', &self.digest)] {
            if let Some(part) = part {
                text.push(separator);
                text.push_str(part);
            }
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.render(&self.short_repository()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ReferenceError {
            name: shown(text),
            reason,
        })
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full())
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        Digest::from_str(digest).map_err(|_| "the part after @ is not a digest")?;
    }
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_DEFAULT_REGISTRY {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    check_registry(registry)?;
    check_repository(path)?;
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        // docker keeps such names for image ids.
        if path.len() == 64 && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("64 hexadecimal digits are an image id");
        }
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > NAME_TOTAL_LENGTH_MAX {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// Docker's rule that tells `host/name` from `user/name`.
fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err("the registry's port is not a number");
    }
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err("the registry is not an IPv6 address"),
        };
    }
    let label_is_good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label_is_good) {
        Ok(())
    } else {
        Err("the registry is not a host name")
    }
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the repository is missing");
    }
    for component in path.split('/') {
        check_path_component(component)?;
    }
    Ok(())
}

/// `alpha-numeric (separator alpha-numeric)*`, a separator being `.`, `_`, `__` or any number of
/// `-`.
fn check_path_component(component: &str) -> Result<(), &'static str> {
    const INVALID: &str = "a repository has lower-case letters, digits, and single separators";
    let mut separator = String::new();
    let mut seen_alphanumeric = false;
    for c in component.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let joins = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.chars().all(|c| c == '-');
                if !joins || (!seen_alphanumeric && !separator.is_empty()) {
                    return Err(INVALID);
                }
                separator.clear();
                seen_alphanumeric = true;
            }
            '.' | '_' | '-' => separator.push(c),
            'A'..='Z' => return Err("a repository must be lower-case"),
            _ => return Err(INVALID),
        }
    }
    if seen_alphanumeric && separator.is_empty() {
        Ok(())
    } else {
        Err(INVALID)
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let Some(first) = tag.bytes().next() else {
        return Err("the tag is empty");
    };
    if tag.len() > TAG_LENGTH_MAX {
        return Err("the tag is longer than 128 characters");
    }
    if !word(first) || !tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-')) {
        return Err("the tag has a character that tags cannot have");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().full()
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (short, complete) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("quay.io/a/b/c", "quay.io/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("HOST/app", "HOST/app:latest"),
            ("a--b__c.d_e", "docker.io/library/a--b__c.d_e:latest"),
        ] {
            assert_eq!(full(short), complete);
        }
    }

    #[test]
    fn a_digest_replaces_the_default_tag() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(
            full(&format!("busybox@{digest}")),
            format!("docker.io/library/busybox@{digest}")
        );
        let both: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.digest(), Some(digest.as_str()));
    }

    #[test]
    fn display_is_the_short_form_and_parses_back() {
        for (text, short) in [
            ("docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/user/app:1", "user/app:1"),
            ("docker.io/library/a/b:1", "library/a/b:1"),
            ("quay.io/x/y:z", "quay.io/x/y:z"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), short);
            assert_eq!(short.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn the_registry_of_a_login_is_understood() {
        for (text, registry) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://r.example/v2/", "r.example"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(Reference::registry_of(text).unwrap(), registry);
        }
        for text in ["", "a b", "https://", "user@host", "host:port"] {
            assert!(Reference::registry_of(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn beside_a_digest_the_tag_is_left_out() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let name: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!(name.pinned().to_string(), format!("busybox@{digest}"));
        let name: Reference = "busybox:1".parse().unwrap();
        assert_eq!(name.pinned(), name);
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        let long = "a".repeat(250);
        let id = "0a".repeat(32);
        for text in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "Busybox",
            "a:",
            "a:-b",
            "a:b c",
            "a@b",
            "a@",
            "a..b",
            "a_-b",
            "-a",
            "a-",
            "a___b",
            "host:port/a",
            "-h.x/a",
            "a/b:c/d",
            "../a",
            "a\0b",
            "é",
            "[::g]/a",
            &long,
            &id,
            "a@sha256:abc",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
