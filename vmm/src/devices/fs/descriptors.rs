//! Refuses to list a directory with the attributes of its entries when few descriptors are left.
//!
//! fuse-backend-rs keeps a descriptor for each node that the guest knows. Should it run out of them
//! in the middle of a READDIRPLUS, it answers with what it has, and if that is nothing, as if the
//! directory had ended. So it is refused beforehand, by an error: our guest kernel then forgets
//! nodes and asks again (guest-kernel/patches), and with another kernel a program gets the error
//! instead of a list without some of the entries.

use std::{
    io::{self, Write},
    os::fd::AsRawFd,
};

use fuse_backend_rs::{
    abi::fuse_abi::{Opcode, OutHeader},
    transport::VirtioFsWriter,
};
use rustix::process::{Resource, getrlimit};
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::message::{IN_HEADER, gather, opcode, unique};

/// More than there are entries in an answer (128 KiB at 152 bytes), and some for files that are
/// opened meanwhile.
const RESERVE: u64 = 1000;
/// With few altogether, this part of them.
const PART: u64 = 4;

/// The descriptors of this process.
pub(super) struct Descriptors {
    /// Any: its copy gets the lowest number that is free.
    probe: EventFd,
}

impl Descriptors {
    /// # Errors
    ///
    /// There is none left.
    pub(super) fn new() -> io::Result<Self> {
        let probe = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { probe })
    }

    /// Answers a READDIRPLUS by an error if it could take the last descriptors. Gives the length of
    /// the answer in bytes; None if the request is for the server.
    pub(super) fn spare(
        &self,
        memory: &GuestMemoryMmap,
        chain: &DescriptorChain<&GuestMemoryMmap>,
    ) -> Option<u32> {
        let request = gather(memory, chain.clone().readable(), IN_HEADER);
        if opcode(&request)? != Opcode::Readdirplus as u32 || !self.are_short() {
            return None;
        }
        let length = u32::try_from(size_of::<OutHeader>()).ok()?;
        let header = OutHeader {
            len: length,
            error: -libc::EMFILE,
            unique: unique(&request)?,
        };
        let mut writer = VirtioFsWriter::<()>::new(memory, chain.clone()).ok()?;
        writer.write_all(header.as_slice()).ok()?;
        Some(length)
    }

    fn are_short(&self) -> bool {
        let limit = getrlimit(Resource::Nofile).current;
        self.are_short_of(limit.unwrap_or(u64::MAX))
    }

    fn are_short_of(&self, limit: u64) -> bool {
        let Ok(lowest_free) = self.probe.try_clone() else {
            return true;
        };
        let used = u64::try_from(lowest_free.as_raw_fd()).unwrap_or(0);
        used.saturating_add(RESERVE.min(limit / PART)) > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_short_when_few_are_left_of_many_or_few() {
        let descriptors = Descriptors::new().unwrap();
        let used = u64::try_from(descriptors.probe.as_raw_fd()).unwrap();
        assert!(!descriptors.are_short_of(u64::MAX));
        assert!(!descriptors.are_short_of(1 << 20));
        assert!(descriptors.are_short_of(used));
        assert!(descriptors.are_short_of(used * 5 / 4));
    }
}
