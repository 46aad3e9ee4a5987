use std::{fs, os::unix::fs::FileExt};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::api::HostKind;

const MEMORY_SIZE: u64 = 1 << 20;
/// Pages with something in them, two of them in the same block.
const USED: [u64; 4] = [0, 0x3000, 0x2_0000, MEMORY_SIZE - 4096];

fn guest() -> GuestMemoryMmap {
    let size = usize::try_from(MEMORY_SIZE).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
    for at in USED {
        memory.write_obj(at ^ 0x5555, GuestAddress(at)).unwrap();
    }
    memory
}

fn snapshot(memory_map: MemoryMap) -> Snapshot {
    Snapshot {
        vmm: "1".into(),
        host_kind: HostKind::Software,
        memory: MEMORY_SIZE,
        memory_map,
        max_vcpus: 1,
        vcpus: Vec::new(),
        irqchips: vec![kvm_bindings::kvm_irqchip::default()],
        clock: kvm_bindings::kvm_clock_data::default(),
        devices: vec![DeviceState {
            device_type: 19,
            identity: b"tag".to_vec(),
            backend: b"session".to_vec(),
            transport: TransportState {
                status: 15,
                device_features_select: 1,
                driver_features_select: 1,
                driver_features: 1 << 32,
                queue_select: 2,
                interrupt_status: 0,
                queues: Vec::new(),
                active: None,
            },
        }],
    }
}

fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path()).unwrap();
    writer.write(&guest(), snapshot).unwrap();
    dir
}

/// Lets somebody write to a file that nobody should.
fn open(path: &Path) -> File {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(path, permissions).unwrap();
    let mut options = File::options();
    options.read(true).write(true).open(path).unwrap()
}

#[test]
fn what_was_written_is_read_mapped_and_private() {
    let dir = written();
    let read = read(dir.path()).unwrap();
    assert_eq!(read.devices, snapshot(MemoryMap::default()).devices);
    verify_memory(dir.path(), &read).unwrap();
    let memory = map_memory(dir.path(), &read, None).unwrap();
    for at in USED {
        let value: u64 = memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(value, at ^ 0x5555);
    }
    memory.write_obj(1u64, GuestAddress(0)).unwrap();
    verify_memory(dir.path(), &read).unwrap();
}

#[test]
fn zeros_take_no_room() {
    use std::os::unix::fs::MetadataExt;
    let dir = written();
    let metadata = fs::metadata(dir.path().join(MEMORY)).unwrap();
    assert_eq!(metadata.len(), MEMORY_SIZE);
    assert!(metadata.blocks() * 512 < MEMORY_SIZE / 4);
    assert_eq!(
        read(dir.path()).unwrap().memory_map.stored(),
        3 * (64 << 10)
    );
}

#[test]
fn nobody_may_write_to_a_snapshot_and_none_is_overwritten() {
    let dir = written();
    assert!(Identity::of_memory(dir.path()).unwrap().is_read_only());
    let again = Writer::create(dir.path()).unwrap_err();
    assert!(matches!(again, SnapshotError::Write { .. }), "{again}");
}

#[test]
fn every_flipped_bit_and_every_truncation_of_the_state_is_refused_by_name() {
    let dir = written();
    let path = dir.path().join(STATE);
    let bytes = fs::read(&path).unwrap();
    decode(&path, &bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let err = decode(&path, &bytes).unwrap_err().to_string();
        assert!(err.contains("/state"), "{bit}: {err}");
    }
    for length in 0..bytes.len() {
        decode(&path, &bytes[..length]).unwrap_err();
    }
    let longer = [&bytes[..], &[0]].concat();
    decode(&path, &longer).unwrap_err();
}

#[test]
fn a_flipped_bit_in_any_page_of_the_memory_is_found() {
    let dir = written();
    let snapshot = read(dir.path()).unwrap();
    let path = dir.path().join(MEMORY);
    let file = open(&path);
    for page in 0..MEMORY_SIZE / 4096 {
        let at = page * 4096 + page * 37 % 4096;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (page % 8)], at).unwrap();
        let err = verify_memory(dir.path(), &snapshot).unwrap_err();
        assert!(err.to_string().contains("/memory"), "{err}");
        file.write_all_at(&byte, at).unwrap();
        verify_memory(dir.path(), &snapshot).unwrap();
    }
}

#[test]
fn a_memory_file_of_another_size_is_refused() {
    let dir = written();
    let snapshot = read(dir.path()).unwrap();
    let file = open(&dir.path().join(MEMORY));
    for size in [0, 4096, MEMORY_SIZE - 1, MEMORY_SIZE + 4096] {
        file.set_len(size).unwrap();
        map_memory(dir.path(), &snapshot, None).unwrap_err();
    }
    file.set_len(MEMORY_SIZE - 4096).unwrap();
    verify_memory(dir.path(), &snapshot).unwrap_err();
}

#[test]
fn a_write_shows_in_the_identity() {
    let dir = written();
    let before = Identity::of_memory(dir.path()).unwrap();
    assert_eq!(before, Identity::of_memory(dir.path()).unwrap());
    let file = open(&dir.path().join(MEMORY));
    file.write_all_at(&[1], 0).unwrap();
    assert_ne!(before, Identity::of_memory(dir.path()).unwrap());
}

#[test]
fn a_range_that_was_not_saved_is_added_empty() {
    let dir = written();
    let read = read(dir.path()).unwrap();
    let behind = GuestAddress(1 << 32);
    let memory = map_memory(dir.path(), &read, Some((behind, 4096))).unwrap();
    assert_eq!(memory.read_obj::<u64>(behind).unwrap(), 0);
    memory.write_obj(7u64, behind).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 0x5555);
    verify_memory(dir.path(), &read).unwrap();
}
