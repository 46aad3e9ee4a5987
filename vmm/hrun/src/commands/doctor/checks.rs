//! The single checks of `hrun doctor`.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{XattrFlags, lsetxattr, statfs, statvfs};
use vmm::api::HostKind;

use super::Check;
use crate::{
    dirs::Dirs,
    host::{self, HostError},
    options::size,
    parts::Part,
};

/// Less memory than this is tight: a few containers fill it, in bytes.
const LITTLE_MEMORY: u64 = 512 << 20;
/// Less disk than this does not hold an image of usual size, in bytes.
const LITTLE_DISK: u64 = 1 << 30;

/// Magic numbers of statfs(2).
const CGROUP2: u64 = 0x6367_7270;
const FILE_SYSTEMS: [(u64, &str, bool); 9] = [
    // Type, name, whether it can hold the upper layer of an overlay.
    (0xef53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683e, "btrfs", true),
    (0x0102_1994, "tmpfs", true),
    (0xf2f5_2010, "f2fs", true),
    (0x2fc1_2fc1, "zfs", true),
    (0x794c_7630, "overlayfs", false),
    (0x6969, "nfs", false),
    (0x6573_5546, "fuse", false),
];

pub(super) fn all(dirs: &Dirs) -> Vec<Check> {
    let mut checks = vec![root(), kvm()];
    checks.extend(Part::ALL.map(part));
    checks.push(host_kind());
    checks.push(memory(&fs::read_to_string("/proc/meminfo")));
    checks.push(cgroups());
    checks.push(overlayfs(&fs::read_to_string("/proc/filesystems")));
    checks.push(directory("state directory", &dirs.state));
    checks.push(directory("store directory", &dirs.store));
    checks.push(upper(&dirs.store));
    checks.push(disk(&dirs.store));
    checks
}

fn root() -> Check {
    match host::require_root() {
        Ok(()) => Check::ok("root", "running as root"),
        Err(error) => Check::problem("root", error.to_string(), "use sudo, or a root shell"),
    }
}

fn kvm() -> Check {
    match host::require_kvm() {
        Ok(()) => Check::ok("kvm", format!("{} can be used", host::KVM)),
        Err(HostError::Kvm(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::problem(
                "kvm",
                format!("{} is there, but opening it is not permitted", host::KVM),
                "run hrun as root; in a container allow the device with --device /dev/kvm",
            )
        }
        Err(error @ HostError::Kvm(_)) => Check::problem(
            "kvm",
            format!("{:#}", anyhow::Error::new(error)),
            "the device is there but no KVM behind it: look at `dmesg | grep -i kvm`",
        ),
        Err(error) => Check::problem(
            "kvm",
            error.to_string(),
            "load the module (modprobe kvm_intel, kvm_amd or kvm_pvm); switch virtualisation on \
             in the firmware, or nested virtualisation if this is a virtual machine",
        ),
    }
}

/// A part of hrun: where it is and which version it says to be.
fn part(part: Part) -> Check {
    let name = match part {
        Part::Vmm => "hrun-vmm",
        Part::Kernel => "guest kernel",
        Part::Initramfs => "initramfs",
    };
    let path = match part.find() {
        Ok(path) => path,
        Err(error) => {
            return Check::problem(
                name,
                error.to_string(),
                "build it with `make`, or install it with `make install`, in hrun's source tree",
            );
        }
    };
    let version = match part {
        Part::Vmm => first_line(&path, "--version"),
        Part::Kernel => fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|image| banner(&image).ok_or_else(|| "no Linux kernel".into())),
        Part::Initramfs => fs::metadata(&path)
            .map(|metadata| size::format(metadata.len()))
            .map_err(|error| error.to_string()),
    };
    match version {
        Ok(version) => Check::ok(name, format!("{version}, {}", path.display())),
        Err(problem) => Check::problem(
            name,
            format!("{}: {problem}", path.display()),
            "build it anew with `make`",
        ),
    }
}

/// Runs the VMM and gives the first line that it prints.
fn first_line(program: &Path, argument: &str) -> Result<String, String> {
    let output = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().next().unwrap_or("").trim().to_owned()
    };
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{} ({})", output.status, text(&output.stderr)))
    }
}

/// The release in the banner that every kernel image carries: `Linux version 6.12.1 (...`.
fn banner(image: &[u8]) -> Option<String> {
    const BEGIN: &[u8] = b"Linux version ";
    // The bare prefix also occurs in format strings: a digit follows in the banner.
    image
        .windows(BEGIN.len() + 1)
        .enumerate()
        .find_map(|(at, window)| {
            let digit = window.strip_prefix(BEGIN)?.first()?.is_ascii_digit();
            let release = &image[at + BEGIN.len()..];
            let end = release.iter().position(|byte| !byte.is_ascii_graphic())?;
            digit.then(|| format!("Linux {}", String::from_utf8_lossy(&release[..end])))
        })
}

/// The kind of KVM, found out by the VMM.
fn host_kind() -> Check {
    const NAME: &str = "kind of KVM";
    let probed = Part::Vmm
        .find()
        .map_err(|error| error.to_string())
        .and_then(|vmm| first_line(&vmm, "--probe"))
        .and_then(|json| serde_json::from_str(&json).map_err(|error| error.to_string()));
    match probed {
        Ok(HostKind::Hardware) => Check::ok(
            NAME,
            "hardware: guest kernels run natively, a VM boots in a fraction of a second",
        ),
        Ok(HostKind::Software) => Check::ok(
            NAME,
            "software: programs run at full speed, but guest kernel code is interpreted, so \
             booting takes seconds and system calls are slow",
        ),
        Err(problem) => Check::problem(
            NAME,
            format!("the probe failed: {problem}"),
            "see the checks of kvm and hrun-vmm above; HRUN_LOG=debug hrun-vmm --probe says more",
        ),
    }
}

fn memory(meminfo: &io::Result<String>) -> Check {
    const NAME: &str = "memory";
    let field = |name: &str| {
        meminfo.as_ref().ok()?.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
            rest.trim().parse::<u64>().ok().map(|kib| kib << 10)
        })
    };
    let (Some(total), Some(available)) = (field("MemTotal:"), field("MemAvailable:")) else {
        return Check::warning(NAME, "unknown", "is /proc mounted?");
    };
    let found = format!(
        "{} available of {}",
        size::format(available),
        size::format(total)
    );
    if available < LITTLE_MEMORY {
        Check::warning(
            NAME,
            found,
            "end some programs, or run containers with less --memory",
        )
    } else {
        Check::ok(NAME, found)
    }
}

fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    const ROOT: &str = "/sys/fs/cgroup";
    let is_v2 = |path: &Path| statfs(path).is_ok_and(|found| magic(&found) == CGROUP2);
    let root = Path::new(ROOT);
    if is_v2(root) {
        Check::ok(NAME, "version 2")
    } else if is_v2(&root.join("unified")) {
        Check::ok(
            NAME,
            "hybrid: controllers of version 1, version 2 beside them",
        )
    } else if root.join("memory").is_dir() {
        Check::ok(NAME, "version 1")
    } else {
        Check::warning(
            NAME,
            format!("none at {ROOT}"),
            "mount them if containers shall be limited on the host's side as well",
        )
    }
}

fn overlayfs(filesystems: &io::Result<String>) -> Check {
    const NAME: &str = "overlayfs";
    let known = filesystems.as_ref().is_ok_and(|list| {
        list.lines()
            .any(|line| line.split_whitespace().last() == Some("overlay"))
    });
    if known {
        Check::ok(NAME, "known to this kernel")
    } else {
        Check::problem(
            NAME,
            "not known to this kernel",
            "load the module: modprobe overlay",
        )
    }
}

/// The nearest existing directory on the way to `path`.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
}

fn directory(name: &'static str, path: &Path) -> Check {
    let probed = tempfile::Builder::new()
        .prefix(".hrun-doctor-")
        .tempdir_in(existing(path));
    let shown = path.display();
    match probed {
        Ok(_) if path.is_dir() => Check::ok(name, format!("{shown} can be written")),
        Ok(_) => Check::ok(name, format!("{shown} will be made")),
        Err(error) => Check::problem(
            name,
            format!("{shown} cannot be written: {error}"),
            "set HRUN_STATE and HRUN_STORE to directories that can",
        ),
    }
}

/// Whether writable layers can be in the store: overlayfs asks for certain extended attributes.
fn upper(store: &Path) -> Check {
    const NAME: &str = "writable layers";
    const ADVICE: &str = "set HRUN_STORE to a directory on ext4, xfs or btrfs";
    let dir = existing(store);
    let Ok(found) = statfs(dir) else {
        return Check::problem(
            NAME,
            format!("{} cannot be examined", dir.display()),
            ADVICE,
        );
    };
    let magic = magic(&found);
    let known = FILE_SYSTEMS.iter().find(|(number, _, _)| *number == magic);
    let name = known.map_or_else(|| format!("file system {magic:#x}"), |found| found.1.into());
    let attributes = tempfile::Builder::new()
        .prefix(".hrun-doctor-")
        .tempdir_in(dir)
        .and_then(|probe| {
            let attribute = "trusted.overlay.hrun";
            Ok(lsetxattr(
                probe.path(),
                attribute,
                b"y",
                XattrFlags::empty(),
            )?)
        });
    match (known, attributes) {
        (Some((_, _, false)), _) => Check::problem(
            NAME,
            format!("{} is on {name}, which cannot hold them", dir.display()),
            ADVICE,
        ),
        (_, Err(error)) => Check::problem(
            NAME,
            format!(
                "{} is on {name}, which refuses their attributes: {error}",
                dir.display()
            ),
            ADVICE,
        ),
        (_, Ok(())) => Check::ok(NAME, format!("{} is on {name}", dir.display())),
    }
}

fn disk(store: &Path) -> Check {
    const NAME: &str = "free disk";
    let dir = existing(store);
    match statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} for {}", size::format(free), dir.display());
            if free < LITTLE_DISK {
                Check::warning(
                    NAME,
                    text,
                    "free some space (`hrun rm`, `hrun image rm`) or move HRUN_STORE",
                )
            } else {
                Check::ok(NAME, text)
            }
        }
        Err(error) => Check::warning(NAME, format!("unknown: {error}"), "look with `df`"),
    }
}

/// The type of a file system as statfs(2) numbers them: 32 bits, whatever the field's own type.
fn magic(found: &rustix::fs::StatFs) -> u64 {
    u64::try_from(found.f_type).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Verdict;

    #[test]
    fn the_banner_is_found_between_other_bytes() {
        let mut image = b"\0Linux version %s (%s)\0junk".to_vec();
        assert_eq!(banner(&image), None);
        image.extend_from_slice(b"\0Linux version 6.12.57 (a@b) (gcc) #1\0");
        assert_eq!(banner(&image).as_deref(), Some("Linux 6.12.57"));
        assert_eq!(banner(b""), None);
    }

    #[test]
    fn little_memory_is_a_warning() {
        let meminfo = |available: &str| {
            memory(&Ok(format!(
                "MemTotal: 1048576 kB\nMemAvailable: {available} kB\n"
            )))
        };
        assert_eq!(meminfo("900000").verdict, Verdict::Ok);
        assert_eq!(meminfo("1000").verdict, Verdict::Warning);
        assert_eq!(memory(&Ok(String::new())).verdict, Verdict::Warning);
    }

    #[test]
    fn a_kernel_without_overlayfs_is_a_problem() {
        let list = |text: &str| overlayfs(&Ok(text.to_owned())).verdict;
        assert_eq!(list("nodev\tproc\nnodev\toverlay\n"), Verdict::Ok);
        assert_eq!(list("nodev\tproc\n\text4\n"), Verdict::Problem);
    }

    #[test]
    fn a_directory_that_will_be_made_is_fine_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let check = directory("state directory", &dir.path().join("a/b"));
        assert_eq!(check.verdict, Verdict::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_problem() {
        let check = directory("state directory", Path::new("/proc/x"));
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.advice.unwrap().contains("HRUN_STATE"));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        assert_eq!(first_line(Path::new("/bin/echo"), "x").unwrap(), "x");
        assert!(first_line(Path::new("/bin/false"), "x").is_err());
        assert!(first_line(Path::new("/nonexistent"), "x").is_err());
    }
}
