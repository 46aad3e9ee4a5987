//! What a FUSE server and the guest's driver know in common, so that a clone's server can take up
//! where the one of the template stood (the messages: Linux, include/uapi/linux/fuse.h).
//!
//! The driver in a saved guest goes on using the node numbers that it was given. They are given in
//! the order of the requests for them, so a new server that answers the same requests in the same
//! order knows the same numbers. Requests after which a server is as it was before need not be
//! kept; others than those kept here must not have happened.

use fuse_backend_rs::abi::fuse_abi::{EntryOut, Opcode, OutHeader};
use serde::{Deserialize, Serialize};
use virtio_queue::{
    DescriptorChain, Queue, QueueT,
    desc::{RawDescriptor, split::Descriptor},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::message::{IN_HEADER, error, gather, opcode, value};

/// Requests that are kept: those of a guest that has looked at some thousand files.
const MAX_EXCHANGES: usize = 8192;
/// Longest request that is kept, in bytes: one with the longest name.
const MAX_REQUEST: usize = 4096;
/// Longest answer to one of them, in bytes.
const MAX_ANSWER: usize = 256;

/// The requests that made a server what it is.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    exchanges: Vec<Exchange>,
    /// A request that no other server could have answered alike.
    unfit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// A session that cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The guest has done more than look at files.
    #[error("the guest has used it for more than reading files ({0:?})")]
    Unfit(Opcode),
    /// The share is not what the guest knows.
    #[error("{0:?} is not what the guest knows")]
    Differs(String),
    /// What was kept is none of our own.
    #[error("its saved requests are malformed")]
    Malformed,
}

impl Session {
    /// Takes note of a request that was answered; `chain` still has both.
    pub(super) fn record(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &DescriptorChain<&GuestMemoryMmap>,
    ) {
        let request = gather(memory, chain.clone().readable(), MAX_REQUEST);
        let answer = gather(memory, chain.clone().writable(), MAX_ANSWER);
        let Some(opcode) = opcode(&request) else {
            return;
        };
        let kept = match Opcode::from(opcode) {
            Opcode::Init | Opcode::Lookup | Opcode::Forget | Opcode::BatchForget => {
                self.exchanges.len() < MAX_EXCHANGES && request.len() < MAX_REQUEST
            }
            Opcode::Destroy => {
                *self = Self::default();
                return;
            }
            // Opening is refused, so that there are no handles.
            Opcode::Open | Opcode::Opendir if error(&answer) != 0 => return,
            Opcode::Getattr
            | Opcode::Readlink
            | Opcode::Read
            | Opcode::Readdir
            | Opcode::Statfs
            | Opcode::Getxattr
            | Opcode::Listxattr
            | Opcode::Access
            | Opcode::Flush
            | Opcode::Lseek
            | Opcode::Interrupt => return,
            _ => false,
        };
        if kept {
            self.exchanges.push(Exchange { request, answer });
        } else {
            self.unfit.get_or_insert(opcode);
        }
    }

    /// The session, if another server can take it up.
    ///
    /// # Errors
    ///
    /// The guest has done what cannot be repeated.
    pub(super) fn checked(&self) -> Result<&Self, SessionError> {
        match self.unfit {
            None => Ok(self),
            Some(opcode) => Err(SessionError::Unfit(Opcode::from(opcode))),
        }
    }

    /// Has a new server, by `answer`, answer all that was answered before.
    ///
    /// # Errors
    ///
    /// It finds another file than the guest knows.
    pub(super) fn replay(
        &self,
        mut answer: impl FnMut(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>),
    ) -> Result<(), SessionError> {
        self.checked()?;
        if self.exchanges.is_empty() {
            return Ok(());
        }
        let mut scratch = Scratch::new()?;
        for exchange in &self.exchanges {
            let found = scratch.exchange(exchange, &mut answer)?;
            if !agree(exchange, &found) {
                let name = exchange.request.get(IN_HEADER..).unwrap_or_default();
                let name = name.strip_suffix(b"\0").unwrap_or(name);
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(SessionError::Differs(name));
            }
        }
        Ok(())
    }
}

/// Whether an answer says the same as the one that the guest was given.
fn agree(exchange: &Exchange, found: &[u8]) -> bool {
    if opcode(&exchange.request) != Some(Opcode::Lookup as u32) {
        return exchange.answer == found;
    }
    let entry = |answer: &[u8]| {
        let entry: EntryOut = value(answer.get(size_of::<OutHeader>()..)?)?;
        let attr = entry.attr;
        let content = (attr.size, attr.mtime, attr.mtimensec);
        let is_dir = attr.mode & libc::S_IFMT == libc::S_IFDIR;
        // Where a container's own directory lies over the image's, its size and times are new.
        Some((
            [entry.nodeid, entry.generation],
            [attr.mode, attr.uid, attr.gid, attr.rdev],
            (!is_dir).then_some(content),
        ))
    };
    match (error(&exchange.answer), error(found)) {
        (0, 0) => entry(&exchange.answer) == entry(found),
        (saved, now) => saved == now,
    }
}

/// A little memory in which a request lies as a guest would put it.
struct Scratch {
    memory: GuestMemoryMmap,
    queue: Queue,
    requests: u16,
}

const QUEUE_SIZE: u16 = 4;
const DESCRIPTORS: u32 = 0;
const AVAIL: u32 = 0x1000;
const USED: u32 = 0x2000;
const REQUEST: u32 = 0x3000;
const ANSWER: u32 = 0x5000;
const SCRATCH: usize = 0x6000;
/// `VRING_DESC_F_NEXT`, `VRING_DESC_F_WRITE`.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn at(area: u32, offset: usize) -> GuestAddress {
    GuestAddress(u64::from(area) + offset as u64)
}

impl Scratch {
    fn new() -> Result<Self, SessionError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SCRATCH)])
            .map_err(|_| SessionError::Malformed)?;
        let mut queue = Queue::new(QUEUE_SIZE).map_err(|_| SessionError::Malformed)?;
        queue.set_desc_table_address(Some(DESCRIPTORS), Some(0));
        queue.set_avail_ring_address(Some(AVAIL), Some(0));
        queue.set_used_ring_address(Some(USED), Some(0));
        queue.set_ready(true);
        Ok(Self {
            memory,
            queue,
            requests: 0,
        })
    }

    /// Gives the answer to a request.
    fn exchange(
        &mut self,
        exchange: &Exchange,
        answer: &mut impl FnMut(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>),
    ) -> Result<Vec<u8>, SessionError> {
        let (request, length) = (&exchange.request, exchange.answer.len());
        if request.len() > MAX_REQUEST || length > MAX_ANSWER {
            return Err(SessionError::Malformed);
        }
        self.place(request, length).ok_or(SessionError::Malformed)?;
        let chain = self
            .queue
            .pop_descriptor_chain(&self.memory)
            .ok_or(SessionError::Malformed)?;
        answer(&self.memory, chain);
        let mut found = vec![0; length];
        self.memory
            .read_slice(&mut found, at(ANSWER, 0))
            .map_err(|_| SessionError::Malformed)?;
        Ok(found)
    }

    fn place(&mut self, request: &[u8], answer: usize) -> Option<()> {
        let length = |bytes: usize| u32::try_from(bytes).ok();
        let next = if answer > 0 { NEXT } else { 0 };
        let descriptors = [
            Descriptor::new(u64::from(REQUEST), length(request.len())?, next, 1),
            Descriptor::new(u64::from(ANSWER), length(answer)?, WRITE, 0),
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            let place = at(DESCRIPTORS, index * size_of::<Descriptor>());
            self.memory
                .write_obj(RawDescriptor::from(descriptor), place)
                .ok()?;
        }
        self.memory.write_slice(request, at(REQUEST, 0)).ok()?;
        self.memory
            .write_slice(&vec![0; answer], at(ANSWER, 0))
            .ok()?;
        // `struct vring_avail`: flags, index, ring. Every request begins at the first descriptor.
        self.requests = self.requests.wrapping_add(1);
        self.memory.write_obj(self.requests, at(AVAIL, 2)).ok()
    }
}

#[cfg(test)]
mod tests;
