//! What waiting VMs cost, and what the host has left.

use std::{fs, io, path::Path};

use rustix::process::Pid;

/// The host is short of memory if less than this of it is available, in percent.
const MIN_AVAILABLE: u64 = 10;

/// What a VMM has to itself, in bytes: what comes back when it ends.
///
/// That is its anonymous memory: what its guest has written of the template's memory, and its own
/// heap. What it only reads of the template and of its program are pages of files, there once for
/// all, so they are not counted; nor is what the kernel keeps for it.
pub(super) fn private_to(pid: Pid) -> io::Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let text = fs::read_to_string(path)?;
    field(&text, "Anonymous:").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether the host has little memory left. Without `/proc` nobody knows: then it has not.
pub(super) fn host_is_short() -> bool {
    fs::read_to_string(Path::new("/proc/meminfo")).is_ok_and(|text| is_short(&text))
}

fn is_short(meminfo: &str) -> bool {
    match (field(meminfo, "MemTotal:"), field(meminfo, "MemAvailable:")) {
        (Some(total), Some(available)) => available < total / 100 * MIN_AVAILABLE,
        _ => false,
    }
}

/// A line such as `Anonymous:   12 kB`, in bytes (proc_pid_smaps(5), proc_meminfo(5)).
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_of_its_own_and_more_when_it_has_written_more() {
        let own = rustix::process::getpid();
        let before = private_to(own).unwrap();
        let written = vec![1u8; 64 << 20];
        let after = private_to(own).unwrap();
        assert!(after > before + (32 << 20), "{before} became {after}");
        drop(written);
    }

    #[test]
    fn a_host_is_short_below_a_tenth() {
        let meminfo = |available: u64| {
            format!("MemTotal:       1000000 kB\nMemFree:  5 kB\nMemAvailable: {available} kB\n")
        };
        assert!(is_short(&meminfo(99_000)));
        assert!(!is_short(&meminfo(101_000)));
        assert!(!is_short("MemTotal: 5 kB"));
        assert!(!is_short("MemTotal: x\nMemAvailable: 1 kB"));
    }
}
