//! An agent without a guest, for tests: speaks the VMM's vsock convention and the protocol.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
};

use agent_protocol::{Decoder, Hello, Open, encode};
use serde::{Serialize, de::DeserializeOwned};

/// Listens where a VMM would.
pub(crate) struct FakeAgent {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

/// A connection that the host made.
pub(crate) struct Peer {
    /// What the host opened.
    pub(crate) open: Open,
    stream: BufReader<UnixStream>,
}

impl FakeAgent {
    pub(crate) fn listen() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
        Self { dir, listener }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("vsock")
    }

    pub(crate) fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, "CONNECT 1025\n");
        let open = read_message(&mut stream);
        stream.get_mut().write_all(b"OK 1024\n").unwrap();
        Peer { open, stream }
    }
}

impl Peer {
    pub(crate) fn message<T: DeserializeOwned>(&mut self) -> T {
        read_message(&mut self.stream)
    }

    pub(crate) fn greet(&mut self, version: u32) {
        self.send(&Hello {
            version,
            agent: "fake".into(),
            kernel: "6.12".into(),
            memory_total: 1,
            cpus: 1,
            started_us: 0,
            ready_us: 0,
        });
    }

    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        self.bytes(&encode(message).unwrap());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// All raw bytes until the host is done sending.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

fn read_message<T: DeserializeOwned>(stream: &mut impl Read) -> T {
    let mut decoder = Decoder::new();
    loop {
        let mut bytes = vec![0; decoder.missing()];
        stream.read_exact(&mut bytes).unwrap();
        decoder.feed(&bytes);
        if let Some(message) = decoder.next().unwrap() {
            return message;
        }
    }
}
