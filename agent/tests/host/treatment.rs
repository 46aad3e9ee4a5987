//! How the kernel treats a container's processes.

use std::os::unix::fs::symlink;

use agent_protocol::*;

use crate::guest::{CONTAINER, Guest, Output, shell};

fn run(process: impl FnOnce(&mut Process), command: &str) -> Output {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut first = shell(1, command);
    process(&mut first);
    guest.run(&mut control, first)
}

fn treated(treatment: Treatment, command: &str) -> String {
    let output = run(|process| process.treatment = treatment, command);
    assert_eq!(output.stderr, "");
    output.stdout
}

#[test]
fn policy_priorities_and_cpus_are_set() {
    let treatment = Treatment {
        scheduler: Some(Scheduler {
            policy: 3,
            nice: 7,
            ..Scheduler::default()
        }),
        // IOPRIO_CLASS_IDLE
        io_priority: Some(3 << 13),
        cpus: vec![0, 1000, u32::MAX],
        ..Treatment::default()
    };
    let found = treated(
        treatment,
        "cut -d ' ' -f 19,41 /proc/self/stat; ionice; grep Cpus_allowed_list /proc/self/status",
    );
    assert_eq!(found, "7 3\nidle\nCpus_allowed_list:\t0\n");
}

#[test]
fn cpus_that_are_not_there_are_refused() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut process = shell(1, "true");
    process.treatment.cpus = vec![1023];
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let refused = control.try_ask(Action::Start(Box::new(process)));
    assert!(refused.unwrap_err().1.contains("set the CPUs"));
}

#[test]
fn a_32_bit_domain_shows_a_32_bit_machine() {
    let treatment = Treatment {
        personality: Some(8),
        ..Treatment::default()
    };
    assert_eq!(treated(treatment, "uname -m"), "i686\n");
}

#[test]
fn clocks_are_as_far_off_as_asked_for_in_every_process() {
    let treatment = Treatment {
        time_offsets: Some(TimeOffsets {
            monotonic: (86_400, 5),
            boottime: (-1, 250),
        }),
        ..Treatment::default()
    };
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let script = "tr -s ' ' </proc/self/timens_offsets; read -r line; echo $line";
    let mut first = shell(1, script);
    first.treatment = treatment.clone();
    first.stdio = Stdio::Pipes { stdin: true };
    let stdin = guest.stream(1, Stream::Stdin);
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    control.ask(Action::Start(Box::new(first)));
    let mut further = shell(2, "tr -s ' ' </proc/self/timens_offsets");
    further.container = CONTAINER;
    further.treatment = treatment;
    let offsets = "monotonic 86400 5\nboottime -1 250\n";
    assert_eq!(guest.run(&mut control, further).stdout, offsets);
    drop(stdin);
    assert_eq!(crate::guest::text(&mut stdout), format!("{offsets}\n"));
    assert_eq!(control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn files_of_the_cgroup_are_written() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut spec = guest.container();
    let limit = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    spec.cgroup = limit("cgroup.max.descendants", "17");
    control.ask(Action::Create(Box::new(spec)));
    let output = guest.run(
        &mut control,
        shell(1, "cat /sys/fs/cgroup/cgroup.max.descendants"),
    );
    assert_eq!(output.stdout, "17\n");
    for (name, value) in [
        ("no_such.max", "1"),
        ("../cgroup.procs", "1"),
        ("pids.max", "x"),
    ] {
        let mut spec = guest.container();
        spec.id = ContainerId(2);
        spec.cgroup = limit(name, value);
        let refused = control.try_ask(Action::Create(Box::new(spec))).unwrap_err();
        assert!(refused.1.contains(name), "{}", refused.1);
    }
}

/// Nothing of the agent's is in reach by a working directory (CVE-2024-21626).
#[test]
fn magic_links_are_no_way_out_of_the_container() {
    for cwd in [
        "/proc/self/fd/7",
        "/proc/self/fd/3/../../..",
        "/proc/1/fd/8",
    ] {
        for create_cwd in [false, true] {
            let guest = Guest::new();
            let mut control = guest.control();
            control.ask(Action::Create(Box::new(guest.container())));
            let mut process = shell(1, "true");
            process.cwd = cwd.into();
            process.create_cwd = create_cwd;
            let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
            let refused = control.try_ask(Action::Start(Box::new(process)));
            let (_, message) = refused.unwrap_err();
            assert!(message.contains("working directory"), "{message}");
        }
    }
    // What these lead to is the container's own root.
    for cwd in ["/proc/self/cwd", "/proc/self/root", "/proc/1/root/link"] {
        let guest = Guest::new();
        symlink("/", guest.root("link")).unwrap();
        std::fs::write(guest.root("mark"), "").unwrap();
        let mut control = guest.control();
        control.ask(Action::Create(Box::new(guest.container())));
        let mut process = shell(1, "ls mark; cd ..; ls mark");
        process.cwd = cwd.into();
        let output = guest.run(&mut control, process);
        assert_eq!(output.stdout, "mark\nmark\n", "{cwd}: {}", output.stderr);
    }
}

/// What a container has put over its `/proc` is not written to in the agent's name.
#[test]
fn what_hides_a_file_of_proc_is_left_alone() {
    let guest = Guest::new();
    std::fs::write(guest.root("decoy"), "untouched").unwrap();
    let mut control = guest.control();
    let mut spec = guest.container();
    spec.mounts.push(Mount::new(
        Source::Container {
            path: "/decoy".into(),
        },
        "/proc/1/oom_score_adj",
    ));
    control.ask(Action::Create(Box::new(spec)));
    let mut process = shell(1, "true");
    process.oom_score_adj = Some(5);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let refused = control.try_ask(Action::Start(Box::new(process)));
    assert!(refused.unwrap_err().1.contains("OOM score"));
    assert_eq!(std::fs::read(guest.root("decoy")).unwrap(), b"untouched");
}
