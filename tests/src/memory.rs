//! How much memory a VMM has to itself.

use std::{fs, io};

/// Private memory of a process, in bytes: pages that no other process shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivateMemory {
    /// What the guest made of its RAM.
    pub guest: u64,
    /// Everything else: heap, stacks, data of the VMM itself.
    pub own: u64,
}

impl PrivateMemory {
    /// Reads it from `/proc/PID/smaps`. The guest's RAM is the mapping that is at least as large
    /// as the guest's memory: nothing else in a VMM comes near.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn of(pid: i32, guest_memory: u64) -> io::Result<Self> {
        Ok(Self::parse(
            &fs::read_to_string(format!("/proc/{pid}/smaps"))?,
            guest_memory,
        ))
    }

    fn parse(smaps: &str, guest_memory: u64) -> Self {
        let mut memory = Self { guest: 0, own: 0 };
        let mut is_guest = false;
        for line in smaps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(name), value) = (fields.next(), fields.next()) else {
                continue;
            };
            if let Some(size) = range_size(name) {
                is_guest = size >= guest_memory;
            } else if name == "Private_Clean:" || name == "Private_Dirty:" {
                let kib: u64 = value.and_then(|value| value.parse().ok()).unwrap_or(0);
                let sum = if is_guest {
                    &mut memory.guest
                } else {
                    &mut memory.own
                };
                *sum += kib * 1024;
            }
        }
        memory
    }
}

/// Size of a mapping from its address range, such as `7f00-7f10`.
fn range_size(text: &str) -> Option<u64> {
    let (start, end) = text.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    address(end)?.checked_sub(address(start)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Private_Clean:         4 kB
Private_Dirty:      5000 kB
7f1000000000-7f1000010000 r-xp 00000000 fe:00 42 /usr/bin/hrun-vmm
Shared_Clean:         64 kB
Private_Clean:        12 kB
Private_Dirty:         8 kB
";
        assert_eq!(
            PrivateMemory::parse(smaps, 128 << 20),
            PrivateMemory {
                guest: 5004 << 10,
                own: 20 << 10
            }
        );
    }
}
