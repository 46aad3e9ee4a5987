//! Pods: several containers in one VM, which is that of the first of them, the sandbox.
//!
//! Which containers are of one pod, the engine says by annotations: containerd's CRI plugin has its
//! own, podman sets those of CRI-O. Who joins a namespace of another container by its path joins that
//! one's VM as well, whether that was made as a sandbox or not. A member's files and the sources of
//! its mounts are added to the shares of the VM that runs; it has a shim and control groups of its own
//! on the host, and a root, a cgroup and, but for what it joins, namespaces of its own in the guest.
//!
//! The VM of a sandbox has a share with room for the roots of others. Any other VM has not, as it
//! would cost every container a little; there they are where the sources of mounts are, which the
//! guest asks for again and again.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use agent_protocol::{Action, ContainerId, ProcessId};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use vmm::{
    api::{Client, ClientError, HostKind, Request},
    config::CollectionEntry,
    shares::{self, ShareError},
};

use super::{
    containers::{Containers, Seen, StoreError},
    plan::Plan,
    record::Status,
};
use crate::{
    agent::{AskError, ask},
    process::ProcessIdentity,
    translate::{self, ROOT_SHARE, ROOT_TAG, VOLUMES_SHARE, VOLUMES_TAG},
};

/// What the engine's annotations are called, and what says that a container is the sandbox: those of
/// containerd's CRI plugin, and those of CRI-O, which podman uses.
const KINDS: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];
const SANDBOX: &str = "sandbox";
const MEMBER: &str = "container";

/// Most members of a pod.
const MAX_MEMBERS: u32 = 1024;

/// How long the agent may take to end a container. A busy machine that interprets the guest's kernel
/// needs seconds.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the VM may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// A container that cannot be of its pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error("{0}: the engine names no sandbox for this container of a pod")]
    NoSandbox(&'static str),
    #[error("The sandbox {id} of the container's pod is not there: make it first")]
    Missing { id: String, source: StoreError },
    #[error("The sandbox {id} of the container's pod is {status}: it must be created or running")]
    NotRunning { id: String, status: &'static str },
    #[error("The sandbox {0} has as many members as there can be ({MAX_MEMBERS})")]
    Full(String),
    #[error("Failed to count the container among its pod's, in {path}")]
    Count { path: PathBuf, source: io::Error },
    #[error("Failed to ask the VM of the container's pod how it is")]
    Status(#[source] ClientError),
    #[error("The VM of the container's pod has ended")]
    Ended,
    #[error("Failed to look for the VM of the container's pod")]
    Find(#[source] io::Error),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error("Failed to take the container out of its pod's VM")]
    Remove(#[source] AskError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a container is to the VM that it runs in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// The VM is its own.
    #[default]
    Alone,
    /// The VM is its own, and others may join it.
    Sandbox,
    /// The VM is the sandbox's.
    Member(Membership),
}

/// A place in the VM of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The sandbox, by its identifier.
    pub(crate) sandbox: String,
    /// Where the sandbox's sockets are.
    runtime_dir: PathBuf,
    vmm: ProcessIdentity,
    /// Numbers the container in the VM; the sandbox itself has 0.
    number: u32,
    /// Whether the sandbox was made as one.
    has_room: bool,
    /// How many sources of mounts it has in the VM's shares.
    volumes: usize,
    /// Whether the guest's kernel counts memory by container: where it is interpreted, that would
    /// cost too much.
    pub(crate) counts_memory: bool,
}

/// What a container is to be to a VM.
#[derive(Debug)]
pub(crate) enum Wanted {
    Alone,
    Sandbox,
    /// In the VM of this container.
    Member {
        sandbox: Box<Seen>,
        counts_memory: bool,
    },
}

impl Wanted {
    /// What the engine asks for.
    pub(crate) fn of(spec: &Spec, containers: &Containers) -> Result<Self, PodError> {
        let annotations = spec.annotations().as_ref();
        let value = |name: &str| annotations?.get(name).map(String::as_str);
        for (kind, sandbox) in KINDS {
            match value(kind) {
                Some(SANDBOX) => return Ok(Self::Sandbox),
                Some(MEMBER) => {
                    let id = value(sandbox).ok_or(PodError::NoSandbox(kind))?;
                    return Self::member(containers, id);
                }
                _ => {}
            }
        }
        match by_namespace(spec, containers)? {
            Some(id) => Self::member(containers, &id),
            None => Ok(Self::Alone),
        }
    }

    fn member(containers: &Containers, id: &str) -> Result<Self, PodError> {
        let seen = containers.find(id).map_err(|source| PodError::Missing {
            id: id.into(),
            source,
        })?;
        if !matches!(seen.status(), Status::Created | Status::Running) {
            return Err(PodError::NotRunning {
                id: id.into(),
                status: seen.word(),
            });
        }
        if let Some(membership) = seen.record.role.membership() {
            return Self::member(containers, &membership.sandbox);
        }
        let vm = Client::connect(&seen.record.control_socket(), STATUS_TIMEOUT)
            .and_then(|mut vm| vm.request(Request::Status));
        let vm = vm.map_err(PodError::Status)?;
        Ok(Self::Member {
            counts_memory: vm.host_kind == HostKind::Hardware,
            sandbox: Box::new(seen),
        })
    }

    /// A place for the container whose directory is `dir`, with `volumes` sources of mounts.
    pub(crate) fn take(&self, dir: &Path, volumes: usize) -> Result<Role, PodError> {
        let (sandbox, counts_memory) = match self {
            Self::Alone => return Ok(Role::Alone),
            Self::Sandbox => return Ok(Role::Sandbox),
            Self::Member {
                sandbox,
                counts_memory,
            } => (sandbox, *counts_memory),
        };
        let record = &sandbox.record;
        let number = take_number(&members_dir(&record.runtime_dir), dir)?;
        Ok(Role::Member(Membership {
            sandbox: record.id.clone(),
            runtime_dir: record.runtime_dir.clone(),
            vmm: record.vmm.ok_or(PodError::Ended)?,
            number: number.ok_or_else(|| PodError::Full(record.id.clone()))?,
            has_room: record.role == Role::Sandbox,
            volumes,
            counts_memory,
        }))
    }

    /// What the container would be, for looking at what it asks for.
    pub(crate) fn sketch(&self) -> Role {
        match self {
            Self::Alone => Role::Alone,
            Self::Sandbox => Role::Sandbox,
            Self::Member {
                sandbox,
                counts_memory,
            } => Role::Member(Membership {
                sandbox: sandbox.record.id.clone(),
                runtime_dir: sandbox.record.runtime_dir.clone(),
                vmm: ProcessIdentity {
                    pid: 0,
                    start_ticks: 0,
                },
                number: MAX_MEMBERS,
                has_room: sandbox.record.role == Role::Sandbox,
                volumes: 0,
                counts_memory: *counts_memory,
            }),
        }
    }
}

impl Role {
    /// The container's number in its VM.
    pub(crate) fn container(&self) -> ContainerId {
        ContainerId(self.number())
    }

    /// The number of its first process.
    pub(crate) fn process(&self) -> ProcessId {
        ProcessId(self.number())
    }

    fn number(&self) -> u32 {
        match self {
            Self::Alone | Self::Sandbox => translate::CONTAINER.0,
            Self::Member(membership) => membership.number,
        }
    }

    /// The share in which its root file system is, and its name there; empty for the share's own
    /// root.
    pub(crate) fn root(&self) -> (&'static str, String) {
        match self {
            Self::Alone => (ROOT_TAG, String::new()),
            Self::Sandbox => (ROOT_TAG, self.number().to_string()),
            Self::Member(membership) => {
                let (_, tag, name) = membership.root();
                (tag, name)
            }
        }
    }

    /// The name of a source of mounts in the share for them.
    pub(crate) fn volume(&self, index: usize) -> String {
        match self {
            Self::Alone | Self::Sandbox => index.to_string(),
            Self::Member(membership) => membership.volume(index),
        }
    }

    /// Whether others may be in its VM.
    pub(crate) fn is_of_pod(&self) -> bool {
        *self != Self::Alone
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Member(membership) => Some(membership),
            Self::Alone | Self::Sandbox => None,
        }
    }
}

impl Membership {
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.runtime_dir.join("vsock")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control")
    }

    fn volume(&self, index: usize) -> String {
        format!("{}-{index}", self.number)
    }

    /// Where its root file system is: the place and the tag of a share, and its name there.
    fn root(&self) -> (usize, &'static str, String) {
        match self.has_room {
            true => (ROOT_SHARE, ROOT_TAG, self.number.to_string()),
            false => (VOLUMES_SHARE, VOLUMES_TAG, format!("{}-root", self.number)),
        }
    }

    /// The VM's process; none if it has ended.
    fn vmm(&self) -> Result<Option<OwnedFd>, PodError> {
        self.vmm.open().map_err(PodError::Find)
    }

    /// Brings the container's files into the VM.
    pub(crate) fn enter(&self, plan: &Plan) -> Result<Guest, PodError> {
        let vmm = self.vmm()?.ok_or(PodError::Ended)?;
        let guest = Guest {
            membership: self.clone(),
            vsock: self.vsock_socket(),
            vmm,
        };
        let (share, _, name) = self.root();
        let root = CollectionEntry {
            name,
            path: plan.root.clone(),
            read_only: false,
        };
        shares::add(guest.vmm.as_fd(), share, &root)?;
        for volume in &plan.volumes {
            shares::add(guest.vmm.as_fd(), VOLUMES_SHARE, volume)?;
        }
        Ok(guest)
    }

    /// Ends the container in the guest, if it is there.
    fn remove(&self) -> Result<(), PodError> {
        let container = ContainerId(self.number);
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        let action = Action::Remove { container };
        ask(&self.vsock_socket(), action, Some(deadline)).map_err(PodError::Remove)
    }

    /// Ends the container, whatever the guest does: one that does not obey loses its VM, and so does
    /// the pod.
    pub(crate) fn end(&self) -> Result<(), PodError> {
        if self.vmm()?.is_none() || self.remove().is_ok() {
            return Ok(());
        }
        self.vmm.kill().map_err(PodError::Find)
    }

    /// Takes the container and its files out of the VM, as far as they are there.
    pub(crate) fn leave(&self) -> Result<(), PodError> {
        if let Some(vmm) = self.vmm()? {
            self.end()?;
            let volumes = (0..self.volumes).map(|index| self.volume(index));
            let volumes = volumes.map(|name| (VOLUMES_SHARE, VOLUMES_TAG, name));
            for (share, tag, path) in [self.root()].into_iter().chain(volumes) {
                match shares::remove(vmm.as_fd(), share, &path) {
                    Err(_) if self.vmm()?.is_none() => break,
                    removed => removed?,
                }
                let tag = tag.into();
                let deadline = Instant::now() + REMOVE_TIMEOUT;
                // A guest that keeps files open keeps them for the life of its pod.
                let _ = ask(
                    &self.vsock_socket(),
                    Action::Forget { tag, path },
                    Some(deadline),
                );
            }
        }
        let place = members_dir(&self.runtime_dir).join(self.number.to_string());
        match fs::remove_file(&place) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PodError::Count {
                path: place,
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// A VM that a container has joined. Dropping it takes the container out again.
#[derive(Debug)]
pub(crate) struct Guest {
    membership: Membership,
    vsock: PathBuf,
    vmm: OwnedFd,
}

impl Guest {
    pub(crate) fn vsock(&self) -> &Path {
        &self.vsock
    }
}

/// Readable once the VM has ended.
impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vmm.as_fd()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // `delete` does it again, and says what is wrong.
        let _ = self.membership.leave();
    }
}

/// The containers of one pod, by the processes that engines take for them.
#[derive(Debug, Default)]
pub(crate) struct Peers(Vec<(i32, ContainerId)>);

impl Peers {
    /// Those of the pod that a container of this role is in.
    pub(crate) fn of(role: &Role, containers: &Containers) -> Result<Self, PodError> {
        let Role::Member(membership) = role else {
            return Ok(Self::default());
        };
        let id = membership.sandbox.as_str();
        let mut peers = Vec::new();
        for seen in containers.list()? {
            let record = &seen.record;
            let is_peer = match &record.role {
                Role::Alone | Role::Sandbox => record.id == id,
                Role::Member(other) => other.sandbox == id,
            };
            if let Some(shim) = record.shim.filter(|_| is_peer && seen.alive) {
                peers.push((shim.pid, record.role.container()));
            }
        }
        Ok(Self(peers))
    }

    /// Whose namespace a path leads to.
    pub(crate) fn owner(&self, namespace: &Path) -> Option<ContainerId> {
        let pid = process_of(namespace)?;
        let mut peers = self.0.iter();
        peers.find(|peer| peer.0 == pid).map(|peer| peer.1)
    }
}

/// The container of which a namespace is that another is to join.
fn by_namespace(spec: &Spec, containers: &Containers) -> Result<Option<String>, PodError> {
    let namespaces = spec.linux().as_ref();
    let namespaces = namespaces
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten();
    let asked: Vec<_> = namespaces
        .filter_map(|namespace| process_of(namespace.path().as_deref()?))
        .collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let all = containers.list()?;
    let owner = all.into_iter().find(|seen| {
        let shim = seen.record.shim.filter(|_| seen.alive);
        shim.is_some_and(|shim| asked.contains(&shim.pid))
    });
    Ok(owner.map(|seen| seen.record.id))
}

/// The process whose namespace a path is: `/proc/PID/ns/KIND`.
fn process_of(path: &Path) -> Option<i32> {
    let text = path.to_str()?.strip_prefix("/proc/")?;
    let (pid, kind) = text.split_once("/ns/")?;
    (!kind.contains('/')).then(|| pid.parse().ok())?
}

fn members_dir(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("members")
}

/// The least number that no other member has; None if there is none left.
fn take_number(members: &Path, owner: &Path) -> Result<Option<u32>, PodError> {
    let failed = |path: &Path, source| PodError::Count {
        path: path.into(),
        source,
    };
    match fs::create_dir(members) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(members, error));
        }
        _ => {}
    }
    for number in 1..=MAX_MEMBERS {
        let place = members.join(number.to_string());
        let mut new = OpenOptions::new();
        match new.write(true).create_new(true).mode(0o600).open(&place) {
            Ok(mut file) => {
                use std::os::unix::ffi::OsStrExt;
                file.write_all(owner.as_os_str().as_bytes())
                    .map_err(|source| failed(&place, source))?;
                return Ok(Some(number));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(&place, source)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_belongs_to_the_process_in_its_path() {
        assert_eq!(process_of(Path::new("/proc/42/ns/ipc")), Some(42));
        for path in [
            "/proc/self/ns/ipc",
            "/proc/42/ns/a/b",
            "/run/netns/42",
            "/proc/42",
        ] {
            assert_eq!(process_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn members_have_numbers_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let members = dir.path().join("members");
        let take = || take_number(&members, dir.path()).unwrap();
        assert_eq!([take(), take()], [Some(1), Some(2)]);
        fs::remove_file(members.join("1")).unwrap();
        assert_eq!([take(), take()], [Some(1), Some(3)]);
        let nowhere = take_number(&dir.path().join("gone/members"), dir.path());
        assert!(matches!(nowhere, Err(PodError::Count { .. })));
    }

    #[test]
    fn names_of_members_are_nobody_elses() {
        let membership = |number, has_room| {
            Role::Member(Membership {
                sandbox: "s".into(),
                runtime_dir: "/r".into(),
                vmm: ProcessIdentity {
                    pid: 1,
                    start_ticks: 1,
                },
                number,
                has_room,
                volumes: 2,
                counts_memory: true,
            })
        };
        let (one, eleven) = (membership(1, true), membership(11, false));
        for (role, tag, name) in [
            (&Role::Alone, "rootfs", ""),
            (&Role::Sandbox, "rootfs", "0"),
            (&one, "rootfs", "1"),
            (&eleven, "volumes", "11-root"),
        ] {
            assert_eq!(role.root(), (tag, name.to_owned()));
        }
        assert_eq!(
            [Role::Sandbox.volume(1), one.volume(11), eleven.volume(1)],
            ["1", "1-11", "11-1"]
        );
        assert_eq!((one.container().0, eleven.process().0), (1, 11));
    }
}
