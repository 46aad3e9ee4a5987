//! What is written down about a container of an engine, and the state that the engine is told.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{cgroup::Groups, pod::Role};
use crate::{
    process::ProcessIdentity,
    state_file::{self, Durable, Found},
};

/// Version of the file.
const VERSION: u32 = 1;

/// The version of the OCI runtime specification that states follow.
pub(crate) const OCI_VERSION: &str = "1.2.0";

/// A container of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) annotations: BTreeMap<String, String>,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub(crate) created_ns: i64,
    /// Where its sockets are.
    pub(crate) runtime_dir: PathBuf,
    pub(crate) groups: Groups,
    /// The process that engines take for the container.
    pub(crate) shim: Option<ProcessIdentity>,
    /// Its own VM's process.
    pub(crate) vmm: Option<ProcessIdentity>,
    #[serde(default)]
    pub(crate) role: Role,
    pub(crate) status: Status,
}

/// How far a container has come. Only who holds its lock is truly alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    /// The program has ended with this status.
    Stopped(u8),
}

/// A container's state, as the specification has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    oci_version: &'static str,
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Record {
    pub(crate) fn new(id: String, bundle: PathBuf, runtime_dir: PathBuf, now_ns: i64) -> Self {
        Self {
            version: VERSION,
            id,
            bundle,
            rootfs: PathBuf::new(),
            annotations: BTreeMap::new(),
            created_ns: now_ns,
            runtime_dir,
            groups: Groups::default(),
            shim: None,
            vmm: None,
            role: Role::Alone,
            status: Status::Creating,
        }
    }

    /// What an engine is told about it.
    pub(crate) fn state(&self, status: &'static str) -> State<'_> {
        let alive = status != "stopped";
        State {
            oci_version: OCI_VERSION,
            id: &self.id,
            status,
            pid: self.shim.map(|shim| shim.pid).filter(|_| alive),
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }

    /// Where the VM's control socket is.
    pub(crate) fn control_socket(&self) -> PathBuf {
        match self.role.membership() {
            Some(membership) => membership.control_socket(),
            None => self.runtime_dir.join("control"),
        }
    }

    /// Where the VM's vsock socket is.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        match self.role.membership() {
            Some(membership) => membership.vsock_socket(),
            None => self.runtime_dir.join("vsock"),
        }
    }

    /// Where the shim takes orders until the program runs.
    pub(crate) fn orders_socket(&self) -> PathBuf {
        self.runtime_dir.join("orders")
    }

    /// Marks a container of a pod that stands still, while its VM does not.
    pub(crate) fn frozen_mark(&self) -> PathBuf {
        self.runtime_dir.join("frozen")
    }

    /// Marks a container whose VM was ended in the place of a signal that ends every process.
    pub(crate) fn killed_mark(&self) -> PathBuf {
        self.runtime_dir.join("killed")
    }

    /// Writes it into the container's directory: there is always the old one or the new.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        // After a power cut none of the processes is there that it is about.
        state_file::write(dir, self, Durable::No)
    }

    /// Reads the record of a container's directory; none if it never came to one, or if another
    /// hrun wrote it.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let found = state_file::read(dir, |record: &Self| record.version == VERSION)?;
        Ok(match found {
            Found::Record(record) => Some(*record),
            Found::Nothing | Found::Unreadable => None,
        })
    }

    /// Whether there is a container in this directory.
    pub(crate) fn exists(dir: &Path) -> bool {
        state_file::exists(dir)
    }
}

impl Status {
    /// In the words of the specification; "paused" is runc's.
    pub(crate) fn word(self, paused: bool) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running if paused => "paused",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record::new("web".into(), "/b".into(), "/run/x".into(), 7)
    }

    #[test]
    fn a_record_survives_the_way_to_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let mut record = sample();
        for status in [Status::Creating, Status::Created, Status::Stopped(3)] {
            record.status = status;
            record.write(dir.path()).unwrap();
            assert_eq!(Record::read(dir.path()).unwrap().unwrap(), record);
        }
    }

    #[test]
    fn the_state_is_the_specifications() {
        let mut record = sample();
        record.shim = Some(ProcessIdentity {
            pid: 9,
            start_ticks: 1,
        });
        let running = serde_json::to_value(record.state("running")).unwrap();
        let expected = serde_json::json!({
            "ociVersion": OCI_VERSION, "id": "web", "status": "running", "pid": 9, "bundle": "/b",
        });
        assert_eq!(running, expected);
        record.annotations.insert("a".into(), "b".into());
        let stopped = serde_json::to_value(record.state("stopped")).unwrap();
        assert_eq!(stopped.get("pid"), None);
        assert_eq!(stopped["annotations"]["a"], "b");
    }
}
