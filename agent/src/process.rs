//! A process in a container: from what the host asked for to a running program.
//!
//! All that can be prepared is prepared in the agent; what is left for the [`Twin`] that becomes
//! the process is a row of system calls that allocate nothing.
//!
//! Boundary: one process. Which processes there are is known to `agent`.

mod ends;
mod rights;
mod score;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use agent_protocol::{
    Capabilities, ContainerId, Failure, Hook, ProcessId, Stdio, Stream, Treatment,
};
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{self, MoveMountFlags, OpenTreeFlags};
use rustix::process::{self, Gid, Uid};
use rustix::thread::{self, ThreadNameSpaceType};

use crate::container::{self, Container, Devices};
use crate::joined::born_beside;
use crate::paths;
use crate::sys::{self, Stack, StringArray, Twin};
use crate::user::{self, Database, Identity, UserError};

pub(crate) use ends::{Ends, set_size};
use rights::Rights;
use score::KeptScore;

/// Failure to start a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    #[error("No program to execute")]
    NoProgram,
    #[error(transparent)]
    User(#[from] UserError),
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    #[error("exec: {0:?}: no such file or directory")]
    NotFound(String),
    #[error("exec: {0:?} exists, but its interpreter or loader does not")]
    NoInterpreter(String),
    #[error("exec: {program:?}")]
    NotExecutable { program: String, source: io::Error },
    #[error("Failed to {action} for the process")]
    Prepare {
        action: &'static str,
        source: io::Error,
    },
    #[error("Failed to change to the working directory {cwd:?}")]
    Cwd { cwd: String, source: io::Error },
    #[error("The process is to have capabilities that its container does not have")]
    Capabilities,
    #[error("The container has not been started")]
    NotStarted,
    #[error("The container has ended")]
    ContainerGone,
}

impl StartError {
    /// What the host shall make of it.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::NotInPath(_) | Self::NotFound(_) | Self::NoInterpreter(_) => Failure::NotFound,
            Self::NotExecutable { .. } => Failure::NotExecutable,
            Self::User(UserError::Read { .. }) | Self::Prepare { .. } => Failure::System,
            Self::Cwd { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Failure::NotExecutable
            }
            Self::ZeroByte(_)
            | Self::NoProgram
            | Self::User(_)
            | Self::Cwd { .. }
            | Self::Capabilities
            | Self::NotStarted
            | Self::ContainerGone => Failure::Invalid,
        }
    }
}

pub(crate) fn preparing<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Prepare {
        action,
        source: source.into(),
    }
}

type Result<T, E = StartError> = std::result::Result<T, E>;

/// Docker's `PATH`, for an environment without one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest passwd or group that is read, in bytes.
const MAX_DATABASE: usize = 4 << 20;

/// The streams a process must be connected with before it starts.
pub(crate) const fn streams(stdio: Stdio) -> &'static [Stream] {
    match stdio {
        Stdio::Terminal(_) => &[Stream::Terminal],
        Stdio::Pipes { stdin: true } => &[Stream::Stdin, Stream::Stdout, Stream::Stderr],
        Stdio::Pipes { stdin: false } => &[Stream::Stdout, Stream::Stderr],
    }
}

/// Everything a twin needs to become the process.
#[derive(Debug)]
pub(crate) struct Launch {
    args: StringArray,
    env: StringArray,
    /// Where the program may be, in the order of `PATH`.
    candidates: Vec<CString>,
    looked_up: bool,
    cwd: CString,
    /// `cwd` and the directories on the way to it, if they shall be made.
    cwd_parents: Vec<CString>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    rlimits: Vec<agent_protocol::Rlimit>,
    rights: Rights,
    umask: Option<Mode>,
    oom_score_adj: Option<String>,
    treatment: Treatment,
    time_offsets: Option<String>,
}

struct ContainerDatabase<'a>(BorrowedFd<'a>);

impl Database for ContainerDatabase<'_> {
    fn read(&mut self, path: &'static str) -> io::Result<Vec<u8>> {
        Ok(paths::read_file(self.0, path, MAX_DATABASE)?.unwrap_or_default())
    }
}

impl Launch {
    /// Prepares a process in the container whose root directory is `root`.
    pub(crate) fn new(spec: &agent_protocol::Process, root: BorrowedFd<'_>) -> Result<Self> {
        let program = spec.args.first().ok_or(StartError::NoProgram)?;
        if program.is_empty() {
            return Err(StartError::NotInPath(String::new()));
        }
        let mut env = spec.env.clone();
        let has = |env: &[String], name: &str| {
            env.iter().any(|entry| {
                entry
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('='))
            })
        };
        let want_home = !has(&env, "HOME");
        let identity = user::resolve(
            &spec.user,
            &spec.additional_groups,
            want_home,
            &mut ContainerDatabase(root),
        )?;
        let Identity {
            uid,
            gid,
            groups,
            home,
        } = identity;
        if let Some(home) = home.filter(|_| want_home) {
            env.push(format!("HOME={home}"));
        }
        if !has(&env, "PATH") {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        if matches!(spec.stdio, Stdio::Terminal(_)) && !has(&env, "TERM") {
            env.push("TERM=xterm".to_owned());
        }
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let candidates = candidates(program, path.unwrap_or(DEFAULT_PATH));
        let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
        let cwd_parents = if spec.create_cwd {
            c_strings("The working directory", prefixes(cwd))?
        } else {
            Vec::new()
        };
        Ok(Self {
            args: StringArray::new(c_strings("An argument", spec.args.clone())?),
            candidates: c_strings("PATH", candidates)?,
            looked_up: !program.contains('/'),
            cwd: CString::new(cwd).map_err(|_| StartError::ZeroByte("The working directory"))?,
            cwd_parents,
            env: StringArray::new(c_strings("The environment", env)?),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: groups.into_iter().map(Gid::from_raw).collect(),
            rlimits: spec.rlimits.clone(),
            rights: Rights::new(spec),
            umask: spec.umask.map(|umask| Mode::from_raw_mode(umask & 0o777)),
            oom_score_adj: spec.oom_score_adj.map(|score| score.to_string()),
            treatment: spec.treatment.clone(),
            time_offsets: spec.treatment.time_offsets.map(|offsets| {
                let ((m, mn), (b, bn)) = (offsets.monotonic, offsets.boottime);
                format!("monotonic {m} {mn}\nboottime {b} {bn}\n")
            }),
        })
    }

    /// Prepares a hook, which is the engine's and runs as root with every right that there is.
    pub(crate) fn hook(hook: &Hook, root: BorrowedFd<'_>) -> Result<Self> {
        let mut args = hook.args.clone();
        if args.is_empty() {
            args.push(hook.path.clone());
        }
        let spec = agent_protocol::Process {
            id: ProcessId(0),
            container: ContainerId(0),
            args,
            env: hook.env.clone(),
            cwd: "/".into(),
            create_cwd: false,
            user: "0:0".into(),
            additional_groups: Vec::new(),
            rlimits: Vec::new(),
            capabilities: Capabilities::of(u64::MAX),
            no_new_privileges: false,
            seccomp: Vec::new(),
            seccomp_flags: 0,
            umask: None,
            oom_score_adj: None,
            treatment: Treatment::default(),
            hooks: Vec::new(),
            stdio: Stdio::Pipes { stdin: true },
        };
        Ok(Self {
            candidates: c_strings("A hook's path", [hook.path.clone()])?,
            looked_up: false,
            ..Self::new(&spec, root)?
        })
    }

    /// What must be kept of the agent while a twin becomes the process.
    fn keep_score(&self) -> Result<Option<KeptScore>> {
        let changes = self.oom_score_adj.is_some();
        changes
            .then(KeptScore::read)
            .transpose()
            .map_err(preparing("keep the agent's OOM score"))
    }

    /// The user it will be.
    pub(crate) fn uid(&self) -> Uid {
        self.uid
    }

    /// Becomes the process; runs in the twin. Returns only on failure.
    fn execute(
        &self,
        stdio: [BorrowedFd<'_>; 3],
        terminal: bool,
        bounding: u64,
        proc: BorrowedFd<'_>,
    ) -> Refused {
        let settled = self
            .write_to_proc(proc)
            .and_then(|()| self.settle(stdio, terminal, bounding));
        match settled {
            Err(refused) => refused,
            Ok(()) => self.execute_candidates(),
        }
    }

    /// What is said to the kernel by files.
    fn write_to_proc(&self, proc: BorrowedFd<'_>) -> Result<(), Refused> {
        if let Some(score) = &self.oom_score_adj {
            write_own(proc, c"self/oom_score_adj", score).map_err(refused("set the OOM score"))?;
        }
        if let Some(offsets) = &self.time_offsets {
            sys::unshare_time().map_err(refused("make a time namespace"))?;
            write_own(proc, c"self/timens_offsets", offsets)
                .map_err(refused("set the offsets of the clocks"))?;
        }
        Ok(())
    }

    fn treat(&self) -> Result<(), Refused> {
        let Treatment {
            scheduler,
            io_priority,
            cpus,
            personality,
            time_offsets: _,
        } = &self.treatment;
        if !cpus.is_empty() {
            sys::set_affinity(cpus).map_err(refused("set the CPUs"))?;
        }
        if let Some(scheduler) = scheduler {
            sys::set_scheduler_attributes(scheduler).map_err(refused("set the scheduler"))?;
        }
        if let Some(priority) = *io_priority {
            sys::set_io_priority(priority).map_err(refused("set the I/O priority"))?;
        }
        if let Some(persona) = *personality {
            sys::set_personality(persona).map_err(refused("set the execution domain"))?;
        }
        Ok(())
    }

    fn settle(
        &self,
        stdio: [BorrowedFd<'_>; 3],
        terminal: bool,
        bounding: u64,
    ) -> Result<(), Refused> {
        sys::unshare_files().map_err(refused("unshare descriptors"))?;
        for (to, from) in (0..).zip(stdio) {
            sys::replace_descriptor(from, to).map_err(refused("connect standard streams"))?;
        }
        // From here on no path like /proc/self/fd/7 leads to anything of the agent's.
        sys::close_from(3).map_err(refused("close descriptors"))?;
        if terminal {
            process::ioctl_tiocsctty(rustix::stdio::stdin())
                .map_err(refused("take the controlling terminal"))?;
        }
        for limit in &self.rlimits {
            sys::set_rlimit(limit.resource, limit.soft, limit.hard)
                .map_err(refused("set a resource limit"))?;
        }
        self.treat()?;
        // Root may enter what the user may not, and the other way round on some file systems.
        let entered = self.enter_cwd();
        let is_root = self.uid == Uid::ROOT;
        self.rights.limit(bounding, is_root)?;
        if self.groups != [Gid::ROOT] {
            thread::set_thread_groups(&self.groups).map_err(refused("set the groups"))?;
        }
        if self.gid != Gid::ROOT {
            thread::set_thread_res_gid(self.gid, self.gid, self.gid)
                .map_err(refused("set the group"))?;
        }
        if self.uid != Uid::ROOT {
            thread::set_thread_res_uid(self.uid, self.uid, self.uid)
                .map_err(refused("set the user"))?;
        }
        match entered {
            Ok(()) => {}
            Err(Errno::ACCESS) => process::chdir(&self.cwd).map_err(Refused::Cwd)?,
            Err(error) => return Err(Refused::Cwd(error)),
        }
        if let Some(umask) = self.umask {
            process::umask(umask);
        }
        self.rights.take()
    }

    fn enter_cwd(&self) -> rustix::io::Result<()> {
        if self.cwd.as_bytes() == b"/" {
            // Where every twin is.
            return Ok(());
        }
        let entered = process::chdir(&self.cwd);
        if entered != Err(Errno::NOENT) || self.cwd_parents.is_empty() {
            return entered;
        }
        for parent in &self.cwd_parents {
            match fs::mkdir(parent, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        process::chdir(&self.cwd)
    }

    /// As execvp(3) does it: what is not there or not permitted is passed over.
    fn execute_candidates(&self) -> Refused {
        let mut denied = None;
        for candidate in &self.candidates {
            let error = sys::exec(candidate, &self.args, &self.env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => denied = Some(error),
                _ => return Refused::Exec(error),
            }
        }
        if let Some(error) = denied {
            return Refused::Exec(error);
        }
        let exists = |path: &CString| fs::access(path, fs::Access::EXISTS).is_ok();
        if self.candidates.iter().any(exists) {
            Refused::NoInterpreter
        } else {
            Refused::NotFound
        }
    }

    fn error(&self, refused: Refused) -> StartError {
        let text = |string: Option<&CString>| {
            string.map_or_else(String::new, |string| string.to_string_lossy().into_owned())
        };
        let program = text(self.args.strings().first());
        match refused {
            Refused::Prepare(action, source) => StartError::Prepare { action, source },
            Refused::Cwd(error) => StartError::Cwd {
                cwd: text(Some(&self.cwd)),
                source: error.into(),
            },
            Refused::Exec(source) => StartError::NotExecutable { program, source },
            Refused::NoInterpreter => StartError::NoInterpreter(program),
            Refused::NotFound if self.looked_up => StartError::NotInPath(program),
            Refused::NotFound => StartError::NotFound(program),
        }
    }
}

/// Opens a file of the calling process in `/proc`, and nothing that was put over it.
fn open_own(proc: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(proc, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn write_own(proc: BorrowedFd<'_>, name: &CStr, text: &str) -> rustix::io::Result<()> {
    let file = open_own(proc, name, OFlags::WRONLY)?;
    rustix::io::write(file, text.as_bytes()).map(drop)
}

/// Why a twin did not become the process. Holds nothing on the heap.
#[derive(Debug)]
enum Refused {
    Prepare(&'static str, io::Error),
    Cwd(Errno),
    Exec(io::Error),
    NoInterpreter,
    NotFound,
}

fn refused<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Refused {
    move |source| Refused::Prepare(action, source.into())
}

fn c_strings(
    what: &'static str,
    strings: impl IntoIterator<Item = impl Into<Vec<u8>>>,
) -> Result<Vec<CString>> {
    strings
        .into_iter()
        .map(|string| CString::new(string).map_err(|_| StartError::ZeroByte(what)))
        .collect()
}

/// Where `program` may be: what has a slash is a path, all else is looked up in `path`.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| match dir {
            // An empty entry is the working directory.
            "" => format!("./{program}"),
            dir => format!("{}/{program}", dir.trim_end_matches('/')),
        })
        .collect()
}

/// `/a/b` of `/a`, `/a/b`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    path.match_indices('/')
        .map(|(index, _)| index)
        .chain([path.len()])
        .map(move |end| &path[..end])
        .filter(|prefix| !prefix.is_empty())
}

/// Makes the container's waiting first process execute its program.
pub(crate) fn start_first(
    mut twin: Twin,
    launch: &Launch,
    ends: &Ends,
    devices: &Devices,
    bounding: u64,
) -> Result<(OwnedFd, Stack)> {
    let stdio = ends.for_process(devices);
    let terminal = ends.terminal();
    let proc = devices.proc.as_fd();
    let _kept = launch.keep_score()?;
    let refused = twin.run(|| {
        if let Some(terminal) = terminal
            && let Err(error) = mount_console(terminal)
        {
            return Refused::Prepare("mount the console", error.into());
        }
        launch.execute(stdio, terminal.is_some(), bounding, proc)
    });
    finish(twin, refused, launch)
}

/// Mounts a terminal on `/dev/console`. What is mounted on `/dev` may be hostile, so neither end is
/// reached by a link: it would let a container have something else mounted, or elsewhere.
fn mount_console(terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let find = |dir: BorrowedFd<'_>, name: &CStr, resolve| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        fs::openat2(dir, name, flags, Mode::empty(), resolve)
    };
    let dev = find(fs::CWD, c"/dev", ResolveFlags::NO_MAGICLINKS)?;
    let console = find(dev.as_fd(), c"console", ResolveFlags::NO_SYMLINKS)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = mount::open_tree(terminal, c"", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    mount::move_mount(&tree, c"", &console, c"", flags)
}

/// Starts a further process in a container, next to its first, which is `init`; `agent` is the agent
/// itself.
pub(crate) fn start_further(
    init: BorrowedFd<'_>,
    agent: BorrowedFd<'_>,
    container: &Container,
    launch: &Launch,
    ends: &Ends,
    stack: Option<Stack>,
) -> Result<(OwnedFd, Stack)> {
    let stdio = ends.for_process(&container.devices);
    let terminal = ends.terminal().is_some();
    let bounding = launch.rights.bounding();
    let _kept = launch.keep_score()?;
    let stack = stack
        .map_or_else(Stack::new, Ok)
        .map_err(preparing("make a stack"))?;
    let spawn = || Twin::spawn(0, Some(container.cgroup.dir()), stack);
    let twin = born_beside(init, agent, spawn).map_err(|error| match error {
        Errno::SRCH => StartError::ContainerGone,
        error => preparing("enter the container's pid namespace")(error),
    })?;
    let mut twin = twin.map_err(preparing("make a process"))?;
    let refused = twin.run(|| {
        let others = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        let entered = thread::move_into_thread_name_spaces(init, others)
            .map_err(refused("enter the container's namespaces"))
            .and_then(|()| container::settle(bounding).map_err(refused("settle")));
        let proc = container.devices.proc.as_fd();
        match entered {
            Ok(()) => launch.execute(stdio, terminal, bounding, proc),
            Err(refused) => refused,
        }
    });
    finish(twin, refused, launch)
}

fn finish(twin: Twin, refused: Option<Refused>, launch: &Launch) -> Result<(OwnedFd, Stack)> {
    match refused {
        Some(refused) => Err(launch.error(refused)),
        None => twin.into_program().ok_or(StartError::ContainerGone),
    }
}
