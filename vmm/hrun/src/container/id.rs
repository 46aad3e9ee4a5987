//! Identifiers of containers: 64 hexadecimal digits, twelve of which are shown.

use std::fmt;

use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use serde::{Deserialize, Serialize};

/// Digits that are shown, and enough to name a container.
const SHORT: usize = 12;
const LENGTH: usize = 64;

/// A container's identifier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Id(String);

/// Text that is no identifier.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no container identifier: it must be {LENGTH} hexadecimal digits")]
pub(crate) struct IdError(String);

impl Id {
    /// A new one, from the kernel's random number generator.
    pub(crate) fn random() -> Result<Self, Errno> {
        let mut bytes = [0; LENGTH / 2];
        let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
        // Up to 256 bytes are never cut short (getrandom(2)).
        assert_eq!(filled, bytes.len(), "getrandom fills small buffers");
        Ok(Self(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    /// All of it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The part that is shown.
    pub(crate) fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl Id {
    /// The part that serves as the container's machine-id(5): 128 bits.
    pub(crate) fn machine_id(&self) -> &str {
        &self.0[..LENGTH / 2]
    }
}

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if text.len() == LENGTH && text.bytes().all(digits) {
            Ok(Self(text))
        } else {
            Err(IdError(text))
        }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_identifiers_are_well_formed_and_differ() {
        let (a, b) = (Id::random().unwrap(), Id::random().unwrap());
        assert_ne!(a, b);
        assert!(Id::try_from(a.to_string()).is_ok());
        assert!(a.as_str().starts_with(a.short()));
        assert_eq!(a.short().len(), 12);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"0".repeat(65)] {
            assert!(Id::try_from(text.to_owned()).is_err(), "{text}");
        }
        // A multi-byte character at the cut of the short form must not get that far.
        assert!(Id::try_from("é".repeat(32)).is_err());
    }
}
