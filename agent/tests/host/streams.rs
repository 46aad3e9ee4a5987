//! Standard streams: every byte arrives, ends arrive, and nobody's slowness makes anything grow.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_protocol::*;

use crate::guest::{Control, Guest, shell, text};

struct Started {
    control: Control,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
}

/// A process with three pipes.
fn start(guest: &Guest, command: &str) -> Started {
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let stdin = guest.stream(1, Stream::Stdin);
    let stdout = guest.stream(1, Stream::Stdout);
    let stderr = guest.stream(1, Stream::Stderr);
    let mut process = shell(1, command);
    process.stdio = Stdio::Pipes { stdin: true };
    control.ask(Action::Start(Box::new(process)));
    Started {
        control,
        stdin,
        stdout,
        stderr,
    }
}

/// A process with a terminal.
fn terminal(guest: &Guest, command: &str) -> (Control, UnixStream) {
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let stream = guest.stream(1, Stream::Terminal);
    let mut process = shell(1, command);
    process.stdio = Stdio::Terminal(WindowSize {
        rows: 33,
        columns: 99,
    });
    control.ask(Action::Start(Box::new(process)));
    (control, stream)
}

/// Bytes without a pattern that a pipe of any size could fit.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

#[test]
fn every_byte_arrives_in_both_directions() {
    let guest = Guest::new();
    let mut started = start(&guest, "exec cat");
    let sent = noise(8 << 20);
    let mut stdin = started.stdin.try_clone().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || {
        stdin.write_all(&copy).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    started.stdout.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(
        sent == received,
        "{} bytes of {}",
        received.len(),
        sent.len()
    );
    assert_eq!(started.control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn input_that_comes_with_the_greeting_is_not_lost() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let open = Open::Stream {
        process: ProcessId(1),
        stream: Stream::Stdin,
    };
    let mut stdin = guest.connect();
    let mut bytes = encode(&open).unwrap();
    bytes.extend_from_slice(&noise(6000));
    stdin.write_all(&bytes).unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    let mut stdout = guest.stream(1, Stream::Stdout);
    let _stderr = guest.stream(1, Stream::Stderr);
    let mut process = shell(1, "exec cat");
    process.stdio = Stdio::Pipes { stdin: true };
    control.ask(Action::Start(Box::new(process)));
    let mut received = Vec::new();
    stdout.read_to_end(&mut received).unwrap();
    assert!(received == noise(6000));
}

#[test]
fn without_stdin_there_is_nothing_to_read() {
    let guest = Guest::new();
    let output = guest.sh("readlink /proc/self/fd/0; cat; echo end");
    assert_eq!(output.stdout, "/dev/null\nend\n");
}

#[test]
fn a_reader_that_stops_holds_the_writer_back() {
    let guest = Guest::new();
    let mut started = start(&guest, "exec yes");
    std::thread::sleep(Duration::from_millis(300));
    // The agent serves others meanwhile.
    let failed = started.control.try_ask(Action::Resize {
        process: ProcessId(1),
        size: WindowSize {
            rows: 1,
            columns: 1,
        },
    });
    assert_eq!(failed.unwrap_err().0, Failure::Invalid);
    let mut first = vec![0; 1 << 20];
    started.stdout.read_exact(&mut first).unwrap();
    assert!(first.chunks(2).all(|chunk| chunk == b"y\n"));
    started.control.signal(1, 9, false);
    // What was written before the end arrives, and then the exit.
    let mut rest = Vec::new();
    started.stdout.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 4 << 20, "{} bytes were held", rest.len());
    assert_eq!(started.control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn a_process_that_stops_reading_holds_the_host_back() {
    let guest = Guest::new();
    let mut started = start(&guest, "exec sleep 100");
    started.stdin.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let block = vec![0; 64 << 10];
    let mut idle = 0;
    while idle < 20 {
        match started.stdin.write(&block) {
            Ok(count) => {
                sent += count;
                idle = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 2 << 20, "{sent} bytes were taken");
    started.control.signal(1, 9, false);
    assert_eq!(started.control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn a_closed_output_ends_while_the_process_lives() {
    let guest = Guest::new();
    let mut started = start(&guest, "echo bye; exec >&-; read line; echo $line >&2");
    assert_eq!(text(&mut started.stdout), "bye\n");
    started.stdin.write_all(b"still here\n").unwrap();
    assert_eq!(text(&mut started.stderr), "still here\n");
    assert_eq!(started.control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn a_process_that_closes_its_input_closes_the_hosts() {
    let guest = Guest::new();
    let mut started = start(&guest, "exec <&-; echo closed; exec sleep 100");
    let mut closed = [0; 7];
    started.stdout.read_exact(&mut closed).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while started.stdin.write_all(&[0; 4096]).is_ok() {
        assert!(Instant::now() < deadline, "nobody closed the stream");
    }
    started.control.signal(1, 9, false);
    assert_eq!(started.control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn a_host_that_goes_away_breaks_the_writers_pipe() {
    let guest = Guest::new();
    let mut started = start(&guest, "trap '' PIPE; while echo x; do :; done; exit 9");
    let mut some = [0; 4096];
    started.stdout.read_exact(&mut some).unwrap();
    drop(started.stdout);
    assert_eq!(started.control.exit(1), ExitStatus::Exited(9));
}

#[test]
fn background_processes_hold_the_streams_only_for_a_while() {
    let guest = Guest::new();
    let mut started = start(&guest, "exec sleep 100");
    let mut stdout = guest.stream(2, Stream::Stdout);
    let mut stderr = guest.stream(2, Stream::Stderr);
    let begin = Instant::now();
    let process = shell(2, "sleep 50 & echo started; exit 4");
    started.control.ask(Action::Start(Box::new(process)));
    assert_eq!(text(&mut stdout), "started\n");
    assert_eq!(text(&mut stderr), "");
    assert_eq!(started.control.exit(2), ExitStatus::Exited(4));
    let held = begin.elapsed();
    assert!(held > Duration::from_secs(4), "{held:?}");
    assert!(held < Duration::from_secs(10), "{held:?}");
    started.control.signal(1, 9, false);
    assert_eq!(started.control.exit(1), ExitStatus::Signaled(9));
}

#[test]
fn a_terminal_is_one() {
    let guest = Guest::new();
    let (mut control, mut stream) = terminal(
        &guest,
        "test -t 0 -a -t 1 -a -t 2 && stty size && tty && echo $TERM && echo hi > /dev/console
         echo tty > /dev/tty; stat -c %a $(tty); ps -o tty= $$ >/dev/null; exit 3",
    );
    assert_eq!(
        text(&mut stream),
        "33 99\r\n/dev/pts/0\r\nxterm\r\nhi\r\ntty\r\n620\r\n"
    );
    assert_eq!(control.exit(1), ExitStatus::Exited(3));
}

#[test]
fn a_terminal_carries_input_signals_and_sizes() {
    let guest = Guest::new();
    // A signal ends dash's `read` as the end of the input does: the traps tell them apart.
    let command = "trap 'stty size; again=1' WINCH; trap 'echo interrupted; again=1' INT
        stty -echo; echo ready
        while :; do
            again=
            if read line; then echo \"<$line>\"; elif [ -z \"$again\" ]; then break; fi
        done
        echo end";
    let (mut control, mut stream) = terminal(&guest, command);
    let mut seen = String::new();
    let mut expect = |stream: &mut UnixStream, wanted: &str| {
        let mut buffer = [0; 256];
        while !seen.contains(wanted) {
            let count = stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "{seen:?} ends before {wanted:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen.clear();
    };
    expect(&mut stream, "ready\r\n");
    stream.write_all(b"hello\n").unwrap();
    expect(&mut stream, "<hello>\r\n");
    stream.write_all(b"\x03").unwrap();
    stream.write_all(b"\n").unwrap();
    expect(&mut stream, "interrupted\r\n");
    control.ask(Action::Resize {
        process: ProcessId(1),
        size: WindowSize {
            rows: 5,
            columns: 300,
        },
    });
    stream.write_all(b"\n").unwrap();
    expect(&mut stream, "5 300\r\n");
    // The end of input is typed.
    stream.shutdown(Shutdown::Write).unwrap();
    expect(&mut stream, "end\r\n");
    assert_eq!(control.exit(1), ExitStatus::Exited(0));
}

#[test]
fn a_terminal_carries_much() {
    let guest = Guest::new();
    let (mut control, mut stream) = terminal(&guest, "seq 1 20000; exit 2");
    let expected: String = (1..=20000).map(|n| format!("{n}\r\n")).collect();
    assert!(text(&mut stream) == expected);
    assert_eq!(control.exit(1), ExitStatus::Exited(2));
}

#[test]
fn a_users_terminal_belongs_to_the_user() {
    let guest = Guest::new();
    let mut control = guest.control();
    control.ask(Action::Create(Box::new(guest.container())));
    let mut stream = guest.stream(1, Stream::Terminal);
    let mut process = shell(1, "stat -c '%u %g' $(tty); echo > $(tty)");
    process.user = "77:78".into();
    process.stdio = Stdio::Terminal(WindowSize {
        rows: 1,
        columns: 1,
    });
    control.ask(Action::Start(Box::new(process)));
    assert_eq!(text(&mut stream), "77 5\r\n\r\n");
}
