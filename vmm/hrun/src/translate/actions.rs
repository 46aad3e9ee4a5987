//! What the agent is asked for.

use agent_protocol::{
    Action, Archiving, Capabilities, Container, Mount, Personality, ProcessId, Source, Stdio,
    Transfer, Treatment,
};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

use super::{CONTAINER, PROCESS, Ready, VOLUMES_TAG, root};
use crate::{
    clock::Moment,
    container::Config,
    options::{capability, env::EnvEdit},
    rootfs::Rootfs,
};

/// A further process in a container that runs.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [EnvEdit],
    /// Instead of the container's.
    pub(crate) user: Option<&'a str>,
    /// Instead of the container's.
    pub(crate) cwd: Option<&'a str>,
    /// With all that the container may do, whatever was taken from its first process.
    pub(crate) privileged: bool,
    pub(crate) stdio: Stdio,
}

/// A number for a further process of a VM: with 2^32 of them, nobody else's.
///
/// # Errors
///
/// The kernel gives no random numbers.
pub(crate) fn random_process() -> Result<ProcessId, Errno> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(ProcessId(u32::from_ne_bytes(bytes).max(PROCESS.0 + 1)))
}

/// What the agent has to do for a further process.
pub(crate) fn exec_action(
    id: ProcessId,
    config: &Config,
    hostname: &str,
    exec: &Exec<'_>,
) -> Action {
    let options = &config.options;
    let tty = matches!(exec.stdio, Stdio::Terminal(_));
    let (capabilities, seccomp) = if exec.privileged {
        (capability::ALL, Vec::new())
    } else {
        (options.capabilities, options.seccomp.clone())
    };
    Action::Start(Box::new(agent_protocol::Process {
        id,
        container: CONTAINER,
        args: exec.args.to_vec(),
        env: config.process.environment_of_exec(hostname, tty, exec.env),
        cwd: exec.cwd.unwrap_or(&config.process.cwd).into(),
        create_cwd: false,
        user: exec.user.unwrap_or(&config.process.user).into(),
        additional_groups: options.groups.clone(),
        rlimits: options.rlimits.clone(),
        capabilities: Capabilities::of(capabilities),
        no_new_privileges: options.no_new_privileges && !exec.privileged,
        seccomp,
        seccomp_flags: 0,
        umask: None,
        oom_score_adj: options.oom_score_adj,
        treatment: Treatment::default(),
        hooks: Vec::new(),
        stdio: exec.stdio,
    }))
}

/// What the agent has to do for files on their way out of the container or into it.
pub(crate) fn transfer_action(id: ProcessId, archiving: Archiving) -> Action {
    Action::Transfer(Box::new(Transfer {
        id,
        container: CONTAINER,
        archiving,
    }))
}

/// What the agent has to do, in this order, until the container's process runs. Made right before
/// it is sent: it carries the time.
pub(crate) fn start_actions(
    ready: &Ready<'_>,
    stdio: Stdio,
    moment: Moment,
) -> Result<Vec<Action>, Errno> {
    Ok(vec![
        Action::Personalize(personality(moment)?),
        Action::Create(Box::new(container(ready))),
        Action::Start(Box::new(process(ready, stdio))),
    ])
}

/// What the agent has to do for a container whose process is started later.
pub(crate) fn create_actions(
    container: &agent_protocol::Container,
    moment: Moment,
) -> Result<Vec<Action>, Errno> {
    Ok(vec![
        Action::Personalize(personality(moment)?),
        Action::Create(Box::new(container.clone())),
    ])
}

pub(super) fn personality(moment: Moment) -> Result<Personality, Errno> {
    let mut entropy = [0; 32];
    getrandom(&mut entropy, GetRandomFlags::empty())?;
    Ok(Personality {
        realtime_ns: moment.realtime_ns,
        monotonic_ns: moment.monotonic_ns,
        entropy,
    })
}

pub(super) fn container(ready: &Ready<'_>) -> Container {
    let mounts = ready.volumes.iter().enumerate().map(|(index, volume)| {
        let source = Source::share(VOLUMES_TAG, index.to_string());
        let mount = Mount::new(source, volume.target.clone());
        match volume.read_only {
            true => mount.read_only(),
            false => mount,
        }
    });
    Container {
        id: CONTAINER,
        root: Mount::new(root::source(ready.options.rootfs), "/"),
        hostname: ready.hostname.into(),
        domainname: ready.options.domainname.clone(),
        capabilities: ready.options.capabilities,
        sysctls: ready.options.sysctls.clone(),
        // The kernel behind /proc belongs to the container alone: nothing in it is to be hidden.
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        mounts: mounts.collect(),
        files: match ready.options.rootfs {
            // The VMM has put them in place, which costs the guest nothing.
            Rootfs::Host => Vec::new(),
            Rootfs::GuestOverFs | Rootfs::GuestOverBlock => root::guest_files(ready),
        },
        devices: Vec::new(),
        cgroup: Vec::new(),
        read_only: ready.options.read_only,
        propagation: None,
        joined: Vec::new(),
    }
}

fn process(ready: &Ready<'_>, stdio: Stdio) -> agent_protocol::Process {
    agent_protocol::Process {
        id: PROCESS,
        container: CONTAINER,
        args: ready.process.args.clone(),
        env: ready.process.environment(ready.hostname),
        cwd: ready.process.cwd.clone(),
        create_cwd: true,
        user: ready.process.user.clone(),
        additional_groups: ready.options.groups.clone(),
        rlimits: ready.options.rlimits.clone(),
        capabilities: Capabilities::of(ready.options.capabilities),
        no_new_privileges: ready.options.no_new_privileges,
        seccomp: ready.options.seccomp.clone(),
        seccomp_flags: 0,
        umask: None,
        oom_score_adj: ready.options.oom_score_adj,
        treatment: Treatment::default(),
        hooks: Vec::new(),
        stdio,
    }
}
