//! The keys that let go of a container: how they are written, and how they are found among others.

use std::str::FromStr;

/// A sequence of keys, one byte each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    sequence: Vec<u8>,
    /// How many of them were typed, and wait for the next ones.
    matched: usize,
}

/// Keys that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid detach keys {0:?}: they are single characters or ctrl- with a letter or one of @[\\]^_, \
     with commas between"
)]
pub(crate) struct KeysError(String);

impl FromStr for Keys {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        let key = |name: &str| {
            let byte = match (name.strip_prefix("ctrl-"), name.as_bytes()) {
                (Some(letter), _) => match letter.as_bytes() {
                    [letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => letter & 0x1f,
                    _ => return None,
                },
                (None, [byte]) => *byte,
                (None, _) => return None,
            };
            Some(byte)
        };
        let sequence: Option<Vec<u8>> = text.split(',').map(key).collect();
        Ok(Self {
            sequence: sequence.ok_or_else(|| KeysError(text.into()))?,
            matched: 0,
        })
    }
}

impl Default for Keys {
    fn default() -> Self {
        // ctrl-p ctrl-q, as docker has it.
        Self {
            sequence: vec![0x10, 0x11],
            matched: 0,
        }
    }
}

impl Keys {
    /// Takes what was typed and gives what of it is to be passed on; the second value says whether
    /// the sequence is complete, and then nothing behind it is passed on.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte != self.sequence[self.matched] {
                // It was not meant: what was held back belongs to the program.
                passed.extend_from_slice(&self.sequence[..self.matched]);
                self.matched = 0;
            }
            if *byte == self.sequence[self.matched] {
                self.matched += 1;
            } else {
                passed.push(*byte);
            }
            if self.matched == self.sequence.len() {
                self.matched = 0;
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Keys {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_written_as_docker_has_them() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Keys::default());
        assert_eq!(keys("ctrl-@,a,ctrl-_").sequence, [0, b'a', 0x1f]);
        for bad in ["", "ctrl-", "ctrl-P", "ab", "ctrl-p,", "ctrl-pq"] {
            assert!(bad.parse::<Keys>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_sequence_is_found_across_reads_and_nothing_else_is_lost() {
        let mut keys = keys("ctrl-p,ctrl-q");
        assert_eq!(keys.filter(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
    }
}
