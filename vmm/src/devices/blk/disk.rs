//! What is on a disk: a file, or nothing but zeros.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, ReadVolatile,
    VolatileSlice, WriteVolatile,
};

use crate::config::{DiskConfig, SECTOR_SIZE};

/// A disk that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("Failed to open disk {path}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("Disk {0} is no regular file")]
    NoFile(PathBuf),
    /// The file does not fit what the guest is to be told.
    #[error("Disk {path} has {size} bytes, {problem}")]
    Size {
        /// Its path.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What does not fit.
        problem: String,
    },
}

/// A transfer that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("the guest named memory that it does not have")]
    Memory(#[from] GuestMemoryError),
    #[error("the file failed")]
    File(#[from] io::Error),
    #[error("the file or the memory failed")]
    Volatile(#[from] vm_memory::VolatileMemoryError),
    #[error("the disk is read-only or ends before")]
    Refused,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    id: String,
    /// `None`: all zeros.
    file: Option<File>,
    /// Bytes of the file. What lies behind them on the disk is zero.
    size: u64,
    /// Bytes of the disk, whole sectors.
    capacity: u64,
    read_only: bool,
    write_through: bool,
}

impl Disk {
    /// Opens the file of a disk; a read-only one for reading only.
    ///
    /// # Errors
    ///
    /// It is missing, no regular file, or of a size that cannot be.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let mut disk = Self {
            id: config.id.clone(),
            file: None,
            size: 0,
            capacity: config.capacity.unwrap_or(0),
            read_only: config.read_only,
            write_through: false,
        };
        let Some(path) = &config.path else {
            return Ok(disk);
        };
        let failed = |source| DiskError::Open {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(!config.read_only)
            // A pipe in the file's place must not keep the VMM waiting.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(DiskError::NoFile(path.clone()));
        }
        let size = metadata.len();
        let misfit = |problem: String| DiskError::Size {
            path: path.clone(),
            size,
            problem,
        };
        if !config.read_only && !size.is_multiple_of(SECTOR_SIZE) {
            return Err(misfit(format!("not a multiple of {SECTOR_SIZE}")));
        }
        disk.capacity = match config.capacity {
            None => size.div_ceil(SECTOR_SIZE) * SECTOR_SIZE,
            Some(capacity) if capacity < size => {
                return Err(misfit(format!("more than its capacity of {capacity}")));
            }
            Some(capacity) => capacity,
        };
        disk.size = size;
        disk.file = Some(file);
        Ok(disk)
    }

    /// What the guest reads as its serial number.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How large the guest takes it for.
    pub(super) fn sectors(&self) -> u64 {
        self.capacity / SECTOR_SIZE
    }

    /// Whether what was written has to be on the host's disk before the guest hears of it.
    pub(super) fn set_write_through(&mut self, write_through: bool) {
        self.write_through = write_through;
    }

    /// Where a transfer of `length` bytes begins, if the disk has these sectors.
    fn position(&self, sector: u64, length: u64) -> Result<u64, TransferError> {
        let start = sector.checked_mul(SECTOR_SIZE);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.capacity => Ok(start),
            _ => Err(TransferError::Refused),
        }
    }

    /// Reads from `sector` on into the segments, whose total is `length`.
    pub(super) fn read(
        &mut self,
        sector: u64,
        length: u64,
        segments: &[(GuestAddress, usize)],
        memory: &GuestMemoryMmap,
    ) -> Result<(), TransferError> {
        let mut at = self.position(sector, length)?;
        if at < self.size
            && let Some(file) = &mut self.file
        {
            file.seek(SeekFrom::Start(at))?;
        }
        for (address, length) in segments {
            for slice in memory.get_slices(*address, *length) {
                at = self.read_slice(at, &slice?)?;
            }
        }
        Ok(())
    }

    /// Fills a slice from the file, which stands at `at`, and with zeros where it has ended.
    fn read_slice(&mut self, at: u64, slice: &VolatileSlice<'_>) -> Result<u64, TransferError> {
        let in_file = usize::try_from(self.size.saturating_sub(at))
            .unwrap_or(usize::MAX)
            .min(slice.len());
        let mut filled = 0;
        if let Some(file) = self.file.as_mut().filter(|_| in_file > 0) {
            file.read_exact_volatile(&mut slice.subslice(0, in_file)?)?;
            filled = in_file;
        }
        let mut rest = slice.offset(filled)?;
        while !rest.is_empty() {
            let length = rest.len().min(ZEROS.len());
            rest.write_slice(&ZEROS[..length], 0)?;
            rest = rest.offset(length)?;
        }
        Ok(at + slice.len() as u64)
    }

    /// Writes the segments, whose total is `length`, from `sector` on.
    pub(super) fn write(
        &mut self,
        sector: u64,
        length: u64,
        segments: &[(GuestAddress, usize)],
        memory: &GuestMemoryMmap,
    ) -> Result<(), TransferError> {
        let at = self.position(sector, length)?;
        let Some(file) = self.file.as_mut().filter(|_| !self.read_only) else {
            return Err(TransferError::Refused);
        };
        file.seek(SeekFrom::Start(at))?;
        for (address, length) in segments {
            for slice in memory.get_slices(*address, *length) {
                file.write_all_volatile(&slice?)?;
            }
        }
        if self.write_through {
            file.sync_data()?;
        }
        Ok(())
    }

    /// Sees to it that all that was written is on the host's disk.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &self.file {
            Some(file) if !self.read_only => file.sync_data(),
            _ => Ok(()),
        }
    }
}

const ZEROS: [u8; 4096] = [0; 4096];
