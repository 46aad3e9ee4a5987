//! How the kernel treats the calling process: what no crate wraps.

use std::io;

use agent_protocol::Scheduler;

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets policy, priority and deadlines (sched_setattr(2)).
pub(crate) fn set_scheduler_attributes(scheduler: &Scheduler) -> io::Result<()> {
    /// `struct sched_attr` of linux/sched/types.h, in its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const { assert!(size_of::<Attributes>() == 48) };
    let attributes = Attributes {
        size: 48,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: attributes is valid for reads of the size that it says; 0 is the caller itself.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Sets class and level of input and output (ioprio_set(2)).
pub(crate) fn set_io_priority(priority: u32) -> io::Result<()> {
    /// linux/ioprio.h
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: no memory is involved; 0 is the caller itself.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })
}

/// CPUs of a mask that is passed to the kernel.
const CPUS: u32 = 1024;

/// Has the caller run on these CPUs only. Those that are not there do not count.
pub(crate) fn set_affinity(cpus: &[u32]) -> io::Result<()> {
    let mut mask = [0u64; CPUS as usize / 64];
    for cpu in cpus.iter().filter(|cpu| **cpu < CPUS) {
        mask[(cpu / 64) as usize] |= 1 << (cpu % 64);
    }
    // SAFETY: mask is valid for reads of its size; 0 is the caller itself.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(&mask),
            mask.as_ptr(),
        )
    })
}

/// Sets the execution domain (personality(2)).
pub(crate) fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(persona)) })
}

/// Has the program that this process executes next live in a time namespace of its own.
pub(crate) fn unshare_time() -> io::Result<()> {
    /// linux/sched.h
    const CLONE_NEWTIME: libc::c_int = 0x80;
    // SAFETY: no memory is involved.
    check(unsafe { libc::c_long::from(libc::unshare(CLONE_NEWTIME)) })
}
