//! Names of containers: given ones are checked, others are made up.

use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

const ADJECTIVES: [&str; 48] = [
    "agile", "amber", "balmy", "brisk", "bronze", "candid", "cedar", "clever", "coastal", "cosmic",
    "crisp", "dapper", "deft", "earnest", "fabled", "fleet", "floral", "frosty", "gentle",
    "gilded", "hardy", "hazel", "humble", "ivory", "jolly", "keen", "lively", "lucid", "lunar",
    "mellow", "misty", "nimble", "noble", "opal", "patient", "placid", "quiet", "rapid", "rustic",
    "sandy", "silver", "snug", "solar", "spry", "sturdy", "tidy", "vivid", "windy",
];

const NOUNS: [&str; 48] = [
    "acorn", "anchor", "badger", "beacon", "birch", "bison", "brook", "canyon", "comet", "condor",
    "coral", "crane", "delta", "dingo", "ember", "falcon", "fern", "fjord", "gecko", "geyser",
    "glade", "harbor", "heron", "ibis", "island", "jackal", "juniper", "kestrel", "lagoon", "lark",
    "lemur", "maple", "marten", "meadow", "meteor", "otter", "pebble", "plover", "prairie",
    "quail", "raven", "reef", "sequoia", "sparrow", "summit", "tundra", "walrus", "willow",
];

/// Longest name.
const MAX_LENGTH: usize = 128;

/// A name that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid container name {0:?}: two to {MAX_LENGTH} letters, digits, '_', '.' and '-', \
     the first a letter or digit"
)]
pub(crate) struct NameError(String);

/// Checks a name that a user gave.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    let valid = (2..=MAX_LENGTH).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if valid {
        Ok(())
    } else {
        Err(NameError(name.into()))
    }
}

/// Makes up a name for which `taken` is false.
pub(crate) fn generate(taken: impl Fn(&str) -> bool) -> Result<String, Errno> {
    // The pairs run out at some two thousand containers: a number makes room for more.
    for attempt in 0u32.. {
        let mut random = [0u8; 4];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let [a, b, c, d] = random.map(usize::from);
        let adjective = ADJECTIVES[(a << 8 | b) % ADJECTIVES.len()];
        let noun = NOUNS[(c << 8 | d) % NOUNS.len()];
        let name = match attempt {
            0..8 => format!("{adjective}_{noun}"),
            number => format!("{adjective}_{noun}{number}"),
        };
        if !taken(&name) {
            return Ok(name);
        }
    }
    unreachable!("four billion names are never all taken")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_valid_names() {
        for word in ADJECTIVES.iter().chain(&NOUNS) {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
        }
        check(&generate(|_| false).unwrap()).unwrap();
    }

    #[test]
    fn a_taken_name_is_not_given_twice() {
        let name = generate(|name| !name.ends_with(|c: char| c.is_ascii_digit())).unwrap();
        assert!(name.ends_with(|c: char| c.is_ascii_digit()));
    }

    #[test]
    fn names_follow_dockers_alphabet() {
        for good in ["ab", "web-1", "A_b.c", "0x"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "a", "-ab", "_ab", "a/b", "a b", "ä1", &"a".repeat(129)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
