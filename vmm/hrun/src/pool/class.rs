//! What a pool keeps VMs for: CPUs and memory, and an image if they are to know one.

use std::{fmt, fmt::Write as _};

use image::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::template::Class;

/// Digits of an image id that people are shown.
const SHORT: usize = 12;

/// VMs that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PoolClass {
    /// What they offer to their guests.
    #[serde(flatten)]
    pub(crate) vm: Class,
    /// The image that they have as their root file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<ImageId>,
}

impl PoolClass {
    /// VMs for any container.
    pub(crate) const fn any(vm: Class) -> Self {
        Self { vm, image: None }
    }
}

impl fmt::Display for PoolClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.image {
            None => self.vm.fmt(f),
            Some(image) => write!(f, "{}, image {}", self.vm, &image.to_string()[..SHORT]),
        }
    }
}

/// An image by the digest of its configuration: 32 bytes, as the pool's table of classes is of
/// bounded size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ImageId([u8; 32]);

impl ImageId {
    /// The id of an image in the store.
    pub(crate) fn of(digest: &Digest) -> Option<Self> {
        Self::parse(digest.digest())
    }

    fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 2 * bytes.len() || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * index..][..2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.0.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        f.write_str(&hex)
    }
}

impl Serialize for ImageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("an image id has 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: Class = Class {
        cpus: 2,
        memory: 512 << 20,
    };

    #[test]
    fn an_image_is_named_by_64_digits() {
        let id = "0123456789abcdef".repeat(4);
        let class = PoolClass {
            vm: VM,
            image: ImageId::parse(&id),
        };
        assert_eq!(class.image.unwrap().to_string(), id);
        assert_eq!(class.to_string(), "2 CPUs, 512 MiB, image 0123456789ab");
        let json = serde_json::to_string(&class).unwrap();
        assert_eq!(
            json,
            format!(r#"{{"cpus":2,"memory":536870912,"image":"{id}"}}"#)
        );
        assert_eq!(serde_json::from_str::<PoolClass>(&json).unwrap(), class);
        for bad in [
            "",
            "0123",
            &"x".repeat(64),
            &"é".repeat(32),
            &"+1".repeat(32),
        ] {
            assert!(
                serde_json::from_str::<ImageId>(&format!("{bad:?}")).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn without_an_image_nothing_is_said_of_one() {
        let class = PoolClass::any(VM);
        assert_eq!(class.to_string(), VM.to_string());
        let json = serde_json::to_string(&class).unwrap();
        assert_eq!(json, r#"{"cpus":2,"memory":536870912}"#);
        assert_eq!(serde_json::from_str::<PoolClass>(&json).unwrap(), class);
    }
}
