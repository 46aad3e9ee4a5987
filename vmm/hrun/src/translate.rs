//! From a container to a VM: the one place where what was asked for becomes a VM configuration
//! and requests to the agent.

use std::path::{Component, Path, PathBuf};

use agent_protocol::{
    Action, Capabilities, Container, ContainerId, File, Growth, Lower, MemoryGrowth, Mount,
    Personality, ProcessId, Source, Stdio,
};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use vmm::{
    arch::layout::{AFTER_GAP, MMIO_GAP},
    config::{
        self, BootConfig, CollectionEntry, DiskConfig, Origin, ShareConfig, ShareSource,
        SharedFile, VmConfig, VsockConfig,
    },
};

use crate::{
    clock::Moment,
    container::{Config, WritableLayer},
    memory::{growth_for, guest_ram_for},
    options::{capability, env::EnvEdit},
    parts::Parts,
    rootfs::Rootfs,
    spec::{Process, RunOptions},
    template::Class,
    volumes::{ReadySource, ReadyVolume},
};

/// The first container of a VM, and so far the only one.
pub(crate) const CONTAINER: ContainerId = ContainerId(0);
/// Its first process.
pub(crate) const PROCESS: ProcessId = ProcessId(0);

/// Tag of the share that is the container's root file system.
pub(crate) const ROOT_TAG: &str = "rootfs";

/// What hrun puts into a container's root file system, or mounts over it there: no work of the
/// container's.
pub(crate) const RUNTIME_PATHS: [&str; 6] = [
    "/dev",
    "/proc",
    "/sys",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/machine-id",
];

/// Tag of the share that holds the volumes, each under its number.
const VOLUMES_TAG: &str = "volumes";

/// Of the tmpfs that takes a container's changes where the guest stacks its layers: half of the
/// guest's memory.
const UPPER_OPTIONS: &str = "size=50%";

/// Serial number of the disk that holds an image.
const IMAGE_DISK: &str = "image";

/// What the guest takes for the size of that disk, in bytes: more than an image has. It learns of
/// it before anybody knows which image it will be.
const IMAGE_DISK_CAPACITY: u64 = 1 << 42;

/// The least context identifier that is not reserved.
pub(crate) const FIRST_CID: u32 = 3;

/// A container whose parts are all there.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) name: &'a str,
    pub(crate) hostname: &'a str,
    /// Its machine-id(5): 32 hexadecimal digits.
    pub(crate) machine_id: &'a str,
    pub(crate) options: &'a RunOptions,
    pub(crate) process: &'a Process,
    /// The image's layers, topmost first.
    pub(crate) layers: &'a [PathBuf],
    /// The image as an EROFS file, if that is how it gets into the guest.
    pub(crate) disk: Option<&'a Path>,
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

/// The VM for a container. Whatever the container is, the VM has the same devices, so that a clone
/// of a template can be any container's.
pub(crate) fn vm_config(
    ready: &Ready<'_>,
    parts: &Parts,
    origin: Origin,
    cid: u32,
    places: &Places,
) -> VmConfig {
    let volumes = ready.volumes.iter().enumerate().map(|(index, volume)| {
        let path = match &volume.source {
            ReadySource::Directory(path) | ReadySource::File(path) => path.clone(),
        };
        CollectionEntry {
            name: index.to_string(),
            path,
            read_only: volume.read_only,
        }
    });
    let volumes = ShareConfig {
        source: ShareSource::Collection(volumes.collect()),
        // Others may change what is in them.
        exclusive: false,
        ..empty_share(VOLUMES_TAG)
    };
    VmConfig {
        name: ready.name.into(),
        console: places.console.clone(),
        symbols: places
            .profile
            .as_ref()
            .map(|_| parts.kernel.with_file_name("System.map")),
        profile: places.profile.clone(),
        shares: vec![root_share(ready), volumes],
        disks: vec![image_disk(ready.disk)],
        ..vm(ready.options.class(), origin, cid, places)
    }
}

/// The same VM as a clone of a template for VMs of class `from`, made bigger.
pub(crate) fn grown(config: VmConfig, from: Class, class: Class) -> VmConfig {
    let more = class.memory.saturating_sub(from.memory);
    let growth = if more == 0 { 0 } else { growth_for(more) };
    VmConfig {
        memory: template_ram(from) + growth,
        ..config
    }
}

/// What makes a clone of the template the VM that was asked for.
pub(crate) fn growth(from: Class, class: Class) -> Action {
    let memory = MemoryGrowth {
        total: class.memory,
        start: AFTER_GAP,
    };
    Action::Grow(Growth {
        cpus: class.cpus.into(),
        memory: (class.memory > from.memory).then_some(memory),
    })
}

/// RAM of a template and of its clones.
fn template_ram(class: Class) -> u64 {
    guest_ram_for(class.memory, class.max_cpus())
}

/// Whether clones of templates of this class can have more memory.
pub(crate) fn has_room_to_grow(class: Class) -> bool {
    template_ram(class) <= MMIO_GAP
}

/// What of the root file system is shared by virtio-fs.
fn root_share(ready: &Ready<'_>) -> ShareConfig {
    let share = ShareConfig {
        // Nobody but this VM changes what it shows.
        exclusive: true,
        ..empty_share(ROOT_TAG)
    };
    match ready.options.rootfs {
        Rootfs::Host => ShareConfig {
            source: ShareSource::Overlay {
                lower: ready.layers.to_vec(),
                upper: Some(ready.writable.upper.clone()),
                work: Some(ready.writable.work.clone()),
            },
            // Also with --read-only: mount points have to be made, so it is the guest that closes
            // it.
            read_only: false,
            files: files(ready),
            directories: mount_points(ready),
            ..share
        },
        Rootfs::GuestOverFs => ShareConfig {
            source: ShareSource::Overlay {
                lower: ready.layers.to_vec(),
                upper: None,
                work: None,
            },
            read_only: true,
            ..share
        },
        Rootfs::GuestOverBlock => share,
    }
}

/// The disk that every VM has, with an image or empty.
fn image_disk(path: Option<&Path>) -> DiskConfig {
    DiskConfig {
        id: IMAGE_DISK.into(),
        path: path.map(Path::to_owned),
        read_only: true,
        capacity: Some(IMAGE_DISK_CAPACITY),
    }
}

/// The VM of which a template is made: nobody's as yet.
pub(crate) fn template_config(class: Class, parts: &Parts, places: &Places) -> VmConfig {
    let exclusive = |tag| ShareConfig {
        exclusive: true,
        ..empty_share(tag)
    };
    VmConfig {
        name: "template".into(),
        shares: vec![exclusive(ROOT_TAG), empty_share(VOLUMES_TAG)],
        disks: vec![image_disk(None)],
        max_vcpus: Some(class.max_cpus()),
        memory: template_ram(class),
        ..vm(class, boot(parts), FIRST_CID, places)
    }
}

/// How a VM boots from these parts.
pub(crate) fn boot(parts: &Parts) -> Origin {
    Origin::Boot(BootConfig {
        kernel: parts.kernel.clone(),
        initramfs: Some(parts.initramfs.clone()),
        cmdline: String::new(),
    })
}

fn vm(class: Class, origin: Origin, cid: u32, places: &Places) -> VmConfig {
    VmConfig {
        version: config::VERSION,
        name: String::new(),
        vcpus: class.cpus,
        max_vcpus: None,
        memory: match origin {
            Origin::Boot(_) => guest_ram_for(class.memory, class.cpus),
            Origin::Restore(_) => template_ram(class),
        },
        origin,
        control: places.control.clone(),
        vsock: Some(VsockConfig {
            cid,
            socket: places.vsock.clone(),
        }),
        shares: Vec::new(),
        disks: Vec::new(),
        console: None,
        start_paused: false,
        profile: None,
        symbols: None,
        snapshot: None,
    }
}

fn empty_share(tag: &str) -> ShareConfig {
    ShareConfig {
        tag: tag.into(),
        source: ShareSource::Collection(Vec::new()),
        read_only: false,
        exclusive: false,
        files: Vec::new(),
        directories: Vec::new(),
    }
}

/// A context identifier that no other VM of this host is likely to have: of the 2^31 that are
/// plain addresses, one at random.
///
/// # Errors
///
/// The kernel gives no random numbers.
pub(crate) fn random_cid() -> Result<u32, Errno> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok((u32::from_ne_bytes(bytes) >> 1).max(FIRST_CID))
}

/// A further process in a container that runs.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [EnvEdit],
    /// Instead of the container's.
    pub(crate) user: Option<&'a str>,
    /// Instead of the container's.
    pub(crate) cwd: Option<&'a str>,
    /// With all that the container may do, whatever was taken from its first process.
    pub(crate) privileged: bool,
    pub(crate) stdio: Stdio,
}

/// A number for a further process of a VM: with 2^32 of them, nobody else's.
///
/// # Errors
///
/// The kernel gives no random numbers.
pub(crate) fn random_process() -> Result<ProcessId, Errno> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(ProcessId(u32::from_ne_bytes(bytes).max(PROCESS.0 + 1)))
}

/// What the agent has to do for a further process.
pub(crate) fn exec_action(
    id: ProcessId,
    config: &Config,
    hostname: &str,
    exec: &Exec<'_>,
) -> Action {
    let options = &config.options;
    let tty = matches!(exec.stdio, Stdio::Terminal(_));
    let (capabilities, seccomp) = if exec.privileged {
        (capability::ALL, Vec::new())
    } else {
        (options.capabilities, options.seccomp.clone())
    };
    Action::Start(Box::new(agent_protocol::Process {
        id,
        container: CONTAINER,
        args: exec.args.to_vec(),
        env: config.process.environment_of_exec(hostname, tty, exec.env),
        cwd: exec.cwd.unwrap_or(&config.process.cwd).into(),
        create_cwd: false,
        user: exec.user.unwrap_or(&config.process.user).into(),
        additional_groups: options.groups.clone(),
        rlimits: options.rlimits.clone(),
        capabilities: Capabilities::of(capabilities),
        no_new_privileges: options.no_new_privileges && !exec.privileged,
        seccomp,
        umask: None,
        oom_score_adj: options.oom_score_adj,
        stdio: exec.stdio,
    }))
}

/// What the agent has to do, in this order, until the container's process runs. Made right before
/// it is sent: it carries the time.
pub(crate) fn start_actions(
    ready: &Ready<'_>,
    stdio: Stdio,
    moment: Moment,
) -> Result<Vec<Action>, Errno> {
    Ok(vec![
        Action::Personalize(personality(moment)?),
        Action::Create(Box::new(container(ready))),
        Action::Start(Box::new(process(ready, stdio))),
    ])
}

fn personality(moment: Moment) -> Result<Personality, Errno> {
    let mut entropy = [0; 32];
    getrandom(&mut entropy, GetRandomFlags::empty())?;
    Ok(Personality {
        realtime_ns: moment.realtime_ns,
        monotonic_ns: moment.monotonic_ns,
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
                tag: VOLUMES_TAG.into(),
                path: index.to_string(),
            },
            target: volume.target.clone(),
            read_only: volume.read_only,
        });
    Container {
        id: CONTAINER,
        root: Mount {
            source: root_source(ready.options.rootfs),
            target: "/".into(),
            read_only: false,
        },
        hostname: ready.hostname.into(),
        domainname: ready.options.domainname.clone(),
        capabilities: ready.options.capabilities,
        sysctls: ready.options.sysctls.clone(),
        // The kernel behind /proc belongs to the container alone: nothing in it is to be hidden.
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        mounts: mounts.collect(),
        files: match ready.options.rootfs {
            // The VMM has put them in place, which costs the guest nothing.
            Rootfs::Host => Vec::new(),
            Rootfs::GuestOverFs | Rootfs::GuestOverBlock => guest_files(ready),
        },
        read_only: ready.options.read_only,
    }
}

/// What the agent makes the root file system of.
fn root_source(rootfs: Rootfs) -> Source {
    let tag = ROOT_TAG.to_owned();
    let lower = match rootfs {
        Rootfs::Host => {
            let path = String::new();
            return Source::Share { tag, path };
        }
        Rootfs::GuestOverFs => Lower::Share { tag },
        Rootfs::GuestOverBlock => Lower::Disk { number: 0 },
    };
    Source::Overlay {
        lower,
        upper: UPPER_OPTIONS.into(),
    }
}

/// [`files`], for the agent to write.
fn guest_files(ready: &Ready<'_>) -> Vec<File> {
    let file = |file: SharedFile| File {
        path: file.path.to_string_lossy().into_owned(),
        content: file.content.into_bytes(),
        mode: file.mode,
    };
    files(ready).into_iter().map(file).collect()
}

/// The files by which a container knows who it is, unless the user mounts his own. There is no
/// `/etc/resolv.conf` among them: without a network there is nobody to ask.
fn files(ready: &Ready<'_>) -> Vec<SharedFile> {
    let hostname = ready.hostname;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.1.1\t{hostname}\n"
    );
    [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts),
        ("/etc/machine-id", format!("{}\n", ready.machine_id)),
    ]
    .into_iter()
    .filter(|(path, _)| !is_covered(ready, path))
    .map(|(path, content)| SharedFile {
        path: path.into(),
        content,
        mode: 0o644,
    })
    .collect()
}

/// The directories that the agent needs in the root file system, unless a volume brings them:
/// made on the host, where it costs microseconds.
fn mount_points(ready: &Ready<'_>) -> Vec<PathBuf> {
    let volumes = ready
        .volumes
        .iter()
        .filter(|volume| matches!(volume.source, ReadySource::Directory(_)))
        .map(|volume| volume.target.as_str());
    ["/dev", "/proc", "/sys", ready.process.cwd.as_str()]
        .into_iter()
        .chain(volumes)
        .filter(|path| !is_covered(ready, Path::new(path).parent().unwrap_or(Path::new("/"))))
        .filter(|path| {
            !Path::new(path)
                .components()
                .any(|part| part == Component::ParentDir)
        })
        .map(PathBuf::from)
        .collect()
}

/// Whether a volume hides this path.
fn is_covered(ready: &Ready<'_>, path: impl AsRef<Path>) -> bool {
    let mut volumes = ready.volumes.iter();
    volumes.any(|volume| covers(&volume.target, path.as_ref()))
}

/// Whether something mounted on `target` hides `path`.
fn covers(target: &str, path: &Path) -> bool {
    path.starts_with(target)
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
        additional_groups: ready.options.groups.clone(),
        rlimits: ready.options.rlimits.clone(),
        capabilities: Capabilities::of(ready.options.capabilities),
        no_new_privileges: ready.options.no_new_privileges,
        seccomp: ready.options.seccomp.clone(),
        umask: None,
        oom_score_adj: ready.options.oom_score_adj,
        stdio,
    }
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
                machine_id: "0123456789abcdef0123456789abcdef",
                options: &self.options,
                process: &self.process,
                layers: &self.layers,
                disk: None,
                writable: &self.writable,
                volumes: &self.volumes,
            }
        }
    }

    fn vm(fixture: &Fixture) -> VmConfig {
        vm_config(&fixture.ready(), &parts(), boot(&parts()), 77, &places())
    }

    fn parts() -> Parts {
        Parts {
            vmm: "/bin/hrun-vmm".into(),
            kernel: "/guest/vmlinux".into(),
            initramfs: "/guest/initramfs.cpio".into(),
        }
    }

    fn places() -> Places {
        Places {
            control: "/run/control".into(),
            vsock: "/run/vsock".into(),
            console: None,
            profile: None,
        }
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
        let ShareSource::Collection(volumes) = &config.shares[1].source else {
            panic!("{config:?}");
        };
        assert!(volumes[0].read_only);
    }

    #[test]
    fn what_is_put_into_a_container_is_told_from_its_work() {
        let fixture = fixture(Vec::new());
        let ready = fixture.ready();
        let files = files(&ready).into_iter().map(|file| file.path);
        for path in mount_points(&ready).into_iter().chain(files) {
            let is_known = RUNTIME_PATHS.iter().any(|known| Path::new(known) == path);
            assert!(
                is_known || path == Path::new(&ready.process.cwd),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_template_has_the_devices_of_every_container() {
        let class = Class {
            cpus: 2,
            memory: 256 << 20,
        };
        let template = template_config(class, &parts(), &places());
        template.validate().unwrap();
        let source = ReadySource::Directory("/srv".into());
        for volumes in [vec![], vec![volume(source, "/data", true)]] {
            let (fixture, origin) = (fixture(volumes), Origin::Restore("/t".into()));
            let config = vm_config(&fixture.ready(), &parts(), origin, 77, &places());
            assert_eq!(
                (config.vcpus, config.memory),
                (template.vcpus, template.memory)
            );
            let shares = |config: &VmConfig| -> Vec<_> {
                let shares = config.shares.iter();
                shares.map(|s| (s.tag.clone(), s.exclusive)).collect()
            };
            assert_eq!(shares(&config), shares(&template));
            let disks = |config: &VmConfig| -> Vec<_> {
                let disks = config.disks.iter();
                disks
                    .map(|d| (d.id.clone(), d.read_only, d.capacity))
                    .collect()
            };
            assert_eq!(disks(&config), disks(&template));
        }
    }

    #[test]
    fn a_clone_that_grows_has_the_memory_of_its_template_and_some_more() {
        let class = |cpus, mib: u64| Class {
            cpus,
            memory: mib << 20,
        };
        let small = class(1, 256);
        let template = template_config(small, &parts(), &places());
        assert_eq!(template.max_vcpus, Some(4));
        for (wanted, more) in [(class(2, 1024), 768), (class(2, 256), 0)] {
            let config = grown(vm(&fixture(vec![])), small, wanted);
            config.validate().unwrap();
            let added = config.memory - template.memory;
            assert!((more << 20..(more << 20) + (32 << 20)).contains(&added));
            let Action::Grow(growth) = growth(small, wanted) else {
                panic!("it is what makes a VM grow");
            };
            assert_eq!(growth.cpus, 2);
            let total = growth.memory.map(|memory| memory.total);
            assert_eq!(total, (more > 0).then_some(1 << 30));
        }
    }

    #[test]
    fn a_guest_that_stacks_its_layers_has_what_that_takes_and_nothing_to_write_to_below() {
        for (rootfs, lower) in [(Rootfs::GuestOverFs, 2), (Rootfs::GuestOverBlock, 0)] {
            let mut fixture = fixture(vec![]);
            fixture.options.rootfs = rootfs;
            let disk = Path::new("/store/erofs/id");
            let ready = Ready {
                disk: rootfs.needs_disk().then_some(disk),
                ..fixture.ready()
            };
            let config = vm_config(&ready, &parts(), boot(&parts()), 77, &places());
            config.validate().unwrap();
            let layers = match &config.shares[0].source {
                ShareSource::Overlay { lower, upper, .. } => {
                    assert!(upper.is_none() && config.shares[0].read_only);
                    lower.len()
                }
                _ => 0,
            };
            assert_eq!(layers, lower);
            assert!(config.shares[0].files.is_empty(), "the agent writes them");
            assert_eq!(config.disks[0].path.is_some(), lower == 0);
            let container = container(&ready);
            assert!(matches!(container.root.source, Source::Overlay { .. }));
            let files: Vec<_> = container.files.iter().map(|f| f.path.as_str()).collect();
            assert_eq!(files, ["/etc/hostname", "/etc/hosts", "/etc/machine-id"]);
        }
    }

    #[test]
    fn every_mount_has_the_share_it_names() {
        let fixture = fixture(vec![
            volume(ReadySource::Directory("/srv".into()), "/data", true),
            volume(
                ReadySource::File("/etc/x.conf".into()),
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
            let mut shares = config.shares.iter();
            let share = shares.find(|share| share.tag == *tag).unwrap();
            if let ShareSource::Collection(entries) = &share.source {
                let entry = entries.iter().find(|entry| entry.name == *path).unwrap();
                assert_eq!(entry.read_only, mount.read_only);
            }
        }
        assert_eq!(container.mounts.len(), 2);
    }

    #[test]
    fn mount_points_are_made_unless_they_would_be_in_a_volume() {
        let source = ReadySource::Directory("/srv".into());
        let points = |volumes| mount_points(&fixture(volumes).ready());
        let usual = ["/dev", "/proc", "/sys", "/"].map(PathBuf::from);
        assert_eq!(points(vec![]), usual);
        let data = points(vec![volume(source.clone(), "/data", true)]);
        assert_eq!(data.last().unwrap(), Path::new("/data"));
        let nested = vec![
            volume(source.clone(), "/data", true),
            volume(source, "/data/b", true),
        ];
        assert_eq!(points(nested).last().unwrap(), Path::new("/data"));
    }

    #[test]
    fn a_volume_in_the_place_of_our_files_wins() {
        let named = |volumes| {
            let fixture = fixture(volumes);
            let files = files(&fixture.ready());
            let path = |file: SharedFile| file.path.display().to_string();
            files.into_iter().map(path).collect::<Vec<_>>()
        };
        let id = "/etc/machine-id";
        assert_eq!(named(vec![]), ["/etc/hostname", "/etc/hosts", id]);
        let source = ReadySource::Directory("/srv".into());
        let hosts = volume(source.clone(), "/etc/hosts", true);
        assert_eq!(named(vec![hosts]), ["/etc/hostname", id]);
        assert!(named(vec![volume(source, "/etc", true)]).is_empty());
    }

    #[test]
    fn the_clock_and_entropy_come_before_the_workload() {
        let fixture = fixture(vec![]);
        let stdio = Stdio::Pipes { stdin: false };
        let actions = start_actions(&fixture.ready(), stdio, Moment::now(7)).unwrap();
        let [
            Action::Personalize(a),
            Action::Create(_),
            Action::Start(start),
        ] = &actions[..]
        else {
            panic!("{actions:?}");
        };
        assert_ne!(a.entropy, [0; 32]);
        assert_eq!(a.monotonic_ns, 7);
        assert_ne!(personality(Moment::now(7)).unwrap().entropy, a.entropy);
        assert_eq!(start.args, ["sh"]);
    }
}
