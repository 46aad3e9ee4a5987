//! FUSE messages where they lie in descriptor chains.

use fuse_backend_rs::abi::fuse_abi::OutHeader;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, Bytes, GuestMemoryMmap};

/// `struct fuse_in_header`: what follows it is the request's own, a name for one.
pub(super) const IN_HEADER: usize = 40;
const OPCODE: std::ops::Range<usize> = 4..8;
const UNIQUE: std::ops::Range<usize> = 8..16;
const NODE: std::ops::Range<usize> = 16..24;

/// The beginning of what `descriptors` hold, at most `most` bytes.
pub(super) fn gather(
    memory: &GuestMemoryMmap,
    descriptors: impl Iterator<Item = Descriptor>,
    most: usize,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for descriptor in descriptors {
        let begin = bytes.len();
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        bytes.resize(begin + length.min(most - begin), 0);
        if memory
            .read_slice(&mut bytes[begin..], descriptor.addr())
            .is_err()
        {
            bytes.truncate(begin);
        }
    }
    bytes
}

pub(super) fn opcode(request: &[u8]) -> Option<u32> {
    let bytes = request.get(OPCODE)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

/// The number by which a request and its answer belong together.
pub(super) fn unique(request: &[u8]) -> Option<u64> {
    let bytes = request.get(UNIQUE)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The node that a request is about.
pub(super) fn node(request: &[u8]) -> Option<u64> {
    let bytes = request.get(NODE)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The error of an answer, 0 if there is none.
pub(super) fn error(answer: &[u8]) -> i32 {
    value::<OutHeader>(answer).map_or(0, |header| header.error)
}

pub(super) fn value<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let size = value.as_slice().len();
    value.as_mut_slice().copy_from_slice(bytes.get(..size)?);
    Some(value)
}
