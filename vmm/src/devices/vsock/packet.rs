//! Packets of virtio-vsock (virtio 1.2, section 5.10.6), and how they come out of descriptor
//! chains. What they mean is the muxer's business.

use std::io::Read;

use virtio_queue::DescriptorChain;
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// A packet over guest memory, or over the host's own ([`packet_in`]).
pub type Packet<'a> = VsockPacket<'a, ()>;

/// Bytes of a packet's header.
pub const HEADER_SIZE: usize = PKT_HEADER_SIZE;

/// Most payload of a packet, either way: Linux's `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
pub(super) const MAX_PAYLOAD: usize = 64 << 10;

/// The host's context identifier.
pub(super) const VMADDR_CID_HOST: u64 = 2;

pub(super) const VIRTIO_VSOCK_TYPE_STREAM: u16 = 1;

pub(super) const VIRTIO_VSOCK_OP_REQUEST: u16 = 1;
pub(super) const VIRTIO_VSOCK_OP_RESPONSE: u16 = 2;
pub(super) const VIRTIO_VSOCK_OP_RST: u16 = 3;
pub(super) const VIRTIO_VSOCK_OP_SHUTDOWN: u16 = 4;
pub(super) const VIRTIO_VSOCK_OP_RW: u16 = 5;
pub(super) const VIRTIO_VSOCK_OP_CREDIT_UPDATE: u16 = 6;
pub(super) const VIRTIO_VSOCK_OP_CREDIT_REQUEST: u16 = 7;

/// The sender of this receives no more.
pub(super) const VIRTIO_VSOCK_SHUTDOWN_RCV: u32 = 1;
/// The sender of this sends no more.
pub(super) const VIRTIO_VSOCK_SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

/// Offset of `len` in the header.
const LEN_OFFSET: usize = 24;

/// A descriptor chain that holds no packet.
#[derive(Debug, thiserror::Error)]
#[error("Descriptor chain has no room for a packet")]
pub(super) struct MalformedChain;

/// The packet in `bytes`: its header, then its payload or the room for one. `None` if `bytes` are
/// less than a header.
#[must_use]
pub fn packet_in(bytes: &mut [u8]) -> Option<Packet<'_>> {
    let (header, payload) = bytes.split_first_chunk_mut::<HEADER_SIZE>()?;
    let raw = *header;
    let payload = (!payload.is_empty()).then_some(payload);
    // SAFETY: the packet's lifetime is that of the exclusive borrow of `bytes`, in which both
    // slices lie: the memory stays, and nobody else accesses it meanwhile.
    let packet = unsafe { Packet::new(header, payload) };
    // Neither call can fail: the header has the right size.
    let mut packet = packet.ok()?;
    packet.set_header_from_raw(&raw).ok()?;
    Some(packet)
}

/// Hands the packet in a chain of the transmit queue to `consume`.
///
/// Drivers put a packet into one or two descriptors as a rule, and then it is used where it lies.
/// virtio lets them use more (2.7.4), as Linux does for `MSG_ZEROCOPY` and for fragmented socket
/// buffers: such a packet is gathered in `scratch`. When the payload is not all there, the packet
/// has none, whatever its header says.
pub(super) fn read_packet(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    scratch: &mut Vec<u8>,
    consume: impl FnOnce(&Packet<'_>),
) -> Result<(), MalformedChain> {
    let limit = u32::try_from(MAX_PAYLOAD).unwrap_or(u32::MAX);
    if let Ok(packet) = Packet::from_tx_virtq_chain(memory, &mut chain.clone(), limit) {
        consume(&packet);
        return Ok(());
    }

    let mut reader = chain.reader::<()>(memory).map_err(|_| MalformedChain)?;
    scratch.clear();
    scratch.resize(HEADER_SIZE, 0);
    reader.read_exact(scratch).map_err(|_| MalformedChain)?;
    let mut length = [0; 4];
    length.copy_from_slice(&scratch[LEN_OFFSET..LEN_OFFSET + 4]);
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length <= reader.available_bytes().min(MAX_PAYLOAD) {
        scratch.resize(HEADER_SIZE + length, 0);
        let read = reader.read_exact(&mut scratch[HEADER_SIZE..]);
        if read.is_err() {
            scratch.truncate(HEADER_SIZE);
        }
    }
    consume(&packet_in(scratch).ok_or(MalformedChain)?);
    Ok(())
}

/// The empty packet in a chain of the receive queue, with room for payload.
pub(super) fn empty_packet<'a>(
    memory: &'a GuestMemoryMmap,
    mut chain: DescriptorChain<&GuestMemoryMmap>,
) -> Result<Packet<'a>, MalformedChain> {
    let packet =
        Packet::from_rx_virtq_chain(memory, &mut chain, u32::MAX).map_err(|_| MalformedChain)?;
    if room(&packet).is_none() {
        return Err(MalformedChain);
    }
    Ok(packet)
}

/// Where payload goes in a packet to the guest; `None` if there is no room at all.
pub(super) fn room<'a>(packet: &Packet<'a>) -> Option<VolatileSlice<'a>> {
    let data = packet.data_slice()?;
    let length = data.len().min(MAX_PAYLOAD);
    if length == 0 {
        return None;
    }
    data.subslice(0, length).ok()
}

/// The payload of a packet from the guest, empty or not; `None` if it is not all there.
pub(super) fn payload<'a>(packet: &Packet<'a>) -> Option<Option<VolatileSlice<'a>>> {
    if packet.is_empty() {
        return Some(None);
    }
    let length = usize::try_from(packet.len()).ok()?;
    Some(Some(packet.data_slice()?.subslice(0, length).ok()?))
}

/// Writes the header of a packet to the guest, all but what concerns credit.
pub(super) fn address(packet: &mut Packet<'_>, guest_cid: u64, ports: Ports, op: u16) {
    packet
        .set_src_cid(VMADDR_CID_HOST)
        .set_dst_cid(guest_cid)
        .set_src_port(ports.host)
        .set_dst_port(ports.guest)
        .set_len(0)
        .set_type(VIRTIO_VSOCK_TYPE_STREAM)
        .set_op(op)
        .set_flags(0)
        .set_buf_alloc(0)
        .set_fwd_cnt(0);
}

/// What names a connection: the context identifiers are always the same two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}
