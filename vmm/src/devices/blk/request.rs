//! One request (virtio 1.2, section 5.2.6): header, data, and a byte for the status, in
//! descriptors cut wherever the driver likes.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::{SEG_MAX, SIZE_MAX, disk::Disk};
use crate::config::SECTOR_SIZE;

/// Type, reserved, sector.
const HEADER: usize = 16;

/// The status, for which every request has room.
const STATUS: usize = 1;

/// Carries a request out; says how many bytes of it were written, the status among them. One
/// without room for a status gets none.
pub fn answer(
    disk: &mut Disk,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> u32 {
    let mut readable = Buffers::default();
    let mut writable = Buffers::default();
    for descriptor in chain {
        let of_kind = if descriptor.is_write_only() {
            &mut writable
        } else {
            &mut readable
        };
        // Lengths are 32 bits: they fit.
        of_kind.push(descriptor.addr(), descriptor.len() as usize);
    }
    let Some(status_at) = writable.take_last_byte() else {
        return 0;
    };
    let (status, written) = match carry_out(disk, memory, readable, &writable) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(status) => (status, 0),
    };
    let status = u8::try_from(status).expect("a status is a byte");
    match memory.write_obj(status, status_at) {
        Ok(()) => u32::try_from(written + STATUS).unwrap_or(u32::MAX),
        Err(_) => 0,
    }
}

/// Gives the bytes of data that were written to the guest, or the status of a failure.
fn carry_out(
    disk: &mut Disk,
    memory: &GuestMemoryMmap,
    mut readable: Buffers,
    writable: &Buffers,
) -> Result<usize, u32> {
    let mut header = [0; HEADER];
    readable
        .read(memory, &mut header)
        .ok_or(VIRTIO_BLK_S_IOERR)?;
    let (kind, rest) = header.split_at(4);
    let kind = u32::from_le_bytes(kind.try_into().expect("four bytes were split off"));
    let sector = u64::from_le_bytes(rest[4..].try_into().expect("eight bytes are left"));
    let failed = |err: &dyn std::fmt::Display| {
        log::debug!("virtio-blk: refused a request of type {kind}: {err}");
        VIRTIO_BLK_S_IOERR
    };
    match kind {
        VIRTIO_BLK_T_IN => {
            let length = writable.transfer_length().ok_or(VIRTIO_BLK_S_IOERR)?;
            disk.read(sector, length as u64, &writable.0, memory)
                .map_err(|err| failed(&err))?;
            Ok(length)
        }
        VIRTIO_BLK_T_OUT => {
            let length = readable.transfer_length().ok_or(VIRTIO_BLK_S_IOERR)?;
            disk.write(sector, length as u64, &readable.0, memory)
                .map_err(|err| failed(&err))?;
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => disk.flush().map(|()| 0).map_err(|err| failed(&err)),
        VIRTIO_BLK_T_GET_ID => {
            let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
            let length = disk.id().len().min(id.len());
            id[..length].copy_from_slice(&disk.id().as_bytes()[..length]);
            writable.write(memory, &id).ok_or(VIRTIO_BLK_S_IOERR)
        }
        _ => Err(VIRTIO_BLK_S_UNSUPP),
    }
}

/// Pieces of guest memory that are one after the other to the driver. None is empty.
#[derive(Debug, Default)]
struct Buffers(Vec<(GuestAddress, usize)>);

impl Buffers {
    fn push(&mut self, address: GuestAddress, length: usize) {
        if length > 0 {
            self.0.push((address, length));
        }
    }

    /// Bytes of data, if there are not more than the driver was told, and whole sectors.
    fn transfer_length(&self) -> Option<usize> {
        let length: usize = self.0.iter().map(|(_, length)| length).sum();
        let most = SEG_MAX as usize * SIZE_MAX as usize;
        let fits = self.0.len() <= SEG_MAX as usize && length <= most;
        (fits && (length as u64).is_multiple_of(SECTOR_SIZE)).then_some(length)
    }

    fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let (address, length) = self.0.last_mut()?;
        *length -= 1;
        let last = address.checked_add(*length as u64);
        if *length == 0 {
            self.0.pop();
        }
        last
    }

    /// Takes bytes from the front.
    fn read(&mut self, memory: &GuestMemoryMmap, mut into: &mut [u8]) -> Option<()> {
        while !into.is_empty() {
            let (address, length) = self.0.first_mut()?;
            let taken = into.len().min(*length);
            let (now, later) = into.split_at_mut(taken);
            memory.read_slice(now, *address).ok()?;
            into = later;
            if taken == *length {
                self.0.remove(0);
            } else {
                *address = address.checked_add(taken as u64)?;
                *length -= taken;
            }
        }
        Some(())
    }

    /// Writes as much as there is room for; says how much that was.
    fn write(&self, memory: &GuestMemoryMmap, mut bytes: &[u8]) -> Option<usize> {
        let mut written = 0;
        for (address, length) in &self.0 {
            let (now, later) = bytes.split_at(bytes.len().min(*length));
            memory.write_slice(now, *address).ok()?;
            written += now.len();
            bytes = later;
        }
        Some(written)
    }
}
