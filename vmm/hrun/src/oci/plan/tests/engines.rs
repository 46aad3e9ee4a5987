//! What engines write for a container without any wishes: no mount more than there must be.

use agent_protocol::{Attributes, Mount, Source};
use serde_json::{Value, json};

use super::{least, plan};

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Value {
    let options: Vec<_> = options
        .split(',')
        .filter(|option| !option.is_empty())
        .collect();
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// `runc spec`
fn runc() -> Vec<Value> {
    vec![
        mount("/proc", "proc", "proc", ""),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k",
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid,noexec,nodev,mode=1777,size=65536k",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "nosuid,noexec,nodev,relatime,ro",
        ),
    ]
}

/// docker and containerd
fn docker() -> Vec<Value> {
    vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k",
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid,noexec,nodev,mode=1777,size=67108864",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "ro,nosuid,noexec,nodev",
        ),
        mount(
            "/run",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k",
        ),
    ]
}

/// podman, with files of the engine's in `dir`
fn podman(dir: &str) -> Vec<Value> {
    let file = |name: &str| format!("{dir}/{name}");
    vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,noexec,strictatime,mode=755,size=65536k",
        ),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/etc/hosts", "bind", &file("hosts"), "bind,rprivate"),
        mount(
            "/dev/shm",
            "bind",
            &file("shm"),
            "bind,rprivate,nosuid,noexec,nodev",
        ),
        mount("/run/.containerenv", "bind", &file("env"), "bind,rprivate"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "rprivate,nosuid,noexec,nodev,relatime,ro",
        ),
    ]
}

fn mounts(list: Vec<Value>) -> (Vec<Mount>, usize, Vec<String>) {
    let mut spec = least();
    spec["mounts"] = list.into();
    let plan = plan(&spec).unwrap();
    (plan.container.mounts, plan.volumes.len(), plan.warnings)
}

#[test]
fn what_runc_and_docker_write_is_there_already() {
    assert_eq!(mounts(runc()), (Vec::new(), 0, Vec::new()));
    let (found, volumes, warnings) = mounts(docker());
    assert_eq!((volumes, warnings), (0, Vec::new()));
    let targets: Vec<_> = found.iter().map(|mount| &*mount.target).collect();
    assert_eq!(targets, ["/run"]);
}

#[test]
fn podmans_files_are_mounted_and_its_shared_memory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["hosts", "env"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    std::fs::create_dir(dir.path().join("shm")).unwrap();
    let (found, volumes, warnings) = mounts(podman(dir.path().to_str().unwrap()));
    let targets: Vec<_> = found.iter().map(|mount| &*mount.target).collect();
    assert_eq!(targets[..1], ["/dev"], "{found:?}");
    assert_eq!(
        found[0].source,
        Source::Present {
            options: String::new()
        }
    );
    assert_eq!(found[0].attributes.set & 8, 8, "noexec");
    assert_eq!(targets[1..], ["/etc/hosts", "/run/.containerenv"]);
    assert_eq!(volumes, 2);
    assert!(
        found[1..]
            .iter()
            .all(|mount| mount.propagation.is_none() && mount.attributes == Attributes::NONE)
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("/dev/shm is the guest's own"),
        "{warnings:?}"
    );
}

#[test]
fn a_privileged_container_may_write_where_others_may_not() {
    let mut list = runc();
    list[5]["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    list[6]["options"] = json!(["nosuid", "noexec", "nodev"]);
    let (found, ..) = mounts(list);
    let targets: Vec<_> = found.iter().map(|mount| &*mount.target).collect();
    assert_eq!(targets, ["/sys", "/sys/fs/cgroup"]);
    assert!(found.iter().all(|mount| mount.attributes.clear & 1 == 1));
}
