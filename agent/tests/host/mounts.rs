//! Mounts of every kind, and devices: what the OCI runtime specification can ask for.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use agent_protocol::*;

use crate::guest::{Guest, Output, share, shell};

/// `MOUNT_ATTR_*` of linux/mount.h.
const NOSUID: u64 = 2;
const NOEXEC: u64 = 8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;

/// mount(2)
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

fn create(
    guest: &Guest,
    change: impl FnOnce(&mut Container),
) -> Result<Control<'_>, (Failure, String)> {
    let mut container = guest.container();
    change(&mut container);
    let mut control = guest.control();
    control.try_ask(Action::Create(Box::new(container)))?;
    Ok(Control { guest, control })
}

struct Control<'a> {
    guest: &'a Guest,
    control: crate::guest::Control,
}

impl Control<'_> {
    fn sh(&mut self, command: &str) -> Output {
        self.guest.run(&mut self.control, shell(1, command))
    }
}

/// Adds these mounts and runs a command that must succeed silently.
fn sh(guest: &Guest, mounts: Vec<Mount>, command: &str) -> String {
    let mut control = create(guest, |container| container.mounts.extend(mounts)).unwrap();
    let output = control.sh(command);
    assert_eq!(output.stderr, "");
    output.stdout
}

fn refused(guest: &Guest, mount: Mount) -> String {
    match create(guest, |container| container.mounts.push(mount)) {
        Ok(_) => panic!("the mount was made"),
        Err((_, message)) => message,
    }
}

fn new(kind: &str, options: &str) -> Source {
    Source::FileSystem {
        kind: kind.into(),
        name: "source".into(),
        options: options.into(),
        copy_up: false,
    }
}

fn present(target: &str, options: &str, attributes: Attributes) -> Mount {
    let options = options.into();
    Mount {
        attributes,
        ..Mount::new(Source::Present { options }, target)
    }
}

/// Options and type of the topmost mount on a path, as the container sees them.
fn options(target: &str) -> String {
    format!("grep ' {target} ' /proc/self/mountinfo | tail -n 1 | cut -d ' ' -f 6-")
}

#[test]
fn bind_mounts_have_the_attributes_that_were_asked_for() {
    let guest = Guest::new();
    let dir = guest.dir.path().join("volume");
    std::fs::create_dir(&dir).unwrap();
    let mount = Mount {
        attributes: Attributes {
            set: NOSUID | NOEXEC | NOATIME,
            clear: ATIME,
        },
        ..share(&dir, "/data")
    };
    let found = sh(&guest, vec![mount], &options("/data"));
    assert!(found.starts_with("rw,nosuid,noexec,noatime"), "{found}");
}

#[test]
fn mounts_spread_as_asked_for() {
    let guest = Guest::new();
    let spread = |target: &str, kind, recursive| Mount {
        propagation: Some(Propagation { kind, recursive }),
        ..Mount::new(Source::tmpfs("size=64k"), target)
    };
    let mounts = vec![
        spread("/shared", MS_SHARED, true),
        spread("/slave", MS_SLAVE, false),
        spread("/unbindable", MS_UNBINDABLE, false),
    ];
    let script = ["/shared", "/slave", "/unbindable", "/usr"].map(options);
    let found = sh(&guest, mounts, &script.join("; "));
    let lines: Vec<_> = found.lines().collect();
    assert!(lines[0].contains(" shared:"), "{found}");
    // A slave of nobody is private.
    assert!(!lines[1].contains("shared") && !lines[1].contains("master"));
    assert!(lines[2].contains(" unbindable "), "{found}");
    assert!(!lines[3].contains("shared:"), "{found}");
}

#[test]
fn a_root_may_be_shared_once_it_is_the_root() {
    let guest = Guest::new();
    let mut control = create(&guest, |container| {
        container.propagation = Some(Propagation {
            kind: MS_SHARED,
            recursive: false,
        });
    })
    .unwrap();
    let output = control.sh(&options("/"));
    assert!(output.stdout.contains(" shared:"), "{}", output.stdout);
}

#[test]
fn every_file_system_of_the_kernel_can_be_mounted() {
    let guest = Guest::new();
    let kinds = ["proc", "sysfs", "mqueue", "devpts", "cgroup2", "tmpfs"];
    let mounts = kinds.map(|kind| Mount::new(new(kind, ""), format!("/new/{kind}")));
    let script = kinds.map(|kind| format!("stat -f -c %T /new/{kind}"));
    let found = sh(&guest, mounts.into(), &script.join(";"));
    let names: Vec<_> = found.lines().collect();
    assert_eq!(names[0], "proc");
    assert_eq!(names[1], "sysfs");
    assert_eq!(names[3], "devpts");
    assert_eq!(names[4], "cgroup2fs");
    assert_eq!(names[5], "tmpfs");
    let unknown = refused(&guest, Mount::new(new("nofs", ""), "/x"));
    assert!(unknown.contains("Failed to mount nofs"), "{unknown}");
    let wrong = refused(&guest, Mount::new(new("tmpfs", "size=many"), "/x"));
    assert!(wrong.contains("Failed to mount tmpfs"), "{wrong}");
}

#[test]
fn a_tmpfs_has_its_options_and_looks_like_what_it_hides() {
    let guest = Guest::new();
    let hidden = guest.root("hidden");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::set_permissions(&hidden, PermissionsExt::from_mode(0o1750)).unwrap();
    let mounts = vec![
        Mount::new(new("tmpfs", "size=1m,nr_inodes=10"), "/hidden"),
        Mount {
            attributes: Attributes {
                set: NOSUID | 1,
                clear: 0,
            },
            ..Mount::new(new("tmpfs", "mode=700,uid=5,gid=6"), "/other")
        },
    ];
    let found = sh(
        &guest,
        mounts,
        &format!(
            "stat -c '%a %u:%g' /hidden /other; stat -f -c '%b %c' /hidden; touch /other/x 2>&1
             {}",
            options("/other")
        ),
    );
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines[..3], ["1750 0:0", "700 5:6", "256 10"]);
    assert!(lines[3].contains("Read-only file system"), "{found}");
    assert!(lines[4].starts_with("ro,nosuid"), "{found}");
}

#[test]
fn a_tmpfs_may_begin_with_what_it_hides() {
    let guest = Guest::new();
    let root = guest.root("data");
    std::fs::create_dir_all(root.join("dir/deep")).unwrap();
    std::fs::write(root.join("dir/file"), "content\n").unwrap();
    std::os::unix::fs::chown(root.join("dir/file"), Some(7), Some(8)).unwrap();
    std::fs::set_permissions(root.join("dir/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    symlink("/etc/shadow", root.join("trap")).unwrap();
    symlink("/", root.join("dir/deep/root")).unwrap();
    let mount = Mount {
        attributes: Attributes::READ_ONLY,
        ..Mount::new(
            Source::FileSystem {
                kind: "tmpfs".into(),
                name: "tmpfs".into(),
                options: "size=1m".into(),
                copy_up: true,
            },
            "/data",
        )
    };
    let found = sh(
        &guest,
        vec![mount],
        "cd /data; cat dir/file; stat -c '%a %u:%g' dir/file; readlink trap dir/deep/root
         stat -f -c %T .; touch x 2>/dev/null || echo refused",
    );
    assert_eq!(found, "content\n4751 7:8\n/etc/shadow\n/\ntmpfs\nrefused\n");
    assert!(!guest.root("data/x").exists());
}

#[test]
fn the_usual_mounts_can_be_changed() {
    let guest = Guest::new();
    let writable = Attributes { set: 0, clear: 1 };
    let mounts = vec![
        present("/dev/shm", "size=1m", Attributes::NONE),
        present("/sys/fs/cgroup", "", writable),
        present("/proc", "hidepid=2", Attributes::READ_ONLY),
    ];
    let script = format!(
        "stat -f -c %b /dev/shm; {}; {}; wc -l </proc/self/mounts",
        options("/sys/fs/cgroup"),
        options("/proc")
    );
    let found = sh(&guest, mounts, &script);
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines[0], "256");
    assert!(lines[1].starts_with("rw,"), "{found}");
    assert!(lines[2].starts_with("ro,nosuid,nodev,noexec"), "{found}");
    assert!(lines[2].contains("hidepid=invisible"), "{found}");
    // No mount more than there always are.
    assert_eq!(lines[3], "9");
    let missing = refused(&guest, present("/no/such", "", writable));
    assert!(missing.contains("/no/such"), "{missing}");
    let none = refused(&guest, present("/etc", "", writable));
    assert!(
        none.contains("Failed to change the mount on /etc"),
        "{none}"
    );
}

#[test]
fn what_the_container_has_can_be_in_two_places() {
    let guest = Guest::new();
    let path = "/dev/null".into();
    let mount = Mount::new(Source::Container { path }, "/etc/nothing");
    let found = sh(
        &guest,
        vec![mount],
        "stat -c %F /etc/nothing; echo x >/etc/nothing",
    );
    assert_eq!(found, "character special file\n");
    let path = "/no/such".into();
    let missing = refused(&guest, Mount::new(Source::Container { path }, "/x"));
    assert!(missing.contains("/no/such"), "{missing}");
}

/// As runc has it: links lead volumes anywhere in the root, but not into /proc, and /proc and /sys
/// themselves are not mounted through links.
#[test]
fn links_lead_no_mount_into_proc() {
    let guest = Guest::new();
    symlink("/etc", guest.root("link")).unwrap();
    symlink("/proc/sys", guest.root("sysctl")).unwrap();
    symlink("/proc", guest.root("procs")).unwrap();
    let dir = guest.dir.path().join("volume");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mark"), "").unwrap();
    assert_eq!(sh(&guest, vec![share(&dir, "/link")], "ls /etc"), "mark\n");
    for mount in [
        share(&dir, "/sysctl"),
        share(&dir, "/procs/self"),
        Mount::new(Source::tmpfs(""), "/sysctl"),
    ] {
        let target = mount.target.clone();
        let error = refused(&guest, mount);
        assert!(
            error.contains(&format!("{target} is a place in /proc")),
            "{error}"
        );
    }
    for target in ["/link/proc", "/procs"] {
        let error = refused(&guest, Mount::new(new("proc", ""), target));
        assert!(error.contains(target), "{error}");
    }
}

fn node(path: &str, kind: DeviceKind) -> Device {
    Device {
        path: path.into(),
        kind,
        mode: 0o666,
        uid: 0,
        gid: 0,
    }
}

#[test]
fn device_nodes_are_made_with_their_modes_and_owners() {
    let guest = Guest::new();
    let null = DeviceKind::Character { major: 1, minor: 3 };
    let mut control = create(&guest, |container| {
        container.devices = vec![
            Device {
                mode: 0o1620,
                uid: 3,
                gid: 4,
                ..node("/dev/deep/null", null)
            },
            Device {
                mode: 0o600,
                ..node("/dev/zero", null)
            },
            node("/pipes/fifo", DeviceKind::Fifo),
        ];
    })
    .unwrap();
    let output = control.sh("stat -c '%F %a %u:%g %t:%T' /dev/deep/null /dev/zero /pipes/fifo");
    assert_eq!(
        output.stdout,
        "character special file 1620 3:4 1:3\n\
         character special file 600 0:0 1:3\n\
         fifo 666 0:0 0:0\n"
    );
}

#[test]
fn a_device_that_the_kernel_does_not_have_is_refused() {
    let guest = Guest::new();
    for (kind, numbers) in [
        (
            DeviceKind::Character {
                major: 4000,
                minor: 1,
            },
            "4000:1",
        ),
        (
            DeviceKind::Block {
                major: 4000,
                minor: 2,
            },
            "4000:2",
        ),
    ] {
        let error = match create(&guest, |container| {
            container.devices = vec![node("/dev/odd", kind)];
        }) {
            Ok(_) => panic!("{numbers} was made"),
            Err((_, message)) => message,
        };
        assert!(
            error.contains(&format!("no device {numbers} for /dev/odd")),
            "{error}"
        );
    }
}

/// A node is made in the root, whatever the image has in the way, and replaces only what is there.
#[test]
fn links_in_the_place_of_devices_lead_nowhere_else() {
    let guest = Guest::new();
    let outside = guest.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "kept").unwrap();
    symlink(outside.join("file"), guest.root("direct")).unwrap();
    symlink("../../../../../../..", guest.root("up")).unwrap();
    create(&guest, |container| {
        container.devices = vec![
            node("/direct", DeviceKind::Fifo),
            node("/up/made", DeviceKind::Fifo),
        ];
    })
    .unwrap();
    assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"kept");
    assert!(std::fs::symlink_metadata(guest.root("made")).is_ok());
    let made = std::fs::symlink_metadata(guest.root("direct")).unwrap();
    assert_eq!(made.mode() & 0o170_000, 0o010_000);
}

/// A `/dev` that is a link: all that is asked for there lands where the link leads in the root.
#[test]
fn a_dev_that_is_a_link_keeps_everything_inside() {
    let guest = Guest::new();
    std::fs::create_dir(guest.root("elsewhere")).unwrap();
    symlink("elsewhere", guest.root("dev")).unwrap();
    let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut control = create(&guest, |container| {
        container
            .mounts
            .push(present("/dev/shm", "size=1m", Attributes::NONE));
        container.devices = vec![node("/dev/fifo", DeviceKind::Fifo)];
        container.masked_paths = vec!["/dev/full".into()];
    })
    .unwrap();
    let output = control.sh("stat -f -c %b /elsewhere/shm; stat -c %F /elsewhere/fifo
        echo x >/elsewhere/full && echo masked");
    assert_eq!(output.stdout, "256\nfifo\nmasked\n", "{}", output.stderr);
    assert_eq!(
        std::fs::read_to_string("/proc/self/mounts").unwrap(),
        before
    );
}
