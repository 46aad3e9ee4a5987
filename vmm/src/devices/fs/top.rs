//! The names at the top of a share whose entries come and go, while nobody changes what is in them.
//!
//! The driver asks again for such a name each time it is looked up. Once it is gone, the driver
//! forgets all that it knew below it, and the server closes what it had open for that.

use std::io::Write;

use fuse_backend_rs::{
    abi::fuse_abi::{EntryOut, Opcode, OutHeader, ROOT_ID},
    transport::VirtioFsWriter,
};
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::message::{IN_HEADER, error, gather, node, opcode, value};

/// Whether a request is for a name at the top.
pub(super) fn is_asked_for(
    memory: &GuestMemoryMmap,
    chain: &DescriptorChain<&GuestMemoryMmap>,
) -> bool {
    let request = gather(memory, chain.clone().readable(), IN_HEADER);
    opcode(&request) == Some(Opcode::Lookup as u32) && node(&request) == Some(ROOT_ID)
}

/// Makes the answer to such a request one that is valid once.
pub(super) fn expire(memory: &GuestMemoryMmap, chain: &DescriptorChain<&GuestMemoryMmap>) {
    const LENGTH: usize = size_of::<OutHeader>() + size_of::<EntryOut>();
    let mut answer = gather(memory, chain.clone().writable(), LENGTH);
    if error(&answer) != 0 {
        return;
    }
    let Some(mut entry) = value::<EntryOut>(&answer[size_of::<OutHeader>().min(answer.len())..])
    else {
        return;
    };
    (entry.entry_valid, entry.entry_valid_nsec) = (0, 0);
    answer[size_of::<OutHeader>()..].copy_from_slice(entry.as_slice());
    if let Ok(mut writer) = VirtioFsWriter::<()>::new(memory, chain.clone()) {
        // It was written there a moment ago.
        let _ = writer.write_all(&answer);
    }
}
