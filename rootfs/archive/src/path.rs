//! Names of entries, taken apart before any of them reaches the system.

use std::ffi::CString;

/// Linux's `NAME_MAX`, in bytes.
const NAME_MAX: usize = 255;
/// Linux's `PATH_MAX`, with the byte that ends a path.
const PATH_MAX: usize = 4096;

/// Where in the tree an entry belongs: components without `.` and `..`, joined by single slashes,
/// none at either end. Empty for the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPath(Vec<u8>);

/// Why a name cannot be one of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathProblem(
    /// In words that go behind the name.
    pub &'static str,
);

impl EntryPath {
    /// Absolute names count from the root of the tree, as in a chroot. Those with `..` are
    /// refused even where they would stay inside: no archiver writes them.
    ///
    /// # Errors
    ///
    /// It is such a name, or one that the system would not take.
    pub fn new(raw: &[u8]) -> Result<Self, PathProblem> {
        let mut path = Vec::with_capacity(raw.len());
        for component in raw.split(|b| *b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(PathProblem("its name leads out through ..")),
                _ => {}
            }
            if component.contains(&0) {
                return Err(PathProblem("its name has a NUL"));
            }
            if component.len() > NAME_MAX {
                return Err(PathProblem("its name has a part of more than 255 bytes"));
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        if path.len() >= PATH_MAX {
            return Err(PathProblem("its name has more than 4095 bytes"));
        }
        Ok(Self(path))
    }

    /// As text.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory and the name in it; none for the root.
    #[must_use]
    pub fn split(&self) -> Option<(&[u8], CString)> {
        if self.0.is_empty() {
            return None;
        }
        let (parent, base) = self.parent_and_base();
        Some((parent, name(base)))
    }

    /// The directory and the last component, both empty for the root.
    #[must_use]
    pub fn parent_and_base(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        }
    }

    /// The names on the way to it, and its own.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }
}

/// One component of an [`EntryPath`] as the system takes it.
///
/// # Panics
///
/// It has a NUL, which none of those has.
#[must_use]
pub fn name(component: &[u8]) -> CString {
    CString::new(component).expect("EntryPath has no NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &[u8]) -> Result<Vec<u8>, PathProblem> {
        EntryPath::new(raw).map(|path| path.0)
    }

    #[test]
    fn names_count_from_the_root_of_the_tree() {
        for (raw, normal) in [
            (&b"usr/bin/env"[..], &b"usr/bin/env"[..]),
            (b"./usr/", b"usr"),
            (b"/etc//passwd", b"etc/passwd"),
            (b"././.", b""),
            (b"", b""),
            (b"...", b"..."),
            (b"a\xff\n", b"a\xff\n"),
        ] {
            assert_eq!(path(raw).unwrap(), normal);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_or_nowhere_are_refused() {
        let long = vec![b'a'; 256];
        let deep = b"a/".repeat(3000);
        for raw in [
            &b".."[..],
            b"../x",
            b"a/../../b",
            b"a/..",
            b"/..",
            b"a\0b",
            &long[..],
            &deep[..],
        ] {
            assert!(path(raw).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn a_path_splits_at_its_last_slash() {
        let path = EntryPath::new(b"a/b/c").unwrap();
        assert_eq!(path.split(), Some((&b"a/b"[..], c"c".to_owned())));
        assert_eq!(
            EntryPath::new(b"a").unwrap().split(),
            Some((&b""[..], c"a".to_owned()))
        );
        assert_eq!(EntryPath::new(b"/").unwrap().split(), None);
    }
}
