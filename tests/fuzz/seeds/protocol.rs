//! One frame of each kind of message, alone and one behind the other.

use agent_protocol::{
    Action, Capabilities, Container, ContainerId, Event, ExitStatus, Failure, File, Growth, Hello,
    MemoryGrowth, Mount, Open, Personality, Process, ProcessId, Request, Rlimit, SeccompFilter,
    Source, Stdio, Stream, VERSION, WindowSize, encode,
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
    let share = |tag: &str, path: &str| Source::Share {
        tag: tag.into(),
        path: path.into(),
    };
    Container {
        id: ContainerId(1),
        root: Mount {
            source: share("root", ""),
            target: "/".into(),
            read_only: false,
        },
        domainname: "lan".into(),
        capabilities: 1,
        sysctls: vec![("kernel.msgmax".into(), "8192".into())],
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        hostname: "seed".into(),
        mounts: vec![
            Mount {
                source: share("volume", "file"),
                target: "/data/file".into(),
                read_only: true,
            },
            Mount {
                source: Source::Tmpfs {
                    options: "size=1m,mode=1777".into(),
                },
                target: "/tmp".into(),
                read_only: false,
            },
        ],
        files: vec![File {
            path: "/etc/hostname".into(),
            content: b"seed\n".to_vec(),
            mode: 0o644,
        }],
        read_only: false,
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
        umask: Some(0o22),
        oom_score_adj: Some(1),
        stdio: Stdio::Pipes { stdin: true },
    }
}
