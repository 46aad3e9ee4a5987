//! `state.json` of a container's directory: how a record is written, at once or not at all, and read
//! again. What it says is the business of those whose containers they are.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

const FILE: &str = "state.json";
const NEW_FILE: &str = "state.json.new";

/// What the directory of a container holds for a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// This one.
    Record(Box<T>),
    /// None: the container was never completed, or is being removed.
    Nothing,
    /// One that this hrun cannot read.
    Unreadable,
}

/// Whether a record is to outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    Yes,
    No,
}

/// Writes a record: after a crash there is the old one or the new.
pub(crate) fn write(dir: &Path, record: &impl Serialize, durable: Durable) -> io::Result<()> {
    let new = dir.join(NEW_FILE);
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    if durable == Durable::Yes {
        file.sync_all()?;
    }
    fs::rename(&new, dir.join(FILE))?;
    if durable == Durable::Yes {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Reads the record of a directory. Of another version it is left alone.
pub(crate) fn read<T: DeserializeOwned>(
    dir: &Path,
    is_known: impl FnOnce(&T) -> bool,
) -> io::Result<Found<T>> {
    let json = match fs::read(dir.join(FILE)) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    Ok(match serde_json::from_slice::<T>(&json) {
        Ok(record) if is_known(&record) => Found::Record(Box::new(record)),
        _ => Found::Unreadable,
    })
}

/// Whether there is a record in this directory, of whatever kind.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Takes the record away: what is left of the container is then garbage.
pub(crate) fn erase(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dir: &Path) -> Found<u32> {
        read(dir, |version| *version < 10).unwrap()
    }

    #[test]
    fn a_record_survives_the_way_to_disk() {
        let dir = tempfile::tempdir().unwrap();
        for (record, durable) in [(1, Durable::Yes), (2, Durable::No)] {
            write(dir.path(), &record, durable).unwrap();
            assert_eq!(found(dir.path()), Found::Record(Box::new(record)));
            assert!(!dir.path().join(NEW_FILE).exists());
        }
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &1, Durable::Yes).unwrap();
        fs::write(dir.path().join(NEW_FILE), b"{\"versi").unwrap();
        assert_eq!(found(dir.path()), Found::Record(Box::new(1)));
        write(dir.path(), &2, Durable::Yes).unwrap();
        assert_eq!(found(dir.path()), Found::Record(Box::new(2)));
    }

    #[test]
    fn no_record_and_a_foreign_one_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path()), Found::Nothing);
        assert!(!exists(dir.path()));
        write(dir.path(), &10, Durable::Yes).unwrap();
        assert_eq!(found(dir.path()), Found::Unreadable);
        assert!(exists(dir.path()));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(found(dir.path()), Found::Unreadable);
        erase(dir.path()).unwrap();
        erase(dir.path()).unwrap();
        assert_eq!(found(dir.path()), Found::Nothing);
    }
}
