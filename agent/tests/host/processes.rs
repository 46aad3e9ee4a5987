//! How processes start, what they are, and how they end.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use std::sync::atomic::{AtomicU32, Ordering};

use agent_protocol::*;

use crate::guest::{Control, Guest, shell};

fn created(guest: &Guest) -> Control {
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    control
}

/// What becomes of starting these arguments.
fn start(guest: &Guest, args: &[&str]) -> (Failure, String) {
    static COUNT: AtomicU32 = AtomicU32::new(100);
    let id = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut control = guest.control();
    let mut container = guest.container();
    container.id = ContainerId(id);
    control.ask(Action::Create(Box::new(container)));
    let mut process = shell(id, "");
    process.container = ContainerId(id);
    process.args = args.iter().map(|arg| String::from(*arg)).collect();
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(id, stream));
    control
        .try_ask(Action::Start(Box::new(process)))
        .unwrap_err()
}

#[test]
fn output_and_status_come_back() {
    let guest = Guest::new();
    let output = guest.sh("echo out; echo err >&2; exit 7");
    assert_eq!(output.stdout, "out\n");
    assert_eq!(output.stderr, "err\n");
    assert_eq!(output.status, ExitStatus::Exited(7));
}

#[test]
fn a_program_that_cannot_be_executed_is_told_apart() {
    let guest = Guest::new();
    let file = |name: &str, content: &str, mode| {
        std::fs::write(guest.root(name), content).unwrap();
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(guest.root(name), permissions).unwrap();
    };
    file("tmp/plain", "x", 0o644);
    file("tmp/garbage", "\x7fELFgarbage", 0o755);
    file("tmp/orphan", "#!/no/such/interpreter\n", 0o755);
    let cases: [(&[&str], Failure, &str); 8] = [
        (
            &["nothing-of-that-name"],
            Failure::NotFound,
            "exec: \"nothing-of-that-name\": executable file not found in $PATH",
        ),
        (
            &["/nowhere"],
            Failure::NotFound,
            "exec: \"/nowhere\": no such file or directory",
        ),
        (&["/tmp/orphan"], Failure::NotFound, "interpreter"),
        (&["/tmp"], Failure::NotExecutable, "Permission denied"),
        (&["/tmp/plain"], Failure::NotExecutable, "Permission denied"),
        (
            &["/tmp/garbage"],
            Failure::NotExecutable,
            "Exec format error",
        ),
        (&[""], Failure::NotFound, "not found"),
        (&[], Failure::Invalid, "No program"),
    ];
    for (args, kind, message) in cases {
        let failed = start(&guest, args);
        assert_eq!(failed.0, kind, "{args:?}: {}", failed.1);
        assert!(failed.1.contains(message), "{args:?}: {}", failed.1);
    }
}

#[test]
fn the_path_of_the_environment_decides() {
    let guest = Guest::new();
    std::fs::create_dir(guest.root("opt")).unwrap();
    for (name, mode) in [("tmp/tool", 0o644), ("opt/tool", 0o755)] {
        std::fs::write(guest.root(name), "#!/bin/sh\necho $0 $1\n").unwrap();
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(guest.root(name), permissions).unwrap();
    }
    let mut control = created(&guest);
    let mut process = shell(1, "");
    process.env = vec!["PATH=/none:/tmp:/opt".into()];
    process.args = vec!["tool".into(), "word".into()];
    let output = guest.run(&mut control, process);
    assert_eq!(output.stdout, "/opt/tool word\n");
}

#[test]
fn users_come_from_the_containers_own_files() {
    let guest = Guest::new();
    std::fs::write(
        guest.root("etc/passwd"),
        "app:x:1000:1001::/home/app:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(guest.root("etc/group"), "app:x:1001:\nextra:x:50:app\n").unwrap();
    let mut control = created(&guest);
    let mut process = shell(1, "sleep 100");
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.ask(Action::Start(Box::new(process.clone())));
    let mut run = |id, user: &str| {
        process = shell(id, "id -u; id -g; id -G; echo $HOME; echo x > /dev/stdout");
        process.user = user.into();
        guest.run(&mut control, process.clone()).stdout
    };
    assert_eq!(run(2, "app"), "1000\n1001\n1001 50\n/home/app\nx\n");
    assert_eq!(run(3, "1000:50"), "1000\n50\n50\n/home/app\nx\n");
    assert_eq!(run(4, "4242"), "4242\n0\n0\n/\nx\n");
    assert_eq!(run(5, ""), "0\n0\n0\n/\nx\n");
    let mut process = shell(6, "");
    process.user = "nobody".into();
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(6, stream));
    let (kind, message) = control
        .try_ask(Action::Start(Box::new(process)))
        .unwrap_err();
    assert_eq!(kind, Failure::Invalid);
    assert_eq!(
        message,
        "unable to find user nobody: no matching entries in passwd file"
    );
}

#[test]
fn hostile_user_files_hold_nobody_up() {
    let guest = Guest::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        guest.root("etc/passwd"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let (kind, message) = start(&guest, &["true"]);
    assert_eq!(kind, Failure::System);
    assert!(message.contains("no regular file"), "{message}");
    std::fs::remove_file(guest.root("etc/passwd")).unwrap();
    symlink("/proc/self/fd/0", guest.root("etc/passwd")).unwrap();
    let _ = start(&guest, &["/nowhere"]);
}

#[test]
fn the_working_directory_is_made_if_asked_for() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let mut process = shell(1, "pwd; umask");
    process.cwd = "/a/b/c".into();
    process.create_cwd = true;
    let output = guest.run(&mut control, process);
    assert_eq!(output.stdout, "/a/b/c\n0022\n");
}

#[test]
fn a_missing_working_directory_is_an_error() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let mut process = shell(1, "pwd");
    process.cwd = "/a/b/c".into();
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let (kind, message) = control
        .try_ask(Action::Start(Box::new(process)))
        .unwrap_err();
    assert_eq!(kind, Failure::Invalid);
    assert!(
        message.contains("working directory \"/a/b/c\""),
        "{message}"
    );
}

/// CVE-2024-21626: a working directory or program by way of a descriptor that was left open.
#[test]
fn no_descriptor_of_the_agent_is_in_reach() {
    let guest = Guest::new();
    let mut control = guest.control();
    for fd in 3..40 {
        let mut container = guest.container();
        container.id = ContainerId(fd);
        control.ask(Action::Create(Box::new(container)));
        let mut process = shell(fd, "echo inside");
        process.container = ContainerId(fd);
        process.cwd = format!("/proc/self/fd/{fd}");
        let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(fd, stream));
        let failed = control.try_ask(Action::Start(Box::new(process)));
        assert!(failed.is_err(), "{fd}");
    }
    // 3 is the directory that ls itself reads.
    assert_eq!(guest.sh("ls /proc/self/fd").stdout, "0\n1\n2\n3\n");
}

#[test]
fn processes_have_dockers_capabilities_and_default_signals() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let command = "grep -E '^(Cap|Sig(Blk|Ign)|NoNewPrivs)' /proc/self/status";
    let first = shell(1, &format!("{command}; exec sleep 100 >&-"));
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    control.ask(Action::Start(Box::new(first)));
    let further = guest.run(&mut control, shell(2, command)).stdout;
    let first = crate::guest::text(&mut stdout);
    control.signal(1, 9, false);
    assert_eq!(control.exit(1), ExitStatus::Signaled(9));
    assert_eq!(first, further);
    let expected = "SigBlk:\t0000000000000000\n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
        CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n";
    // In a guest nothing is ignored; Rust's test harness ignores SIGPIPE.
    let without_ignored: String = first
        .lines()
        .filter(|line| !line.starts_with("SigIgn"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(without_ignored, expected);
}

#[test]
fn resource_limits_are_set() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let mut process = shell(1, "ulimit -Sn; ulimit -Hn; ulimit -Sc");
    process.rlimits = vec![
        Rlimit {
            resource: 7,
            soft: 64,
            hard: 128,
        },
        Rlimit {
            resource: 4,
            soft: 0,
            hard: 0,
        },
    ];
    assert_eq!(guest.run(&mut control, process).stdout, "64\n128\n0\n");
    // One that the kernel does not know.
    let mut process = shell(2, "");
    process.container = ContainerId(2);
    let mut container = guest.container();
    container.id = ContainerId(2);
    control.ask(Action::Create(Box::new(container)));
    process.rlimits = vec![Rlimit {
        resource: 99,
        soft: 0,
        hard: 0,
    }];
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(2, stream));
    let (kind, message) = control
        .try_ask(Action::Start(Box::new(process)))
        .unwrap_err();
    assert_eq!(kind, Failure::System);
    assert!(message.contains("resource limit"), "{message}");
}

#[test]
fn signals_reach_one_process_or_all() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let trap = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut stdouts: Vec<_> = [1, 2, 3]
        .map(|id| {
            let mut stdout = guest.stream(id, Stream::Stdout);
            let stderr = guest.stream(id, Stream::Stderr);
            control.ask(Action::Start(Box::new(shell(id, trap))));
            let mut ready = [0; 6];
            std::io::Read::read_exact(&mut stdout, &mut ready).unwrap();
            (stdout, stderr)
        })
        .into();
    control.signal(2, 15, false);
    assert_eq!(control.exit(2), ExitStatus::Exited(3));
    control.signal(3, 15, true);
    // The first takes every other with it: whether that was in time to trap is a matter of luck.
    let ended = [control.any_exit().0, control.any_exit().0];
    assert!(ended.contains(&1) && ended.contains(&3));
    let (stdout, _) = &mut stdouts[1];
    assert_eq!(crate::guest::text(stdout), "got it\n");
    let failed = control.try_ask(Action::Signal {
        process: ProcessId(2),
        signal: 15,
        all: false,
    });
    assert_eq!(failed.unwrap_err().0, Failure::NoSuchProcess);
}

#[test]
fn a_signal_that_is_none_is_refused() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.ask(Action::Start(Box::new(shell(1, "sleep 100"))));
    for signal in [-1, 65, i32::MAX, i32::MIN] {
        let failed = control.try_ask(Action::Signal {
            process: ProcessId(1),
            signal,
            all: true,
        });
        assert_eq!(failed.unwrap_err().0, Failure::Invalid);
    }
    control.signal(1, 9, true);
    assert_eq!(control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn a_further_process_joins_the_container() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let stdin = guest.stream(1, Stream::Stdin);
    let [mut stdout, _stderr] =
        [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let mut first = shell(1, "touch /dev/shm/mine; echo ready; cat > /dev/null");
    first.stdio = Stdio::Pipes { stdin: true };
    control.ask(Action::Start(Box::new(first)));
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    let command = "test $$ != 1 && hostname; ls /dev/shm; cat /proc/1/comm; \
        cat /proc/self/cgroup | grep ^0";
    let output = guest.run(&mut control, shell(2, command));
    assert_eq!(output.stderr, "");
    assert_eq!(output.stdout, "testbox\nmine\nsh\n0::/\n");
    // One that cannot be started does the container no harm.
    let _more = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(3, stream));
    let mut process = shell(3, "");
    process.args = vec!["/nowhere".into()];
    let failed = control.try_ask(Action::Start(Box::new(process)));
    assert_eq!(failed.unwrap_err().0, Failure::NotFound);
    drop(stdin);
    assert_eq!(control.exit(1), ExitStatus::Exited(0));
    // With its first process the container has ended.
    let _more = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(4, stream));
    let failed = control.try_ask(Action::Start(Box::new(shell(4, ""))));
    assert_eq!(failed.unwrap_err().0, Failure::Invalid);
}

#[test]
fn the_end_of_the_first_process_ends_all() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let mut stdin = guest.stream(1, Stream::Stdin);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let mut first = shell(1, "read line; exit 5");
    first.stdio = Stdio::Pipes { stdin: true };
    control.ask(Action::Start(Box::new(first)));
    let mut stdout = guest.stream(2, Stream::Stdout);
    let _stderr = guest.stream(2, Stream::Stderr);
    control.ask(Action::Start(Box::new(shell(2, "sleep 100 & sleep 100"))));
    stdin.write_all(b"go\n").unwrap();
    assert_eq!(crate::guest::text(&mut stdout), "");
    let mut ended = [control.any_exit(), control.any_exit()];
    ended.sort_by_key(|(process, _)| *process);
    assert_eq!(
        ended,
        [(1, ExitStatus::Exited(5)), (2, ExitStatus::Signaled(9))]
    );
}

#[test]
fn many_processes_come_and_go_at_once() {
    let guest = Guest::new();
    let mut control = created(&guest);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.ask(Action::Start(Box::new(shell(1, "sleep 100"))));
    for round in 0..3 {
        let ids = 2 + round * 10..12 + round * 10;
        let streams: Vec<_> = ids
            .clone()
            .map(|id| {
                let stdout = guest.stream(id, Stream::Stdout);
                let stderr = guest.stream(id, Stream::Stderr);
                let process = shell(id, &format!("sleep 0.0{}; echo {id}", id % 10));
                control.ask(Action::Start(Box::new(process)));
                (id, stdout, stderr)
            })
            .collect();
        let mut ended: Vec<_> = ids.clone().map(|_| control.any_exit().0).collect();
        ended.sort_unstable();
        assert_eq!(ended, ids.collect::<Vec<_>>());
        for (id, mut stdout, _stderr) in streams {
            assert_eq!(crate::guest::text(&mut stdout), format!("{id}\n"));
        }
    }
}
