//! One frame of each kind of message, alone and one behind the other.

use agent_protocol::{
    Action, Archiving, Capabilities, Container, ContainerId, Device, DeviceKind, Event, ExitStatus,
    Failure, File, Growth, Hello, Hook, MemoryGrowth, Mount, Open, Personality, Process, ProcessId,
    Propagation, Request, Rlimit, SeccompFilter, Source, Stdio, Stream, Transfer, Treatment,
    VERSION, WindowSize, encode,
};
use serde::Serialize;

pub(crate) fn frames() -> Vec<Vec<u8>> {
    let process = ProcessId(1);
    let actions = [
        Action::Personalize(Personality {
            realtime_ns: 1_700_000_000_000_000_000,
            monotonic_ns: 2_000_000_000,
            entropy: [7; 32],
        }),
        Action::Create(Box::new(container())),
        Action::Start(Box::new(start(process))),
        Action::Signal {
            process,
            signal: 15,
            all: false,
        },
        Action::Resize {
            process,
            size: WindowSize {
                rows: 24,
                columns: 80,
            },
        },
        Action::Shutdown,
        Action::Prepare {
            root: "root".into(),
        },
        Action::Grow(Growth {
            cpus: 2,
            memory: Some(MemoryGrowth {
                total: 1 << 30,
                start: 1 << 32,
            }),
        }),
        Action::Transfer(Box::new(Transfer {
            id: process,
            container: ContainerId(1),
            archiving: Archiving::Unpack {
                path: b"/tmp".to_vec(),
                name: Some(b"file".to_vec()),
                keep_owner: true,
            },
        })),
    ];
    let requests = actions
        .into_iter()
        .zip(1..)
        .map(|(action, id)| bytes(&Request { id, action }))
        .collect::<Vec<_>>();
    let events = [
        Event::Done { request: 1 },
        Event::Personalized {
            request: 1,
            cid: 3,
            realtime_ns: 1,
        },
        Event::Grown {
            request: 1,
            cpus: 2,
            memory_total: 1 << 30,
        },
        Event::Failed {
            request: 2,
            kind: Failure::NotFound,
            message: "Failed to find sh in PATH".into(),
        },
        Event::Exited {
            process,
            status: ExitStatus::Signaled(9),
        },
    ]
    .map(|event| bytes(&event));
    let opens = [
        Open::Control { version: VERSION },
        Open::Stream {
            process,
            stream: Stream::Stdout,
        },
    ]
    .map(|open| bytes(&open));
    let hello = bytes(&Hello {
        version: VERSION,
        agent: "0.1.0".into(),
        kernel: "6.12.1".into(),
        memory_total: 128 << 20,
        cpus: 1,
        started_us: 1_000_000,
        ready_us: 1_100_000,
    });

    let streams = [requests.concat(), events.concat(), opens.concat()];
    let alone = requests.into_iter().chain(events).chain(opens);
    // The target takes its first byte as the size of the chunks.
    alone
        .chain([hello])
        .chain(streams)
        .map(|stream| [&[63], stream.as_slice()].concat())
        .collect()
}

fn bytes<T: Serialize>(message: &T) -> Vec<u8> {
    encode(message).expect("a seed fits a frame")
}

fn container() -> Container {
    Container {
        id: ContainerId(1),
        root: Mount::new(Source::share("root", ""), "/"),
        domainname: "lan".into(),
        capabilities: 1,
        sysctls: vec![("kernel.msgmax".into(), "8192".into())],
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        hostname: "seed".into(),
        mounts: vec![
            Mount::new(Source::share("volume", "file"), "/data/file").read_only(),
            Mount {
                propagation: Some(Propagation {
                    kind: 1 << 20,
                    recursive: true,
                }),
                ..Mount::new(Source::tmpfs("size=1m,mode=1777"), "/tmp")
            },
        ],
        files: vec![File {
            path: "/etc/hostname".into(),
            content: b"seed\n".to_vec(),
            mode: 0o644,
        }],
        devices: vec![Device {
            path: "/dev/fuse".into(),
            kind: DeviceKind::Character {
                major: 10,
                minor: 229,
            },
            mode: 0o666,
            uid: 0,
            gid: 0,
        }],
        cgroup: vec![("pids.max".into(), "2048".into())],
        read_only: false,
        propagation: None,
        joined: Vec::new(),
    }
}

fn start(id: ProcessId) -> Process {
    Process {
        id,
        container: ContainerId(1),
        args: vec!["sh".into(), "-c".into(), "exit 7".into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        create_cwd: true,
        user: "app:staff".into(),
        additional_groups: vec!["audio".into()],
        rlimits: vec![Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        }],
        capabilities: Capabilities::DEFAULT,
        no_new_privileges: true,
        seccomp: vec![SeccompFilter(vec![6 << 48])],
        seccomp_flags: 4,
        umask: Some(0o22),
        oom_score_adj: Some(1),
        treatment: Treatment {
            cpus: vec![0],
            personality: Some(8),
            ..Treatment::default()
        },
        hooks: vec![Hook {
            path: "/bin/true".into(),
            args: vec!["true".into()],
            env: Vec::new(),
            timeout: Some(5),
            input: b"{}".to_vec(),
        }],
        stdio: Stdio::Pipes { stdin: true },
    }
}
