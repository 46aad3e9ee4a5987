//! From the `config.json` of an OCI bundle to what a VM and its agent are asked for: the one
//! translation of the runtime specification.
//!
//! A property is done, or refused by its name, or harmless to leave out: then there is a warning.
//! Nothing of the host is changed here, and nothing but the kinds of bind sources is looked at.

mod bind;
mod hooks;
mod linux;
mod mount_options;
mod mounts;
mod process;
pub(crate) mod read;
mod refused;
mod resources;
mod rights;
mod treatment;

use std::path::{Path, PathBuf};

use agent_protocol::{ContainerId, Mount, Namespace, ProcessId, Source};
use oci_spec::runtime::{Process, Spec};
use vmm::config::CollectionEntry;

use crate::template::Class;

use super::pod::Role;
use mounts::Shared;

pub(crate) use refused::Refused;
use refused::value;
pub(crate) use resources::changes;

/// What an OCI bundle comes to: what the VM has and what the agent is asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    /// vCPUs and memory of the guest.
    pub(crate) class: Class,
    /// The directory of the host that is the root file system, absolute.
    pub(crate) root: PathBuf,
    /// Directories that the container needs in it: made on the host, which takes microseconds.
    pub(crate) directories: Vec<PathBuf>,
    /// Sources of bind mounts, named by their numbers.
    pub(crate) volumes: Vec<CollectionEntry>,
    pub(crate) container: agent_protocol::Container,
    /// The first process, with the hooks that run in the container. Without a terminal it has
    /// standard input.
    pub(crate) process: agent_protocol::Process,
    /// What the container is to its VM.
    pub(crate) role: Role,
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
    /// What it is to its VM.
    pub(crate) role: &'a Role,
    /// Which container of the VM that it joins has this namespace, by its path.
    pub(crate) owner: &'a dyn Fn(&Path) -> Option<ContainerId>,
}

impl Plan {
    /// Translates a bundle's configuration.
    ///
    /// # Errors
    ///
    /// The first property that cannot be done.
    pub(crate) fn new(spec: &Spec, place: Place<'_>) -> Result<Self, Refused> {
        version(spec.version())?;
        let mut warnings = Vec::new();
        let root = spec
            .root()
            .as_ref()
            .ok_or(Refused::Missing { property: "root" })?;
        let read_only = root.readonly().unwrap_or(false);
        let root = place.bundle.join(text("root.path", root.path())?);
        let first = first_process(spec)?;
        let empty;
        let linux = match spec.linux() {
            Some(linux) => linux,
            None => {
                empty = linux::empty();
                &empty
            }
        };
        let namespaces = linux::namespaces(linux, place.owner, &mut warnings)?;
        linux::refuse_what_cannot_be(linux, &mut warnings)?;
        if spec.vm().is_some() {
            warnings.push("vm: the VM is hrun's own".into());
        }
        let resources = linux.resources().as_ref();
        let mut limits = resources::limits(resources, &mut warnings)?;
        match place.role {
            Role::Alone => {}
            Role::Sandbox => limits.class = resources::of_pod(spec, limits.class, &mut warnings),
            Role::Member(member) => resources::add_in_guest(
                resources,
                member.counts_memory,
                &mut limits.cgroup,
                &mut warnings,
            ),
        }
        let shared = Shared {
            role: place.role,
            ipc: namespaces.joined(Namespace::Ipc),
        };
        let mounts = mounts::mounts(spec, place.bundle, shared, &mut warnings)?;
        let mut process = process::process(first, spec, place.role.process(), &mut warnings)?;
        process.container = place.role.container();
        process.create_cwd = true;
        process.hooks = hooks::in_container(spec, place)?;
        let (root_tag, root_name) = place.role.root();
        let container = agent_protocol::Container {
            id: place.role.container(),
            root: Mount::new(Source::share(root_tag, root_name), "/"),
            hostname: hostname(spec, place.id),
            domainname: spec.domainname().clone().unwrap_or_default(),
            capabilities: process.capabilities.bounding,
            sysctls: linux::sysctls(linux),
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            mounts: mounts.mounts.clone(),
            files: Vec::new(),
            devices: linux::devices(linux, &mut warnings)?,
            cgroup: limits.cgroup,
            read_only,
            propagation: linux::root_propagation(linux)?,
            joined: namespaces.joined,
        };
        Ok(Self {
            class: limits.class,
            root,
            directories: mounts.directories(&process.cwd),
            volumes: mounts.volumes,
            container,
            process,
            role: place.role.clone(),
            warnings,
        })
    }
}

/// A further process, in a container that was made from `spec`. What it does not say is as it is
/// for the first one.
///
/// # Errors
///
/// The first property that cannot be done.
pub(crate) fn exec_process(
    process: &Process,
    spec: &Spec,
    id: ProcessId,
) -> Result<agent_protocol::Process, Refused> {
    process::further(process, spec, id, &mut Vec::new())
}

fn first_process(spec: &Spec) -> Result<&Process, Refused> {
    let process = spec.process().as_ref();
    process.ok_or(Refused::Missing {
        property: "process",
    })
}

/// The specification promises that all of one major version can be read by who knows one of them.
fn version(version: &str) -> Result<(), Refused> {
    match version.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(value("ociVersion", version, "hrun knows version 1")),
    }
}

/// The container's own name, if the engine does not say how its host is called.
fn hostname(spec: &Spec, id: &str) -> String {
    /// `HOST_NAME_MAX` of Linux.
    const LONGEST: usize = 64;
    match spec.hostname().as_deref() {
        None | Some("") => id.chars().take(LONGEST).filter(char::is_ascii).collect(),
        Some(name) => name.into(),
    }
}

/// A path as text, which is what the agent and the VMM take.
fn text<'a>(property: &str, path: &'a Path) -> Result<&'a str, Refused> {
    match path.to_str() {
        Some("") => Err(value(property, "", "it must not be empty")),
        Some(path) if path.contains('\0') => Err(value(property, path, "it has a zero byte")),
        Some(path) => Ok(path),
        None => Err(value(
            property,
            path.to_string_lossy(),
            "it is no valid UTF-8",
        )),
    }
}

#[cfg(test)]
mod tests;
