//! The options of `hrun run` and `hrun create`, as they are typed, and what they mean.

use std::{env, path::PathBuf};

use anyhow::{Context, bail};
use clap::{ArgAction, ValueEnum};
use image::{Image, Platform, oci_spec::image::Config};
use vmm::config::MAX_VCPUS;

use crate::{
    commands::pull::When,
    container::{Config as ContainerConfig, NewRecord},
    log::LogOptions,
    options::{capability, env as environment, security, signal, size, ulimit, volume},
    restart::RestartPolicy,
    rootfs::{Carrier, Rootfs, Stacked},
    sandbox::Way,
    seccomp::Profile,
    spec::{self, Process, RunOptions},
};

/// Less does not hold the container's share of a kernel at work, in bytes.
const MIN_MEMORY: u64 = 32 << 20;

/// More than any guest of ours can be given, in bytes.
const MAX_MEMORY: u64 = 1 << 39;

const EXAMPLES: &str = "\
Examples:
  hrun run --rm busybox uname -r
  echo hello | hrun run --rm -i busybox cat
  hrun run --rm -it -v ./src:/src -w /src debian bash
  hrun run -d --name web --log-opt max-size=1m busybox httpd -f
  hrun run --name db --memory 1g --cpus 2 -e POSTGRES_PASSWORD postgres
  hrun run -d --name job --restart on-failure:5 busybox sh -c 'sleep 1; exit 1'
  hrun run --rm --pull always registry.example/team/app:1.4
  hrun run --rm --timeline busybox true

The exit status is the command's own; 125 if hrun failed, 126 if the command cannot be executed,
127 if it does not exist, 128 plus the number of a signal that ended it.";

/// A container, and how it is run.
#[derive(Debug, Clone, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = EXAMPLES,
    override_usage = "hrun run [OPTIONS] IMAGE [CMD...]"
)]
pub(crate) struct RunArgs {
    /// Run in the background and print the container's identifier
    #[arg(short, long, conflicts_with_all = ["timeline", "console", "profile"])]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) container: ContainerArgs,
    /// Pass signals sent to hrun on to the command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) sig_proxy: bool,
    /// Tell on standard error where the time went
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, require_equals = true,
          default_missing_value = "table", help_heading = "Debugging")]
    pub(crate) timeline: Option<TimelineFormat>,
    /// Write the guest kernel's boot log to a file; slows the boot down
    #[arg(long, value_name = "FILE", help_heading = "Debugging")]
    pub(crate) console: Option<PathBuf>,
    /// How the container comes to its VM
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WAY",
        env = "HRUN_START",
        help_heading = "Debugging"
    )]
    pub(crate) start: Way,
    /// Write a profile of where the guest's CPUs were to a file
    #[arg(long, value_name = "FILE", help_heading = "Debugging")]
    pub(crate) profile: Option<PathBuf>,
    /// Print help
    #[arg(long, action = ArgAction::HelpShort)]
    pub(crate) help: Option<bool>,
}

/// What a container is to be: what docker's users know, with docker's letters.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ContainerArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Remove the container when its command ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Start the command again when it ends, after a pause that grows: no, always, unless-stopped or
    /// on-failure[:NUMBER]
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub(crate) restart: RestartPolicy,
    /// Name the container; otherwise it is given one
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Set an environment variable; without a value, take it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Set the environment variables of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Work in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Run as this user: name or number, with :group if wanted
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Show a file or directory (./x, /x) or a named volume (x) in the container
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub(crate) volume: Vec<String>,
    /// Host name of the container [default: its short identifier]
    #[arg(short = 'h', long)]
    pub(crate) hostname: Option<String>,
    /// Run this instead of the image's entrypoint; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Make the container's root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How the image gets into the container's VM
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WAY",
        env = "HRUN_ROOTFS"
    )]
    pub(crate) rootfs: Carrier,
    /// Who stacks changes on the image [default: the host, with a disk the guest]
    #[arg(long, value_enum, value_name = "WHO", env = "HRUN_ROOTFS_OVERLAY")]
    pub(crate) rootfs_overlay: Option<Stacked>,
    /// Memory that the container sees, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", default_value = "256m")]
    pub(crate) memory: String,
    /// CPUs that the container sees
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cpus: String,
    /// Limit a resource of the command, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,
    /// Give the command a capability more than docker's set, such as NET_ADMIN; ALL for all
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability of docker's set from the command; ALL for all
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Give the command all capabilities, in its own VM
    #[arg(long)]
    pub(crate) privileged: bool,
    /// no-new-privileges, or seccomp=FILE for a profile of system calls
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
    /// Set a kernel parameter, such as net.core.somaxconn=1024
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) sysctl: Vec<String>,
    /// Whom the guest's kernel ends first when memory runs out, -1000 to 1000
    #[arg(long, value_name = "N", allow_hyphen_values = true,
          value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub(crate) oom_score_adj: Option<i32>,
    /// Add the user to a group
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// NIS domain name of the container
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) domainname: String,
    /// When to pull the image from its registry
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        env = "HRUN_PULL"
    )]
    pub(crate) pull: When,
    /// Run the image for this kind of machine, and pull it if the store has another [default: any
    /// that this machine runs, and its own if it must be pulled]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// Signal that asks the command to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds that the command then has; -1 for as long as it takes [default: 10]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) stop_timeout: Option<i64>,
    /// max-size=SIZE of a file and max-file=NUMBER of them keep the log of a container in the
    /// background in bounds [default: 10m and 3]
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) log_opt: Vec<String>,
    /// The image, and what to run in it instead of what it says itself
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"], num_args = 1..)]
    pub(crate) words: Vec<String>,
}

/// Form of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimelineFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

impl ContainerArgs {
    /// Turns what was typed into what it means.
    pub(crate) fn validate(&self) -> anyhow::Result<RunOptions> {
        let (image, command) = self.words.split_first().context("No image is named")?;
        if self.rm && self.restart != RestartPolicy::No {
            bail!(
                "--restart keeps the container for another start and --rm removes it: choose one"
            );
        }
        let own = |name: &str| env::var(name).ok();
        let mut edits = Vec::new();
        for file in &self.env_file {
            edits.extend(environment::read_file(file, own)?);
        }
        for variable in &self.env {
            edits.push(environment::parse(variable, own)?);
        }
        if let Some(hostname) = &self.hostname {
            spec::check_hostname(hostname)?;
        }
        let capabilities = if self.privileged {
            capability::ALL
        } else {
            capability::select(&self.cap_add, &self.cap_drop)?
        };
        let security = security::parse(&self.security_opt)?;
        let profile = security.seccomp.map(Profile::read).transpose()?;
        let seccomp = profile.map(|profile| profile.compile(capabilities));
        Ok(RunOptions {
            image: image.clone(),
            command: command.to_vec(),
            entrypoint: self.entrypoint.clone(),
            env: edits,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            volumes: self.volumes()?,
            hostname: self.hostname.clone(),
            read_only: self.read_only,
            rootfs: Rootfs::choose(self.rootfs, self.rootfs_overlay)?,
            rlimits: self
                .ulimit
                .iter()
                .map(|limit| ulimit::parse(limit))
                .collect::<Result<_, _>>()?,
            capabilities,
            no_new_privileges: security.no_new_privileges,
            seccomp: seccomp.transpose()?.unwrap_or_default(),
            sysctls: self
                .sysctl
                .iter()
                .map(|text| security::sysctl(text))
                .collect::<Result<_, _>>()?,
            oom_score_adj: self.oom_score_adj,
            groups: self.group_add.clone(),
            domainname: self.domainname.clone(),
            memory: memory(&self.memory)?,
            cpus: cpus(&self.cpus)?,
            interactive: self.interactive,
            tty: self.tty,
        })
    }

    /// How the container is asked to end: as the user says, or the image.
    pub(crate) fn stop_signal(&self, config: Option<&Config>) -> anyhow::Result<i32> {
        if let Some(name) = &self.stop_signal {
            return Ok(signal::parse(name)?);
        }
        let image = config.and_then(|config| config.stop_signal().as_deref());
        // An image that names none is no reason not to run it.
        Ok(image
            .and_then(|name| signal::parse(name).ok())
            .unwrap_or(signal::TERM))
    }

    /// What is written down about the container.
    pub(crate) fn describe(
        &self,
        image: &Image,
        options: RunOptions,
        process: Process,
        stop_signal: i32,
        log: LogOptions,
        stdin_once: bool,
    ) -> (NewRecord, ContainerConfig) {
        let record = NewRecord {
            image: options.image.clone(),
            image_id: image.id.to_string(),
            command: process.args.clone(),
            instructions: options.instructions(),
            auto_remove: self.rm,
        };
        let mut config =
            ContainerConfig::new(options, process, stop_signal, self.stop_timeout, log);
        config.stdin_once = stdin_once;
        config.restart = self.restart;
        (record, config)
    }

    fn volumes(&self) -> anyhow::Result<Vec<volume::Volume>> {
        if self.volume.is_empty() {
            return Ok(Vec::new());
        }
        let cwd = env::current_dir().context("Failed to find out the working directory")?;
        let volumes = self
            .volume
            .iter()
            .map(|text| volume::parse(text, &cwd))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(volume::order(volumes)?)
    }
}

/// Memory that a VM can have, in bytes.
pub(crate) fn memory(text: &str) -> anyhow::Result<u64> {
    let bytes = size::parse(text)?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        bail!(
            "Invalid memory size {text:?}: a VM needs {} and gets {} at most",
            size::format(MIN_MEMORY),
            size::format(MAX_MEMORY)
        );
    }
    Ok(bytes)
}

/// A VM has whole CPUs. A fraction would be a limit on the time they run, which is not there yet:
/// it is refused rather than rounded up in silence.
pub(crate) fn cpus(text: &str) -> anyhow::Result<u8> {
    if let Ok(count) = text.parse::<u8>()
        && (1..=MAX_VCPUS).contains(&count)
    {
        return Ok(count);
    }
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.fract() != 0.0 && number <= f64::from(MAX_VCPUS) => {
            bail!(
                "Invalid number of CPUs {text:?}: a VM has whole ones, so ask for {}",
                number.ceil()
            )
        }
        _ => bail!("Invalid number of CPUs {text:?}: it must be 1 to {MAX_VCPUS}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_a_vm_can_have() {
        assert_eq!(memory("256m").unwrap(), 256 << 20);
        assert_eq!(memory("1g").unwrap(), 1 << 30);
        for bad in ["0", "31m", "1024t", "much"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_are_whole_and_a_fraction_is_told_what_to_ask_for() {
        assert_eq!(cpus("1").unwrap(), 1);
        assert_eq!(cpus("32").unwrap(), 32);
        assert!(cpus("1.5").unwrap_err().to_string().ends_with("ask for 2"));
        for bad in ["0", "33", "-1", "NaN", "inf", "1e9", ""] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
