//! What processes may do, and what containers must not see or write.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_protocol::*;

use crate::guest::{CONTAINER, Guest, Output, shell, tree};

/// Runs a shell command in a container and as a process, both changed.
fn run(
    container: impl FnOnce(&mut Container),
    process: impl FnOnce(&mut Process),
    command: &str,
) -> Output {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut spec = guest.container();
    container(&mut spec);
    control.ask(Action::Create(Box::new(spec)));
    let mut first = shell(1, command);
    process(&mut first);
    guest.run(&mut control, first)
}

const SETS: &str = "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status | tr -d '\t' | tr '\n' ' '";

/// The line of [`SETS`] for these sets in the kernel's order.
fn sets(inheritable: u64, permitted: u64, effective: u64, bounding: u64, ambient: u64) -> String {
    format!(
        "CapInh:{inheritable:016x} CapPrm:{permitted:016x} CapEff:{effective:016x} \
         CapBnd:{bounding:016x} CapAmb:{ambient:016x} "
    )
}

#[test]
fn root_has_dockers_capabilities_and_others_none() {
    let default = Capabilities::DEFAULT.bounding;
    let root = run(|_| {}, |_| {}, SETS).stdout;
    let expected = sets(0, default, default, default, 0);
    assert_eq!(root, expected + "NoNewPrivs:0 Seccomp:0 ");
    let user = run(|_| {}, |process| process.user = "1000".into(), SETS).stdout;
    assert_eq!(user, sets(0, 0, 0, default, 0) + "NoNewPrivs:0 Seccomp:0 ");
}

#[test]
fn capabilities_are_added_and_taken() {
    // NET_ADMIN is none of docker's, so the sandbox that was prepared does not do.
    let set = 1 << 12 | 1 << 5;
    let output = run(
        |container| container.capabilities = set,
        |process| process.capabilities = Capabilities::of(set),
        SETS,
    );
    assert_eq!(
        output.stdout,
        sets(0, set, set, set, 0) + "NoNewPrivs:0 Seccomp:0 "
    );
    let output = run(
        |_| {},
        |process| process.capabilities = Capabilities::of(0),
        SETS,
    );
    assert_eq!(
        output.stdout,
        sets(0, 0, 0, 0, 0) + "NoNewPrivs:0 Seccomp:0 "
    );
}

#[test]
fn a_user_who_is_not_root_keeps_ambient_capabilities() {
    let set = 1 << 10;
    let output = run(
        |_| {},
        |process| {
            process.user = "1000".into();
            process.capabilities = Capabilities {
                inheritable: set,
                ambient: set,
                ..Capabilities::of(set)
            };
        },
        SETS,
    );
    assert_eq!(
        output.stdout,
        sets(set, set, set, set, set) + "NoNewPrivs:0 Seccomp:0 "
    );
}

#[test]
fn no_process_gets_more_than_its_container_may_have() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut process = shell(1, "true");
    process.capabilities = Capabilities::of(1 << 12);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let refused = control.try_ask(Action::Start(Box::new(process)));
    assert_eq!(refused.unwrap_err().0, Failure::Invalid);
}

/// As `docker exec --privileged` wants it.
#[test]
fn a_further_process_may_have_more_than_the_first() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut first = shell(1, "cat");
    first.stdio = Stdio::Pipes { stdin: true };
    let stdin = guest.stream(1, Stream::Stdin);
    let _output = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.ask(Action::Start(Box::new(first)));
    for set in [1 << 12, 1 << 5, 0] {
        let id = 2 + u32::try_from(set).unwrap();
        let mut further = shell(id, SETS);
        further.capabilities = Capabilities::of(set);
        let found = guest.run(&mut control, further).stdout;
        assert_eq!(found, sets(0, set, set, set, 0) + "NoNewPrivs:0 Seccomp:0 ");
    }
    drop(stdin);
    assert_eq!(control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn new_privileges_are_given_up() {
    let output = run(|_| {}, |process| process.no_new_privileges = true, SETS);
    assert!(
        output.stdout.ends_with("NoNewPrivs:1 Seccomp:0 "),
        "{}",
        output.stdout
    );
}

/// Refuses mkdir(2) and mkdirat(2) with EXDEV; lets everything else pass.
fn no_mkdir() -> SeccompFilter {
    const LOAD_NUMBER: u64 = 0x20 << 48;
    let jump_if = |number: u64, yes: u64| 0x15 << 48 | yes << 40 | number;
    let answer = |action: u64| 0x06 << 48 | action;
    SeccompFilter(vec![
        LOAD_NUMBER,
        jump_if(83, 2),
        jump_if(258, 1),
        answer(0x7fff_0000),
        answer(0x0005_0000 | 18),
    ])
}

#[test]
fn system_calls_are_filtered_for_root_and_others() {
    for (user, no_new_privileges) in [("", false), ("", true), ("1000", false), ("1000", true)] {
        let output = run(
            |_| {},
            |process| {
                process.user = user.into();
                process.no_new_privileges = no_new_privileges;
                process.seccomp = vec![no_mkdir()];
            },
            "mkdir /tmp/new; echo status $?; grep -c Seccomp:.2 /proc/self/status",
        );
        assert_eq!(output.stdout, "status 1\n1\n", "{}", output.stderr);
        assert!(output.stderr.contains("cross-device"), "{}", output.stderr);
    }
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut process = shell(1, "true");
    process.seccomp = vec![SeccompFilter(vec![u64::MAX])];
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let refused = control.try_ask(Action::Start(Box::new(process)));
    assert!(refused.unwrap_err().1.contains("filter system calls"));
}

/// Taken by tests that set OOM scores: the agents of all tests are threads of one process, and what
/// shares a memory shares its score.
static SCORES: Mutex<()> = Mutex::new(());

#[test]
fn the_mask_the_oom_score_and_the_domain_name_are_set() {
    let _turn = SCORES.lock();
    let output = run(
        |container| container.domainname = "lan".into(),
        |process| {
            process.umask = Some(0o027);
            process.oom_score_adj = Some(321);
        },
        "umask; cat /proc/self/oom_score_adj /proc/sys/kernel/domainname",
    );
    assert_eq!(output.stdout, "0027\n321\nlan\n", "{}", output.stderr);
}

#[test]
fn the_oom_score_of_one_process_is_not_that_of_the_next() {
    let _turn = SCORES.lock();
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let before = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let mut first = shell(1, "exec sleep 60 >&- 2>&-");
    first.oom_score_adj = Some(321);
    control.ask(Action::Start(Box::new(first)));
    let show = "cat /proc/1/oom_score_adj /proc/self/oom_score_adj";
    let further = guest.run(&mut control, shell(2, show));
    assert_eq!(
        further.stdout,
        format!("321\n{before}"),
        "{}",
        further.stderr
    );
    let mut third = shell(3, "cat /proc/self/oom_score_adj");
    third.oom_score_adj = Some(654);
    assert_eq!(guest.run(&mut control, third).stdout, "654\n");
    assert_eq!(
        guest.run(&mut control, shell(4, show)).stdout,
        further.stdout
    );
}

#[test]
fn kernel_parameters_are_set_by_name() {
    for name in ["kernel.msgmax", "kernel/msgmax"] {
        let output = run(
            |container| container.sysctls = vec![(name.into(), "4321".into())],
            |_| {},
            "cat /proc/sys/kernel/msgmax",
        );
        assert_eq!(output.stdout, "4321\n");
    }
    for name in [
        "kernel.no_such",
        "../self/oom_score_adj",
        "kernel..msgmax",
        "",
    ] {
        let guest = Guest::new();
        let mut spec = guest.container();
        spec.sysctls = vec![(name.into(), "1".into())];
        let refused = guest.control().try_ask(Action::Create(Box::new(spec)));
        assert!(refused.unwrap_err().1.contains(name), "{name}");
    }
}

#[test]
fn masked_paths_seem_empty_and_read_only_ones_cannot_be_written() {
    let output = run(
        |container| {
            let paths = [
                "/proc/version",
                "/sys/kernel",
                "/no/such/path",
                "/proc/version/no",
            ];
            container.masked_paths = paths.map(String::from).into();
            container.readonly_paths = vec!["/proc/sys".into(), "/no/such/path".into()];
        },
        |_| {},
        "cat /proc/version; ls -A /sys/kernel; touch /sys/kernel/x; echo x >/proc/version
            echo 1 >/proc/sys/kernel/msgmax; cat /proc/sys/kernel/msgmax >/dev/null && echo end",
    );
    assert_eq!(output.stdout, "end\n");
    let refused = output.stderr.matches("Read-only file system").count();
    assert_eq!(refused, 2, "{}", output.stderr);
}

/// Whatever an image has in the place of a masked path, nothing outside of it is touched.
#[test]
fn links_in_the_place_of_masked_paths_lead_nowhere_else() {
    let guest = Guest::new();
    std::fs::create_dir(guest.root("secret")).unwrap();
    std::os::unix::fs::symlink("/../../../../secret", guest.root("mask")).unwrap();
    std::os::unix::fs::symlink("/proc/1/root", guest.root("magic")).unwrap();
    let mut control = guest.control();
    let mut spec = guest.container();
    spec.masked_paths = vec!["/mask".into()];
    control.ask(Action::Create(Box::new(spec)));
    let output = guest.run(&mut control, shell(1, "touch /secret/x; ls -A /secret"));
    assert_eq!(output.stdout, "");
    let mut spec = guest.container();
    spec.id = ContainerId(2);
    spec.masked_paths = vec!["/magic".into()];
    let refused = control.try_ask(Action::Create(Box::new(spec)));
    assert!(refused.unwrap_err().1.contains("/magic"));
}

/// A root that was prepared is for docker's capabilities: more of them need another.
#[test]
fn a_prepared_root_serves_containers_with_other_rights() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Prepare {
        root: guest.root("").display().to_string(),
    });
    let mut spec = guest.container();
    spec.capabilities = 1 << 12;
    spec.mounts[0].source = Source::share(tree("/usr"), "");
    control.ask(Action::Create(Box::new(spec)));
    let mut process = shell(1, SETS);
    process.container = CONTAINER;
    process.capabilities = Capabilities::of(1 << 12);
    let output = guest.run(&mut control, process);
    assert!(
        output.stdout.contains("CapEff:0000000000001000"),
        "{}",
        output.stdout
    );
}

/// A read-only path that is a link makes read-only what it leads to inside, and nothing else.
#[test]
fn links_in_the_place_of_read_only_paths_lead_nowhere_else() {
    let guest = Guest::new();
    let outside = guest.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(guest.root("inside")).unwrap();
    std::os::unix::fs::symlink("../../../../inside", guest.root("fixed")).unwrap();
    std::os::unix::fs::symlink(&outside, guest.root("away")).unwrap();
    let mut control = guest.control();
    let mut spec = guest.container();
    spec.readonly_paths = ["/fixed", "/away"].map(String::from).into();
    control.ask(Action::Create(Box::new(spec)));
    let script = "touch /inside/x || touch /free";
    let output = guest.run(&mut control, shell(1, script));
    assert!(
        output.stderr.contains("Read-only file system"),
        "{}",
        output.stderr
    );
    assert!(guest.root("free").exists());
    std::fs::write(outside.join("x"), "").unwrap();
}

/// Ends a thread, also if a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody who shares the root file system changes it while paths are masked in it.
#[test]
fn renames_while_paths_are_masked_lead_nowhere_else() {
    let guest = Guest::new();
    let outside = guest.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("mark"), "").unwrap();
    std::fs::create_dir_all(guest.root("a/mask")).unwrap();
    std::fs::create_dir(guest.root("b")).unwrap();
    std::os::unix::fs::symlink(&outside, guest.root("b/mask")).unwrap();
    let (a, b) = (guest.root("a"), guest.root("b"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &a, cwd, &b, exchange).unwrap();
            }
        });
        let _stop = Stop(&stop);
        let before = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut control = guest.control();
        for round in 1..=20 {
            let mut spec = guest.container();
            spec.id = ContainerId(round);
            spec.masked_paths = vec!["/a/mask".into(), "/b/mask".into()];
            spec.readonly_paths = vec!["/a/mask".into()];
            control.ask(Action::Create(Box::new(spec)));
            assert!(outside.join("mark").exists());
        }
        assert_eq!(
            std::fs::read_to_string("/proc/self/mounts").unwrap(),
            before
        );
        std::fs::write(outside.join("new"), "").unwrap();
    });
}

/// What every engine writes, and one path more.
fn usual_confinement(container: &mut Container) {
    let masked = [
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/firmware",
        "/sys/dev/block",
        "/proc/version",
    ];
    let read_only = [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
        "/etc",
    ];
    container.masked_paths = masked.map(String::from).into();
    container.readonly_paths = read_only.map(String::from).into();
}

const CONFINED: &str = "cat /proc/version; ls -A /sys/firmware; ls -A /sys/dev/block
    touch /sys/dev/block/x 2>/dev/null
    cat /proc/kcore /proc/timer_list 2>/dev/null | wc -c
    for at in /proc/sys/kernel/msgmax /etc/x; do
        (echo 1 >$at) 2>&1 | grep -c 'Read-only file system'
    done
    ls -d /sys/fs/cgroup/cgroup.procs; stat -f -c %T /sys/fs/cgroup
    echo x >/sys/x 2>/dev/null || echo closed; test -d /proc/self/fd && echo end";

const CONFINED_SHOWS: &str = "0\n1\n1\n/sys/fs/cgroup/cgroup.procs\ncgroup2fs\nclosed\nend\n";

#[test]
fn what_engines_confine_is_prepared_and_the_rest_is_added() {
    let _turn = SCORES.lock();
    let guest = Guest::new();
    let mut control = guest.control();
    let mut spec = guest.container();
    usual_confinement(&mut spec);
    spec.sysctls = vec![("kernel.msgmax".into(), "4321".into())];
    control.ask(Action::Create(Box::new(spec)));
    let script =
        format!("{CONFINED}; cat /proc/sys/kernel/msgmax; grep -c . /proc/self/oom_score_adj");
    let mut process = shell(1, &script);
    process.oom_score_adj = Some(17);
    let output = guest.run(&mut control, process);
    assert_eq!(
        output.stdout,
        format!("{CONFINED_SHOWS}4321\n1\n"),
        "{}",
        output.stderr
    );
    // The next one is not confined because this one was.
    let mut open = guest.container();
    open.id = ContainerId(2);
    control.ask(Action::Create(Box::new(open)));
    let mut process = shell(
        2,
        "grep -q . /proc/version && ls /proc/sys/kernel/msgmax; grep -c /proc/ /proc/mounts",
    );
    process.container = ContainerId(2);
    let output = guest.run(&mut control, process);
    assert_eq!(
        output.stdout, "/proc/sys/kernel/msgmax\n0\n",
        "{}",
        output.stderr
    );
}

/// Also what is mounted over `/proc` and `/sys` is confined.
#[test]
fn new_mounts_of_proc_and_sys_are_confined_too() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut spec = guest.container();
    usual_confinement(&mut spec);
    let new = |kind: &str, target: &str| {
        let source = Source::FileSystem {
            kind: kind.into(),
            name: kind.into(),
            options: String::new(),
            copy_up: false,
        };
        Mount::new(source, target)
    };
    spec.mounts.push(new("proc", "/proc"));
    spec.mounts.push(new("sysfs", "/sys").read_only());
    spec.mounts.push(new("cgroup2", "/sys/fs/cgroup"));
    control.ask(Action::Create(Box::new(spec)));
    let output = guest.run(&mut control, shell(1, CONFINED));
    assert_eq!(output.stdout, CONFINED_SHOWS, "{}", output.stderr);
}
