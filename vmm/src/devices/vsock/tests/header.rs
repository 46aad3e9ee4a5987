//! Packets as plain values, for tests to make and compare.

use super::super::packet::*;

pub(super) const GUEST_CID: u32 = 7;

/// What the guest announces unless a test says otherwise.
pub(super) const GUEST_WINDOW: u32 = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) type_: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// A packet from the guest's port to the host's.
    pub(super) fn from_guest(ports: Ports, op: u16) -> Self {
        Self {
            src_cid: u64::from(GUEST_CID),
            dst_cid: VMADDR_CID_HOST,
            src_port: ports.guest,
            dst_port: ports.host,
            len: 0,
            type_: VIRTIO_VSOCK_TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: GUEST_WINDOW,
            fwd_cnt: 0,
        }
    }

    /// Ports of a packet to the guest.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.src_port,
            guest: self.dst_port,
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        packet_in(&mut bytes)
            .unwrap()
            .set_src_cid(self.src_cid)
            .set_dst_cid(self.dst_cid)
            .set_src_port(self.src_port)
            .set_dst_port(self.dst_port)
            .set_len(self.len)
            .set_type(self.type_)
            .set_op(self.op)
            .set_flags(self.flags)
            .set_buf_alloc(self.buf_alloc)
            .set_fwd_cnt(self.fwd_cnt);
        bytes
    }

    pub(super) fn parse(packet: &Packet<'_>) -> Self {
        Self {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            type_: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }
}
