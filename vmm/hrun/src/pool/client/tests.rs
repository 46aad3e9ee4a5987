//! Tests with daemons that are not ours.

use std::{io::Read, os::fd::AsFd, os::unix::net::UnixListener, thread};

use rustix::pipe::pipe;

use super::*;
use crate::template::Class;

const CLASS: PoolClass = PoolClass::any(Class {
    cpus: 1,
    memory: 256 << 20,
});

fn dirs() -> (tempfile::TempDir, Dirs) {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(dir.path().into(), dir.path().into());
    (dir, dirs)
}

/// What becomes of a claim if the daemon reads it and then does this.
fn claim_from(daemon: impl FnOnce(UnixStream) + Send + 'static) -> ClaimRefused {
    let (_dir, dirs) = dirs();
    let listener = UnixListener::bind(&dirs.pool).unwrap();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        assert_eq!(request[..length].last(), Some(&b'\n'));
        daemon(stream);
    });
    let refused = claim(&dirs, CLASS, "key").unwrap_err();
    daemon.join().unwrap();
    refused
}

fn saying(words: &'static [u8]) -> ClientError {
    let refused = claim_from(|mut stream| stream.write_all(words).unwrap());
    match refused {
        ClaimRefused::Client(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn without_a_daemon_there_is_none() {
    let (_dir, dirs) = dirs();
    let no_daemon = |refused: ClaimRefused| {
        assert!(matches!(
            refused,
            ClaimRefused::Client(ClientError::NoDaemon(_))
        ));
    };
    no_daemon(claim(&dirs, CLASS, "key").unwrap_err());
    drop(UnixListener::bind(&dirs.pool).unwrap());
    no_daemon(claim(&dirs, CLASS, "key").unwrap_err());
}

#[test]
fn an_answer_that_is_none_is_an_error_and_nothing_worse() {
    assert!(matches!(saying(b""), ClientError::HungUp));
    assert!(matches!(
        saying(b"{\"answer\":\"done\""),
        ClientError::HungUp
    ));
    for words in [
        &b"\n"[..],
        b"{\"answer\":\"done\"}\n",
        b"{\"answer\":\"vm\",\"pid\":1}\n",
        b"\xff\xff\n",
    ] {
        assert!(matches!(saying(words), ClientError::Answer), "{words:?}");
    }
    let error = saying(b"{\"answer\":\"failed\",\"message\":\"why\"}\n");
    assert!(error.to_string().ends_with("why"), "{error}");
}

#[test]
fn an_answer_without_end_is_not_read_to_its_end() {
    let refused = claim_from(|mut stream| {
        let chunk = [b'a'; 4096];
        while stream.write_all(&chunk).is_ok() {}
    });
    assert!(matches!(refused, ClaimRefused::Client(ClientError::Answer)));
}

#[test]
fn a_vm_with_a_bad_process_number_or_too_few_descriptors_is_refused() {
    for pid in [0, -1] {
        let refused = claim_from(move |stream| {
            let (read, _write) = pipe().unwrap();
            let fds = [read.as_fd(), read.as_fd(), read.as_fd()];
            handover::send(&stream, &line(&Answer::Vm { pid }), &fds).unwrap();
        });
        assert!(matches!(refused, ClaimRefused::Client(ClientError::Answer)));
    }
}

#[test]
fn a_daemon_that_says_nothing_is_given_up() {
    let (_dir, dirs) = dirs();
    let _listener = UnixListener::bind(&dirs.pool).unwrap();
    let timeout = Duration::from_millis(20);
    let mut connection = Connection::open(&dirs.pool, timeout).unwrap();
    let error = connection.ask(&Request::Status).unwrap_err();
    assert!(matches!(error, ClientError::Timeout(_)));
}
