//! What a container finds.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use agent_protocol::*;

use crate::guest::{Guest, share, shell, tree};

fn create(guest: &Guest, change: impl FnOnce(&mut Container)) -> Result<(), (Failure, String)> {
    let mut container = guest.container();
    change(&mut container);
    guest.control().try_ask(Action::Create(Box::new(container)))
}

/// Creates the changed container and runs a command in it.
fn sh(guest: &Guest, change: impl FnOnce(&mut Container), command: &str) -> String {
    create(guest, change).unwrap();
    let output = guest.run(&mut guest.control(), shell(1, command));
    assert_eq!(output.stderr, "");
    assert_eq!(output.status, ExitStatus::Exited(0));
    output.stdout
}

#[test]
fn the_first_process_is_number_one_and_alone() {
    let guest = Guest::new();
    let output = guest.sh("echo $$; hostname; ls -d /proc/[0-9]*; cat /proc/self/cgroup | grep ^0");
    assert_eq!(output.stderr, "");
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[..3], ["1", "testbox", "/proc/1"]);
    assert_eq!(lines.last(), Some(&"0::/"));
}

#[test]
fn the_usual_mounts_are_there() {
    let guest = Guest::new();
    let mounts = guest.sh("cat /proc/self/mounts").stdout;
    let found: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|fields| (fields[1], fields[2], &fields[3][..2]))
        .collect();
    let expected = [
        ("/proc", "proc", "rw"),
        ("/sys", "sysfs", "ro"),
        ("/sys/fs/cgroup", "cgroup2", "ro"),
        ("/dev", "tmpfs", "rw"),
        ("/dev/pts", "devpts", "rw"),
        ("/dev/shm", "tmpfs", "rw"),
        ("/dev/mqueue", "mqueue", "rw"),
    ];
    for mount in expected {
        assert!(found.contains(&mount), "{mount:?} in {mounts}");
    }
    // The root, /usr and these: nothing of the agent's.
    assert_eq!(found.len(), expected.len() + 2, "{mounts}");
}

#[test]
fn the_usual_devices_are_there() {
    let guest = Guest::new();
    let output = guest.sh(
        "stat -c '%n %F %a %t %T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
         head -c 3 /dev/zero | wc -c; echo x > /dev/null; echo err > /dev/stderr
         echo out > /dev/stdout; readlink /dev/fd /dev/ptmx; test -w /dev/shm -a -k /dev/shm; echo $?",
    );
    assert_eq!(
        output.stdout,
        "/dev/null character special file 666 1 3\n\
         /dev/zero character special file 666 1 5\n\
         /dev/full character special file 666 1 7\n\
         /dev/random character special file 666 1 8\n\
         /dev/urandom character special file 666 1 9\n\
         /dev/tty character special file 666 5 0\n\
         3\nout\n/proc/self/fd\npts/ptmx\n0\n"
    );
    assert_eq!(output.stderr, "err\n");
}

#[test]
fn a_link_in_the_image_leads_no_mount_out_of_the_container() {
    let guest = Guest::new();
    let outside = guest.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink("/", guest.root("dev")).unwrap();
    symlink("../../../../../..", guest.root("sys")).unwrap();
    symlink(&outside, guest.root("volume")).unwrap();
    symlink("../../../../../../../../escape", guest.root("file")).unwrap();
    let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
    // Over its root with them: whether the container can live like this is its own business.
    let _ = create(&guest, |container| {
        let tmpfs = Source::tmpfs("size=64k");
        container.mounts.push(Mount::new(tmpfs, "/volume/x"));
        container.files.push(File {
            path: "/file".into(),
            content: b"x".to_vec(),
            mode: 0o644,
        });
    });
    let after = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!(before, after);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/escape").exists());
}

#[test]
fn volumes_keep_owners_modes_and_directions() {
    let guest = Guest::new();
    let volume = guest.dir.path().join("volume");
    std::fs::create_dir_all(volume.join("deep/er")).unwrap();
    std::fs::write(volume.join("deep/er/single"), "one file\n").unwrap();
    symlink("/etc/shadow", volume.join("trap")).unwrap();
    let tag = volume.to_str().unwrap().to_owned();
    let part = |path: &str, target: &str, read_only| {
        let mount = Mount::new(Source::share(tag.clone(), path), target);
        if read_only { mount.read_only() } else { mount }
    };
    let output = sh(
        &guest,
        |container| {
            container.mounts.extend([
                share(&volume, "/data"),
                part("deep/er", "/a/new/place", true),
                part("deep/er/single", "/etc/single", false),
            ]);
        },
        "echo from guest > /data/file; chmod 640 /data/file; chown 12:34 /data/file
         cat /etc/single /a/new/place/single; (echo x > /a/new/place/y) 2>/dev/null || echo refused",
    );
    assert_eq!(output, "one file\none file\nrefused\n");
    let metadata = std::fs::metadata(volume.join("file")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    // A link in a share leads nowhere but into the share.
    let mut container = guest.container();
    container.id = ContainerId(2);
    container.mounts.push(part("trap", "/x", false));
    let failed = guest.control().try_ask(Action::Create(Box::new(container)));
    assert!(
        failed
            .unwrap_err()
            .1
            .contains("Failed to open trap of share")
    );
}

#[test]
fn files_and_tmpfs_are_as_asked_for() {
    let guest = Guest::new();
    let output = sh(
        &guest,
        |container| {
            container.files.push(File {
                path: "/etc/hosts".into(),
                content: b"127.0.0.1 testbox\n".to_vec(),
                mode: 0o666,
            });
            let tmpfs = Source::tmpfs("size=1m,mode=1770");
            container.mounts.push(Mount::new(tmpfs, "/scratch"));
        },
        "cat /etc/hosts; stat -c %a /etc/hosts /scratch; stat -f -c '%T %b' /scratch; umask",
    );
    assert_eq!(output, "127.0.0.1 testbox\n666\n1770\ntmpfs 256\n0022\n");
}

#[test]
fn a_read_only_root_still_has_its_mounts() {
    let guest = Guest::new();
    let output = sh(
        &guest,
        |container| container.read_only = true,
        "(echo x > /file) 2>/dev/null || echo refused; echo x > /dev/shm/file && echo taken",
    );
    assert_eq!(output, "refused\ntaken\n");
    assert!(guest.root("proc").is_dir());
}

#[test]
fn a_root_may_lie_deep_in_a_share_that_volumes_use_too() {
    let guest = Guest::new();
    std::fs::create_dir(guest.dir.path().join("volume")).unwrap();
    let tag = guest.dir.path().to_str().unwrap();
    let part = |path: &str, target: &str| Mount::new(Source::share(tag, path), target);
    let output = sh(
        &guest,
        |container| {
            container.root = part("root", "/");
            container.mounts.push(part("volume", "/mnt"));
        },
        "pwd; echo /*; touch /mnt/file",
    );
    assert_eq!(
        output,
        "/\n/bin /dev /etc /lib /lib64 /mnt /proc /sbin /sys /tmp /usr\n"
    );
    assert!(guest.dir.path().join("volume/file").exists());
}

#[test]
fn a_container_that_fails_leaves_nothing_behind() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut container = guest.container();
    container
        .mounts
        .push(share("/does/not/exist".as_ref(), "/x"));
    let (kind, message) = control
        .try_ask(Action::Create(Box::new(container)))
        .unwrap_err();
    assert_eq!(kind, Failure::System);
    assert_eq!(
        message,
        "Failed to set up container 1: Failed to mount share /does/not/exist: \
         No such file or directory (os error 2)"
    );
    let mut container = guest.container();
    container.hostname = "x".repeat(65);
    let failed = control.try_ask(Action::Create(Box::new(container)));
    assert_eq!(failed.unwrap_err().0, Failure::Invalid);
    // Under the same number, as the failed ones do not exist.
    control.ask(Action::Create(Box::new(guest.container())));
    let again = control.try_ask(Action::Create(Box::new(guest.container())));
    assert_eq!(again.unwrap_err().0, Failure::Invalid);
    let output = guest.run(&mut control, shell(1, "echo alive"));
    assert_eq!(output.stdout, "alive\n");
}

#[test]
fn containers_are_apart() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut second = guest.container();
    second.id = ContainerId(2);
    second.hostname = "other".into();
    control.ask(Action::Create(Box::new(second)));
    let mut process = shell(2, "echo $$; hostname; ls /dev/shm");
    process.container = ContainerId(2);
    let first = guest.run(&mut control, shell(1, "touch /dev/shm/mine; hostname"));
    assert_eq!(first.stdout, "testbox\n");
    assert_eq!(guest.run(&mut control, process).stdout, "1\nother\n");
}

/// A container on a share that was mounted for it before it was known.
#[test]
fn a_prepared_root_serves_one_container_after_the_other() {
    let guest = Guest::new();
    let mut control = guest.control();
    let root = guest.root("").display().to_string();
    for round in 0..3 {
        control.ask(Action::Prepare { root: root.clone() });
        let mut container = guest.container();
        let tag = tree("/usr");
        container.mounts = ["", "bin/env"]
            .map(|path| {
                let source = Source::share(tag.clone(), path);
                Mount::new(source, format!("/usr/{path}")).read_only()
            })
            .into();
        control.ask(Action::Create(Box::new(container)));
        let script = "hostname; cat /round; ls -d /proc/1 /sys/class /dev/null /dev/.shares; \
            grep -c -e kept -e shares /proc/mounts; grep -c /usr/bin/env /proc/mounts";
        let mut process = shell(round, script);
        process.container = guest.container().id;
        std::fs::write(guest.root("round"), format!("{round}\n")).unwrap();
        let output = guest.run(&mut control, process);
        assert_eq!(
            output.stdout,
            format!("testbox\n{round}\n/dev/null\n/proc/1\n/sys/class\n0\n1\n")
        );
    }
}

#[test]
fn a_prepared_root_is_no_obstacle_to_another() {
    let guest = Guest::new();
    let mut control = guest.control();
    let prepared = guest.root("elsewhere");
    std::fs::create_dir(&prepared).unwrap();
    control.ask(Action::Prepare {
        root: prepared.display().to_string(),
    });
    control.ask(Action::Create(Box::new(guest.container())));
    let output = guest.run(&mut control, shell(1, "hostname"));
    assert_eq!(output.stdout, "testbox\n");
    let failed = control.try_ask(Action::Prepare {
        root: "/does/not/exist".into(),
    });
    assert_eq!(failed.unwrap_err().0, Failure::System);
}

#[test]
fn a_vm_grows_before_its_first_container_and_not_after() {
    let guest = Guest::new();
    let mut control = guest.control();
    let growth = |cpus| {
        Action::Grow(Growth {
            cpus,
            memory: Some(MemoryGrowth {
                total: 1 << 30,
                start: 1 << 32,
            }),
        })
    };
    let refused = control.try_ask(growth(5)).unwrap_err();
    assert_eq!(refused.0, Failure::System);
    assert!(refused.1.contains("no such CPU"), "{}", refused.1);
    let id = control.send(growth(2));
    let grown: Event = control.next();
    assert_eq!(
        grown,
        Event::Grown {
            request: id,
            cpus: 2,
            memory_total: 1 << 30
        }
    );
    control.ask(Action::Create(Box::new(guest.container())));
    let refused = control.try_ask(growth(3)).unwrap_err();
    assert_eq!(refused.0, Failure::Invalid);
}
