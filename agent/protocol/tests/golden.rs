//! The wire form, byte by byte. A failure here means that agents and hosts of two builds would
//! misread each other: raise `VERSION`, then write the new bytes down.

use agent_protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn golden<T>(message: &T, wire: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let frame = encode(message).expect("a message of the tests fits a frame");
    assert_eq!(hex(&frame), wire.replace(' ', ""));
    let mut decoder = Decoder::new();
    decoder.feed(&frame);
    let decoded = decoder.next::<T>().expect("what was encoded decodes");
    assert_eq!(decoded.as_ref(), Some(message));
}

#[track_caller]
fn golden_action(action: Action, wire: &str) {
    golden(&Request { id: 1, action }, wire);
}

#[test]
fn version_is_the_one_these_bytes_belong_to() {
    assert_eq!(VERSION, 9);
    assert_eq!((READY_PORT, AGENT_PORT), (1024, 1025));
}

#[test]
fn hello() {
    golden(
        &Hello {
            version: 1,
            agent: "0.1.0".into(),
            kernel: "6.12".into(),
            memory_total: 128 << 20,
            cpus: 2,
            started_us: 1000,
            ready_us: 2000,
        },
        "150000000105302e312e3004362e31328080804002e807d00f",
    );
}

#[test]
fn open() {
    golden(&Open::Control { version: 1 }, "020000000001");
    let streams = [
        (Stream::Stdin, "0400000001ac0200"),
        (Stream::Stdout, "0400000001ac0201"),
        (Stream::Stderr, "0400000001ac0202"),
        (Stream::Terminal, "0400000001ac0203"),
    ];
    for (stream, wire) in streams {
        golden(
            &Open::Stream {
                process: ProcessId(300),
                stream,
            },
            wire,
        );
    }
}

#[test]
fn personalize() {
    golden_action(
        Action::Personalize(Personality {
            realtime_ns: 1_700_000_000_000_000_000,
            monotonic_ns: 2_000_000_000,
            entropy: [0xab; 32],
        }),
        "3000000001008080a8b1e39fe7cb1780a8d6b907abababababababababababababababababababababababababababababababab",
    );
}

#[test]
fn create() {
    golden_action(
        Action::Create(Box::new(Container {
            id: ContainerId(1),
            root: Mount::new(Source::share("root", ""), "/"),
            hostname: "box".into(),
            domainname: "lan".into(),
            capabilities: 3,
            sysctls: vec![("a.b".into(), "1".into())],
            masked_paths: vec!["/m".into()],
            readonly_paths: vec!["/r".into()],
            mounts: vec![
                Mount::new(Source::tmpfs("size=1m"), "/tmp").read_only(),
                Mount {
                    attributes: Attributes { set: 2, clear: 300 },
                    propagation: Some(Propagation {
                        kind: 1 << 20,
                        recursive: true,
                    }),
                    ..Mount::new(Source::Container { path: "/a".into() }, "/b")
                },
                Mount::new(
                    Source::Present {
                        options: "x".into(),
                    },
                    "/c",
                ),
                Mount::new(
                    Source::Joined {
                        container: ContainerId(4),
                        path: "/e".into(),
                    },
                    "/f",
                ),
            ],
            files: vec![File {
                path: "/etc/hosts".into(),
                content: b"x\n".to_vec(),
                mode: 0o644,
            }],
            devices: vec![device(DeviceKind::Fifo)],
            cgroup: vec![("pids.max".into(), "9".into())],
            read_only: true,
            propagation: None,
            joined: vec![Joined {
                namespace: Namespace::Pid,
                container: ContainerId(3),
            }],
        })),
        "9e0000000101010004726f6f7400012f000000000003626f78036c616e030103612e62013101022f6d01022f72040105746d70667305746d7066730773697a653d316d00042f746d70000001000003022f61022f6202ac0200000180804001020178022f6300000000000504022f65022f660000000000010a2f6574632f686f73747302780aa40301022f6402800301020108706964732e6d617801390100010203",
    );
}

fn device(kind: DeviceKind) -> Device {
    Device {
        path: "/d".into(),
        kind,
        mode: 0o600,
        uid: 1,
        gid: 2,
    }
}

#[test]
fn devices() {
    let (major, minor) = (10, 229);
    golden(
        &device(DeviceKind::Character { major, minor }),
        "0b000000022f64000ae50180030102",
    );
    golden(
        &device(DeviceKind::Block { major, minor }),
        "0b000000022f64010ae50180030102",
    );
}

#[test]
fn treatment() {
    golden(
        &Treatment {
            scheduler: Some(Scheduler {
                policy: 1,
                flags: 2,
                nice: -3,
                priority: 4,
                runtime: 5,
                deadline: 6,
                period: 7,
            }),
            io_priority: Some(300),
            cpus: vec![1, 2],
            personality: Some(8),
            time_offsets: Some(TimeOffsets {
                monotonic: (-1, 2),
                boottime: (3, 4),
            }),
        },
        "15000000010102050405060701ac0202010201080101020604",
    );
}

#[test]
fn overlay() {
    golden(
        &Source::Overlay {
            lower: Lower::Share { tag: "root".into() },
            upper: "size=1m".into(),
        },
        "0f000000040004726f6f740773697a653d316d",
    );
    golden(
        &Source::Overlay {
            lower: Lower::Disk { number: 1 },
            upper: "size=50%".into(),
        },
        "0c0000000401010873697a653d353025",
    );
}

#[test]
fn start() {
    let process = |stdio| Process {
        id: ProcessId(2),
        container: ContainerId(1),
        args: vec!["sh".into(), "-c".into()],
        env: vec!["A=b".into()],
        cwd: "/w".into(),
        create_cwd: true,
        user: "1:2".into(),
        additional_groups: vec!["adm".into()],
        rlimits: vec![Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        }],
        capabilities: Capabilities::of(1),
        no_new_privileges: true,
        seccomp: vec![SeccompFilter(vec![6 << 48 | 0x7fff_0000])],
        seccomp_flags: 4,
        umask: Some(0o22),
        oom_score_adj: Some(-5),
        treatment: Treatment::default(),
        hooks: vec![Hook {
            path: "/h".into(),
            args: vec!["h".into()],
            env: vec!["A=b".into()],
            timeout: Some(5),
            input: b"{}".to_vec(),
        }],
        stdio,
    };
    golden_action(
        Action::Start(Box::new(process(Stdio::Pipes { stdin: true }))),
        "580000000102020102027368022d630103413d62022f770103313a32010361646d01078008ffffffffffffffffff0101010100000101018080fcff878080030401120109000000000001022f680101680103413d620105027b7d0101",
    );
    golden_action(
        Action::Start(Box::new(process(Stdio::Terminal(WindowSize {
            rows: 24,
            columns: 80,
        })))),
        "590000000102020102027368022d630103413d62022f770103313a32010361646d01078008ffffffffffffffffff0101010100000101018080fcff878080030401120109000000000001022f680101680103413d620105027b7d001850",
    );
}

#[test]
fn transfer() {
    let transfer = |archiving| {
        Action::Transfer(Box::new(Transfer {
            id: ProcessId(2),
            container: ContainerId(1),
            archiving,
        }))
    };
    golden_action(
        transfer(Archiving::Pack {
            path: b"/a".to_vec(),
            follow: true,
        }),
        "09000000010c020100022f6101",
    );
    for (name, wire) in [
        (None, "0a000000010c020101022f610001"),
        (Some(b"b".to_vec()), "0c000000010c020101022f6101016201"),
    ] {
        golden_action(
            transfer(Archiving::Unpack {
                path: b"/a".to_vec(),
                name,
                keep_owner: true,
            }),
            wire,
        );
    }
}

#[test]
fn signal_resize_shutdown() {
    golden_action(
        Action::Signal {
            process: ProcessId(2),
            signal: 15,
            all: true,
        },
        "050000000103021e01",
    );
    golden_action(
        Action::Resize {
            process: ProcessId(2),
            size: WindowSize {
                rows: 50,
                columns: 300,
            },
        },
        "0600000001040232ac02",
    );
    golden_action(Action::Shutdown, "020000000105");
    golden_action(
        Action::Prepare {
            root: "root".into(),
        },
        "07000000010604726f6f74",
    );
}

#[test]
fn freeze_limit_remove_forget() {
    let container = ContainerId(2);
    let frozen = true;
    golden_action(Action::Freeze { container, frozen }, "0400000001080201");
    golden_action(
        Action::Limit {
            container,
            files: vec![("pids.max".into(), "max".into())],
        },
        "11000000010b020108706964732e6d6178036d6178",
    );
    golden_action(Action::Remove { container }, "03000000010902");
    golden_action(
        Action::Forget {
            tag: "root".into(),
            path: "1".into(),
        },
        "09000000010a04726f6f740131",
    );
}

#[test]
fn growth() {
    let memory = MemoryGrowth {
        total: 1 << 30,
        start: 1 << 32,
    };
    for (memory, wire) in [
        (None, "0400000001070200"),
        (Some(memory), "0e0000000107020180808080048080808010"),
    ] {
        golden_action(Action::Grow(Growth { cpus: 2, memory }), wire);
    }
    golden(
        &Event::Grown {
            request: 1,
            cpus: 2,
            memory_total: 1 << 30,
        },
        "080000000401028080808004",
    );
}

#[test]
fn events() {
    golden(&Event::Done { request: 300 }, "0300000000ac02");
    golden(
        &Event::Personalized {
            request: 1,
            cid: 300,
            realtime_ns: 1_700_000_000_000_000_000,
        },
        "0d0000000301ac028080a8b1e39fe7cb17",
    );
    let kinds = [
        (Failure::NotFound, "06000000010100026e6f"),
        (Failure::NotExecutable, "06000000010101026e6f"),
        (Failure::NoSuchProcess, "06000000010102026e6f"),
        (Failure::Invalid, "06000000010103026e6f"),
        (Failure::System, "06000000010104026e6f"),
    ];
    for (kind, wire) in kinds {
        golden(
            &Event::Failed {
                request: 1,
                kind,
                message: "no".into(),
            },
            wire,
        );
    }
    golden(
        &Event::Exited {
            process: ProcessId(2),
            status: ExitStatus::Exited(7),
        },
        "0400000002020007",
    );
    golden(
        &Event::Exited {
            process: ProcessId(2),
            status: ExitStatus::Signaled(9),
        },
        "0400000002020109",
    );
}
