//! The muxer without queues: limits and deadlines, for which a driver would only be in the way.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::{
    super::{
        muxer::{MAX_HANDSHAKES, SMALL_WINDOW, WINDOW},
        packet::*,
        *,
    },
    header::*,
};

struct Bench {
    muxer: Muxer,
    path: PathBuf,
    _directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        Self {
            muxer: Muxer::new(GUEST_CID, listener, &path).unwrap(),
            path,
            _directory: directory,
        }
    }

    fn client(&mut self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        self.muxer.dispatch();
        client
    }

    fn receive(&mut self, mut header: Header, payload: &[u8]) {
        header.len = payload.len() as u32;
        let mut bytes = [&header.bytes()[..], payload].concat();
        self.muxer.receive(&packet_in(&mut bytes).unwrap());
    }

    fn deliver(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = vec![0; HEADER_SIZE + 4096];
        let mut packet = packet_in(&mut bytes).unwrap();
        let header = self
            .muxer
            .deliver(&mut packet)
            .then(|| Header::parse(&packet))?;
        let end = HEADER_SIZE + header.len as usize;
        Some((header, bytes[HEADER_SIZE..end].to_vec()))
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.deliver().expect("nothing for the guest");
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    fn expect_nothing(&mut self) {
        assert_eq!(self.deliver(), None);
        assert!(!self.muxer.has_packets());
    }

    fn connect(&mut self, port: u32) -> (UnixStream, Ports) {
        let client = self.client(&format!("CONNECT {port}\n"));
        let ports = self.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
        self.receive(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
        (client, ports)
    }
}

fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map(|maximum| maximum.min(8192));
    let maximum = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

fn is_closed(client: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).is_ok()
}

#[test]
fn connections_are_limited_and_the_later_ones_get_small_windows() {
    allow_many_files();
    let mut bench = Bench::new();
    let listener = UnixListener::bind(format!("{}_1", bench.path.display())).unwrap();
    let mut programs = Vec::new();
    let mut windows = 0;
    let request = |guest| {
        let ports = Ports { host: 1, guest };
        Header::from_guest(ports, VIRTIO_VSOCK_OP_REQUEST)
    };
    for guest in 0..1024 {
        bench.receive(request(guest), &[]);
        let window = bench.expect(VIRTIO_VSOCK_OP_RESPONSE).buf_alloc;
        assert_eq!(window, if guest < 128 { WINDOW } else { SMALL_WINDOW });
        windows += window;
        programs.push(listener.accept().unwrap().0);
    }
    assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
    assert!(windows <= 60 << 20, "{windows}");

    bench.receive(request(1024), &[]);
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_RST).dst_port, 1024);
    let mut client = bench.client("CONNECT 5\n");
    assert!(is_closed(&mut client));

    // One goes, one may come, and it inherits the large window.
    let ports = Ports { host: 1, guest: 0 };
    bench.receive(Header::from_guest(ports, VIRTIO_VSOCK_OP_RST), &[]);
    bench.receive(request(1024), &[]);
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_RESPONSE).buf_alloc, WINDOW);
}

#[test]
fn data_that_no_program_reads_stay_within_the_window() {
    let mut bench = Bench::new();
    let (_client, ports) = bench.connect(52);
    let rw = Header::from_guest(ports, VIRTIO_VSOCK_OP_RW);
    for _ in 0..1000 {
        bench.receive(rw, &[1; 1000]);
        assert!(bench.muxer.buffered() <= WINDOW as usize);
    }
    assert_eq!(bench.muxer.connections(), 0, "violations end a connection");
    assert_eq!(bench.muxer.buffered(), 0);
}

#[test]
fn a_program_that_never_says_where_to_is_given_up() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONN");
    bench.muxer.expire(Instant::now() + Duration::from_secs(5));
    assert!(!is_closed(&mut client));
    bench.muxer.expire(Instant::now() + Duration::from_secs(20));
    assert!(is_closed(&mut client));
}

#[test]
fn silent_programs_make_others_wait_but_not_for_ever() {
    let mut bench = Bench::new();
    let _silent: Vec<UnixStream> = (0..MAX_HANDSHAKES).map(|_| bench.client("")).collect();
    let _patient = bench.client("CONNECT 52\n");
    bench.expect_nothing();
    bench.muxer.expire(Instant::now() + Duration::from_secs(20));
    bench.muxer.dispatch();
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_REQUEST).dst_port, 52);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut bench = Bench::new();
    let mut client = bench.client("CONNECT 52\n");
    let ports = bench.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    bench.muxer.expire(Instant::now() + Duration::from_secs(60));
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_RST).ports(), ports);
    assert!(is_closed(&mut client));
    // Its answer comes late.
    bench.receive(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
    bench.expect(VIRTIO_VSOCK_OP_RST);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_guest_that_keeps_a_dead_connection_is_reset() {
    let mut bench = Bench::new();
    let (client, ports) = bench.connect(52);
    drop(client);
    bench.muxer.dispatch();
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_SHUTDOWN).flags, SHUTDOWN_BOTH);
    bench.expect_nothing();
    assert_eq!(bench.muxer.connections(), 1);
    bench.muxer.expire(Instant::now() + Duration::from_secs(20));
    assert_eq!(bench.expect(VIRTIO_VSOCK_OP_RST).ports(), ports);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_living_connection_has_no_deadline() {
    let mut bench = Bench::new();
    let (_client, _) = bench.connect(52);
    bench
        .muxer
        .expire(Instant::now() + Duration::from_secs(1 << 20));
    assert_eq!(bench.muxer.connections(), 1);
}

#[test]
fn a_guest_may_use_its_ports_again_while_the_program_still_reads() {
    let mut bench = Bench::new();
    let listener = UnixListener::bind(format!("{}_1", bench.path.display())).unwrap();
    let ports = Ports { host: 1, guest: 2 };
    let mut programs = Vec::new();
    for _ in 0..2 {
        bench.receive(Header::from_guest(ports, VIRTIO_VSOCK_OP_REQUEST), &[]);
        bench.expect(VIRTIO_VSOCK_OP_RESPONSE);
        programs.push(listener.accept().unwrap().0);
        let rw = Header::from_guest(ports, VIRTIO_VSOCK_OP_RW);
        while bench.muxer.buffered() < programs.len() * 1000 {
            bench.receive(rw, &[programs.len() as u8; 1000]);
            while bench.muxer.has_packets() && bench.deliver().is_some() {}
        }
        let end = Header::from_guest(ports, VIRTIO_VSOCK_OP_SHUTDOWN);
        let flags = SHUTDOWN_BOTH;
        bench.receive(Header { flags, ..end }, &[]);
        bench.expect(VIRTIO_VSOCK_OP_RST);
    }
    assert_eq!(bench.muxer.connections(), 2);
    for (index, program) in programs.iter_mut().enumerate() {
        program.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        while program.read_to_end(&mut received).is_err() {
            bench.muxer.dispatch();
        }
        assert!(
            received.len() > 1000 && received.iter().all(|&byte| usize::from(byte) == index + 1)
        );
    }
    bench.muxer.dispatch();
    assert_eq!(bench.muxer.connections(), 0);
    assert_eq!(bench.muxer.buffered(), 0);
}
