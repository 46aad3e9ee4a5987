use std::thread::{self, JoinHandle};

use agent_protocol::{Request, VERSION};

use super::*;
use crate::agent::fake::{FakeAgent, Peer};

const PROCESS: ProcessId = ProcessId(0);
const CID: u32 = 5;

fn start(stdio: Stdio) -> Start {
    Start {
        // Any action does: the fake agent answers by number.
        actions: vec![Action::Shutdown, Action::Shutdown],
        process: PROCESS,
        cid: Some(CID),
        stdio,
        input: false,
        output: Output::Stdio,
        proxy_signals: true,
    }
}

/// Runs a session against `agent`, which gets the peers of stdout, stderr and control.
fn session(
    agent: impl FnOnce(Peer, Peer, Peer) + Send + 'static,
) -> (Result<ExitStatus, SessionError>, JoinHandle<()>) {
    let fake = FakeAgent::listen();
    let vsock = fake.path();
    let far = thread::spawn(move || {
        let stdout = fake.accept();
        let stderr = fake.accept();
        let mut control = fake.accept();
        let stream = |stream| Open::Stream {
            process: PROCESS,
            stream,
        };
        assert_eq!(stdout.open, stream(Stream::Stdout));
        assert_eq!(stderr.open, stream(Stream::Stderr));
        assert_eq!(control.open, Open::Control { version: VERSION });
        control.greet(VERSION);
        agent(stdout, stderr, control);
    });
    let mut signals = Signals::none();
    let timeline = Arc::new(Timeline::new());
    let start = start(Stdio::Pipes { stdin: false });
    let result = run(&vsock, start, &mut signals, &timeline, &mut || {}).map(|(_, status)| status);
    (result, far)
}

fn exited(code: u8) -> Event {
    Event::Exited {
        process: PROCESS,
        status: ExitStatus::Exited(code),
    }
}

#[test]
fn the_exit_status_is_the_processs_own() {
    let (result, far) = session(|stdout, stderr, mut control| {
        for request in [0, 1] {
            assert_eq!(control.message::<Request>().id, request);
            control.send(&Event::Done { request });
        }
        drop((stdout, stderr));
        control.send(&exited(7));
        // Stay until the host is done.
        control.read_to_end();
    });
    assert_eq!(result.unwrap(), ExitStatus::Exited(7));
    far.join().unwrap();
}

#[test]
fn the_status_waits_for_the_end_of_the_output() {
    let begin = Instant::now();
    let (result, far) = session(|stdout, stderr, mut control| {
        control.send(&exited(0));
        thread::sleep(Duration::from_millis(100));
        drop((stdout, stderr));
        control.read_to_end();
    });
    assert_eq!(result.unwrap(), ExitStatus::Exited(0));
    assert!(begin.elapsed() >= Duration::from_millis(100));
    far.join().unwrap();
}

#[test]
fn a_failed_step_is_told_with_its_kind() {
    let (result, far) = session(|_stdout, _stderr, mut control| {
        control.send(&Event::Done { request: 0 });
        control.send(&Event::Failed {
            request: 1,
            kind: Failure::NotFound,
            message: "no such program".into(),
        });
        control.read_to_end();
    });
    match result {
        Err(SessionError::Agent { kind, message }) => {
            assert_eq!(
                (kind, message.as_str()),
                (Failure::NotFound, "no such program")
            );
        }
        other => panic!("{other:?}"),
    }
    far.join().unwrap();
}

#[test]
fn a_guest_that_vanishes_is_an_error() {
    let (result, far) = session(|_stdout, _stderr, mut control| {
        control.message::<Request>();
        control.message::<Request>();
    });
    assert!(matches!(
        result,
        Err(SessionError::Control(ControlError::Closed))
    ));
    far.join().unwrap();
}

#[test]
fn a_guest_that_is_not_what_it_was_told_to_be_is_an_error() {
    let (result, far) = session(|_stdout, _stderr, mut control| {
        control.send(&Event::Personalized {
            request: 0,
            cid: CID + 1,
            realtime_ns: crate::clock::realtime_ns(),
        });
        control.read_to_end();
    });
    let error = result.unwrap_err();
    assert!(matches!(error, SessionError::NotPersonal(_)), "{error:?}");
    far.join().unwrap();
}

#[test]
fn another_process_ending_is_not_ours_ending() {
    let (result, far) = session(|stdout, stderr, mut control| {
        control.send(&Event::Exited {
            process: ProcessId(5),
            status: ExitStatus::Exited(1),
        });
        control.send(&Event::Failed {
            request: 99,
            kind: Failure::NoSuchProcess,
            message: String::new(),
        });
        control.send(&exited(0));
        drop((stdout, stderr));
        control.read_to_end();
    });
    assert_eq!(result.unwrap(), ExitStatus::Exited(0));
    far.join().unwrap();
}
