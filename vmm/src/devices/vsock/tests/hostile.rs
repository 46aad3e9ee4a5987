//! A guest that breaks the rules: it hurts itself at most, and the device goes on.

use std::io::Read;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::{
    super::{muxer::WINDOW, packet::*, *},
    driver::*,
    header::*,
};

const RX: usize = 0;
const TX: usize = 1;
const UNKNOWN: Ports = Ports {
    host: 99,
    guest: 98,
};

/// The device still serves a connection.
fn assert_alive(driver: &mut Driver) {
    let (mut client, ports) = driver.connect(4242);
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RW), b"alive");
    let mut data = [0; 5];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"alive");
}

#[test]
fn packets_for_unknown_connections_are_reset_but_resets_are_not() {
    let mut driver = Driver::new();
    for op in [
        0,
        VIRTIO_VSOCK_OP_RESPONSE,
        VIRTIO_VSOCK_OP_SHUTDOWN,
        VIRTIO_VSOCK_OP_RW,
        VIRTIO_VSOCK_OP_CREDIT_UPDATE,
        VIRTIO_VSOCK_OP_CREDIT_REQUEST,
        8,
        u16::MAX,
    ] {
        driver.send(Header::from_guest(UNKNOWN, op), b"data");
        assert_eq!(driver.expect(VIRTIO_VSOCK_OP_RST).ports(), UNKNOWN);
    }
    driver.send(Header::from_guest(UNKNOWN, VIRTIO_VSOCK_OP_RST), &[]);
    driver.expect_silence();
    assert_alive(&mut driver);
}

#[test]
fn other_addresses_and_types_get_no_connection() {
    let mut driver = Driver::new();
    let request = Header::from_guest(UNKNOWN, VIRTIO_VSOCK_OP_REQUEST);
    for src_cid in [0, 2, 8, u64::MAX, u64::from(GUEST_CID) | 1 << 32] {
        driver.send(Header { src_cid, ..request }, &[]);
    }
    driver.expect_silence();

    for dst_cid in [0, 1, 3, u64::from(GUEST_CID), u64::MAX] {
        driver.send(Header { dst_cid, ..request }, &[]);
        let reset = driver.expect(VIRTIO_VSOCK_OP_RST);
        assert_eq!((reset.src_cid, reset.ports()), (dst_cid, UNKNOWN));
    }
    for type_ in [0, 2, 3, u16::MAX] {
        driver.send(Header { type_, ..request }, &[]);
        let reset = driver.expect(VIRTIO_VSOCK_OP_RST);
        assert_eq!(reset.type_, type_);
    }
    assert_alive(&mut driver);
}

#[test]
fn operations_that_do_not_fit_reset_the_connection() {
    for op in [
        0,
        VIRTIO_VSOCK_OP_REQUEST,
        VIRTIO_VSOCK_OP_RESPONSE,
        8,
        u16::MAX,
    ] {
        let mut driver = Driver::new();
        let (mut client, ports) = driver.connect(52);
        driver.send(Header::from_guest(ports, op), &[]);
        assert_eq!(driver.expect(VIRTIO_VSOCK_OP_RST).ports(), ports);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        assert_alive(&mut driver);
    }
}

#[test]
fn data_beyond_the_credit_reset_the_connection() {
    let mut driver = Driver::new();
    let (client, ports) = driver.connect(52);
    let mut resets = 0;
    // The program does not read: its socket takes some, our window the rest, then it is over.
    for _ in 0..MAX_PAYLOAD {
        driver.send(
            Header::from_guest(ports, VIRTIO_VSOCK_OP_RW),
            &[1; MAX_PAYLOAD],
        );
        while let Some((header, _)) = driver.poll(std::time::Duration::from_millis(20)) {
            resets += u32::from(header.op == VIRTIO_VSOCK_OP_RST);
        }
        if resets > 0 {
            break;
        }
    }
    assert_eq!(resets, 1);
    drop(client);
    assert_alive(&mut driver);
}

#[test]
fn data_after_the_end_reset_the_connection() {
    let mut driver = Driver::new();
    let (_client, ports) = driver.connect(52);
    let end = Header::from_guest(ports, VIRTIO_VSOCK_OP_SHUTDOWN);
    let flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
    driver.send(Header { flags, ..end }, &[]);
    driver.send(Header::from_guest(ports, VIRTIO_VSOCK_OP_RW), b"more");
    driver.expect(VIRTIO_VSOCK_OP_RST);
}

#[test]
fn a_length_beyond_the_chain_resets_the_connection() {
    for len in [6, WINDOW, WINDOW + 1, u32::MAX] {
        let mut driver = Driver::new();
        let (_client, ports) = driver.connect(52);
        let header = Header::from_guest(ports, VIRTIO_VSOCK_OP_RW);
        driver.send_raw(&Header { len, ..header }.bytes(), b"data!");
        assert_eq!(driver.expect(VIRTIO_VSOCK_OP_RST).ports(), ports);
    }
}

#[test]
fn transmit_chains_without_a_packet_are_given_back() {
    let mut driver = Driver::new();
    let end = 32 << 20;
    // Too short, writable, beyond memory, beyond the address space, nothing, a loop.
    let chains: [(u64, u32, u32, u16); 7] = [
        (0x40_0000, 43, 0, 0),
        (0x40_0000, 44, VRING_DESC_F_WRITE, 0),
        (end - 10, 44, 0, 0),
        (end, 44, 0, 0),
        (u64::MAX - 3, 44, 0, 0),
        (0x40_0000, 0, 0, 0),
        (0x40_0000, 1, VRING_DESC_F_NEXT, 0),
    ];
    for (address, length, flags, next) in chains {
        driver.describe(TX, 0, address, length, flags, next);
        let old = driver.avail_index(TX);
        driver.offer(TX, 0);
        driver.kick(TX, old);
        assert_eq!(driver.wait_used(TX, PATIENCE), Some((0, 0)));
    }
    // A head that is no descriptor at all cannot be given back, and is not.
    let old = driver.avail_index(TX);
    driver.offer(TX, QUEUE_SIZES[TX]);
    driver.offer(TX, u16::MAX);
    driver.kick(TX, old);
    assert_alive(&mut driver);
}

#[test]
fn a_packet_in_many_descriptors_is_one() {
    let mut driver = Driver::new();
    let (mut client, ports) = driver.connect(52);
    let data: Vec<u8> = (0..5000).map(|index| (index % 251) as u8).collect();
    let mut header = Header::from_guest(ports, VIRTIO_VSOCK_OP_RW);
    header.len = 5000;
    let base = 0x80_0000;
    driver
        .memory
        .write_slice(&header.bytes(), GuestAddress(base))
        .unwrap();
    driver
        .memory
        .write_slice(&data, GuestAddress(base + 44))
        .unwrap();
    // The header itself in two pieces, its second with payload.
    let pieces = [20, 124, 1000, 3900];
    assert_eq!(pieces.iter().sum::<u32>(), 5044);
    let mut address = base;
    for (index, &length) in pieces.iter().enumerate() {
        let index = index as u16;
        let last = usize::from(index) + 1 == pieces.len();
        let flags = if last { 0 } else { VRING_DESC_F_NEXT };
        driver.describe(TX, index, address, length, flags, index + 1);
        address += u64::from(length);
    }
    let old = driver.avail_index(TX);
    driver.offer(TX, 0);
    driver.kick(TX, old);
    let mut received = vec![0; 5000];
    client.read_exact(&mut received).unwrap();
    assert_eq!(received, data);
}

#[test]
fn receive_buffers_without_room_are_given_back_empty() {
    let mut driver = Driver::inactive();
    driver.refill = false;
    driver.activate(true);
    // The guest takes its descriptors back and puts nonsense in.
    for (slot, (length, flags)) in [
        (44, VRING_DESC_F_WRITE),
        (10, VRING_DESC_F_WRITE),
        (4140, 0),
        (u32::MAX, VRING_DESC_F_WRITE),
    ]
    .into_iter()
    .enumerate()
    {
        driver.describe(RX, slot as u16, 0x10_0000, length, flags, 0);
    }
    driver.send(Header::from_guest(UNKNOWN, VIRTIO_VSOCK_OP_RW), &[]);
    for head in 0..4 {
        assert_eq!(driver.wait_used(RX, PATIENCE), Some((head, 0)));
    }
    driver.expect(VIRTIO_VSOCK_OP_RST);
}

#[test]
fn a_corrupted_ring_rests_until_the_reset_and_the_worker_sleeps() {
    for ring in [RX, TX] {
        let mut driver = Driver::new();
        let (_client, _) = driver.connect(52);
        let index = driver.avail_index(ring).wrapping_add(5000);
        driver.set_avail_index(ring, index);
        driver.force_kick(TX);
        driver.force_kick(RX);
        let ticks = driver.worker_ticks();
        assert!(ticks < 10, "ring {ring}: worker used {ticks} ticks of 30");
        driver.device.reset();
        driver.activate(true);
        assert_alive(&mut driver);
    }
}

#[test]
fn a_flood_of_packets_without_receive_buffers_is_survived() {
    let mut driver = Driver::inactive();
    driver.refill = false;
    driver.activate(true);
    for _ in 0..5000 {
        driver.send(Header::from_guest(UNKNOWN, VIRTIO_VSOCK_OP_RW), b"x");
    }
    for _ in 0..QUEUE_SIZES[RX] {
        driver.expect(VIRTIO_VSOCK_OP_RST);
    }
    let ticks = driver.worker_ticks();
    assert!(ticks < 10, "worker used {ticks} ticks of 30");
}
