//! What a hostile guest can put into the queue of a disk: any rings, any descriptors, requests cut
//! anywhere. The device must not panic, must come to an end, and must neither let the file grow nor
//! write to one that is read-only.

#![no_main]

use std::{
    fs,
    path::PathBuf,
    sync::{LazyLock, Mutex},
};

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::{
    config::DiskConfig,
    devices::blk::{Disk, answer},
};

const MEMORY: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Where requests find their headers.
const BUFFERS: u64 = 0x1000;
const DISK: usize = 16 << 10;
const CONTENT: [u8; DISK] = [0x5a; DISK];

static DIRECTORY: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("the host has room for a directory"));
/// The read-only disk and the other one.
static DISKS: LazyLock<Mutex<[Disk; 2]>> = LazyLock::new(|| Mutex::new([open(true), open(false)]));
static MEMORY_OF_GUEST: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("the host has a MiB")
});

fn path(read_only: bool) -> PathBuf {
    DIRECTORY
        .path()
        .join(if read_only { "read-only" } else { "writable" })
}

fn open(read_only: bool) -> Disk {
    let path = path(read_only);
    fs::write(&path, CONTENT).expect("the directory is new");
    let config = DiskConfig {
        id: "fuzz".into(),
        path: Some(path),
        read_only,
        capacity: read_only.then_some(2 * DISK as u64),
    };
    Disk::open(&config).expect("the file is there")
}

fuzz_target!(|script: &[u8]| {
    let Some((first, script)) = script.split_first() else {
        return;
    };
    let mut disks = DISKS.lock().expect("no run has panicked");
    let disk = &mut disks[usize::from(first & 1)];
    let memory = &*MEMORY_OF_GUEST;
    if first & 2 == 0 {
        // Byte for byte what the guest has in its memory.
        let length = script.len().min(MEMORY);
        write(memory, TABLE, &script[..length]);
    } else {
        compose(memory, script);
    }
    let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
    queue.set_desc_table_address(Some(TABLE as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    for _ in 0..QUEUE_SIZE {
        let Some(chain) = queue.pop_descriptor_chain(memory) else {
            break;
        };
        let head = chain.head_index();
        let written = answer(disk, memory, chain);
        if queue.add_used(memory, head, written).is_err() {
            break;
        }
    }
    let size = |read_only| fs::metadata(path(read_only)).map(|metadata| metadata.len());
    assert_eq!(size(false).ok(), Some(DISK as u64));
    assert!(fs::read(path(true)).is_ok_and(|content| content == CONTENT));
});

fn write(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) {
    memory
        .write_slice(bytes, GuestAddress(at))
        .expect("it is within the guest's memory");
}

/// One chain whose descriptors mostly make sense: four bytes of the script each.
fn compose(memory: &GuestMemoryMmap, script: &[u8]) {
    let (header, cuts) = script.split_at(script.len().min(16));
    write(memory, BUFFERS, header);
    let mut at = BUFFERS;
    for (index, cut) in cuts.chunks(4).take(usize::from(QUEUE_SIZE)).enumerate() {
        let [kind, shift, low, high] = std::array::from_fn(|i| cut.get(i).copied().unwrap_or(0));
        let length = u32::from(u16::from_le_bytes([low, high])) << (shift % 17);
        let address = if shift < 128 { at } else { at << (shift & 63) };
        // VIRTQ_DESC_F_NEXT, and WRITE or INDIRECT by the script.
        let flags = u16::from(kind & 7 | 1);
        let next = (index as u16 + 1) % QUEUE_SIZE;
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        write(memory, TABLE + index as u64 * 16, &descriptor);
        at = (at + u64::from(length)).min(MEMORY as u64);
    }
    let last = cuts.chunks(4).count().clamp(1, usize::from(QUEUE_SIZE)) - 1;
    let flags = GuestAddress(TABLE + last as u64 * 16 + 12);
    let with_next: u16 = memory.read_obj(flags).expect("it is in the table");
    write(memory, flags.0, &(with_next & !1).to_le_bytes());
    // Flags, index, the one head.
    write(memory, AVAIL, &[0, 0, 1, 0, 0, 0]);
}
