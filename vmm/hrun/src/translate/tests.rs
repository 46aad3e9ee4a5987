use agent_protocol::{Action, Source, Stdio};
use vmm::config::SharedFile;

use super::{
    actions::{container, personality},
    root::{files, mount_points},
    *,
};
use crate::{clock::Moment, rootfs::Rootfs};

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
            let read_only = mount.recursive == agent_protocol::Attributes::READ_ONLY;
            assert_eq!(entry.read_only, read_only);
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
