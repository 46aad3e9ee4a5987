//! Tests of the whole device: a driver on one side, a file on the other, the worker thread between
//! them.

#![allow(
    clippy::cast_possible_truncation,
    reason = "sizes in tests are constants that fit"
)]

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use virtio_bindings::{
    virtio_blk::*,
    virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::{
    config::DiskConfig,
    devices::{Interrupt, VirtQueue, VirtioDevice},
};

const MEMORY: u64 = 32 << 20;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x10_0000;

/// What a request may look like to the driver.
enum Part {
    /// Bytes for the device.
    Out(Vec<u8>),
    /// Room for the device.
    In(u32),
    /// Any descriptor: address, length, flags.
    Raw(u64, u32, u32),
}

#[derive(Default)]
struct Interrupts(AtomicUsize);

impl Interrupt for Interrupts {
    fn used_buffers(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A device with its file, and the guest that uses it.
struct Driver {
    device: Blk,
    path: PathBuf,
    memory: GuestMemoryMmap,
    interrupts: Arc<Interrupts>,
    kick: EventFd,
    next: u16,
    _directory: TempDir,
}

impl Driver {
    fn new(content: &[u8], read_only: bool, capacity: Option<u64>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::write(&path, content).unwrap();
        let disk = Disk::open(&config(&path, read_only, capacity)).unwrap();
        let mut driver = Self {
            device: Blk::new(disk),
            path,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap(),
            interrupts: Arc::default(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            next: 0,
            _directory: directory,
        };
        driver.activate(driver.device.features());
        driver
    }

    fn activate(&mut self, features: u64) {
        let mut queue = Queue::new(QUEUE_SIZES[0]).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        self.memory
            .write_slice(&[0; 0x3000], GuestAddress(TABLE))
            .unwrap();
        self.next = 0;
        self.start(queue, features, false);
    }

    fn start(&mut self, queue: Queue, features: u64, resumed: bool) {
        let kick = self.kick.try_clone().unwrap();
        let context = ActivationContext {
            memory: self.memory.clone(),
            features,
            queues: vec![VirtQueue { queue, kick }],
            interrupt: self.interrupts.clone(),
            resumed,
        };
        self.device.activate(context).unwrap();
    }

    /// Puts a request into the queue; gives where its last part is.
    fn offer(&mut self, parts: &[Part]) -> u64 {
        let mut at = BUFFERS;
        for (index, part) in parts.iter().enumerate() {
            let (address, length, flags) = match part {
                Part::Out(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                    (at, bytes.len() as u32, 0)
                }
                Part::In(length) => (at, *length, VRING_DESC_F_WRITE),
                Part::Raw(address, length, flags) => (*address, *length, *flags),
            };
            let next = if index + 1 < parts.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&address.to_le_bytes());
            raw[8..12].copy_from_slice(&length.to_le_bytes());
            raw[12..14].copy_from_slice(&((flags | next) as u16).to_le_bytes());
            raw[14..].copy_from_slice(&(index as u16 + 1).to_le_bytes());
            let slot = TABLE + index as u64 * 16;
            self.memory.write_slice(&raw, GuestAddress(slot)).unwrap();
            if index + 1 < parts.len() {
                at += u64::from(length);
            }
        }
        let slot = AVAIL + 4 + u64::from(self.next % QUEUE_SIZES[0]) * 2;
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.next += 1;
        self.memory
            .store(self.next, GuestAddress(AVAIL + 2), Ordering::Release)
            .unwrap();
        at
    }

    /// The used length of the last request that was offered.
    fn wait(&self) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let used: u16 = self
                .memory
                .load(GuestAddress(USED + 2), Ordering::Acquire)
                .unwrap();
            if used == self.next {
                break;
            }
            assert!(Instant::now() < deadline, "the device is stuck");
            std::thread::sleep(Duration::from_millis(1));
        }
        let slot = USED + 4 + u64::from((self.next - 1) % QUEUE_SIZES[0]) * 8;
        self.memory.read_obj(GuestAddress(slot + 4)).unwrap()
    }

    /// Used length and status of a request whose last part is the status.
    fn ask(&mut self, parts: &[Part]) -> (u32, u32) {
        let status = self.offer(parts);
        self.memory.write_obj(0xffu8, GuestAddress(status)).unwrap();
        self.kick.write(1).unwrap();
        let used = self.wait();
        let status: u8 = self.memory.read_obj(GuestAddress(status)).unwrap();
        (used, status.into())
    }

    fn read(&mut self, sector: u64, length: u32) -> Result<Vec<u8>, u32> {
        let parts = [
            header(VIRTIO_BLK_T_IN, sector),
            Part::In(length),
            Part::In(1),
        ];
        let (used, status) = self.ask(&parts);
        if status != VIRTIO_BLK_S_OK {
            assert_eq!(used, 1);
            return Err(status);
        }
        assert_eq!(used, length + 1);
        let mut data = vec![0; length as usize];
        self.memory
            .read_slice(&mut data, GuestAddress(BUFFERS + 16))
            .unwrap();
        Ok(data)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u32 {
        let data = Part::Out(data.to_vec());
        let (used, status) = self.ask(&[header(VIRTIO_BLK_T_OUT, sector), data, Part::In(1)]);
        assert_eq!(used, 1);
        status
    }
}

fn config(path: &std::path::Path, read_only: bool, capacity: Option<u64>) -> DiskConfig {
    DiskConfig {
        id: "serial-number".into(),
        path: Some(path.into()),
        read_only,
        capacity,
    }
}

fn header(kind: u32, sector: u64) -> Part {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    Part::Out(bytes)
}

/// Sectors that can be told from each other.
fn sectors(count: u8) -> Vec<u8> {
    (1..=count).flat_map(|number| [number; 512]).collect()
}

#[test]
fn what_is_written_is_read_and_in_the_file() {
    let mut driver = Driver::new(&sectors(8), false, None);
    assert_eq!(driver.read(2, 1024).unwrap(), sectors(4)[1024..]);
    assert_eq!(driver.write(3, &[0xaa; 1024]), VIRTIO_BLK_S_OK);
    assert_eq!(driver.read(3, 1024).unwrap(), [0xaa; 1024]);
    let file = fs::read(&driver.path).unwrap();
    assert_eq!(file[..1536], sectors(3));
    assert_eq!(file[1536..2560], [0xaa; 1024]);
    assert_eq!(file[2560..], sectors(8)[2560..]);
    let flush = [header(VIRTIO_BLK_T_FLUSH, 0), Part::In(1)];
    assert_eq!(driver.ask(&flush), (1, VIRTIO_BLK_S_OK));
}

#[test]
fn requests_may_be_cut_anywhere() {
    let mut driver = Driver::new(&sectors(4), true, None);
    let Part::Out(header) = header(VIRTIO_BLK_T_IN, 1) else {
        unreachable!()
    };
    let mut parts = vec![
        Part::Out(header[..3].to_vec()),
        Part::Out(Vec::new()),
        Part::Out(header[3..9].to_vec()),
        Part::Out(header[9..].to_vec()),
    ];
    parts.extend([Part::In(100), Part::In(0), Part::In(924), Part::In(1)]);
    assert_eq!(driver.ask(&parts), (1025, VIRTIO_BLK_S_OK));
    let mut data = vec![0; 1024];
    let at = GuestAddress(BUFFERS + 16);
    driver.memory.read_slice(&mut data, at).unwrap();
    assert_eq!(data, sectors(3)[512..]);
    // The status shares a piece with the data.
    let last = driver.offer(&[Part::Out(header), Part::In(513)]);
    driver.kick.write(1).unwrap();
    assert_eq!(driver.wait(), 513);
    let status: u8 = driver.memory.read_obj(GuestAddress(last + 512)).unwrap();
    assert_eq!(u32::from(status), VIRTIO_BLK_S_OK);
}

#[test]
fn a_read_only_disk_takes_nothing_and_says_so() {
    let mut driver = Driver::new(&sectors(4), true, None);
    assert_ne!(driver.device.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(driver.device.features() & 1 << VIRTIO_BLK_F_FLUSH, 0);
    assert_eq!(driver.write(0, &[0xaa; 512]), VIRTIO_BLK_S_IOERR);
    let flush = [header(VIRTIO_BLK_T_FLUSH, 0), Part::In(1)];
    assert_eq!(driver.ask(&flush), (1, VIRTIO_BLK_S_OK));
    assert_eq!(fs::read(&driver.path).unwrap(), sectors(4));
}

#[test]
fn transfers_stay_on_the_disk() {
    let mut driver = Driver::new(&sectors(4), false, None);
    let (most, last) = (u64::MAX, u64::MAX / 512);
    for sector in [4, 5, last, last + 1, most] {
        assert_eq!(driver.read(sector, 512), Err(VIRTIO_BLK_S_IOERR));
        assert_eq!(driver.write(sector, &[1; 512]), VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(driver.read(3, 1024), Err(VIRTIO_BLK_S_IOERR));
    assert_eq!(driver.write(3, &[1; 1024]), VIRTIO_BLK_S_IOERR);
    for length in [1, 511, 513] {
        assert_eq!(driver.read(0, length), Err(VIRTIO_BLK_S_IOERR));
        assert_eq!(
            driver.write(0, &vec![1; length as usize]),
            VIRTIO_BLK_S_IOERR
        );
    }
    assert_eq!(fs::read(&driver.path).unwrap(), sectors(4));
    assert_eq!(driver.read(3, 512).unwrap(), [4; 512]);
}

#[test]
fn behind_the_end_of_the_file_there_are_zeros_up_to_the_capacity() {
    let mut driver = Driver::new(&[7; 700], true, Some(8192));
    let mut capacity = [0; 8];
    driver.device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 16);
    let start = driver.memory.write_slice(&[1; 8192], GuestAddress(BUFFERS));
    start.unwrap();
    let data = driver.read(0, 8192).unwrap();
    assert_eq!(
        (&data[..700], &data[700..]),
        (&[7; 700][..], &[0; 7492][..])
    );
    assert_eq!(driver.read(15, 512).unwrap(), [0; 512]);
    assert_eq!(driver.read(16, 512), Err(VIRTIO_BLK_S_IOERR));
}

#[test]
fn a_disk_without_a_file_is_empty() {
    let config = DiskConfig {
        id: "none".into(),
        path: None,
        read_only: true,
        capacity: Some(4096),
    };
    let mut driver = Driver::new(b"", true, None);
    driver.device = Blk::new(Disk::open(&config).unwrap());
    driver.activate(driver.device.features());
    assert_eq!(driver.read(1, 512).unwrap(), [0; 512]);
    assert_eq!(driver.write(1, &[1; 512]), VIRTIO_BLK_S_IOERR);
}

#[test]
fn the_identifier_is_cut_to_the_room_there_is() {
    let mut driver = Driver::new(&sectors(1), true, None);
    for (room, expected) in [(20, "serial-number\0\0\0\0\0\0\0"), (6, "serial")] {
        let id = [header(VIRTIO_BLK_T_GET_ID, 0), Part::In(room), Part::In(1)];
        assert_eq!(driver.ask(&id), (room + 1, VIRTIO_BLK_S_OK));
        let mut data = vec![0; room as usize];
        let at = GuestAddress(BUFFERS + 16);
        driver.memory.read_slice(&mut data, at).unwrap();
        assert_eq!(data, expected.as_bytes());
    }
}

#[test]
fn a_hostile_driver_gets_errors_and_the_device_goes_on() {
    let mut driver = Driver::new(&sectors(4), false, None);
    for kind in [
        2,
        3,
        5,
        9,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_ZONE_APPEND,
        u32::MAX,
    ] {
        let asked = driver.ask(&[header(kind, 0), Part::In(512), Part::In(1)]);
        assert_eq!(asked, (1, VIRTIO_BLK_S_UNSUPP), "{kind}");
    }
    let write = VRING_DESC_F_WRITE;
    // Memory that the guest does not have, in the data.
    for (address, length) in [(MEMORY, 512), (MEMORY - 256, 512), (u64::MAX - 511, 512)] {
        let data = Part::Raw(address, length, write);
        let status = Part::Raw(BUFFERS + 0x8000, 1, write);
        driver.offer(&[header(VIRTIO_BLK_T_IN, 0), data, status]);
        driver.kick.write(1).unwrap();
        assert_eq!(driver.wait(), 1);
        let at = GuestAddress(BUFFERS + 0x8000);
        let status: u8 = driver.memory.read_obj(at).unwrap();
        assert_eq!(u32::from(status), VIRTIO_BLK_S_IOERR);
    }
    // A header that is too short, or none.
    let short = [Part::Out(vec![0; 15]), Part::In(512), Part::In(1)];
    assert_eq!(driver.ask(&short), (1, VIRTIO_BLK_S_IOERR));
    assert_eq!(
        driver.ask(&[Part::In(512), Part::In(1)]),
        (1, VIRTIO_BLK_S_IOERR)
    );
    // More segments, or larger ones in total, than were agreed on.
    let mut parts = vec![header(VIRTIO_BLK_T_IN, 0)];
    parts.extend((0..=SEG_MAX).map(|_| Part::In(16)));
    parts.push(Part::In(1));
    assert_eq!(driver.ask(&parts), (1, VIRTIO_BLK_S_IOERR));
    let most = SEG_MAX * SIZE_MAX;
    assert_eq!(driver.read(0, most + 512), Err(VIRTIO_BLK_S_IOERR));
    // No room for a status, a table of its own for a descriptor, a chain that bites its tail.
    let status_outside = Part::Raw(MEMORY, 1, write);
    for parts in [
        vec![header(VIRTIO_BLK_T_IN, 0)],
        vec![Part::Raw(BUFFERS, 0, write)],
        vec![header(VIRTIO_BLK_T_IN, 0), Part::In(512), status_outside],
        vec![Part::Raw(MEMORY, 1 << 20, VRING_DESC_F_INDIRECT)],
        vec![Part::Raw(TABLE, 16, VRING_DESC_F_INDIRECT)],
    ] {
        driver.offer(&parts);
        driver.kick.write(1).unwrap();
        assert_eq!(driver.wait(), 0);
    }
    assert_eq!(driver.read(1, 512).unwrap(), [2; 512]);
    assert_eq!(fs::read(&driver.path).unwrap(), sectors(4));
}

#[test]
fn a_suspended_device_goes_on_where_it_stood() {
    let mut driver = Driver::new(&sectors(4), true, None);
    assert_eq!(driver.read(0, 512).unwrap(), [1; 512]);
    let state = driver.device.suspend().unwrap()[0];
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert!(driver.device.suspend().is_none(), "it is inactive");
    assert!(driver.device.save().unwrap().is_empty());
    // Offered while nobody looks.
    let status = driver.offer(&[header(VIRTIO_BLK_T_IN, 3), Part::In(512), Part::In(1)]);
    let before = driver.interrupts.0.load(Ordering::SeqCst);
    driver.start(state.try_into().unwrap(), driver.device.features(), true);
    driver.kick.write(1).unwrap();
    assert_eq!(driver.wait(), 513);
    let status: u8 = driver.memory.read_obj(GuestAddress(status)).unwrap();
    assert_eq!(u32::from(status), VIRTIO_BLK_S_OK);
    // A reset drops the worker, which may still be about to interrupt.
    driver.device.reset();
    assert!(driver.interrupts.0.load(Ordering::SeqCst) > before);
    driver.activate(driver.device.features());
    assert_eq!(driver.read(2, 512).unwrap(), [3; 512]);
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let open = |read_only, capacity| Disk::open(&config(&path, read_only, capacity));
    assert!(matches!(open(true, None), Err(DiskError::Open { .. })));
    fs::write(&path, [0; 700]).unwrap();
    assert!(matches!(open(false, None), Err(DiskError::Size { .. })));
    assert!(matches!(open(true, Some(512)), Err(DiskError::Size { .. })));
    assert_eq!(open(true, None).unwrap().sectors(), 2);
    fs::remove_file(&path).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(open(true, None), Err(DiskError::NoFile(_))));
}
