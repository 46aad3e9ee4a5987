//! From the `config.json` of an OCI bundle to what a VM and its agent are asked for: the one
//! translation of the runtime specification.
//!
//! A property is done, or refused by its name, or harmless to leave out: then there is a warning.
//! Nothing of the host is changed here, and nothing but the kinds of bind sources is looked at.
#![allow(dead_code, reason = "no command reads bundles as yet")]

mod process;
mod refused;

use std::path::{Path, PathBuf};

use agent_protocol::{Mount, ProcessId, Source};
use oci_spec::runtime::{Hooks, Process, Spec};
use vmm::config::CollectionEntry;

use crate::{
    template::Class,
    translate::{CONTAINER, PROCESS, ROOT_TAG},
};

pub(crate) use refused::Refused;

/// What a guest has if the bundle sets no limit, in bytes.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// What an OCI bundle comes to: what the VM has and what the agent is asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// vCPUs and memory of the guest.
    pub(crate) class: Class,
    /// The directory of the host that is the root file system, absolute.
    pub(crate) root: PathBuf,
    /// Whether the container may not write to it.
    pub(crate) root_read_only: bool,
    /// Sources of bind mounts, named by their numbers.
    pub(crate) volumes: Vec<CollectionEntry>,
    pub(crate) container: agent_protocol::Container,
    /// The first process. Without a terminal it has standard input.
    pub(crate) process: agent_protocol::Process,
    /// All of them; those that run in the container are in the process as well.
    pub(crate) hooks: Hooks,
    /// The network namespace that the container is to be in, if the engine has made one.
    pub(crate) netns: Option<PathBuf>,
    /// Where on the host the container is to be accounted for.
    pub(crate) cgroups_path: Option<PathBuf>,
    /// What is harmless to leave out, for the log.
    pub(crate) warnings: Vec<String>,
}

/// What is known of a container besides its bundle's configuration.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The bundle's directory, absolute.
    pub(crate) bundle: &'a Path,
    /// The container's name.
    pub(crate) id: &'a str,
    /// Whether this namespace, by its path, is one of the VM that the container joins.
    pub(crate) is_joined: &'a dyn Fn(&Path) -> bool,
}

impl Plan {
    /// Translates a bundle's configuration.
    ///
    /// # Errors
    ///
    /// The first property that cannot be done.
    pub(crate) fn new(spec: &Spec, place: Place<'_>) -> Result<Self, Refused> {
        let root = spec
            .root()
            .as_ref()
            .ok_or(Refused::Missing { property: "root" })?;
        let root_read_only = root.readonly().unwrap_or(false);
        let process = first_process(spec)?;
        Ok(Self {
            class: Class {
                cpus: 1,
                memory: DEFAULT_MEMORY,
            },
            root: place.bundle.join(root.path()),
            root_read_only,
            volumes: Vec::new(),
            process: process::process(process, spec, PROCESS)?,
            container: agent_protocol::Container {
                id: CONTAINER,
                root: Mount::new(Source::share(ROOT_TAG, ""), "/"),
                hostname: spec.hostname().clone().unwrap_or_default(),
                domainname: spec.domainname().clone().unwrap_or_default(),
                capabilities: agent_protocol::Capabilities::DEFAULT.bounding,
                sysctls: Vec::new(),
                masked_paths: Vec::new(),
                readonly_paths: Vec::new(),
                mounts: Vec::new(),
                files: Vec::new(),
                devices: Vec::new(),
                cgroup: Vec::new(),
                read_only: root_read_only,
                propagation: None,
            },
            hooks: spec.hooks().clone().unwrap_or_default(),
            netns: None,
            cgroups_path: None,
            warnings: Vec::new(),
        })
    }
}

/// A further process, in a container that was made from `spec`.
///
/// # Errors
///
/// The first property that cannot be done.
pub(crate) fn exec_process(
    process: &Process,
    spec: &Spec,
    id: ProcessId,
) -> Result<agent_protocol::Process, Refused> {
    process::process(process, spec, id)
}

fn first_process(spec: &Spec) -> Result<&Process, Refused> {
    let process = spec.process().as_ref();
    process.ok_or(Refused::Missing {
        property: "process",
    })
}

#[cfg(test)]
mod tests;
