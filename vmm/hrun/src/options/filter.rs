//! `--filter NAME=VALUE`: what something must be to be shown.

use std::mem::discriminant;

/// A filter that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter {0:?}")]
pub(crate) struct FilterError(String);

impl FilterError {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }
}

/// The name and the value of a filter.
pub(crate) fn split(text: &str) -> Result<(&str, &str), FilterError> {
    text.split_once('=').ok_or_else(|| FilterError::new(text))
}

/// Whether something fits one filter of each kind, as `is_fit` says of a single one.
pub(crate) fn fits<F>(filters: &[F], is_fit: impl Fn(&F) -> bool) -> bool {
    filters.iter().all(|filter| {
        let is_same = |other: &&F| discriminant(*other) == discriminant(filter);
        filters.iter().filter(is_same).any(&is_fit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_kind_are_alternatives_and_kinds_add_up() {
        let fits =
            |filters: &[Result<u8, u8>]| fits(filters, |filter| matches!(filter, Ok(1) | Err(1)));
        assert!(fits(&[]));
        assert!(fits(&[Ok(1), Ok(2), Err(1)]));
        assert!(!fits(&[Ok(1), Err(2)]));
    }

    #[test]
    fn a_filter_has_a_name_and_a_value() {
        assert_eq!(split("name=a=b"), Ok(("name", "a=b")));
        assert_eq!(split("name"), Err(FilterError::new("name")));
    }
}
