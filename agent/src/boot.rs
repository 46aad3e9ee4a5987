//! From the kernel's first user process to an agent that is ready.
//!
//! Everything that can be done before a host waits for it is done here: a template is saved after
//! the agent has said that it is ready, and what was done by then is free for every container.
//!
//! Boundary: knows the initramfs and the VM. Only what the agent itself needs is mounted: neither
//! `/proc` nor `/sys`, as containers have their own.

use std::io::{self, Write};
use std::path::Path;

use agent_protocol::{AGENT_PORT, Hello, READY_PORT, VERSION};
use rustix::fs::{self, Mode, OFlags};
use rustix::mount::{self, MountFlags};
use rustix::process::{self, DumpableBehavior, Gid};
use rustix::{system, thread};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::agent::{Agent, AgentError, Config, explain, monotonic_us};
use crate::container::mount_virtiofs;
use crate::growth::{GuestSize, grow_guest};
use crate::{cgroup, log, sys};

/// Soft and hard limit of open files for processes without limits of their own, as systemd and
/// docker have them.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Directories of the initramfs.
const STAGING: &str = "/run";
const DEV: &str = "/dev";
const CGROUP: &str = "/cgroup";
const NEW_ROOT: &str = "/new";

/// The guest cannot be used.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("Failed to {action}")]
    Step {
        action: &'static str,
        source: io::Error,
    },
    #[error("Failed to encode the greeting")]
    Encode(#[from] agent_protocol::EncodeError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> BootError {
    move |source| BootError::Step {
        action,
        source: source.into(),
    }
}

/// Runs as PID 1 until the host asks for the end, then powers the VM off.
pub fn run() {
    let started_us = monotonic_us();
    match boot(started_us) {
        Ok(()) => {}
        Err(error) => log::critical(format_args!("{}", explain(&error))),
    }
    if let Err(error) = system::reboot(system::RebootCommand::PowerOff) {
        log::critical(format_args!("Failed to power off: {error}"));
    }
}

fn boot(started_us: u64) -> Result<(), BootError> {
    sys::tune_allocator();
    sys::restore_sigpipe();
    let (soft, hard) = OPEN_FILES;
    sys::set_rlimit(libc::RLIMIT_NOFILE, soft, hard).map_err(step("limit open files"))?;
    // Root's own group is among its groups, as docker has it.
    thread::set_thread_groups(&[Gid::ROOT]).map_err(step("set the groups"))?;
    // Processes of a container that see one which has not executed its program yet must not be
    // able to look into it: its memory is the agent's.
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("protect the agent's memory"))?;
    // A process that writes is not interrupted for each line that the agent could carry on: the
    // agent's turn comes when the process waits, or with the next tick. Containers undo this.
    sys::set_scheduler(libc::SCHED_BATCH).map_err(step("set the scheduling policy"))?;
    leave_rootfs().map_err(step("move the root directory"))?;
    mount::mount("devtmpfs", DEV, "devtmpfs", MountFlags::empty(), None)
        .map_err(step("mount the devices"))?;
    mount::mount("cgroup2", CGROUP, "cgroup2", MountFlags::empty(), None)
        .map_err(step("mount the cgroups"))?;
    sys::loopback_up().map_err(step("bring the loopback interface up"))?;
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)
        .map_err(step("listen for the host"))?;
    let open = |path: &str, flags| fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let cgroup = open(CGROUP, OFlags::DIRECTORY).map_err(step("open the cgroups"))?;
    cgroup::count_processes(&cgroup).map_err(step("count processes"))?;
    let mut agent = Agent::new(Config {
        listener: listener.into(),
        staging: Path::new(STAGING).to_owned(),
        cgroup,
        urandom: open("/dev/urandom", OFlags::RDWR).map_err(step("open /dev/urandom"))?,
        vsock: Some(open("/dev/vsock", OFlags::RDONLY).map_err(step("open /dev/vsock"))?),
        mount_share: mount_virtiofs,
        grow: grow_guest,
        hello: hello(started_us).map_err(step("count the processors"))?,
    })?;
    sys::warm_up();
    say_ready(&agent)?;
    agent.serve()?;
    Ok(())
}

/// Makes the root directory a mount that containers can leave by pivot_root(2), which the kernel's
/// own first mount is not.
fn leave_rootfs() -> rustix::io::Result<()> {
    mount::mount_bind("/", NEW_ROOT)?;
    // Only the agent's own program is reached by the first mount from here on, as /proc/self/exe of
    // a process that is about to become a container's: no path leads to running or writing it.
    let sealed = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    mount::mount_remount(c"/", MountFlags::BIND | sealed, c"")?;
    process::chdir(NEW_ROOT)?;
    mount::mount_move(".", "/")?;
    process::chroot(".")
}

fn hello(started_us: u64) -> io::Result<Hello> {
    let size = GuestSize::of_guest()?;
    Ok(Hello {
        version: VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: system::uname().release().to_string_lossy().into_owned(),
        memory_total: size.memory_total,
        cpus: size.cpus,
        started_us,
        ready_us: 0,
    })
}

fn say_ready(agent: &Agent) -> Result<(), BootError> {
    let mut host = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, READY_PORT)
        .map_err(step("connect to the host"))?;
    // Not before: the host takes the time that it says for the time of its arrival.
    let frame = agent_protocol::encode(&agent.hello())?;
    host.write_all(&frame)
        .map_err(step("tell the host that the agent is ready"))
}
