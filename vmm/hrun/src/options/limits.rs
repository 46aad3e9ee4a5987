//! What the environment says about how much an image may ask for.

use std::env::{self, VarError};

use image::Limits;

use super::size::{self, SizeError};

/// A limit that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitError {
    /// Not a size.
    #[error("Failed to read the variable {name}")]
    Size {
        name: &'static str,
        source: SizeError,
    },
    /// Not a whole number.
    #[error("The variable {name} is {value:?}, but must be a whole number of at least 1")]
    Count { name: &'static str, value: String },
}

/// The default limits, and what `HRUN_LIMIT_...` makes of them.
pub(crate) fn from_env() -> Result<Limits, LimitError> {
    from(|name| match env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotPresent) => None,
        // Anything but a number, for the error to show.
        Err(VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
    })
}

fn from(get: impl Fn(&'static str) -> Option<String>) -> Result<Limits, LimitError> {
    let size = |name, default| match get(name) {
        None => Ok(default),
        Some(text) => size::parse(&text).map_err(|source| LimitError::Size { name, source }),
    };
    let count = |name, default| match get(name) {
        None => Ok(default),
        Some(value) => match value.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(LimitError::Count { name, value }),
        },
    };
    let mut limits = Limits::default();
    limits.manifest_bytes = size(Limits::MANIFEST_SIZE, limits.manifest_bytes)?;
    limits.document_bytes = limits.document_bytes.max(limits.manifest_bytes);
    limits.layer_bytes = size(Limits::LAYER_SIZE, limits.layer_bytes)?;
    limits.entries = count(Limits::ENTRIES, limits.entries)?;
    limits.ratio = count(Limits::RATIO, limits.ratio)?;
    let layers = count(Limits::LAYERS, limits.layers as u64)?;
    limits.layers = usize::try_from(layers).unwrap_or(usize::MAX);
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &'static str, value: &str) -> Result<Limits, LimitError> {
        from(|asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn each_variable_sets_its_limit() {
        assert_eq!(from(|_| None), Ok(Limits::default()));
        assert_eq!(
            one(Limits::LAYER_SIZE, "1.5g").unwrap().layer_bytes,
            3 << 29
        );
        assert_eq!(one(Limits::ENTRIES, "7").unwrap().entries, 7);
        assert_eq!(one(Limits::RATIO, "5000").unwrap().ratio, 5000);
        assert_eq!(one(Limits::LAYERS, "20").unwrap().layers, 20);
        let large = one(Limits::MANIFEST_SIZE, "1g").unwrap();
        assert_eq!(
            (large.manifest_bytes, large.document_bytes),
            (1 << 30, 1 << 30)
        );
    }

    #[test]
    fn what_is_no_limit_is_named() {
        for (name, value) in [
            (Limits::LAYER_SIZE, "much"),
            (Limits::MANIFEST_SIZE, ""),
            (Limits::ENTRIES, "0"),
            (Limits::RATIO, "-1"),
            (Limits::LAYERS, "1k"),
        ] {
            let err = one(name, value).unwrap_err().to_string();
            assert!(err.contains(name), "{err}");
        }
    }
}
