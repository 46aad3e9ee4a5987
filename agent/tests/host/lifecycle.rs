//! Connections, the order of requests, and the end.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use agent_protocol::*;

use crate::guest::{Guest, shell, text};

#[test]
fn a_whole_start_is_one_write() {
    let guest = Guest::new();
    let mut control = guest.control();
    let create = control.send(Action::Create(Box::new(guest.container())));
    let start = control.send(Action::Start(Box::new(shell(1, "echo hi"))));
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    assert_eq!(control.answer(create), Ok(()));
    assert_eq!(control.answer(start), Ok(()));
    assert_eq!(text(&mut stdout), "hi\n");
    assert_eq!(control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn a_start_without_its_streams_holds_back_what_is_behind_it() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let start = control.send(Action::Start(Box::new(shell(1, "exec sleep 100"))));
    let signal = control.send(Action::Signal {
        process: ProcessId(1),
        signal: 9,
        all: false,
    });
    let _stdout = guest.stream(1, Stream::Stdout);
    let timeout = Some(Duration::from_millis(200));
    control.socket.set_read_timeout(timeout).unwrap();
    assert!(control.socket.read(&mut [0]).is_err());
    control
        .socket
        .set_read_timeout(Some(crate::guest::PATIENCE))
        .unwrap();
    // Others are served.
    let mut other = guest.control();
    let failed = other.try_ask(Action::Signal {
        process: ProcessId(1),
        signal: 9,
        all: false,
    });
    assert_eq!(failed.unwrap_err().0, Failure::NoSuchProcess);
    let _stderr = guest.stream(1, Stream::Stderr);
    assert_eq!(control.answer(start), Ok(()));
    assert_eq!(control.answer(signal), Ok(()));
    assert_eq!(control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn requests_that_build_on_a_failed_one_fail() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut container = guest.container();
    container.root = crate::guest::share("/does/not/exist".as_ref(), "/");
    let create = control.send(Action::Create(Box::new(container)));
    let start = control.send(Action::Start(Box::new(shell(1, "true"))));
    let signal = control.send(Action::Signal {
        process: ProcessId(1),
        signal: 15,
        all: false,
    });
    assert_eq!(control.answer(create).unwrap_err().0, Failure::System);
    assert_eq!(control.answer(start).unwrap_err().0, Failure::Invalid);
    assert_eq!(
        control.answer(signal).unwrap_err().0,
        Failure::NoSuchProcess
    );
}

#[test]
fn nothing_ends_because_a_connection_closes() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut stdin = guest.stream(1, Stream::Stdin);
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    let mut process = shell(1, "read line; echo $line; exit 6");
    process.stdio = Stdio::Pipes { stdin: true };
    control.ask(Action::Start(Box::new(process)));
    control.close();
    stdin.write_all(b"lives\n").unwrap();
    assert_eq!(text(&mut stdout), "lives\n");
    // The exit waits for whoever comes.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.control().exit(1), ExitStatus::Exited(6));
}

#[test]
fn an_exit_goes_to_the_newest_connection_if_its_own_is_closed() {
    let guest = Guest::new();
    let mut first = guest.control();
    first.ask(Action::Create(Box::new(guest.container())));
    let mut stdin = guest.stream(1, Stream::Stdin);
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    let mut process = shell(1, "read line");
    process.stdio = Stdio::Pipes { stdin: true };
    first.ask(Action::Start(Box::new(process)));
    let mut second = guest.control();
    first.close();
    std::thread::sleep(Duration::from_millis(100));
    stdin.write_all(b"\n").unwrap();
    assert_eq!(second.exit(1), ExitStatus::Exited(0));
}

#[test]
fn a_host_of_another_version_is_told_so() {
    let guest = Guest::new();
    let mut socket = guest.connect();
    let open = Open::Control { version: 99 };
    socket.write_all(&encode(&open).unwrap()).unwrap();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).unwrap();
    let mut decoder = Decoder::new();
    decoder.feed(&bytes);
    assert_eq!(decoder.next_hello().unwrap().unwrap().version, VERSION);
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let guest = Guest::new();
    let mut control = guest.control();
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 64],
        &[3, 0, 0, 0, 9, 9, 9],
        &[0, 0, 0, 0],
    ] {
        let mut socket = guest.connect();
        socket.write_all(garbage).unwrap();
        let mut rest = Vec::new();
        // It may be cut off with a reset, as the agent has left bytes unread.
        let _ = socket.read_to_end(&mut rest);
    }
    let mut bad = guest.control();
    bad.socket.write_all(&[2, 0, 0, 0, 1, 77]).unwrap();
    let _ = bad.socket.read_to_end(&mut Vec::new());
    // Half a frame, then silence.
    let mut half = guest.connect();
    half.write_all(&[200, 0, 0, 0, 0]).unwrap();
    control.ask(Action::Create(Box::new(guest.container())));
    assert_eq!(guest.run(&mut control, shell(1, "echo ok")).stdout, "ok\n");
}

#[test]
fn a_stream_that_is_there_twice_is_refused() {
    let guest = Guest::new();
    let mut control = guest.control();
    let mut first = guest.stream(1, Stream::Stdout);
    std::thread::sleep(Duration::from_millis(50));
    let mut second = guest.stream(1, Stream::Stdout);
    assert_eq!(second.read(&mut [0]).unwrap_or(0), 0);
    control.ask(Action::Create(Box::new(guest.container())));
    let _stderr = guest.stream(1, Stream::Stderr);
    control.ask(Action::Start(Box::new(shell(1, "echo one"))));
    assert_eq!(text(&mut first), "one\n");
}

#[test]
fn a_process_number_is_used_once_at_a_time() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let _streams = [Stream::Stdout, Stream::Stderr].map(|stream| guest.stream(1, stream));
    control.ask(Action::Start(Box::new(shell(1, "exec sleep 100"))));
    let again = control.try_ask(Action::Start(Box::new(shell(1, "true"))));
    assert_eq!(again.unwrap_err().0, Failure::Invalid);
}

#[test]
fn a_shutdown_ends_everything_and_then_answers() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    let stubborn = "trap '' TERM INT HUP; sleep 100 & sleep 100";
    control.ask(Action::Start(Box::new(shell(1, stubborn))));
    let begin = Instant::now();
    drop(guest);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(text(&mut stdout), "");
}
