//! A mount namespace for the whole benchmark: the mounts of bundles go with it, however the
//! benchmark ends, and cgroups can be hidden from a runtime that stumbles over them.

use std::{env, fs, io, os::unix::process::CommandExt, process::Command};

use rustix::mount::{UnmountFlags, unmount};

/// Says to the second hrun that it is the second.
pub(crate) const INSIDE: &str = "HRUN_BENCH_INSIDE";

/// Goes on in a namespace of its own: this process executes unshare(1) of util-linux, and that
/// hrun again, with the same arguments. Comes back there, or here with the reason if that is not
/// possible; a benchmark can do without.
pub(crate) fn enter() -> io::Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let own = env::current_exe()?;
    Err(Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(own)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec())
}

/// Takes the unified hierarchy away where cgroups are those of version 1 and some of version 2
/// beside them, and says so. crun refuses to run there at all; without it, it uses version 1, as
/// runc does.
pub(super) fn simplify_cgroups() -> Option<String> {
    env::var_os(INSIDE)?;
    let mounts = crate::cgroup::mounts(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    let hybrid = mounts.iter().any(|mount| !mount.version2);
    let unified = mounts.iter().find(|mount| mount.version2)?;
    let controllers = fs::read_to_string(unified.at.join("cgroup.controllers")).ok()?;
    if !hybrid || controllers.trim().is_empty() {
        return None;
    }
    unmount(&unified.at, UnmountFlags::DETACH).ok()?;
    Some(format!(
        "{} was hidden from all arms: it has controllers ({}) beside those of version 1, and crun \
         does not run there",
        unified.at.display(),
        controllers.trim()
    ))
}
