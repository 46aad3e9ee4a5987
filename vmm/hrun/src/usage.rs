//! What processes use, from `/proc` (proc(5)).

use std::{
    fs, io,
    ops::AddAssign,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// The program whose large mappings are a guest's memory.
const VMM: &str = "hrun-vmm";

/// Writable mappings of at least this many bytes are guest memory: a VM has 32 MiB or more, and
/// nothing else in a VMM comes near; the stack of a thread has 2 MiB.
const GUEST_MAPPING: u64 = 16 << 20;

/// Memory of one kind, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Share {
    /// Pages of its own, and its part of those that it shares.
    pub(crate) pss: u64,
    /// Pages that it has written and nobody else sees.
    pub(crate) private_dirty: u64,
    /// All pages that are there, whoever else has them.
    #[serde(skip)]
    pub(crate) rss: u64,
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.pss += other.pss;
        self.private_dirty += other.private_dirty;
        self.rss += other.rss;
    }
}

/// A process's own ticks, and those of its children that were waited for.
pub(crate) fn cpu(pid: i32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat)
}

fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, system, waited_user, waited_system) = (next()?, next()?, next()?, next()?);
    Some((user + system, waited_user + waited_system))
}

/// Whether a process is a VMM.
pub(crate) fn is_vmm(pid: i32) -> bool {
    program(pid).is_some_and(|program| program.file_name().is_some_and(|name| name == VMM))
}

fn program(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Memory of a process: its own, and that of a guest in it.
pub(crate) fn memory_of(pid: i32) -> io::Result<(Share, Share)> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    if is_vmm(pid) {
        return Ok(split(&fs::read_to_string(dir.join("smaps"))?));
    }
    Ok((rollup(&dir)?, Share::default()))
}

fn rollup(dir: &Path) -> io::Result<Share> {
    let text = fs::read_to_string(dir.join("smaps_rollup"))?;
    let mut share = Share::default();
    text.lines().for_each(|line| add_line(&mut share, line));
    Ok(share)
}

/// Tells a VMM's own memory from its guest's.
fn split(smaps: &str) -> (Share, Share) {
    let (mut own, mut guest) = (Share::default(), Share::default());
    let mut in_guest = false;
    for line in smaps.lines() {
        match mapping(line) {
            Some((size, writable)) => in_guest = writable && size >= GUEST_MAPPING,
            None if in_guest => add_line(&mut guest, line),
            None => add_line(&mut own, line),
        }
    }
    (own, guest)
}

/// The size of a mapping and whether it can be written, if the line is the first of a mapping:
/// `7f0000000000-7f0010000000 rw-p 00000000 00:00 0`.
fn mapping(line: &str) -> Option<(u64, bool)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let from = u64::from_str_radix(from, 16).ok()?;
    let to = u64::from_str_radix(to, 16).ok()?;
    Some((to.checked_sub(from)?, rest.as_bytes().get(1) == Some(&b'w')))
}

fn add_line(share: &mut Share, line: &str) {
    let Some((name, value)) = line.split_once(':') else {
        return;
    };
    let bytes = || {
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    match name {
        "Rss" => share.rss += bytes().unwrap_or(0),
        "Pss" => share.pss += bytes().unwrap_or(0),
        "Private_Dirty" => share.private_dirty += bytes().unwrap_or(0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_vmms_own() {
        let smaps = "\
55d000000000-55d000100000 r-xp 00000000 08:01 1 /usr/libexec/hrun/hrun-vmm
Pss:                 100 kB
Pss_Dirty:            90 kB
Private_Dirty:        10 kB
7f0000000000-7f0010000000 rw-p 00000000 00:01 2 /run/memory file
Rss:                9000 kB
Pss:                2000 kB
Private_Dirty:      1500 kB
7f0020000000-7f0024000000 ---p 00000000 00:00 0
Pss:                   0 kB
7f0030000000-7f0030021000 rw-p 00000000 00:00 0 [heap]
Pss:                  40 kB
Private_Dirty:        40 kB
VmFlags: rd wr mr mw me ac
";
        let (own, guest) = split(smaps);
        assert_eq!((own.pss, own.private_dirty), (140 << 10, 50 << 10));
        assert_eq!((guest.pss, guest.private_dirty), (2000 << 10, 1500 << 10));
        assert_eq!((own.rss, guest.rss), (0, 9000 << 10));
    }

    #[test]
    fn ticks_are_found_behind_an_odd_command_name() {
        let stat = "12 (a) b) S 7 2 3 4 5 6 7 8 9 10 100 20 3 4 15 16";
        assert_eq!(ticks(stat), Some((120, 7)));
        assert_eq!(ticks("12 (a"), None);
    }
}
