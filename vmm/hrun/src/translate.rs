//! From a container to a VM: the one place where what was asked for becomes a VM configuration
//! and requests to the agent.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use agent_protocol::{
    Action, Container, ContainerId, File, Mount, Personality, ProcessId, Source, Stdio,
};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use vmm::config::{self, BootConfig, ShareConfig, ShareSource, VmConfig, VsockConfig};

use crate::{
    container::WritableLayer,
    memory::guest_ram_for,
    parts::Parts,
    spec::{Process, RunOptions},
    volumes::{ReadySource, ReadyVolume},
};

/// The first container of a VM, and so far the only one.
pub(crate) const CONTAINER: ContainerId = ContainerId(0);
/// Its first process.
pub(crate) const PROCESS: ProcessId = ProcessId(0);

/// Tag of the share that is the container's root file system.
const ROOT_TAG: &str = "rootfs";

/// The guest's context identifier. It lives behind a Unix socket of its own VMM, so every VM may
/// have the same: the least one that is not reserved.
const GUEST_CID: u32 = 3;

/// A container whose parts are all there.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) name: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) options: &'a RunOptions,
    pub(crate) process: &'a Process,
    /// The image's layers, topmost first.
    pub(crate) layers: &'a [PathBuf],
    pub(crate) writable: &'a WritableLayer,
    pub(crate) volumes: &'a [ReadyVolume],
}

/// Where the VM's sockets and files are to be.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) control: PathBuf,
    pub(crate) vsock: PathBuf,
    /// For the guest's boot log.
    pub(crate) console: Option<PathBuf>,
    /// For a profile of the guest.
    pub(crate) profile: Option<PathBuf>,
}

/// The VM for a container.
pub(crate) fn vm_config(ready: &Ready<'_>, parts: &Parts, places: &Places) -> VmConfig {
    let root = ShareConfig {
        tag: ROOT_TAG.into(),
        source: ShareSource::Overlay {
            lower: ready.layers.to_vec(),
            upper: Some(ready.writable.upper.clone()),
            work: Some(ready.writable.work.clone()),
        },
        // Also with --read-only: mount points have to be made, so it is the guest that closes it.
        read_only: false,
    };
    let volumes = ready.volumes.iter().enumerate().map(|(index, volume)| {
        let source = match &volume.source {
            ReadySource::Directory(path) => ShareSource::Directory(path.clone()),
            ReadySource::File { path, name } => ShareSource::File {
                path: path.clone(),
                name: name.clone(),
            },
        };
        ShareConfig {
            tag: volume_tag(index),
            source,
            read_only: volume.read_only,
        }
    });
    VmConfig {
        version: config::VERSION,
        name: ready.name.into(),
        vcpus: ready.options.cpus,
        memory: guest_ram_for(ready.options.memory, ready.options.cpus),
        boot: BootConfig {
            kernel: parts.kernel.clone(),
            initramfs: Some(parts.initramfs.clone()),
            cmdline: String::new(),
        },
        control: places.control.clone(),
        vsock: Some(VsockConfig {
            cid: GUEST_CID,
            socket: places.vsock.clone(),
        }),
        shares: std::iter::once(root).chain(volumes).collect(),
        console: places.console.clone(),
        start_paused: false,
        profile: places.profile.clone(),
    }
}

/// What the agent has to do, in this order, until the container's process runs. Made right before
/// it is sent: it carries the time.
pub(crate) fn start_actions(ready: &Ready<'_>, stdio: Stdio) -> Result<Vec<Action>, Errno> {
    Ok(vec![
        Action::Personalize(personality()?),
        Action::Create(Box::new(container(ready))),
        Action::Start(Box::new(process(ready, stdio))),
    ])
}

fn personality() -> Result<Personality, Errno> {
    let mut entropy = [0; 32];
    getrandom(&mut entropy, GetRandomFlags::empty())?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Personality {
        realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy,
    })
}

fn container(ready: &Ready<'_>) -> Container {
    let mounts = ready
        .volumes
        .iter()
        .enumerate()
        .map(|(index, volume)| Mount {
            source: Source::Share {
                tag: volume_tag(index),
                path: match &volume.source {
                    ReadySource::Directory(_) => String::new(),
                    ReadySource::File { name, .. } => name.clone(),
                },
            },
            target: volume.target.clone(),
            read_only: volume.read_only,
        });
    Container {
        id: CONTAINER,
        root: Mount {
            source: Source::Share {
                tag: ROOT_TAG.into(),
                path: String::new(),
            },
            target: "/".into(),
            read_only: false,
        },
        hostname: ready.hostname.into(),
        mounts: mounts.collect(),
        files: files(ready),
        read_only: ready.options.read_only,
    }
}

/// The files by which a container knows its own name, unless the user mounts his own. There is no
/// `/etc/resolv.conf` among them: without a network there is nobody to ask.
fn files(ready: &Ready<'_>) -> Vec<File> {
    let hostname = ready.hostname;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.1.1\t{hostname}\n"
    );
    [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts),
    ]
    .into_iter()
    .filter(|(path, _)| {
        !ready
            .volumes
            .iter()
            .any(|volume| covers(&volume.target, path))
    })
    .map(|(path, content)| File {
        path: path.into(),
        content: content.into_bytes(),
        mode: 0o644,
    })
    .collect()
}

/// Whether something mounted on `target` hides `path`.
fn covers(target: &str, path: &str) -> bool {
    Path::new(path).starts_with(target)
}

fn process(ready: &Ready<'_>, stdio: Stdio) -> agent_protocol::Process {
    agent_protocol::Process {
        id: PROCESS,
        container: CONTAINER,
        args: ready.process.args.clone(),
        env: ready.process.environment(ready.hostname),
        cwd: ready.process.cwd.clone(),
        create_cwd: true,
        user: ready.process.user.clone(),
        additional_groups: Vec::new(),
        rlimits: ready.options.rlimits.clone(),
        stdio,
    }
}

fn volume_tag(index: usize) -> String {
    format!("volume{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        options: RunOptions,
        process: Process,
        layers: Vec<PathBuf>,
        writable: WritableLayer,
        volumes: Vec<ReadyVolume>,
    }

    fn fixture(volumes: Vec<ReadyVolume>) -> Fixture {
        let options = RunOptions {
            image: "busybox".into(),
            command: vec!["sh".into()],
            memory: 256 << 20,
            cpus: 2,
            ..RunOptions::default()
        };
        Fixture {
            process: Process::resolve(&options, None).unwrap(),
            options,
            layers: vec!["/store/layers/b".into(), "/store/layers/a".into()],
            writable: WritableLayer {
                upper: "/store/c/upper".into(),
                work: "/store/c/work".into(),
            },
            volumes,
        }
    }

    impl Fixture {
        fn ready(&self) -> Ready<'_> {
            Ready {
                name: "brisk_otter",
                hostname: "box",
                options: &self.options,
                process: &self.process,
                layers: &self.layers,
                writable: &self.writable,
                volumes: &self.volumes,
            }
        }
    }

    fn vm(fixture: &Fixture) -> VmConfig {
        let parts = Parts {
            vmm: "/bin/hrun-vmm".into(),
            kernel: "/guest/vmlinux".into(),
            initramfs: "/guest/initramfs.cpio".into(),
        };
        let places = Places {
            control: "/run/control".into(),
            vsock: "/run/vsock".into(),
            console: None,
            profile: None,
        };
        vm_config(&fixture.ready(), &parts, &places)
    }

    fn volume(source: ReadySource, target: &str, read_only: bool) -> ReadyVolume {
        ReadyVolume {
            source,
            target: target.into(),
            read_only,
        }
    }

    #[test]
    fn the_vm_configuration_is_a_valid_one() {
        let fixture = fixture(vec![volume(
            ReadySource::Directory("/srv".into()),
            "/data",
            true,
        )]);
        let config = vm(&fixture);
        config.validate().unwrap();
        assert_eq!(config.vcpus, 2);
        assert!(config.memory > 256 << 20);
        assert!(config.shares[1].read_only);
    }

    #[test]
    fn every_mount_has_the_share_it_names() {
        let fixture = fixture(vec![
            volume(ReadySource::Directory("/srv".into()), "/data", true),
            volume(
                ReadySource::File {
                    path: "/etc/x.conf".into(),
                    name: "x.conf".into(),
                },
                "/etc/y.conf",
                false,
            ),
        ]);
        let config = vm(&fixture);
        let container = container(&fixture.ready());
        for mount in container.mounts.iter().chain([&container.root]) {
            let Source::Share { tag, path } = &mount.source else {
                panic!("{mount:?} is no share");
            };
            let share = config
                .shares
                .iter()
                .find(|share| share.tag == *tag)
                .unwrap();
            assert_eq!(share.read_only, mount.read_only);
            if let ShareSource::File { name, .. } = &share.source {
                assert_eq!(name, path);
            }
        }
        assert_eq!(container.mounts.len(), 2);
    }

    #[test]
    fn a_volume_in_the_place_of_our_files_wins() {
        let named = |volumes| {
            let fixture = fixture(volumes);
            let files = files(&fixture.ready());
            files.into_iter().map(|file| file.path).collect::<Vec<_>>()
        };
        assert_eq!(named(vec![]), ["/etc/hostname", "/etc/hosts"]);
        let source = ReadySource::Directory("/srv".into());
        let hosts = volume(source.clone(), "/etc/hosts", true);
        assert_eq!(named(vec![hosts]), ["/etc/hostname"]);
        assert!(named(vec![volume(source, "/etc", true)]).is_empty());
    }

    #[test]
    fn the_clock_and_entropy_come_before_the_workload() {
        let fixture = fixture(vec![]);
        let stdio = Stdio::Pipes { stdin: false };
        let actions = start_actions(&fixture.ready(), stdio).unwrap();
        let [
            Action::Personalize(a),
            Action::Create(_),
            Action::Start(start),
        ] = &actions[..]
        else {
            panic!("{actions:?}");
        };
        assert_ne!(a.entropy, [0; 32]);
        assert_ne!(personality().unwrap().entropy, a.entropy);
        assert_eq!(start.args, ["sh"]);
    }
}
