//! Files out of a container that runs and into it, without anything of its image.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;

use agent_protocol::*;

use crate::guest::{Control, Guest, shell, text};

/// A container whose first process waits for the end of its input, which is given.
fn started(guest: &Guest, control: &mut Control, spec: Container) -> [UnixStream; 3] {
    control.ask(Action::Create(Box::new(spec)));
    let mut first = shell(1, "cat");
    first.stdio = Stdio::Pipes { stdin: true };
    let streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| guest.stream(1, s));
    control.ask(Action::Start(Box::new(first)));
    streams
}

fn transfer(id: u32, archiving: Archiving) -> Action {
    Action::Transfer(Box::new(Transfer {
        id: ProcessId(id),
        container: ContainerId(1),
        archiving,
    }))
}

struct Done {
    stdout: Vec<u8>,
    stderr: String,
    status: ExitStatus,
}

fn pack(guest: &Guest, control: &mut Control, id: u32, path: &str) -> Done {
    let mut stdout = guest.stream(id, Stream::Stdout);
    let mut stderr = guest.stream(id, Stream::Stderr);
    let path = path.into();
    let follow = false;
    control.ask(transfer(id, Archiving::Pack { path, follow }));
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    Done {
        stdout: bytes,
        stderr: text(&mut stderr),
        status: control.exit(id),
    }
}

fn unpack(
    guest: &Guest,
    control: &mut Control,
    id: u32,
    (path, name): (&str, Option<&str>),
    bytes: &[u8],
) -> Done {
    let mut stdin = guest.stream(id, Stream::Stdin);
    let mut stdout = guest.stream(id, Stream::Stdout);
    let mut stderr = guest.stream(id, Stream::Stderr);
    let what = Archiving::Unpack {
        path: path.into(),
        name: name.map(Into::into),
        keep_owner: false,
    };
    control.ask(transfer(id, what));
    // It may be done before it has read everything.
    let _ = stdin.write_all(bytes);
    let _ = stdin.shutdown(Shutdown::Write);
    Done {
        stdout: text(&mut stdout).into(),
        stderr: text(&mut stderr),
        status: control.exit(id),
    }
}

#[test]
fn files_come_out_and_go_in_by_mounts_of_the_container() {
    let guest = Guest::new();
    std::fs::write(guest.root("tmp/file"), "of the root").unwrap();
    std::fs::write(guest.root("etc/passwd"), "the container's").unwrap();
    symlink("/etc/passwd", guest.root("tmp/link")).unwrap();
    let mut control = guest.control();
    let mut spec = guest.container();
    let tmpfs = Mount::new(Source::tmpfs("size=1m"), "/memory");
    spec.mounts.push(tmpfs);
    let _streams = started(&guest, &mut control, spec);
    let out = pack(&guest, &mut control, 2, "/tmp/.");
    assert_eq!(out.status, ExitStatus::Exited(0), "{}", out.stderr);
    let into = ("/memory", Some(""));
    let done = unpack(&guest, &mut control, 3, into, &out.stdout);
    assert_eq!(done.status, ExitStatus::Exited(0), "{}", done.stderr);
    assert!(done.stdout.is_empty());
    let mut look = shell(
        4,
        "cat /memory/file; readlink /memory/link; stat -c %u /memory/file",
    );
    look.container = crate::guest::CONTAINER;
    let seen = guest.run(&mut control, look);
    assert_eq!(seen.stdout, "of the root/etc/passwd\n0\n");
    // The tmpfs is the container's alone.
    assert!(!guest.root("memory/file").exists());
    let again = pack(&guest, &mut control, 5, "/memory");
    assert_eq!(again.status, ExitStatus::Exited(0), "{}", again.stderr);
    let done = unpack(&guest, &mut control, 6, ("/tmp", None), &again.stdout);
    assert_eq!(done.status, ExitStatus::Exited(0), "{}", done.stderr);
    let copied = guest.root("tmp/memory/file").metadata().unwrap();
    assert_eq!((copied.size(), copied.uid()), (11, 0));
}

#[test]
fn what_goes_wrong_is_told_and_the_agent_serves_on() {
    let guest = Guest::new();
    std::fs::write(guest.root("tmp/file"), "x").unwrap();
    let mut control = guest.control();
    let mut spec = guest.container();
    spec.read_only = true;
    let _streams = started(&guest, &mut control, spec);
    let missing = pack(&guest, &mut control, 2, "/none");
    assert_eq!(missing.status, ExitStatus::Exited(1));
    assert_eq!(missing.stderr, "Could not find the file /none\n");
    let out = pack(&guest, &mut control, 3, "/tmp/file");
    let cases: [(&str, &[u8], &str); 4] = [
        ("/tmp/new", &out.stdout, "Read-only file system"),
        (
            "/none/new",
            &out.stdout,
            "Could not find the file /none/new",
        ),
        ("/tmp/new", &out.stdout[..600], "unexpected end of file"),
        ("/tmp/new", &[b'x'; 4096], "is not valid"),
    ];
    for (id, (path, bytes, message)) in (4..).zip(cases) {
        let name = Some("file");
        let done = unpack(&guest, &mut control, id, (path, name), bytes);
        assert_eq!(done.status, ExitStatus::Exited(1), "{path}");
        assert!(done.stderr.contains(message), "{path}: {}", done.stderr);
    }
    // Whoever reads no more ends it.
    let action = transfer(
        20,
        Archiving::Pack {
            path: b"/usr".to_vec(),
            follow: false,
        },
    );
    let stdout = guest.stream(20, Stream::Stdout);
    let _stderr = guest.stream(20, Stream::Stderr);
    control.ask(action);
    drop(stdout);
    assert_ne!(control.exit(20), ExitStatus::Exited(0));
    assert_eq!(guest.run(&mut control, shell(21, "echo on")).stdout, "on\n");
}

#[test]
fn links_of_the_container_lead_nowhere_else() {
    let guest = Guest::new();
    let secret = guest.dir.path().join("secret");
    std::fs::write(&secret, "the guest's").unwrap();
    let mut up = "../".repeat(20);
    up.push_str(secret.to_str().unwrap().trim_start_matches('/'));
    symlink(secret.parent().unwrap(), guest.root("absolute")).unwrap();
    symlink(&up, guest.root("relative")).unwrap();
    symlink("/proc/self/exe", guest.root("agent")).unwrap();
    let mut control = guest.control();
    let _streams = started(&guest, &mut control, guest.container());
    for (id, path) in (2..).zip([
        "/absolute/secret",
        "/relative/",
        "/agent/",
        "/proc/self/fd/0/",
    ]) {
        let out = pack(&guest, &mut control, id, path);
        assert_eq!(out.status, ExitStatus::Exited(1), "{path}");
        assert!(out.stdout.is_empty(), "{path}");
    }
    // Put where a link leads, in the container.
    let passwd = pack(&guest, &mut control, 9, "/usr/bin/env");
    let into = ("/absolute/x", Some("env"));
    let done = unpack(&guest, &mut control, 10, into, &passwd.stdout);
    assert!(done.stderr.contains("Could not find"), "{}", done.stderr);
    assert!(!guest.dir.path().join("x").exists());
}

#[test]
fn a_container_that_was_not_started_has_none() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(2, stream));
    let action = transfer(
        2,
        Archiving::Pack {
            path: b"/".to_vec(),
            follow: false,
        },
    );
    let refused = control.try_ask(action);
    assert!(refused.unwrap_err().1.contains("not been started"));
}
