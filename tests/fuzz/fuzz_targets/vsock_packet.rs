//! What a hostile guest can send over vsock, interleaved with what programs of the host do. The
//! muxer must not panic, must not hold more than its limits, and must come to rest.

#![no_main]

use std::{
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tempfile::TempDir;
use vmm::devices::vsock::{HEADER_SIZE, MAX_CONNECTIONS, Muxer, packet_in};

const GUEST_CID: u32 = 3;

/// A connection's whole window, and the most that all of them together may hold.
const WINDOW: usize = 256 << 10;
const MAX_BUFFERED: usize = 60 << 20;

/// Where somebody listens for the guest.
const HOST_PORT: u32 = 1;

const MAX_STEPS: usize = 256;
const MAX_PROGRAMS: usize = 24;

static DIRECTORY: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("the host has room for a directory"));
static RUNS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(|script: &[u8]| {
    Scene::new().play(Script(script));
});

/// The input, read from front to back. At its end everything is zero.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u32 {
        u32::from(self.half()) | u32::from(self.half()) << 16
    }

    /// A small number mostly, sometimes any: the limits are where errors are.
    fn count(&mut self) -> u32 {
        match self.byte() {
            0 => u32::MAX,
            1 => self.word(),
            2 => u32::from(self.half()),
            byte => u32::from(byte),
        }
    }

    fn choice(&mut self, among: usize) -> usize {
        usize::from(self.byte()) % among.max(1)
    }
}

struct Scene {
    muxer: Muxer,
    path: std::path::PathBuf,
    listener: UnixListener,
    programs: Vec<UnixStream>,
    /// Host and guest ports that the guest has seen.
    ports: Vec<(u32, u32)>,
}

impl Scene {
    fn new() -> Self {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let path = DIRECTORY.path().join(run.to_string());
        let bound = UnixListener::bind(&path).expect("the path is new");
        let listener =
            UnixListener::bind(format!("{}_{HOST_PORT}", path.display())).expect("the path is new");
        listener.set_nonblocking(true).expect("it is a socket");
        Self {
            muxer: Muxer::new(GUEST_CID, bound, &path).expect("the host has descriptors"),
            path,
            listener,
            programs: Vec::new(),
            ports: vec![(HOST_PORT, 1)],
        }
    }

    fn play(mut self, mut script: Script<'_>) {
        for _ in 0..MAX_STEPS {
            if script.is_over() {
                break;
            }
            match script.byte() % 12 {
                0 => self.guest_sends_anything(&mut script),
                1..=4 => self.guest_sends(&mut script),
                5 => self.program_connects(&mut script),
                6 => self.program_writes(&mut script),
                7 => self.program_reads(&mut script),
                8 => self.program_leaves(&mut script),
                9 => self.program_accepts(),
                10 => self.muxer.dispatch(),
                _ => {
                    for _ in 0..=script.byte() {
                        if !self.guest_receives(usize::from(script.byte())) {
                            break;
                        }
                    }
                }
            }
            assert!(self.muxer.connections() <= MAX_CONNECTIONS);
            let limit = MAX_BUFFERED.min(self.muxer.connections() * WINDOW);
            assert!(self.muxer.buffered() <= limit);
        }
        self.come_to_rest();
    }

    /// When all programs are gone there is an end to what the muxer has to say.
    fn come_to_rest(&mut self) {
        while self.listener.accept().is_ok() {}
        self.programs.clear();
        // A dispatch serves 64 sockets.
        for _ in 0..=MAX_STEPS / 64 {
            self.muxer.dispatch();
            let mut packets = 0;
            while self.guest_receives(4096) {
                packets += 1;
                assert!(packets < 1_000_000, "packets without end");
            }
        }
        // Nobody reads any more: nothing is kept for anybody.
        assert_eq!(self.muxer.buffered(), 0);
    }

    fn guest_sends_anything(&mut self, script: &mut Script<'_>) {
        let payload = script.choice(64);
        let mut bytes: Vec<u8> = (0..HEADER_SIZE + payload).map(|_| script.byte()).collect();
        let packet = packet_in(&mut bytes).expect("there is a header");
        self.muxer.receive(&packet);
    }

    fn guest_sends(&mut self, script: &mut Script<'_>) {
        let (host, guest) = if script.byte() < 16 {
            let ports = (HOST_PORT, u32::from(script.byte()));
            self.ports.push(ports);
            ports
        } else {
            self.ports[script.choice(self.ports.len())]
        };
        let payload = usize::from(script.half());
        let mut bytes = vec![0x5a; HEADER_SIZE + payload];
        let mut packet = packet_in(&mut bytes).expect("there is a header");
        let op = u16::from(script.byte() % 9);
        // Only data has payload as a rule, and as a rule its length is right.
        let length = match script.byte() {
            0 => script.count(),
            _ if op == 5 => u32::try_from(payload).expect("it was 16 bits"),
            _ => 0,
        };
        packet
            .set_src_cid(u64::from(GUEST_CID))
            .set_dst_cid(2)
            .set_src_port(guest)
            .set_dst_port(host)
            .set_len(length)
            .set_type(1)
            .set_op(op)
            .set_flags(u32::from(script.byte() % 5))
            .set_buf_alloc(script.count())
            .set_fwd_cnt(script.count());
        self.muxer.receive(&packet);
    }

    /// Takes a packet with this much room for payload. False if there is none.
    fn guest_receives(&mut self, room: usize) -> bool {
        let mut bytes = vec![0; HEADER_SIZE + room];
        let mut packet = packet_in(&mut bytes).expect("there is a header");
        if !self.muxer.deliver(&mut packet) {
            return false;
        }
        assert_eq!(packet.dst_cid(), u64::from(GUEST_CID));
        assert!((1..=7).contains(&packet.op()));
        assert!(packet.len() as usize <= room);
        assert_eq!(packet.op() == 5, !packet.is_empty());
        if packet.op() == 1 {
            self.ports.push((packet.src_port(), packet.dst_port()));
        }
        true
    }

    fn program_connects(&mut self, script: &mut Script<'_>) {
        if self.programs.len() >= MAX_PROGRAMS {
            return;
        }
        let Ok(program) = UnixStream::connect(&self.path) else {
            return;
        };
        let line = match script.byte() {
            0 => (0..script.choice(32)).map(|_| script.byte()).collect(),
            port => format!("CONNECT {port}\nahead").into_bytes(),
        };
        self.add(program);
        self.write(self.programs.len() - 1, &line);
        self.muxer.dispatch();
    }

    fn program_accepts(&mut self) {
        while let Ok((program, _)) = self.listener.accept() {
            if self.programs.len() < MAX_PROGRAMS {
                self.add(program);
            }
        }
    }

    fn add(&mut self, program: UnixStream) {
        program.set_nonblocking(true).expect("it is a socket");
        self.programs.push(program);
    }

    fn program_writes(&mut self, script: &mut Script<'_>) {
        if !self.programs.is_empty() {
            let index = script.choice(self.programs.len());
            self.write(index, &vec![0xa5; usize::from(script.half())]);
        }
    }

    fn write(&self, index: usize, data: &[u8]) {
        // Not all of it may fit, and the muxer may have hung up.
        let _ = send(&self.programs[index], data, SendFlags::NOSIGNAL);
    }

    fn program_reads(&mut self, script: &mut Script<'_>) {
        if !self.programs.is_empty() {
            let index = script.choice(self.programs.len());
            let mut buffer = vec![0; usize::from(script.half())];
            let _ = self.programs[index].read(&mut buffer);
        }
    }

    fn program_leaves(&mut self, script: &mut Script<'_>) {
        if self.programs.is_empty() {
            return;
        }
        let index = script.choice(self.programs.len());
        let how = match script.byte() % 4 {
            0 => Shutdown::Read,
            1 => Shutdown::Write,
            2 => Shutdown::Both,
            _ => {
                self.programs.swap_remove(index);
                return;
            }
        };
        let _ = shutdown(&self.programs[index], how);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for path in [
            self.path.clone(),
            format!("{}_{HOST_PORT}", self.path.display()).into(),
        ] {
            let _ = std::fs::remove_file(path);
        }
    }
}
