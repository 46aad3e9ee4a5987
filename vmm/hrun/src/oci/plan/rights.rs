//! What a process may do and use: capabilities, filters of system calls, resource limits.

use std::collections::HashSet;

use agent_protocol::{Capabilities, Rlimit, SeccompFilter};
use oci_spec::runtime::{Capability, LinuxSeccompFilterFlag, Process, Spec};

use super::refused::{Refused, value};
use crate::{
    options::{capability, ulimit},
    seccomp::Profile,
};

/// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;

/// The five sets; without any there are no capabilities at all, as with runc.
pub(super) fn capabilities(process: &Process, warnings: &mut Vec<String>) -> Capabilities {
    let Some(sets) = process.capabilities() else {
        return Capabilities::of(0);
    };
    let bits = |set: &Option<HashSet<Capability>>| {
        let names = set.iter().flatten();
        // oci-spec has let none pass that is not in the list.
        names.fold(0, |bits, name| {
            bits | capability::parse(&name.to_string()).unwrap_or(0)
        })
    };
    let mut all = Capabilities {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        permitted: bits(sets.permitted()),
        inheritable: bits(sets.inheritable()),
        ambient: bits(sets.ambient()),
    };
    // The kernel refuses what is beyond these (capabilities(7)); engines have written it for years.
    let possible = all.permitted & all.inheritable;
    if all.ambient & !possible != 0 {
        warnings.push(
            "process.capabilities.ambient: what is not permitted and inheritable is left out"
                .into(),
        );
        all.ambient &= possible;
    }
    all
}

pub(super) fn rlimits(process: &Process) -> Result<Vec<Rlimit>, Refused> {
    let limits = process.rlimits().iter().flatten().enumerate();
    let limit = |(index, limit): (usize, &oci_spec::runtime::PosixRlimit)| {
        let property = format!("process.rlimits[{index}]");
        let name = limit.typ().to_string();
        let resource = ulimit::resource(&name)
            .ok_or_else(|| value(&property, &name, "Linux has no such limit"))?;
        let (soft, hard) = (limit.soft(), limit.hard());
        if soft > hard {
            let reason = format!("its soft limit {soft} is beyond the hard one, {hard}");
            return Err(value(property, name, reason));
        }
        Ok(Rlimit {
            resource,
            soft,
            hard,
        })
    };
    limits.map(limit).collect()
}

/// The filters of `linux.seccomp` for a process with these capabilities.
pub(super) fn filters(spec: &Spec, capabilities: u64) -> Result<Vec<SeccompFilter>, Refused> {
    let seccomp = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let Some(seccomp) = seccomp else {
        return Ok(Vec::new());
    };
    if let Some(path) = seccomp.listener_path() {
        return Err(value(
            "linux.seccomp.listenerPath",
            path.to_string_lossy(),
            "system calls of a guest cannot be handed to a process of the host",
        ));
    }
    Ok(Profile::from(seccomp).compile(capabilities)?)
}

pub(super) fn filter_flags(spec: &Spec) -> Result<u32, Refused> {
    let seccomp = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref());
    let flags = seccomp.and_then(|seccomp| seccomp.flags().as_ref());
    flags.into_iter().flatten().try_fold(0, |bits, flag| {
        Ok(bits
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
                // A process that starts has one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                other => {
                    let reason = "it is for filters with a listener, which are not to be had";
                    return Err(value("linux.seccomp.flags", other.to_string(), reason));
                }
            })
    })
}
