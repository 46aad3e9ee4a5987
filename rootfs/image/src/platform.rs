//! What kind of machine an image is for, and the choice among those that an index lists.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageIndex};

/// The only operating system whose programs run in our VMs.
const OS: &str = "linux";

/// Operating system, architecture and, if it matters, the variant of it: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    architecture: String,
    variant: Option<String>,
}

/// Why a string names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a platform such as linux/amd64 or linux/arm64/v8: {reason}")]
pub struct PlatformError {
    text: String,
    reason: &'static str,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        Self {
            architecture: canonical(std::env::consts::ARCH).to_owned(),
            variant: None,
        }
    }

    /// Whether this machine runs programs for this platform.
    pub fn runs_here(&self) -> bool {
        self.architecture == Self::host().architecture
    }

    /// Whether that is what an image for `os`, `architecture` and `variant` is for, no better and
    /// no worse. An image that does not say its variant is for the first one.
    pub(crate) fn is_exactly(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        self.is(os, architecture)
            && further(architecture, self.variant.as_deref()) == further(architecture, variant)
    }

    /// Whether an image for `os` and `architecture` is one for this platform.
    pub(crate) fn is(&self, os: &str, architecture: &str) -> bool {
        os == OS && architecture == self.architecture
    }

    /// Whether `descriptor` may be an image for this platform, by what its index says. One that
    /// the index says nothing about is judged later, by its configuration. Others are added to
    /// `others`.
    pub(crate) fn admits(&self, descriptor: &Descriptor, others: &mut Vec<String>) -> bool {
        let Some(platform) = descriptor.platform() else {
            return true;
        };
        if self.rank(descriptor).is_some() {
            return true;
        }
        // Attestations are listed as images for an unknown platform.
        if platform.os().to_string() != "unknown" {
            others.extend(name_of(descriptor));
        }
        false
    }

    /// What an index lists, the best for this platform first.
    pub(crate) fn order<'a>(&self, index: &'a ImageIndex) -> Vec<&'a Descriptor> {
        let mut manifests: Vec<&Descriptor> = index.manifests().iter().collect();
        manifests.sort_by_key(|manifest| self.rank(manifest).unwrap_or(u8::MAX));
        manifests
    }

    /// How well a descriptor fits, the best being 0. Where no variant is asked for, one such as
    /// amd64/v3 comes last: it may need what the machine does not have.
    fn rank(&self, descriptor: &Descriptor) -> Option<u8> {
        let Some(platform) = descriptor.platform() else {
            return Some(0);
        };
        let architecture = platform.architecture().to_string();
        if !self.is(&platform.os().to_string(), &architecture) {
            return None;
        }
        match (&self.variant, platform.variant()) {
            (wanted, found) if wanted == found => Some(0),
            (None, Some(_)) | (Some(_), None) => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{OS}/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |reason| PlatformError {
            text: text.to_owned(),
            reason,
        };
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(word) {
            return Err(refused("a part is empty or has strange characters"));
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [architecture] => (OS, *architecture, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => return Err(refused("it has more than three parts")),
        };
        if os != OS {
            return Err(refused("only programs for linux run in a VM of hrun"));
        }
        if architecture == OS {
            return Err(refused("the architecture is missing"));
        }
        Ok(Self {
            architecture: canonical(architecture).to_owned(),
            variant,
        })
    }
}

/// The platform that an index states for an image.
pub(crate) fn name_of(descriptor: &Descriptor) -> Option<String> {
    let platform = descriptor.platform().as_ref()?;
    let mut name = format!("{}/{}", platform.os(), platform.architecture());
    if let Some(variant) = platform.variant() {
        name.push('/');
        name.push_str(variant);
    }
    Some(name)
}

/// A variant, unless it is the first one of its architecture.
fn further<'a>(architecture: &str, variant: Option<&'a str>) -> Option<&'a str> {
    variant.filter(|variant| !matches!((architecture, *variant), ("amd64", "v1") | ("arm64", "v8")))
}

/// The name that images have for an architecture.
fn canonical(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i386" | "i686" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> ImageIndex {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(n, text)| {
                let mut parts = text.split('/');
                let mut platform = serde_json::json!({
                    "os": parts.next().unwrap(),
                    "architecture": parts.next().unwrap(),
                });
                if let Some(variant) = parts.next() {
                    platform["variant"] = variant.into();
                }
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": format!("sha256:{n:064}"),
                    "size": n,
                    "platform": platform,
                })
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        serde_json::from_value(index).unwrap()
    }

    fn chosen(wanted: &str, listed: &[&str]) -> Option<u64> {
        let wanted: Platform = wanted.parse().unwrap();
        let index = index(listed);
        wanted
            .order(&index)
            .into_iter()
            .find(|descriptor| wanted.admits(descriptor, &mut Vec::new()))
            .map(Descriptor::size)
    }

    #[test]
    fn the_plainest_variant_is_chosen_unless_one_is_asked_for() {
        let listed = [
            "linux/amd64/v3",
            "windows/amd64",
            "linux/amd64",
            "linux/arm64/v8",
        ];
        assert_eq!(chosen("linux/amd64", &listed), Some(2));
        assert_eq!(chosen("linux/amd64/v3", &listed), Some(0));
        assert_eq!(chosen("aarch64", &listed), Some(3));
        assert_eq!(chosen("linux/arm/v7", &["linux/arm/v6"]), None);
        assert_eq!(chosen("linux/arm", &["linux/arm/v6"]), Some(0));
    }

    #[test]
    fn others_are_named_except_attestations() {
        let mut others = Vec::new();
        let host: Platform = "linux/amd64".parse().unwrap();
        for descriptor in index(&["linux/arm/v7", "unknown/unknown"]).manifests() {
            assert!(!host.admits(descriptor, &mut others));
        }
        assert_eq!(others, ["linux/arm/v7"]);
    }

    #[test]
    fn an_image_of_another_variant_is_another() {
        let is = |wanted: &str, architecture, variant| {
            let wanted: Platform = wanted.parse().unwrap();
            wanted.is_exactly("linux", architecture, variant)
        };
        assert!(is("linux/amd64", "amd64", None));
        assert!(is("linux/amd64", "amd64", Some("v1")));
        assert!(is("linux/arm64/v8", "arm64", None));
        assert!(is("linux/arm/v7", "arm", Some("v7")));
        assert!(!is("linux/amd64", "arm64", None));
        assert!(!is("linux/amd64", "amd64", Some("v3")));
        assert!(!is("linux/amd64/v3", "amd64", None));
        assert!(!is("linux/arm/v7", "arm", Some("v6")));
        let windows = Platform::host();
        assert!(!windows.is_exactly("windows", &windows.architecture, None));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in [
            "",
            "/",
            "linux",
            "linux/",
            "windows/amd64",
            "linux/a/b/c",
            "linux/a b",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
        let text = "linux/x86_64".parse::<Platform>().unwrap().to_string();
        assert_eq!(text, "linux/amd64");
    }
}
