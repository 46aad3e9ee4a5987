//! What is written down about a container, `state.json`, and how it is written: at once or not
//! at all.

use std::{
    io,
    path::{Path, PathBuf},
};

use image::Instruction;
use serde::{Deserialize, Serialize};

use super::Id;
use crate::{
    events::{Event, Kind},
    process::ProcessIdentity,
    state_file::{self, Durable},
};

/// Version of the file. A record of another version is left alone.
const VERSION: u32 = 1;

/// A container, as written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// Its identifier.
    pub(crate) id: Id,
    /// Its name, unique in the store.
    pub(crate) name: String,
    /// The image as the user named it.
    pub(crate) image: String,
    /// The image's identifier.
    pub(crate) image_id: String,
    /// What runs in it.
    pub(crate) command: Vec<String>,
    /// What the user wanted otherwise than the image has it; an image of the container will have
    /// it so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) instructions: Vec<Instruction>,
    /// When it was made, in seconds since the Unix epoch.
    pub(crate) created: u64,
    /// Vanish when the command ends (`--rm`).
    pub(crate) auto_remove: bool,
    /// When its command was last started, in seconds since the Unix epoch.
    #[serde(default)]
    pub(crate) started: Option<u64>,
    /// Whether a user had it end, and it has not been started since.
    #[serde(default)]
    pub(crate) stopped: bool,
    /// How often its owner has started it again.
    #[serde(default)]
    pub(crate) restarts: u32,
    /// Why its owner could not start it again, if that is how it is.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// The process that owns it while it runs.
    #[serde(default)]
    pub(crate) owner: Option<i32>,
    /// Where its sockets are while it runs.
    pub(crate) runtime_dir: PathBuf,
    /// How it is.
    pub(crate) status: Status,
}

/// How a container is, as written down: only who holds its lock is truly alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Status {
    /// Its owner is about to run it for the first time.
    Making,
    /// It was made to be started later; nothing has run in it.
    Created,
    /// Its VM runs.
    Running {
        /// The process of its VM.
        vmm: ProcessIdentity,
    },
    /// Its command has ended, and its owner is about to start it again.
    Restarting {
        /// With this status.
        code: u8,
        /// When, in seconds since the Unix epoch.
        finished: u64,
    },
    /// Its command has ended.
    Exited {
        /// With this status, if anybody saw it.
        code: Option<u8>,
        /// When, in seconds since the Unix epoch.
        finished: u64,
    },
}

impl Status {
    /// In docker's words.
    pub(crate) fn word(&self, paused: bool) -> &'static str {
        match self {
            Self::Making | Self::Created => "created",
            Self::Running { .. } if paused => "paused",
            Self::Running { .. } => "running",
            Self::Restarting { .. } => "restarting",
            Self::Exited { .. } => "exited",
        }
    }

    /// Whether it needs no owner: it waits to be started, or has ended.
    pub(crate) fn rests(&self) -> bool {
        matches!(self, Self::Created | Self::Exited { .. })
    }
}

/// What a new record says.
#[derive(Debug, Clone)]
pub(crate) struct NewRecord {
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) command: Vec<String>,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) auto_remove: bool,
}

/// What the directory of a container holds for a record.
pub(crate) type Found = state_file::Found<Record>;

impl Record {
    pub(crate) fn new(
        new: NewRecord,
        id: Id,
        name: String,
        runtime_dir: PathBuf,
        now: u64,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            name,
            image: new.image,
            image_id: new.image_id,
            command: new.command,
            instructions: new.instructions,
            created: now,
            auto_remove: new.auto_remove,
            started: None,
            stopped: false,
            restarts: 0,
            error: None,
            owner: None,
            runtime_dir,
            status: Status::Making,
        }
    }

    /// One for tests.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let new = NewRecord {
            image: "busybox".into(),
            image_id: "sha256:0".into(),
            command: vec!["sh".into()],
            instructions: vec![Instruction::User("me".into())],
            auto_remove: false,
        };
        let id = Id::try_from("0a".repeat(32)).expect("it is one");
        Self::new(new, id, "a_b".into(), "/run/x".into(), 7)
    }

    /// Writes it into the container's directory: after a crash there is the old one or the new.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        // Who asked for --rm wants nothing back after a power cut: no need to wait for the disk.
        let durable = if self.auto_remove {
            Durable::No
        } else {
            Durable::Yes
        };
        state_file::write(dir, self, durable)
    }

    /// Reads the record of a container's directory.
    pub(crate) fn read(dir: &Path) -> io::Result<Found> {
        state_file::read(dir, |record: &Self| record.version == VERSION)
    }

    /// Tells those who look on that something happened to it.
    pub(crate) fn tell(&self, action: &str, more: &[(&str, &str)]) {
        // It is HRUN_STATE/containers/SHORT.
        if let Some(state) = self.runtime_dir.ancestors().nth(2) {
            let own = [("image", self.image.as_str()), ("name", &self.name)];
            let attributes: Vec<_> = own.iter().chain(more).copied().collect();
            Event::now(Kind::Container, action, self.id.as_str(), &attributes).tell(state);
        }
    }

    /// Takes the record away: what is left of the container is then garbage.
    pub(crate) fn erase(dir: &Path) -> io::Result<()> {
        state_file::erase(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path) -> Record {
        match Record::read(dir).unwrap() {
            Found::Record(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_survives_the_way_to_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::sample();
        for status in [
            Status::Making,
            Status::Created,
            Status::Running {
                vmm: ProcessIdentity {
                    pid: 9,
                    start_ticks: 8,
                },
            },
            Status::Restarting {
                code: 2,
                finished: 3,
            },
            Status::Exited {
                code: Some(3),
                finished: 4,
            },
        ] {
            record.status = status;
            record.write(dir.path()).unwrap();
            assert_eq!(read(dir.path()), record);
        }
    }

    #[test]
    fn one_of_another_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut foreign = Record::sample();
        foreign.version += 1;
        foreign.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Found::Unreadable);
    }
}
