//! Containers that share namespaces, and those that are frozen and removed.

use std::time::{Duration, Instant};

use agent_protocol::*;

use crate::guest::{CONTAINER, Control, Guest, PATIENCE, shell};

const OTHER: ContainerId = ContainerId(2);

/// A guest with a container whose program waits.
fn waiting() -> (Guest, Control) {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    start(
        &guest,
        &mut control,
        shell(1, "echo shared > /dev/shm/first; exec sleep 1000 >&- 2>&-"),
    );
    (guest, control)
}

/// Starts a process that nobody listens to.
fn start(guest: &Guest, control: &mut Control, process: Process) {
    let id = process.id.0;
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(id, stream));
    control.ask(Action::Start(Box::new(process)));
}

/// Another container of the guest.
fn other(guest: &Guest, joined: &[Namespace]) -> Container {
    let mut spec = guest.container();
    spec.id = OTHER;
    spec.hostname = "otherbox".into();
    let join = |namespace: &Namespace| Joined {
        namespace: *namespace,
        container: CONTAINER,
    };
    spec.joined = joined.iter().map(join).collect();
    spec
}

fn in_other(id: u32, command: &str) -> Process {
    let mut process = shell(id, command);
    process.container = OTHER;
    process
}

const SHOW: &str =
    "for name in ipc uts pid mnt cgroup; do readlink /proc/self/ns/$name; done; hostname";

#[test]
fn a_container_has_the_namespaces_of_another_that_it_joins_and_no_others() {
    let (guest, mut control) = waiting();
    let first = guest.run(&mut control, shell(2, SHOW)).stdout;
    let mut spec = other(&guest, &[Namespace::Ipc, Namespace::Uts, Namespace::Pid]);
    let shm = Source::Joined {
        container: CONTAINER,
        path: "/dev/shm".into(),
    };
    spec.mounts.push(Mount::new(shm, "/dev/shm"));
    control.ask(Action::Create(Box::new(spec)));
    let command = format!("{SHOW}; cat /dev/shm/first; tr '\\0' ' ' </proc/1/cmdline");
    let output = guest.run(&mut control, in_other(3, &command));
    let (first, second): (Vec<_>, Vec<_>) =
        (first.lines().collect(), output.stdout.lines().collect());
    assert_eq!(first[..3], second[..3], "{}", output.stderr);
    assert_ne!(first[3], second[3]);
    assert_ne!(first[4], second[4]);
    assert_eq!(second[5..], ["testbox", "shared", "sleep 1000 "]);
}

#[test]
fn what_is_not_joined_is_the_containers_own() {
    let (guest, mut control) = waiting();
    let first = guest.run(&mut control, shell(2, SHOW)).stdout;
    control.ask(Action::Create(Box::new(other(&guest, &[Namespace::Uts]))));
    let command = format!("{SHOW}; ls /dev/shm");
    let second = guest.run(&mut control, in_other(3, &command)).stdout;
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    assert_ne!(first[0], second[0]);
    assert_eq!(first[1], second[1]);
    assert_ne!(first[2], second[2]);
    assert_eq!(second[5..], ["testbox"], "and nothing in /dev/shm");
}

#[test]
fn a_container_in_the_pid_namespace_of_another_ends_with_its_own_first_process() {
    let (guest, mut control) = waiting();
    control.ask(Action::Create(Box::new(other(&guest, &[Namespace::Pid]))));
    let command = "sleep 2000 >&- 2>&- <&- & echo started";
    let output = guest.run(&mut control, in_other(2, command));
    assert_eq!(output.stdout, "started\n");
    let count = "grep -lz '^2000' /proc/[0-9]*/cmdline | wc -l; kill -0 1 && echo lives";
    let deadline = Instant::now() + PATIENCE;
    for id in 3.. {
        let shown = guest.run(&mut control, shell(id, count)).stdout;
        if shown == "0\nlives\n" {
            break;
        }
        assert!(Instant::now() < deadline, "{shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_is_to_be_joined_must_be_there() {
    let guest = Guest::new();
    let mut control = guest.control();
    let create = Action::Create(Box::new(other(&guest, &[Namespace::Ipc])));
    let refused = control.try_ask(create).unwrap_err();
    assert_eq!(
        refused,
        (Failure::Invalid, "Container 1 is not there".into())
    );
    let mut spec = guest.container();
    let nowhere = Source::Joined {
        container: OTHER,
        path: "/dev/shm".into(),
    };
    spec.mounts.push(Mount::new(nowhere, "/dev/shm"));
    let refused = control.try_ask(Action::Create(Box::new(spec)));
    assert!(refused.unwrap_err().1.contains("Container 2"));
}

#[test]
fn a_container_is_removed_with_all_that_runs_in_it_and_others_are_not() {
    let (guest, mut control) = waiting();
    for (id, namespaces) in [(2, &[][..]), (4, &[Namespace::Pid])] {
        control.ask(Action::Create(Box::new(other(&guest, namespaces))));
        start(
            &guest,
            &mut control,
            in_other(id, "exec sleep 1000 >&- 2>&-"),
        );
        start(
            &guest,
            &mut control,
            in_other(id + 1, "exec sleep 1000 >&- 2>&-"),
        );
        control.ask(Action::Remove { container: OTHER });
        let mut ended = [control.any_exit(), control.any_exit()];
        ended.sort_by_key(|(id, _)| *id);
        let killed = ExitStatus::Signaled(9);
        assert_eq!(ended, [(id, killed), (id + 1, killed)]);
        // One that is gone has been removed.
        control.ask(Action::Remove { container: OTHER });
    }
    // One that runs nothing yet.
    control.ask(Action::Create(Box::new(other(&guest, &[]))));
    control.ask(Action::Remove { container: OTHER });
    control.ask(Action::Create(Box::new(other(&guest, &[]))));
    assert_eq!(
        guest.run(&mut control, shell(9, "echo here")).stdout,
        "here\n"
    );
}

#[test]
fn a_container_that_runs_gets_other_limits() {
    let (_guest, mut control) = waiting();
    let limit = |container, name: &str, value: &str| Action::Limit {
        container,
        files: vec![(name.into(), value.into())],
    };
    // A file that every cgroup has: this host may keep its controllers elsewhere.
    control.ask(limit(CONTAINER, "cgroup.max.depth", "7"));
    let no_file = control.try_ask(limit(CONTAINER, "pids.many", "7"));
    let (kind, message) = no_file.unwrap_err();
    assert_eq!(kind, Failure::System);
    assert!(message.contains("pids.many"), "{message}");
    let no_container = control.try_ask(limit(ContainerId(7), "pids.max", "7"));
    assert_eq!(no_container.unwrap_err().0, Failure::Invalid);
}

#[test]
fn a_frozen_container_stands_still_until_it_is_let_go_on() {
    let (guest, mut control) = waiting();
    let container = CONTAINER;
    control.ask(Action::Freeze {
        container,
        frozen: true,
    });
    control.signal(1, 15, false);
    std::thread::sleep(Duration::from_millis(100));
    control.ask(Action::Create(Box::new(other(&guest, &[]))));
    let others = guest.run(&mut control, in_other(2, "echo runs"));
    assert_eq!(others.stdout, "runs\n");
    control.ask(Action::Freeze {
        container,
        frozen: false,
    });
    // The shell's `exec sleep` is the first process: a signal that it has no handler for is lost.
    control.signal(1, 9, false);
    assert_eq!(control.exit(1), ExitStatus::Signaled(9));
    let gone = control.try_ask(Action::Freeze {
        container: ContainerId(7),
        frozen: true,
    });
    assert_eq!(gone.unwrap_err().0, Failure::Invalid);
}
