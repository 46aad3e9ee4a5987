//! What a process may do: capabilities, new privileges, system calls.
//!
//! Boundary: runs in the twin and allocates nothing but in [`Rights::new`].

use agent_protocol::Capabilities;
use rustix::thread;

use super::{Refused, refused};
use crate::{container, sys};

/// What a process may do.
#[derive(Debug)]
pub(super) struct Rights {
    capabilities: Capabilities,
    no_new_privileges: bool,
    seccomp: Vec<Vec<libc::sock_filter>>,
    seccomp_flags: u32,
}

impl Rights {
    pub(super) fn new(spec: &agent_protocol::Process) -> Self {
        let filters = spec.seccomp.iter();
        Self {
            capabilities: spec.capabilities,
            no_new_privileges: spec.no_new_privileges,
            seccomp: filters.map(sys::seccomp_program).collect(),
            seccomp_flags: spec.seccomp_flags,
        }
    }

    pub(super) fn bounding(&self) -> u64 {
        self.capabilities.bounding
    }

    /// Whether more is to be said than the bounding set says: root's programs get all that is in
    /// it, and those of others nothing.
    fn are_special(&self) -> bool {
        self.capabilities != Capabilities::of(self.capabilities.bounding)
    }

    /// While it is root yet.
    pub(super) fn limit(&self, bounding: u64, stays_root: bool) -> Result<(), Refused> {
        container::bound_capabilities(bounding, self.capabilities.bounding)
            .map_err(refused("limit the capabilities"))?;
        // An unprivileged process may install filters only once it gives up new privileges.
        if !self.no_new_privileges {
            self.filter()?;
        }
        if self.are_special() && !stays_root {
            sys::keep_capabilities().map_err(refused("keep capabilities"))?;
        }
        Ok(())
    }

    /// When it has become the user.
    pub(super) fn take(&self) -> Result<(), Refused> {
        if self.are_special() {
            sys::set_capabilities(&self.capabilities).map_err(refused("set the capabilities"))?;
        }
        if self.no_new_privileges {
            thread::set_no_new_privs(true).map_err(refused("give up new privileges"))?;
            self.filter()?;
        }
        Ok(())
    }

    fn filter(&self) -> Result<(), Refused> {
        self.seccomp
            .iter()
            .try_for_each(|program| sys::install_seccomp(program, self.seccomp_flags))
            .map_err(refused("filter system calls"))
    }
}
