//! The device's life: its socket's file, activation, reset, and again.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use super::{
    super::{packet::*, *},
    driver::*,
    header::*,
};

#[test]
fn the_socket_is_this_users_only_and_goes_with_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let device = Vsock::new(3, &path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(UnixStream::connect(&path).is_ok(), "listens at once");
    drop(device);
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_taken_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    fs::write(&path, "mine").unwrap();
    let error = Vsock::new(3, &path).err().unwrap();
    assert!(error.to_string().contains("vsock socket"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn the_configuration_space_holds_the_cid() {
    let driver = Driver::inactive();
    let mut cid = [0xff; 12];
    driver.device.read_config(0, &mut cid);
    assert_eq!(cid[..8], u64::from(GUEST_CID).to_le_bytes());
    assert_eq!(cid[8..], [0; 4]);
    let mut high = [0xff; 4];
    driver.device.read_config(4, &mut high);
    assert_eq!(high, [0; 4]);
    assert_eq!(driver.device.device_type(), 19);
    assert_eq!(driver.device.queue_sizes().len(), 3);
}

#[test]
fn a_driver_with_another_number_of_queues_is_refused() {
    let mut driver = Driver::inactive();
    let context = ActivationContext {
        memory: driver.memory.clone(),
        features: 0,
        queues: Vec::new(),
        interrupt: driver.interrupts.clone(),
        resumed: false,
    };
    let error = driver.device.activate(context).unwrap_err();
    assert!(matches!(
        error,
        ActivateError::QueueCount {
            expected: 3,
            got: 0
        }
    ));
}

#[test]
fn who_connects_before_the_driver_is_served_when_it_comes() {
    let mut driver = Driver::inactive();
    let mut early = driver.client();
    early.write_all(b"CONNECT 52\nearly").unwrap();
    driver.activate(true);
    let ports = driver.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
    assert_eq!(driver.receive().1, b"early");
    assert_eq!(read_line(&mut early), format!("OK {}\n", ports.host));
}

#[test]
fn a_reset_closes_connections_and_the_next_driver_gets_new_ones() {
    let mut driver = Driver::new();
    let (mut first, old) = driver.connect(52);
    driver.device.reset();
    assert_eq!(first.read(&mut [0; 8]).unwrap(), 0);
    assert!(driver.socket.exists());

    let mut between = driver.client();
    between.write_all(b"CONNECT 53\n").unwrap();
    driver.activate(true);
    let ports = driver.expect(VIRTIO_VSOCK_OP_REQUEST).ports();
    assert_eq!(ports.guest, 53);
    // The old connection is unknown now.
    if old != ports {
        driver.send(Header::from_guest(old, VIRTIO_VSOCK_OP_RW), b"x");
        assert_eq!(driver.expect(VIRTIO_VSOCK_OP_RST).ports(), old);
    }
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RESPONSE), &[]);
    assert_eq!(read_line(&mut between), format!("OK {}\n", ports.host));
    driver.device.reset();
    driver.device.reset();
    assert_eq!(between.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn nothing_touches_guest_memory_after_a_reset() {
    let mut driver = Driver::new();
    let (mut client, _) = driver.connect(52);
    driver.device.reset();
    let _ = client.write(b"late");
    driver.expect_silence();
}

#[test]
fn a_driver_that_gives_no_buffers_gets_its_packets_when_it_does() {
    let mut driver = Driver::new();
    driver.refill = false;
    let (mut client, ports) = driver.connect(52);
    let mut update = Header::from_guest(ports, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    update.buf_alloc = 1 << 20;
    driver.send(update, &[]);
    // One of the buffers, of 4 KiB each, held the REQUEST. What fills them all is on its way.
    let half = vec![7; usize::from(QUEUE_SIZES[0] / 2) * 4096];
    client.write_all(&half).unwrap();
    for count in 1..QUEUE_SIZES[0] {
        driver.receive();
        if count == QUEUE_SIZES[0] / 2 {
            client.write_all(&half).unwrap();
        }
    }
    driver.expect_silence();
    client.write_all(b"more").unwrap();
    driver.expect_silence();

    driver.refill = true;
    for head in 0..QUEUE_SIZES[0] {
        driver.offer(0, head);
    }
    driver.kick(0, driver.avail_index(0).wrapping_sub(QUEUE_SIZES[0]));
    let mut tail = Vec::new();
    while !tail.ends_with(b"more") {
        let (header, data) = driver.receive();
        assert_eq!(header.ports(), ports);
        tail.extend(data);
    }
}

#[test]
fn a_resumed_driver_hears_of_the_reset_and_nobody_connects_before_it_has_dealt_with_it() {
    let mut driver = Driver::new();
    driver.offer_event_buffers();
    let (mut lost, _) = driver.connect(52);
    driver.suspend_and_resume();
    assert_eq!(lost.read(&mut [0; 8]).unwrap(), 0, "connections are closed");

    let mut early = driver.client();
    early.write_all(b"CONNECT 53\n").unwrap();
    // The transport kicks every queue of a device that it resumes.
    driver.force_kick(EVENT);
    driver.expect_silence();
    let (head, event) = driver.take_event().unwrap();
    assert_eq!(event, 0, "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    driver.expect_silence();

    let before = driver.avail_index(EVENT);
    driver.offer(EVENT, head);
    driver.kick(EVENT, before);
    let request = driver.expect(VIRTIO_VSOCK_OP_REQUEST);
    assert_eq!(request.ports().guest, 53);
    driver.send(
        Header::from_guest(request.ports(), VIRTIO_VSOCK_OP_RESPONSE),
        &[],
    );
    let ok = format!("OK {}\n", request.ports().host);
    assert_eq!(read_line(&mut early), ok);
    assert_eq!(driver.take_event(), None);
}

#[test]
fn a_driver_without_event_buffers_is_not_waited_for() {
    let mut driver = Driver::new();
    driver.suspend_and_resume();
    driver.connect(52);
}
