//! The agent's only unsafe code: system calls that no crate wraps safely.
//!
//! Boundary: mechanism only. Every function does one thing of the kernel's, reports its error, and
//! decides nothing.
#![allow(unsafe_code)]

mod fork;
mod memory;
mod treatment;
mod twin;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use agent_protocol::{Attributes, Capabilities, Propagation, SeccompFilter};

pub(crate) use fork::fork;
pub(crate) use memory::{tune_allocator, warm_up};
pub(crate) use treatment::{
    set_affinity, set_io_priority, set_personality, set_scheduler_attributes, unshare_time,
};
pub(crate) use twin::{Stack, Twin};

/// `VMADDR_CID_HOST`: the context identifier of the host (vsock(7)).
pub(crate) const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// Arguments or environment of a program, as `execve(2)` wants them.
#[derive(Debug)]
pub(crate) struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        // CString keeps its bytes on the heap, so moving `strings` does not move them.
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self { strings, pointers }
    }

    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Replaces this process by a program. Returns only if that fails.
pub(crate) fn exec(path: &CStr, args: &StringArray, env: &StringArray) -> io::Error {
    // SAFETY: the path is a C string; both arrays hold pointers to live C strings and end in null.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Accepts a connection, nonblocking and close-on-exec, with the context identifier of the peer if
/// it is a vsock connection.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<u32>)> {
    /// socket.h: `_K_SS_MAXSIZE`
    const SIZE: libc::socklen_t = 128;
    const { assert!(size_of::<libc::sockaddr_storage>() == SIZE as usize) };
    // SAFETY: all-zero bytes are a valid value of this plain C struct.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = SIZE;
    // SAFETY: address and length are valid for writes, and length is the size of address. The
    // result, if it is none of an error, is a new descriptor that nobody else owns.
    let socket = unsafe {
        let socket = check(libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        ))?;
        OwnedFd::from_raw_fd(socket)
    };
    let peer = (c_int::from(address.ss_family) == libc::AF_VSOCK).then(|| {
        // SAFETY: the kernel says that it wrote a sockaddr_vm, which is smaller than the storage
        // and not more strictly aligned.
        unsafe { (*(&raw const address).cast::<libc::sockaddr_vm>()).svm_cid }
    });
    Ok((socket, peer))
}

/// Gives this process a descriptor table of its own, if it shares one.
///
/// Only for a [`Twin`] that is about to execute a program: it sees no descriptor that its creator
/// opens afterwards.
pub(crate) fn unshare_files() -> io::Result<()> {
    // SAFETY: no memory is involved; the caller uses descriptors that exist already.
    check(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

/// Gives this process a cgroup namespace whose root is the cgroup it is in.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map(drop)
}

/// Closes every descriptor from `first` on.
///
/// Only for a [`Twin`] behind [`unshare_files`]: the owners of those descriptors live on the
/// other side.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is involved; see above for the descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `to` another name of `from`, whatever `to` was before.
///
/// Only for a [`Twin`] behind [`unshare_files`], as [`close_from`].
pub(crate) fn replace_descriptor(from: BorrowedFd<'_>, to: c_int) -> io::Result<()> {
    if from.as_raw_fd() == to {
        // dup2 would leave close-on-exec set.
        // SAFETY: no memory is involved.
        return check(unsafe { libc::fcntl(to, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no memory is involved; see above for the descriptors.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }).map(drop)
}

/// Makes the mount at `path` (below `dir`; empty for `dir` itself) read-only, and those below it
/// if `recursive`.
pub(crate) fn mount_read_only(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<()> {
    mount_setattr(dir, path, Attributes::READ_ONLY, 0, recursive)
}

/// Changes the mount that is open as `place`, and those below it if `recursive` or if the
/// propagation is.
pub(crate) fn change_mount(
    place: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Option<Propagation>,
    recursive: bool,
) -> io::Result<()> {
    let recursive = recursive || propagation.is_some_and(|propagation| propagation.recursive);
    let kind = propagation.map_or(0, |propagation| propagation.kind);
    mount_setattr(place, c"", attributes, kind, recursive)
}

fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    attributes: Attributes,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path is a C string, attributes is valid for reads of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The context identifier of this VM; `vsock` is `/dev/vsock`.
pub(crate) fn local_cid(vsock: BorrowedFd<'_>) -> io::Result<u32> {
    /// `_IO(7, 0xb9)` of linux/vm_sockets.h.
    const IOCTL_VM_SOCKETS_GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let mut cid = 0u32;
    // SAFETY: the ioctl writes an unsigned int.
    check(unsafe {
        libc::ioctl(
            vsock.as_raw_fd(),
            IOCTL_VM_SOCKETS_GET_LOCAL_CID,
            &raw mut cid,
        )
    })?;
    Ok(cid)
}

/// Adds entropy to the kernel's random number generator, credits it, and reseeds from it.
pub(crate) fn reseed(urandom: BorrowedFd<'_>, entropy: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info` of linux/random.h.
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: c_int,
        buf_size: c_int,
        buf: [u8; 32],
    }
    /// `_IOW('R', 0x03, int[2])`
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    /// `_IO('R', 0x07)`
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let info = RandPoolInfo {
        entropy_count: 256,
        buf_size: 32,
        buf: *entropy,
    };
    // SAFETY: info is what RNDADDENTROPY reads; RNDRESEEDCRNG has no argument.
    unsafe {
        check(libc::ioctl(
            urandom.as_raw_fd(),
            RNDADDENTROPY,
            &raw const info,
        ))?;
        check(libc::ioctl(urandom.as_raw_fd(), RNDRESEEDCRNG))?;
    }
    Ok(())
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    /// `IFF_UP` of net/if.h, in the type of the field.
    const IFF_UP: i16 = 1;
    // SAFETY: all-zero bytes are a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = IFF_UP;
    // SAFETY: the new descriptor is owned by nobody else; request is what SIOCSIFFLAGS reads.
    unsafe {
        let socket = check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        let socket = OwnedFd::from_raw_fd(socket);
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        ))?;
    }
    Ok(())
}

/// Sets a resource limit by its number.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: limit is valid for reads.
    check(unsafe { libc::setrlimit64(resource, &raw const limit) }).map(drop)
}

/// Drops a capability from the bounding set; false if the kernel has no such capability.
pub(crate) fn drop_bounding_capability(capability: u32) -> io::Result<bool> {
    // SAFETY: no memory is involved.
    let result = unsafe {
        libc::prctl(
            libc::PR_CAPBSET_DROP,
            libc::c_ulong::from(capability),
            0,
            0,
            0,
        )
    };
    match check(result) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has this process keep its capabilities when it becomes another user than root.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).map(drop)
}

/// Sets this process's capabilities but for the bounding set.
pub(crate) fn set_capabilities(sets: &Capabilities) -> io::Result<()> {
    /// `struct __user_cap_header_struct` of linux/capability.h.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    /// `struct __user_cap_data_struct`
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let half = |set: u64, index: u32| u32::try_from(set >> (32 * index) & 0xffff_ffff).unwrap_or(0);
    let data = [0, 1].map(|index| Data {
        effective: half(sets.effective, index),
        permitted: half(sets.permitted, index),
        inheritable: half(sets.inheritable, index),
    });
    // SAFETY: header and both halves of the sets are valid for reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in (0..64u32).filter(|capability| sets.ambient & (1 << capability) != 0) {
        // SAFETY: no memory is involved.
        check(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                libc::c_ulong::from(capability),
                0,
                0,
            )
        })?;
    }
    Ok(())
}

/// The kernel's form of a filter.
pub(crate) fn seccomp_program(filter: &SeccompFilter) -> Vec<libc::sock_filter> {
    let instruction = |bits: &u64| {
        let [c1, c0, jt, jf, k3, k2, k1, k0] = bits.to_be_bytes();
        libc::sock_filter {
            code: u16::from_be_bytes([c1, c0]),
            jt,
            jf,
            k: u32::from_be_bytes([k3, k2, k1, k0]),
        }
    };
    filter.0.iter().map(instruction).collect()
}

/// Filters this process's system calls from now on.
pub(crate) fn install_seccomp(program: &[libc::sock_filter], flags: u32) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is valid for reads as long as it is said to be.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets this process's scheduling policy, `SCHED_OTHER` or `SCHED_BATCH`.
pub(crate) fn set_scheduler(policy: c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: parameters is valid for reads; 0 is the caller itself.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

/// Gives SIGPIPE its default action back, which Rust's runtime takes away.
///
/// Children inherit it. PID 1 itself is not subject to default actions.
pub(crate) fn restore_sigpipe() {
    // SAFETY: SIG_DFL installs no handler, and SIGPIPE is a valid signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Gives the signals of a terminal their default action back. A shell ignores them for its jobs in
/// the background, and whoever such a job starts inherits that.
pub(crate) fn restore_terminal_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_DFL installs no handler, and both are valid signals.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A namespace of a process, by the request for it in linux/pidfd.h (Linux 6.11).
pub(crate) fn namespace(pidfd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no memory; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::ioctl(pidfd.as_raw_fd(), request, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// `_IO(0xff, 2)`
pub(crate) const PIDFD_GET_IPC_NAMESPACE: libc::c_ulong = 0xff02;
/// `_IO(0xff, 3)`
pub(crate) const PIDFD_GET_MNT_NAMESPACE: libc::c_ulong = 0xff03;

/// Sends a signal by its number; `pidfd` must be a process descriptor.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: the third argument may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<c_void>(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal by its number to a process, never to a group.
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    match c_int::try_from(pid) {
        // SAFETY: no memory is involved.
        Ok(pid) if pid > 0 => check(unsafe { libc::kill(pid, signal) }).map(drop),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
