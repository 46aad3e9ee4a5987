//! `linux`: namespaces, devices, kernel parameters, and what of the host cannot be had in a guest.

use std::path::Path;

use agent_protocol::{ContainerId, Device, DeviceKind, Joined, Namespace, Propagation};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxResources, MemoryPolicyModeType,
};

use super::{
    mount_options,
    refused::{Refused, value},
    text,
};

/// Character devices that the guest's kernel has, and engines may ask for: name, major, minor
/// (devices.txt of the kernel).
const GUEST_DEVICES: [(&str, i64, i64); 10] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kmsg", 1, 11),
    ("tty", 5, 0),
    ("console", 5, 1),
    ("ptmx", 5, 2),
    ("fuse", 10, 229),
];

/// Those of them that the agent makes in every container, with this mode and for root.
const USUAL_DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const USUAL_MODE: u32 = 0o666;

/// Links and a terminal's place, which are in every container's `/dev` as well.
const USUAL_PLACES: [&str; 2] = ["/dev/ptmx", "/dev/console"];

/// The name of a device in the guest that has the numbers of one of the host.
pub(super) fn guest_device(major: i64, minor: i64) -> Option<&'static str> {
    let known = GUEST_DEVICES.iter();
    let mut found = known.filter(|known| (known.1, known.2) == (major, minor));
    found
        .next()
        .map(|known| known.0)
        .filter(|name| USUAL_DEVICES.contains(name))
}

/// Of a bundle that says nothing of it: oci-spec's default says much.
pub(super) fn empty() -> Linux {
    serde_json::from_value(serde_json::json!({})).unwrap_or_default()
}

/// What namespaces the container has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// Those of others of its VM.
    pub(super) joined: Vec<Joined>,
}

impl Namespaces {
    /// Whose namespace of this kind the container is to be in, if it is not to have its own.
    pub(super) fn joined(&self, namespace: Namespace) -> Option<ContainerId> {
        let mut joined = self.joined.iter();
        joined
            .find(|joined| joined.namespace == namespace)
            .map(|joined| joined.container)
    }
}

pub(super) fn namespaces(
    linux: &Linux,
    owner: &dyn Fn(&Path) -> Option<ContainerId>,
    warnings: &mut Vec<String>,
) -> Result<Namespaces, Refused> {
    let mut namespaces = Namespaces::default();
    let asked = linux.namespaces().iter().flatten();
    for (index, namespace) in asked.clone().enumerate() {
        let kind = namespace.typ();
        if kind == LinuxNamespaceType::User {
            continue;
        }
        let Some(path) = namespace.path() else {
            continue;
        };
        let shared = match kind {
            LinuxNamespaceType::Ipc => Some(Namespace::Ipc),
            LinuxNamespaceType::Uts => Some(Namespace::Uts),
            LinuxNamespaceType::Pid => Some(Namespace::Pid),
            _ => None,
        };
        match (owner(path), shared) {
            // The guest has one network, and others that nobody asks for make no difference.
            (_, None) if kind == LinuxNamespaceType::Network => {}
            (Some(container), Some(namespace)) => namespaces.joined.push(Joined {
                namespace,
                container,
            }),
            _ => {
                let property = format!("linux.namespaces[{index}].path");
                let reason = format!(
                    "a VM has a {kind} namespace of its own, which it shares with no container \
                     outside of it"
                );
                return Err(value(property, path.to_string_lossy(), reason));
            }
        }
    }
    user_namespace(linux)?;
    if linux.namespaces().is_some() {
        for (kind, what) in [
            (LinuxNamespaceType::Pid, "processes"),
            (LinuxNamespaceType::Ipc, "message queues and shared memory"),
            (LinuxNamespaceType::Network, "network"),
        ] {
            if !asked.clone().any(|namespace| namespace.typ() == kind) {
                warnings.push(format!(
                    "linux.namespaces: the {what} that the container shares are its VM's, not the \
                     host's"
                ));
            }
        }
    }
    Ok(namespaces)
}

/// The VM is what a user namespace is for, and shares keep their owners as they are. So identities
/// can be mapped to themselves only.
fn user_namespace(linux: &Linux) -> Result<(), Refused> {
    let namespaces = linux.namespaces().iter().flatten().enumerate();
    let mut users = namespaces.filter(|(_, found)| found.typ() == LinuxNamespaceType::User);
    for (name, mappings) in [
        ("linux.uidMappings", linux.uid_mappings()),
        ("linux.gidMappings", linux.gid_mappings()),
    ] {
        for (index, mapping) in mappings.iter().flatten().enumerate() {
            if mapping.container_id() != mapping.host_id() {
                let asked = format!(
                    "{} to {} of the host",
                    mapping.container_id(),
                    mapping.host_id()
                );
                let reason = "files are shared with their owners as they are";
                return Err(value(format!("{name}[{index}]"), asked, reason));
            }
        }
    }
    match users.next() {
        Some((index, namespace)) if namespace.path().is_some() => {
            let path = namespace.path().as_deref().unwrap_or(Path::new(""));
            Err(value(
                format!("linux.namespaces[{index}].path"),
                path.to_string_lossy(),
                "a guest's users are its own",
            ))
        }
        _ => Ok(()),
    }
}

/// What no guest can have, or needs not.
pub(super) fn refuse_what_cannot_be(
    linux: &Linux,
    warnings: &mut Vec<String>,
) -> Result<(), Refused> {
    if linux.intel_rdt().is_some() {
        let reason = "a guest has no part in the host's caches";
        return Err(value("linux.intelRdt", "intelRdt", reason));
    }
    if let Some(name) = linux
        .net_devices()
        .iter()
        .flat_map(|devices| devices.keys())
        .next()
    {
        let reason = "a network device of the host cannot be moved into a guest";
        return Err(value("linux.netDevices", name, reason));
    }
    let policy = linux.memory_policy().as_ref();
    if let Some(policy) = policy.filter(|policy| policy.mode() != MemoryPolicyModeType::MpolDefault)
    {
        let reason = "a guest has one memory node";
        return Err(value(
            "linux.memoryPolicy",
            policy.mode().to_string(),
            reason,
        ));
    }
    if linux
        .mount_label()
        .as_deref()
        .is_some_and(|label| !label.is_empty())
    {
        warnings.push("linux.mountLabel: the guest's kernel has no such module".into());
    }
    Ok(())
}

pub(super) fn sysctls(linux: &Linux) -> Vec<(String, String)> {
    let sysctls = linux.sysctl().iter().flatten();
    let mut sysctls: Vec<_> = sysctls
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    sysctls.sort();
    sysctls
}

/// How mounts in the root file system spread. Without a host to spread from and to, a slave is
/// private, and so is what nobody says anything about.
pub(super) fn root_propagation(linux: &Linux) -> Result<Option<Propagation>, Refused> {
    let Some(asked) = linux
        .rootfs_propagation()
        .as_deref()
        .filter(|asked| !asked.is_empty())
    else {
        return Ok(None);
    };
    let propagation = mount_options::propagation(asked).ok_or_else(|| {
        let reason = "known are shared, slave, private and unbindable, and these with an r";
        value("linux.rootfsPropagation", asked, reason)
    })?;
    Ok(Some(propagation).filter(mount_options::is_special))
}

/// The nodes that are to be made besides the usual ones.
pub(super) fn devices(linux: &Linux, warnings: &mut Vec<String>) -> Result<Vec<Device>, Refused> {
    let privileged = linux.resources().as_ref().is_some_and(is_privileged);
    let mut nodes = Vec::new();
    let mut left_out = 0;
    for (index, asked) in linux.devices().iter().flatten().enumerate() {
        let property = format!("linux.devices[{index}]");
        let path = text(&property, asked.path())?;
        if !asked.path().is_absolute() {
            return Err(value(property, path, "its path must be absolute"));
        }
        let Some(kind) = kind(asked) else {
            if privileged {
                left_out += 1;
                continue;
            }
            let numbers = format!(
                "{path} ({} {}:{})",
                asked.typ().as_str(),
                asked.major(),
                asked.minor()
            );
            return Err(value(property, numbers, "the guest has no such device"));
        };
        if is_usual(asked, path) {
            continue;
        }
        nodes.push(Device {
            path: path.into(),
            kind,
            mode: asked.file_mode().unwrap_or(USUAL_MODE) & 0o7777,
            uid: asked.uid().unwrap_or(0),
            gid: asked.gid().unwrap_or(0),
        });
    }
    if left_out > 0 {
        warnings.push(format!(
            "linux.devices: {left_out} devices of the host are left out, as the guest has no such"
        ));
    }
    Ok(nodes)
}

/// Whether the container may use every device there is: then it was not asked for each by name.
fn is_privileged(resources: &LinuxResources) -> bool {
    let last = resources.devices().iter().flatten().next_back();
    last.is_some_and(|rule| {
        rule.allow()
            && matches!(rule.typ(), None | Some(LinuxDeviceType::A))
            && [rule.major(), rule.minor()]
                .iter()
                .all(|number| number.is_none_or(|n| n < 0))
    })
}

/// What a device is in the guest, if it is anything there.
fn kind(asked: &LinuxDevice) -> Option<DeviceKind> {
    match asked.typ() {
        LinuxDeviceType::P => Some(DeviceKind::Fifo),
        LinuxDeviceType::C | LinuxDeviceType::U => {
            let numbers = (asked.major(), asked.minor());
            let mut known = GUEST_DEVICES.iter();
            known.find(|known| (known.1, known.2) == numbers)?;
            Some(DeviceKind::Character {
                major: u32::try_from(numbers.0).ok()?,
                minor: u32::try_from(numbers.1).ok()?,
            })
        }
        LinuxDeviceType::A | LinuxDeviceType::B => None,
    }
}

/// Whether it is there anyway.
fn is_usual(asked: &LinuxDevice, path: &str) -> bool {
    let is_plain = asked
        .file_mode()
        .is_none_or(|mode| mode & 0o7777 == USUAL_MODE)
        && asked.uid().unwrap_or(0) == 0
        && asked.gid().unwrap_or(0) == 0;
    let mut known = GUEST_DEVICES.iter();
    let name = known.find(|known| (known.1, known.2) == (asked.major(), asked.minor()));
    let at_home = name.is_some_and(|(name, ..)| {
        USUAL_DEVICES.contains(name) && path.strip_prefix("/dev/") == Some(name)
    });
    at_home && is_plain || USUAL_PLACES.contains(&path)
}
