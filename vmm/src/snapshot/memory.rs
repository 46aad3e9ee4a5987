//! The memory file: written without its zeros, checked in blocks, mapped copy-on-write.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use crate::arch::layout;

/// Unit of the checksums, in bytes.
const BLOCK: usize = 64 << 10;
/// Unit of the holes, in bytes.
const PAGE: usize = 4096;

/// Where the memory file has something, with checksums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMap {
    /// Blocks that are not all zeros, in the order of the file; all others are.
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    /// Which, counted from the beginning of the file.
    index: u64,
    sha256: [u8; 32],
}

impl MemoryMap {
    /// Bytes of the blocks that hold something.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK as u64
    }
}

/// Writes guest memory into an empty file, leaving out pages of zeros.
pub(super) fn save(guest: &GuestMemoryMmap, file: &File) -> io::Result<MemoryMap> {
    let mut blocks = Vec::new();
    let mut buffer = vec![0; BLOCK];
    let mut start = 0;
    for region in guest.iter() {
        let mut done = 0;
        while done < region.len() {
            let length = usize::try_from(region.len() - done).map_or(BLOCK, |rest| rest.min(BLOCK));
            let bytes = &mut buffer[..length];
            region
                .read_slice(bytes, MemoryRegionAddress(done))
                .map_err(io::Error::other)?;
            let at = start + done;
            if write_pages(file, bytes, at)? {
                blocks.push(Block {
                    index: at / BLOCK as u64,
                    sha256: Sha256::digest(&*bytes).into(),
                });
            }
            done += length as u64;
        }
        start += region.len();
    }
    file.set_len(start)?;
    Ok(MemoryMap { blocks })
}

/// Writes the pages of a block that are not all zeros; says whether there were any.
fn write_pages(file: &File, block: &[u8], at: u64) -> io::Result<bool> {
    let mut any = false;
    for (page, at) in block.chunks(PAGE).zip((at..).step_by(PAGE)) {
        if !is_zero(page) {
            file.write_all_at(page, at)?;
            any = true;
        }
    }
    Ok(any)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |or, byte| or | byte) == 0
}

/// Compares a memory file with its map; says what is wrong with it, if anything.
pub(super) fn verify(file: &File, map: &MemoryMap) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let mut expected = map.blocks.iter().peekable();
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        let length = usize::try_from(size - at).map_or(BLOCK, |rest| rest.min(BLOCK));
        let index = at / BLOCK as u64;
        let block = expected.next_if(|block| block.index == index);
        let bytes = &mut buffer[..length];
        // A hole where nothing is expected need not be read.
        if block.is_some() || has_data(file, at, length as u64)? {
            file.read_exact_at(bytes, at)?;
            let intact = match block {
                Some(block) => Sha256::digest(&*bytes)[..] == block.sha256,
                None => is_zero(bytes),
            };
            if !intact {
                let problem = format!("the checksum of the block at {at:#x} is wrong");
                return Ok(Some(problem));
            }
        }
        at += length as u64;
    }
    Ok(expected
        .next()
        .map(|block| format!("it ends before {:#x}", block.index * BLOCK as u64)))
}

fn has_data(file: &File, at: u64, length: u64) -> io::Result<bool> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(data < at + length),
        // Nothing but a hole up to the end.
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// Maps a memory file as the RAM of a guest with `size` bytes, and fresh memory as a range that it
/// has in addition.
pub(super) fn map(
    file: File,
    size: u64,
    growth: Option<(GuestAddress, u64)>,
) -> io::Result<GuestMemoryMmap> {
    let file = std::sync::Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, length) in layout::ram(size) {
        let content = FileOffset::from_arc(std::sync::Arc::clone(&file), offset);
        regions.push(region(Some(content), start, length)?);
        offset += length;
    }
    if let Some((start, length)) = growth {
        regions.push(region(None, start, length)?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)
}

fn region(
    content: Option<FileOffset>,
    start: GuestAddress,
    length: u64,
) -> io::Result<GuestRegionMmap> {
    let anonymous = if content.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    let mapping = MmapRegion::build(
        content,
        usize::try_from(length).map_err(io::Error::other)?,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous,
    )
    .map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, start)
        .ok_or_else(|| io::Error::other("guest memory wraps around"))
}
