//! Streams: who connects, what arrives, how it ends, what it may cost.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use super::{
    super::{muxer::WINDOW, packet::*},
    driver::*,
    header::*,
};

const MIB: usize = 1 << 20;

/// Bytes that repeat at no power of two, so that a lost or doubled piece shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index % 251) as u8 ^ (index / 251) as u8)
        .collect()
}

fn rw(ports: Ports) -> Header {
    Header::from_guest(ports, VIRTIO_VSOCK_OP_RW)
}

fn shutdown(ports: Ports, flags: u32) -> Header {
    Header {
        flags,
        ..Header::from_guest(ports, VIRTIO_VSOCK_OP_SHUTDOWN)
    }
}

#[test]
fn a_program_connects_and_what_it_sent_ahead_arrives() {
    let mut driver = Driver::new();
    let mut client = driver.client();
    client.write_all(b"CONNECT 52\nhello, guest").unwrap();
    let request = driver.expect(VIRTIO_VSOCK_OP_REQUEST);
    assert_eq!(
        (request.src_cid, request.dst_cid),
        (2, u64::from(GUEST_CID))
    );
    assert_eq!((request.dst_port, request.type_, request.len), (52, 1, 0));
    assert_eq!((request.buf_alloc, request.fwd_cnt), (WINDOW, 0));
    driver.expect_silence();

    let ports = request.ports();
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
    let (header, data) = driver.receive();
    assert_eq!((header.op, header.ports()), (VIRTIO_VSOCK_OP_RW, ports));
    assert_eq!(data, b"hello, guest");
    assert_eq!(read_line(&mut client), format!("OK {}\n", ports.host));

    driver.send(rw(ports), b"hello, host");
    let mut answer = [0; 11];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello, host");
}

#[test]
fn a_program_that_the_guest_refuses_reads_an_end_of_file() {
    let mut driver = Driver::new();
    let mut client = driver.client();
    client.write_all(b"CONNECT 52\nunread").unwrap();
    let ports = driver.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RST), &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    driver.expect_silence();
}

#[test]
fn a_program_that_talks_nonsense_is_hung_up_on() {
    let driver = Driver::new();
    let mut client = driver.client();
    client.write_all(b"HELLO 52\n").unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_program_that_is_gone_before_the_guest_answers_leaves_its_data() {
    let mut driver = Driver::new();
    let mut client = driver.client();
    client.write_all(b"CONNECT 52\nlast words").unwrap();
    drop(client);
    let ports = driver.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
    assert_eq!(driver.receive().1, b"last words");
    assert_eq!(driver.expect(VIRTIO_VSOCK_OP_SHUTDOWN).flags, SHUTDOWN_BOTH);
}

#[test]
fn the_guest_connects_to_a_program_that_listens() {
    let mut driver = Driver::new();
    let listener = UnixListener::bind(format!("{}_1024", driver.socket.display())).unwrap();
    let ports = Ports {
        host: 1024,
        guest: 5000,
    };
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_REQUEST), &[]);
    let response = driver.expect(VIRTIO_VSOCK_OP_RESPONSE);
    assert_eq!(response.ports(), ports);
    assert_eq!(response.buf_alloc, WINDOW);
    let (mut program, _) = listener.accept().unwrap();

    driver.send(rw(ports), b"ready");
    let mut data = [0; 5];
    program.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"ready");
    program.write_all(b"go").unwrap();
    assert_eq!(driver.receive().1, b"go");
}

#[test]
fn the_guest_is_refused_where_nobody_listens() {
    let mut driver = Driver::new();
    let ports = Ports {
        host: 1024,
        guest: 5000,
    };
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_REQUEST), &[]);
    assert_eq!(driver.expect(VIRTIO_VSOCK_OP_RST).ports(), ports);
}

/// Echoes everything in the guest, and counts what it takes to do so.
fn echo(event_idx: bool) {
    let mut driver = Driver::inactive();
    driver.activate(event_idx);
    let (client, ports) = driver.connect(52);
    let data = pattern(8 * MIB);

    let mut writer = client.try_clone().unwrap();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = client;
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        received
    });

    let mut pending = Vec::new();
    let (mut sent, mut consumed) = (0_u32, 0_u32);
    let (mut window, mut forwarded) = (WINDOW, 0_u32);
    let mut ended = false;
    while !ended || !pending.is_empty() {
        let room = (window - sent.wrapping_sub(forwarded)) as usize;
        let length = pending.len().min(room).min(MAX_PAYLOAD);
        // As large pieces as there are, but everything when nothing more will come.
        if length > 0 && (length >= 16384 || ended || room < 16384) {
            let payload: Vec<u8> = pending.drain(..length).collect();
            let header = Header {
                fwd_cnt: consumed,
                ..rw(ports)
            };
            driver.send(header, &payload);
            sent = sent.wrapping_add(length as u32);
            continue;
        }
        let (header, payload) = driver.receive();
        (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            VIRTIO_VSOCK_OP_RW => {
                pending.extend(&payload);
                consumed = consumed.wrapping_add(header.len);
                if consumed.is_multiple_of(64 << 10) {
                    let update = Header::from_guest(ports, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
                    let fwd_cnt = consumed;
                    driver.send(Header { fwd_cnt, ..update }, &[]);
                }
            }
            VIRTIO_VSOCK_OP_SHUTDOWN => {
                assert_eq!(header.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
                ended = true;
            }
            VIRTIO_VSOCK_OP_CREDIT_UPDATE => {}
            op => panic!("unexpected operation {op}"),
        }
    }
    driver.send(shutdown(ports, SHUTDOWN_BOTH), &[]);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == data, "data were changed");
}

#[test]
fn mebibytes_both_ways_arrive_unchanged() {
    echo(true);
}

#[test]
fn mebibytes_both_ways_arrive_unchanged_without_event_indexes() {
    echo(false);
}

#[test]
fn a_stopped_reader_stops_the_guest_and_loses_nothing() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    // As much as the guest has credit for; the socket takes some of it.
    let data = pattern(16 * MIB);
    let (mut sent, mut forwarded, mut window) = (0, 0, WINDOW);
    loop {
        let room = (window - (sent as u32 - forwarded)) as usize;
        let length = room.min(MAX_PAYLOAD);
        if length > 0 {
            driver.send(rw(ports), &data[sent..sent + length]);
            sent += length;
        } else if let Some((header, _)) = driver.poll(Duration::from_millis(300)) {
            assert_eq!(header.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
            (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
        } else {
            break;
        }
    }
    // Bounded by our window and the socket's buffer.
    assert!(sent >= WINDOW as usize, "{sent}");
    assert!(sent < MIB, "{sent}");

    // The guest leaves: it gets its RST at once, and the program still gets everything.
    driver.send(shutdown(ports, SHUTDOWN_BOTH), &[]);
    driver.expect(VIRTIO_VSOCK_OP_RST);
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert!(received == data[..sent]);
}

#[test]
fn the_guest_hears_of_credit_when_a_stopped_reader_goes_on() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    let data = pattern(MIB);
    let (mut sent, mut forwarded) = (0, 0);
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let mut received = vec![0; MIB];
        client.read_exact(&mut received).unwrap();
        received
    });
    while sent < MIB {
        let room = (WINDOW - (sent as u32 - forwarded)) as usize;
        let length = room.min(MAX_PAYLOAD).min(MIB - sent);
        if length == 0 {
            forwarded = driver.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE).fwd_cnt;
            continue;
        }
        driver.send(rw(ports), &data[sent..sent + length]);
        sent += length;
    }
    assert!(reader.join().unwrap() == data);
}

#[test]
fn a_guest_without_room_stops_the_program() {
    let mut driver = Driver::new();
    let mut client = driver.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    let ports = driver.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    let mut response = Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE);
    response.buf_alloc = 10_000;
    driver.send(response, &[]);
    read_line(&mut client);

    client.set_nonblocking(true).unwrap();
    let data = pattern(8 * MIB);
    let mut written = 0;
    let mut received = Vec::new();
    // The socket fills, the guest gets its 10000 bytes and not one more.
    let mut idle = 0;
    while idle < 3 {
        match client.write(&data[written..]) {
            Ok(length) => written += length,
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                match driver.poll(Duration::from_millis(100)) {
                    Some((_, payload)) => received.extend(payload),
                    None => idle += 1,
                }
            }
            Err(err) => panic!("{err}"),
        }
    }
    assert_eq!(received.len(), 10_000);
    assert!(written < MIB, "{written}");

    let mut update = Header::from_guest(ports, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    (update.buf_alloc, update.fwd_cnt) = (WINDOW * 4, 10_000);
    driver.send(update, &[]);
    while received.len() < written {
        received.extend(driver.receive().1);
    }
    assert!(received == data[..written]);
}

#[test]
fn a_credit_request_is_answered() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    driver.send(rw(ports), b"12345");
    client.read_exact(&mut [0; 5]).unwrap();
    driver.send(
        Header::from_guest(ports, VIRTIO_VSOCK_OP_CREDIT_REQUEST),
        &[],
    );
    let update = driver.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (WINDOW, 5));
    driver.expect_silence();
}

#[test]
fn the_program_ends_its_direction_and_the_guest_goes_on() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(driver.receive().1, b"question");
    let end = driver.expect(VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_eq!(end.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);

    driver.send(rw(ports), b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    driver.send(shutdown(ports, SHUTDOWN_BOTH), &[]);
    driver.expect(VIRTIO_VSOCK_OP_RST);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_guest_ends_its_direction_and_the_program_goes_on() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    driver.send(rw(ports), b"question");
    driver.send(shutdown(ports, VIRTIO_VSOCK_SHUTDOWN_SEND), &[]);
    let mut question = Vec::new();
    client.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");

    client.write_all(b"answer").unwrap();
    assert_eq!(driver.receive().1, b"answer");
    drop(client);
    assert_eq!(driver.expect(VIRTIO_VSOCK_OP_SHUTDOWN).flags, SHUTDOWN_BOTH);
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RST), &[]);
    driver.expect_silence();
}

#[test]
fn a_guest_that_receives_no_more_gives_the_program_a_broken_pipe() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    driver.send(shutdown(ports, VIRTIO_VSOCK_SHUTDOWN_RCV), &[]);
    driver.send(rw(ports), b"x");
    client.read_exact(&mut [0; 1]).unwrap();
    let refused = client.write(b"unwanted").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    driver.expect_silence();
}

#[test]
fn a_guest_that_writes_to_a_program_that_is_gone_is_told_so() {
    let mut driver = Driver::new();
    let (client, ports) = driver.connect(52);
    drop(client);
    assert_eq!(driver.expect(VIRTIO_VSOCK_OP_SHUTDOWN).flags, SHUTDOWN_BOTH);
    // It had not heard of it yet. What it sends goes nowhere, and its credit comes back.
    for _ in 0..8 {
        driver.send(rw(ports), &[0; 32 << 10]);
    }
    let update = driver.expect(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    assert!(update.fwd_cnt >= WINDOW / 2);
}

#[test]
fn a_program_that_stops_reading_only_ends_the_guests_direction() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    client.shutdown(Shutdown::Read).unwrap();
    driver.send(rw(ports), b"unwanted");
    let end = driver.expect(VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_eq!(end.flags, VIRTIO_VSOCK_SHUTDOWN_RCV);
    client.write_all(b"still here").unwrap();
    assert_eq!(driver.receive().1, b"still here");
}

#[test]
fn used_transmit_buffers_come_back_without_other_traffic_and_few_interrupts() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    let before = driver.interrupts.count.load(Ordering::SeqCst);
    for _ in 0..1000 {
        driver.send(rw(ports), b"12345678");
    }
    client.read_exact(&mut [0; 8000]).unwrap();
    let interrupts = driver.interrupts.count.load(Ordering::SeqCst) - before;
    assert!(interrupts < 100, "{interrupts}");
}

/// Not a test of time: prints what a MiB costs. Run with `--ignored --nocapture`.
#[test]
#[ignore = "prints a measurement"]
fn throughput() {
    let start = std::time::Instant::now();
    echo(true);
    eprintln!("8 MiB both ways: {:?}", start.elapsed());
}

#[test]
fn many_connections_do_not_disturb_each_other() {
    let mut driver = Driver::new();
    let mut clients: Vec<(UnixStream, Ports)> = (0..20).map(|port| driver.connect(port)).collect();
    for (client, ports) in &mut clients {
        let data = format!("to {}", ports.guest);
        client.write_all(data.as_bytes()).unwrap();
    }
    for _ in 0..clients.len() {
        let (header, data) = driver.receive();
        assert_eq!(data, format!("to {}", header.dst_port).as_bytes());
        driver.send(rw(header.ports()), &data);
    }
    for (client, ports) in &mut clients {
        let mut data = vec![0; format!("to {}", ports.guest).len()];
        client.read_exact(&mut data).unwrap();
        assert_eq!(data, format!("to {}", ports.guest).as_bytes());
    }
}
