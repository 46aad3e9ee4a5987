//! A clone that has more CPUs and memory than the VM that was saved.
//!
//! Boundary: the kernel brings CPUs online and adds memory by a file of our own in sysfs
//! (guest-kernel/patches); this writes to it and looks at what has become of the guest.

use std::fs::File;
use std::io::{self, Write};

use agent_protocol::Growth;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::{system, thread};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// CPUs and memory of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestSize {
    /// CPUs online.
    pub cpus: u32,
    /// `MemTotal` in bytes.
    pub memory_total: u64,
}

impl GuestSize {
    /// Those of the guest that this runs in.
    pub(crate) fn of_guest() -> io::Result<Self> {
        let info = system::sysinfo();
        Ok(Self {
            cpus: thread::sched_getaffinity(None)?.count(),
            memory_total: info.totalram * u64::from(info.mem_unit),
        })
    }
}

/// Makes the guest as large as is asked for, and says how large it is then.
pub type Grow = fn(&Growth) -> io::Result<GuestSize>;

/// Has the kernel take CPUs and memory into use.
///
/// # Errors
///
/// The guest is larger already, or the kernel refuses: it may have done a part of it.
pub fn grow_guest(growth: &Growth) -> io::Result<GuestSize> {
    let request = request(GuestSize::of_guest()?, growth)
        .ok_or_else(|| io::Error::other("the VM has more than that"))?;
    // The agent has no sysfs of its own.
    let sysfs = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&sysfs)?;
    let sysfs = fsmount(
        &sysfs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let file = openat(
        &sysfs,
        c"kernel/grow",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // One write is one request.
    File::from(file).write_all(request.as_bytes())?;
    GuestSize::of_guest()
}

/// What to tell the kernel: CPUs, where the memory is, and how many pages to add.
fn request(now: GuestSize, growth: &Growth) -> Option<String> {
    if growth.cpus < now.cpus {
        return None;
    }
    let (start, more) = match growth.memory {
        None => (0, 0),
        Some(memory) => (memory.start, memory.total.checked_sub(now.memory_total)?),
    };
    Some(format!("{} {start:#x} {}", growth.cpus, more / PAGE))
}

#[cfg(test)]
mod tests {
    use agent_protocol::MemoryGrowth;

    use super::*;

    const NOW: GuestSize = GuestSize {
        cpus: 1,
        memory_total: 256 << 20,
    };

    fn growth(cpus: u32, total: u64) -> Growth {
        let memory = MemoryGrowth {
            total,
            start: 1 << 32,
        };
        Growth {
            cpus,
            memory: Some(memory),
        }
    }

    #[test]
    fn the_kernel_is_told_how_many_pages_are_missing() {
        let told = request(NOW, &growth(2, 1 << 30)).unwrap();
        assert_eq!(told, "2 0x100000000 196608");
        let cpus = Growth {
            cpus: 4,
            memory: None,
        };
        assert_eq!(request(NOW, &cpus).unwrap(), "4 0x0 0");
    }

    #[test]
    fn a_guest_does_not_shrink() {
        assert_eq!(request(NOW, &growth(1, 128 << 20)), None);
        assert_eq!(request(NOW, &growth(0, 256 << 20)), None);
    }
}
