//! An agent on this host, and the host's side of the protocol for tests.
//!
//! The agent runs in a thread; its containers are real, made of directories of this host.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use agent::{Agent, Config};
use agent_protocol::*;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, mount_bind_recursive, move_mount, open_tree};

/// Longer than anything takes, shorter than a person's patience.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const CONTAINER: ContainerId = ContainerId(1);

/// An agent, and a directory for its containers.
pub struct Guest {
    pub dir: tempfile::TempDir,
    cgroup: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// Where this host has a cgroup2 file system.
fn cgroups() -> PathBuf {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists())
        .expect("a host with a cgroup2 file system")
}

/// Trees that are attached nowhere, by the tag they were given.
static TREES: Mutex<BTreeMap<String, OwnedFd>> = Mutex::new(BTreeMap::new());

/// A share that can be mounted once, from any mount namespace and root: its tag.
pub fn tree(path: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tag = format!("tree{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags | OpenTreeFlags::AT_RECURSIVE).unwrap();
    TREES.lock().unwrap().insert(tag.clone(), tree);
    tag
}

fn mount_directory(tag: &str, target: &Path) -> std::io::Result<()> {
    let tree = TREES.lock().unwrap().remove(tag);
    match tree {
        Some(tree) => {
            let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree, "", CWD, target, whole)?;
        }
        None => mount_bind_recursive(tag, target)?,
    }
    Ok(())
}

impl Guest {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the agent's tests mount file systems: run them as root"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroups().join(format!("hrun-agent-{}-{count}", std::process::id()));
        std::fs::create_dir(&cgroup).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["staging", "root"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = dir.path().join("root");
        for name in ["usr", "etc", "tmp"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let staging = dir.path().join("staging");
        let open = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let config = Config {
            listener: listener.into(),
            staging,
            cgroup: open(&cgroup),
            urandom: open(Path::new("/dev/urandom")),
            vsock: None,
            mount_share: mount_directory,
            grow,
            hello: Hello {
                version: VERSION,
                agent: "test".into(),
                kernel: "test".into(),
                memory_total: 1,
                cpus: 1,
                started_us: 0,
                ready_us: 0,
            },
        };
        let thread = std::thread::spawn(move || {
            let mut agent = Agent::new(config).unwrap();
            agent.serve().unwrap();
        });
        Self {
            dir,
            cgroup,
            thread: Some(thread),
        }
    }

    /// A path in the container's root, from outside.
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub fn control(&self) -> Control {
        let mut socket = self.connect();
        let open = Open::Control { version: VERSION };
        socket.write_all(&encode(&open).unwrap()).unwrap();
        let mut control = Control {
            socket,
            decoder: Decoder::new(),
            requests: 0,
            events: VecDeque::new(),
        };
        assert_eq!(control.next::<Hello>().version, VERSION);
        control
    }

    pub fn stream(&self, process: u32, stream: Stream) -> UnixStream {
        let mut socket = self.connect();
        let open = Open::Stream {
            process: ProcessId(process),
            stream,
        };
        socket.write_all(&encode(&open).unwrap()).unwrap();
        socket
    }

    /// The usual container: this host's programs in a root of its own.
    pub fn container(&self) -> Container {
        Container {
            id: CONTAINER,
            root: share(&self.root(""), "/"),
            hostname: "testbox".into(),
            domainname: String::new(),
            capabilities: Capabilities::DEFAULT.bounding,
            sysctls: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            mounts: vec![share(Path::new("/usr"), "/usr").read_only()],
            files: Vec::new(),
            devices: Vec::new(),
            cgroup: Vec::new(),
            read_only: false,
            propagation: None,
            joined: Vec::new(),
        }
    }

    /// Runs a shell command as the first process of the usual container.
    pub fn sh(&self, command: &str) -> Output {
        let mut control = self.control();
        control.ask(Action::Create(Box::new(self.container())));
        self.run(&mut control, shell(1, command))
    }

    /// Runs a process without input to its end.
    pub fn run(&self, control: &mut Control, process: Process) -> Output {
        let id = process.id;
        let mut stdout = self.stream(id.0, Stream::Stdout);
        let mut stderr = self.stream(id.0, Stream::Stderr);
        control.ask(Action::Start(Box::new(process)));
        let mut output = Output {
            stdout: text(&mut stdout),
            stderr: text(&mut stderr),
            status: ExitStatus::Exited(0),
        };
        output.status = control.exit(id.0);
        output
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if std::thread::panicking() && thread.is_finished() {
            return;
        }
        let mut control = self.control();
        control.ask(Action::Shutdown);
        drop(control);
        thread.join().expect("the agent ends in peace");
        std::fs::remove_dir(&self.cgroup).expect("no cgroup is left behind");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "a mount is left behind");
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub status: ExitStatus,
}

pub fn text(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

pub fn share(source: &Path, target: &str) -> Mount {
    Mount::new(Source::share(source.to_str().unwrap(), ""), target)
}

pub fn shell(id: u32, command: &str) -> Process {
    Process {
        id: ProcessId(id),
        container: CONTAINER,
        args: ["sh", "-c", command].map(String::from).into(),
        env: Vec::new(),
        cwd: "/".into(),
        create_cwd: false,
        user: String::new(),
        additional_groups: Vec::new(),
        rlimits: Vec::new(),
        capabilities: Capabilities::DEFAULT,
        no_new_privileges: false,
        seccomp: Vec::new(),
        seccomp_flags: 0,
        umask: None,
        oom_score_adj: None,
        treatment: Treatment::default(),
        hooks: Vec::new(),
        stdio: Stdio::Pipes { stdin: false },
    }
}

/// A control connection.
pub struct Control {
    pub socket: UnixStream,
    decoder: Decoder,
    requests: u32,
    events: VecDeque<Event>,
}

impl Control {
    pub fn next<T: serde::de::DeserializeOwned>(&mut self) -> T {
        loop {
            if let Some(message) = self.decoder.next().unwrap() {
                return message;
            }
            let mut buffer = [0; 4096];
            let count = self.socket.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the agent closed the control connection");
            self.decoder.feed(&buffer[..count]);
        }
    }

    pub fn send(&mut self, action: Action) -> u32 {
        self.requests += 1;
        let id = self.requests;
        let request = Request { id, action };
        self.socket.write_all(&encode(&request).unwrap()).unwrap();
        id
    }

    /// Sends a request and waits for its answer.
    pub fn try_ask(&mut self, action: Action) -> Result<(), (Failure, String)> {
        let id = self.send(action);
        self.answer(id)
    }

    pub fn ask(&mut self, action: Action) {
        self.try_ask(action).unwrap();
    }

    pub fn answer(&mut self, id: u32) -> Result<(), (Failure, String)> {
        loop {
            match self.next() {
                Event::Done { request } if request == id => return Ok(()),
                Event::Failed {
                    request,
                    kind,
                    message,
                } if request == id => return Err((kind, message)),
                event @ Event::Exited { .. } => self.events.push_back(event),
                event => panic!("{event:?} while request {id} is open"),
            }
        }
    }

    /// Waits for the end of a process, which must be the next that ends.
    pub fn exit(&mut self, id: u32) -> ExitStatus {
        let (process, status) = self.any_exit();
        assert_eq!(process, id);
        status
    }

    /// The next process that ends.
    pub fn any_exit(&mut self) -> (u32, ExitStatus) {
        let event = match self.events.pop_front() {
            Some(event) => event,
            None => self.next(),
        };
        match event {
            Event::Exited { process, status } => (process.0, status),
            event => panic!("{event:?} while waiting for an exit"),
        }
    }

    pub fn signal(&mut self, process: u32, signal: i32, all: bool) {
        self.ask(Action::Signal {
            process: ProcessId(process),
            signal,
            all,
        });
    }

    /// The process is not told to end; the connection is.
    pub fn close(self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }
}

/// What a guest would do that has as much as is asked for, up to four CPUs.
fn grow(growth: &Growth) -> std::io::Result<agent::GuestSize> {
    if growth.cpus > 4 {
        return Err(std::io::Error::other("no such CPU"));
    }
    Ok(agent::GuestSize {
        cpus: growth.cpus,
        memory_total: growth.memory.map_or(1, |memory| memory.total),
    })
}
