//! Points at which tests have a process killed, as `kill -9` may at any time.
//!
//! `HRUN_FAILPOINT=NAME` kills the process that comes to the point of that name;
//! `HRUN_FAILPOINT=NAME:vmm` kills the container's VM there instead.

use std::env;

use rustix::process::{Signal, getpid, kill_process};

use crate::process::ProcessIdentity;

/// This is the point `name`.
pub(crate) fn reach(name: &str, vmm: Option<ProcessIdentity>) {
    let Ok(wanted) = env::var("HRUN_FAILPOINT") else {
        return;
    };
    if wanted == name {
        // Nothing comes after this.
        let _ = kill_process(getpid(), Signal::KILL);
    } else if wanted.strip_suffix(":vmm") == Some(name)
        && let Some(vmm) = vmm
    {
        // If it has ended already, so much the better.
        let _ = vmm.kill();
    }
}
