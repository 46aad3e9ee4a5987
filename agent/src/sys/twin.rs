//! Twins: second tasks of the kernel in the agent's own memory, which take turns with it.
//!
//! Setting a container up needs a process that is in other namespaces than the agent. `fork` would
//! copy page tables and make both sides fault on every page they write afterwards, `vfork` cannot
//! wait for a second order. A twin shares memory and descriptors with the agent and runs one job
//! at a time, while the agent waits; in between it sleeps. The last job executes a program.
//!
//! Boundary: what jobs do is the caller's business. A job that executes a program never returns,
//! so it must own nothing that needs to be dropped.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::futex;

/// The twin has left: it executed a program or died. The kernel stores this
/// (`CLONE_CHILD_CLEARTID`) and wakes who waits.
const GONE: u32 = 0;
/// The twin waits for a job.
const IDLE: u32 = 1;
/// The twin runs a job, its creator waits.
const BUSY: u32 = 2;

const GUARD: usize = 4096;
const STACK: usize = 64 << 10;

/// Where a twin and its creator meet; at the top of the twin's stack.
#[repr(C, align(64))]
struct Meeting {
    turn: AtomicU32,
    job: Cell<Option<Job>>,
}

#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*mut c_void),
    frame: *mut c_void,
}

/// The stack of a twin, with a guard page at its end.
#[derive(Debug)]
pub(crate) struct Stack {
    base: NonNull<c_void>,
}

impl Stack {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches no existing
        // memory, and the guard lies within it.
        unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                GUARD + STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
            let stack = Self { base };
            if libc::mprotect(base.as_ptr(), GUARD, libc::PROT_NONE) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }

    /// Bytes of stack below the meeting point.
    const USABLE: usize = STACK - size_of::<Meeting>();

    fn lowest(&self) -> *mut c_void {
        // SAFETY: within the mapping.
        unsafe { self.base.as_ptr().byte_add(GUARD) }
    }

    fn meeting(&self) -> *mut Meeting {
        // SAFETY: within the mapping, and aligned as its end is page-aligned and the size of
        // Meeting is a multiple of its alignment.
        unsafe { self.lowest().byte_add(Self::USABLE).cast() }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; whoever ran on it is gone (see Twin).
        unsafe { libc::munmap(self.base.as_ptr(), GUARD + STACK) };
    }
}

/// A second task in this process's memory and descriptor table.
#[derive(Debug)]
pub(crate) struct Twin {
    /// None once it is handed out by [`Twin::into_program`].
    pidfd: Option<OwnedFd>,
    stack: Option<Stack>,
}

impl Twin {
    /// Makes a twin in new namespaces (`CLONE_NEW*`), and in `cgroup` if one is given.
    pub(crate) fn spawn(
        namespaces: i32,
        cgroup: Option<BorrowedFd<'_>>,
        stack: Stack,
    ) -> io::Result<Self> {
        /// linux/sched.h; libc's constant does not fit the type of its other flags.
        const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        let meeting = stack.meeting();
        // SAFETY: meeting() is aligned, within the mapping and used by nobody else yet.
        unsafe {
            meeting.write(Meeting {
                turn: AtomicU32::new(IDLE),
                job: Cell::new(None),
            });
        }
        let mut pidfd: i32 = -1;
        // SAFETY: all-zero bytes are a valid value of this plain C struct.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD) as u64
            | libc::CLONE_CHILD_CLEARTID as u64
            | CLONE_CLEAR_SIGHAND
            | namespaces as u64;
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        args.exit_signal = libc::SIGCHLD as u64;
        args.pidfd = &raw mut pidfd as u64;
        // SAFETY: within the mapping; a pointer to one field.
        args.child_tid = unsafe { &raw const (*meeting).turn } as u64;
        args.stack = stack.lowest() as u64;
        args.stack_size = Stack::USABLE as u64;
        let result: i64;
        // SAFETY: args is a valid clone_args whose stack is memory of the new task's own, 16-byte
        // aligned at its end. The creator returns from the system call with all registers but rax,
        // rcx and r11 as they were. The new task starts on the empty stack, calls `live`, which
        // never returns, and touches no stack frame of the creator's. It shares the creator's
        // thread-local storage, which is sound because only one of the two runs at any time: `run`
        // waits until the twin is idle or gone, and an idle twin only waits.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r13",
                "call r12",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 => result,
                in("rdi") &raw const args,
                in("rsi") size_of_val(&args),
                in("r12") live as unsafe extern "C" fn(*const Meeting) -> !,
                in("r13") meeting,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        if result < 0 {
            let errno = i32::try_from(-result).unwrap_or(libc::EINVAL);
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self {
            pidfd: Some(pidfd),
            stack: Some(stack),
        })
    }

    /// Runs a job in the twin and waits for it. None if the twin is gone: it executed a program
    /// during the job, or died.
    pub(crate) fn run<R>(&mut self, job: impl FnOnce() -> R) -> Option<R> {
        struct Frame<F, R> {
            job: Option<F>,
            result: Option<R>,
        }
        unsafe fn call<F: FnOnce() -> R, R>(frame: *mut c_void) {
            // SAFETY: `run` passes its own frame, which lives until the turn comes back to it.
            let frame = unsafe { &mut *frame.cast::<Frame<F, R>>() };
            frame.result = frame.job.take().map(|job| job());
        }
        fn frame_of<F: FnOnce() -> R, R>(frame: &mut Frame<F, R>) -> Job {
            Job {
                call: call::<F, R>,
                frame: (frame as *mut Frame<F, R>).cast(),
            }
        }

        let stack = self.stack.as_ref()?;
        // SAFETY: the stack and with it the meeting point live as long as self. The twin touches
        // the job only when it has the turn.
        let meeting = unsafe { &*stack.meeting() };
        let mut frame = Frame {
            job: Some(job),
            result: None,
        };
        if meeting.turn.load(Ordering::Acquire) == IDLE {
            meeting.job.set(Some(frame_of(&mut frame)));
            // Not a plain store: the twin may die at any time, and then GONE must stay.
            let handed_over =
                meeting
                    .turn
                    .compare_exchange(IDLE, BUSY, Ordering::AcqRel, Ordering::Acquire);
            if handed_over.is_ok() {
                wake(&meeting.turn);
                while meeting.turn.load(Ordering::Acquire) == BUSY {
                    wait_while(&meeting.turn, BUSY);
                }
            }
        }
        frame.result
    }

    /// The twin, as a process.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// The process that the twin has become, by its descriptor, and the stack for the next twin.
    pub(crate) fn into_program(mut self) -> Option<(OwnedFd, Stack)> {
        let stack = self.stack.as_ref()?;
        // SAFETY: as in `run`.
        if unsafe { &*stack.meeting() }.turn.load(Ordering::Acquire) != GONE {
            return None;
        }
        self.pidfd.take().zip(self.stack.take())
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // It fails only if the task is dead already.
            let _ = super::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            // The stack may be unmapped only when nobody runs on it any more.
            while let Err(rustix::io::Errno::INTR) =
                rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
            {
            }
        }
    }
}

/// What a twin does all its life.
unsafe extern "C" fn live(meeting: *const Meeting) -> ! {
    // SAFETY: the creator keeps the meeting point until this task is gone.
    let meeting = unsafe { &*meeting };
    loop {
        while meeting.turn.load(Ordering::Acquire) == IDLE {
            wait_while(&meeting.turn, IDLE);
        }
        if let Some(job) = meeting.job.take() {
            // SAFETY: the creator made call and frame for each other, and waits.
            unsafe { (job.call)(job.frame) };
        }
        meeting.turn.store(IDLE, Ordering::Release);
        wake(&meeting.turn);
    }
}

// Neither futex operation is a private one: the kernel's own wake-up for CLONE_CHILD_CLEARTID is
// not, and all must meet.
fn wait_while(turn: &AtomicU32, value: u32) {
    let _ = futex::wait(turn, futex::Flags::empty(), value, None);
}

fn wake(turn: &AtomicU32) {
    let _ = futex::wake(turn, futex::Flags::empty(), 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn twin() -> Twin {
        Twin::spawn(0, None, Stack::new().unwrap()).unwrap()
    }

    #[test]
    fn jobs_run_in_another_process_on_the_same_memory() {
        let mut twin = twin();
        let mut written = 0;
        let pid = twin.run(|| {
            written = 42;
            // SAFETY: no memory is involved.
            unsafe { libc::getpid() }
        });
        assert_eq!(written, 42);
        assert!(pid.is_some_and(|pid| pid.cast_unsigned() != std::process::id()));
        assert_eq!(twin.run(|| String::from("again")), Some("again".into()));
        assert!(twin.into_program().is_none());
    }

    #[test]
    fn a_program_takes_the_twin_away() {
        let mut twin = twin();
        let path = CString::new("/bin/sh").unwrap();
        let args = ["sh", "-c", "exit 7"].map(|arg| CString::new(arg).unwrap());
        let args = crate::sys::StringArray::new(args.into());
        let env = crate::sys::StringArray::new(Vec::new());
        let failed = twin.run(|| crate::sys::exec(&path, &args, &env));
        assert!(failed.is_none());
        assert!(twin.run(|| ()).is_none());
        let (pidfd, _stack) = twin.into_program().unwrap();
        let status =
            rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(status.unwrap().exit_status(), Some(7));
    }

    #[test]
    fn a_failed_program_leaves_the_twin_alive() {
        let mut twin = twin();
        let path = CString::new("/does/not/exist").unwrap();
        let none = crate::sys::StringArray::new(Vec::new());
        let error = twin.run(|| crate::sys::exec(&path, &none, &none)).unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(twin.run(|| 1), Some(1));
    }

    #[test]
    fn a_twin_that_dies_is_noticed() {
        let mut twin = twin();
        // SAFETY: no memory is involved.
        let dead = twin.run(|| unsafe { libc::syscall(libc::SYS_exit, 3) });
        assert!(dead.is_none());
        assert!(twin.run(|| ()).is_none());
    }

    #[test]
    fn a_pid_namespace_makes_the_twin_its_first_process() {
        let mut twin = Twin::spawn(libc::CLONE_NEWPID, None, Stack::new().unwrap()).unwrap();
        // SAFETY: no memory is involved.
        assert_eq!(twin.run(|| unsafe { libc::getpid() }), Some(1));
    }
}
