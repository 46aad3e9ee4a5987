//! Lets a guest remember that a name is not there.
//!
//! "No such file" is an error, which the driver forgets: a program that is looked up in `PATH` would
//! be looked for by a request for each directory of it, at each start. An entry without a node says
//! the same and may be kept as long as a name that is there (libfuse, `fuse_lowlevel.h`: "negative
//! entry"). Only where nobody but the guest makes files.

use std::{io::Write, time::Duration};

use fuse_backend_rs::{
    abi::fuse_abi::{EntryOut, Opcode, OutHeader},
    transport::VirtioFsWriter,
};
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::message::{IN_HEADER, error, gather, opcode, value};

/// Makes an answer that a name was not found one that may be kept for `time`. Gives its length in
/// bytes; None if the answer is another one, and is left as it was.
pub(super) fn keep(
    memory: &GuestMemoryMmap,
    chain: &DescriptorChain<&GuestMemoryMmap>,
    time: Duration,
) -> Option<u32> {
    let request = gather(memory, chain.clone().readable(), IN_HEADER);
    if opcode(&request)? != Opcode::Lookup as u32 {
        return None;
    }
    let answer = gather(memory, chain.clone().writable(), size_of::<OutHeader>());
    if error(&answer) != -libc::ENOENT {
        return None;
    }
    let refused: OutHeader = value(&answer)?;
    let length = u32::try_from(size_of::<OutHeader>() + size_of::<EntryOut>()).ok()?;
    let mut writer = VirtioFsWriter::<()>::new(memory, chain.clone()).ok()?;
    if writer.available_bytes() < size_of::<OutHeader>() + size_of::<EntryOut>() {
        return None;
    }
    let header = OutHeader {
        len: length,
        error: 0,
        unique: refused.unique,
    };
    let entry = EntryOut {
        entry_valid: time.as_secs(),
        ..EntryOut::default()
    };
    let bytes = [header.as_slice(), entry.as_slice()].concat();
    writer.write_all(&bytes).ok()?;
    Some(length)
}
