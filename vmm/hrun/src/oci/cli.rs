//! The command line of an OCI runtime, and how it is told from hrun's own: some words mean
//! something in both.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{
    containers::Containers,
    failure::{Log, LogFormat},
};
use crate::dirs::Dirs;

const EXAMPLES: &str = "\
Examples:
  podman --runtime /usr/local/bin/hrun run --rm busybox uname -r
  ctr run --rm --runc-binary /usr/local/bin/hrun docker.io/library/busybox:latest box uname -r
  hrun spec && hrun run --bundle . box
  hrun create --bundle . box && hrun start box && hrun state box && hrun delete --force box";

/// Runs OCI bundles, each in its own lightweight virtual machine.
#[derive(Debug, Parser)]
#[command(
    name = "hrun",
    version,
    about = "hrun as an OCI runtime: what engines call in the place of runc",
    after_help = EXAMPLES,
    max_term_width = 100
)]
pub(crate) struct OciCli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What stands before the command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Directory for what is known about containers
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// File for failures, besides standard error
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of that file
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Take cgroup paths for SLICE:PREFIX:NAME
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Who manages control groups
    #[arg(long, global = true, value_enum)]
    cgroup_manager: Option<CgroupManager>,
    /// For runc's sake: nothing more is logged
    #[arg(long, global = true)]
    debug: bool,
    /// For runc's sake: hrun needs root on the host
    #[arg(long, global = true, hide = true)]
    rootless: Option<String>,
    /// For runc's sake: there are no checkpoints
    #[arg(long, global = true, hide = true)]
    criu: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

impl Global {
    pub(crate) fn log(&self) -> Log {
        Log {
            path: self.log.clone(),
            format: self.log_format,
        }
    }

    /// Whether cgroup paths are systemd's.
    pub(crate) fn systemd(&self) -> bool {
        self.systemd_cgroup || self.cgroup_manager == Some(CgroupManager::Systemd)
    }

    /// Whether control groups are somebody else's business.
    pub(crate) fn without_cgroups(&self) -> bool {
        self.cgroup_manager == Some(CgroupManager::Disabled)
    }
}

/// What an OCI runtime can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container of a bundle, without running its program
    Create(CreateArgs),
    /// Run the program of a container that was created
    Start(IdArgs),
    /// Make a container of a bundle and run its program
    Run(RunArgs),
    /// Show a container's state as JSON
    State(IdArgs),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Remove what is left of a container
    Delete(DeleteArgs),
    /// Run a further process in a container
    Exec(ExecArgs),
    /// Show the processes on the host that are a container's
    Ps(PsArgs),
    /// List containers
    #[command(alias = "ls")]
    List(ListArgs),
    /// Stop the CPUs of a container's VM
    Pause(IdArgs),
    /// Let the CPUs of a container's VM go on
    Resume(IdArgs),
    /// Change what a container may use
    Update(UpdateArgs),
    /// Show what a container uses
    Events(EventsArgs),
    /// Write a configuration to begin with
    Spec(SpecArgs),
    /// Show what this runtime can do, as JSON
    Features,
    /// The process that engines take for the container
    #[command(name = "oci-shim", hide = true)]
    Shim(ShimArgs),
    /// The process that engines take for a further process
    #[command(name = "oci-exec", hide = true)]
    ExecShim(ExecShimArgs),
}

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CreateArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// File for the number of the container's process on the host
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that takes the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// For runc's sake: a VM has its own root
    #[arg(long)]
    no_pivot: bool,
    /// For runc's sake: a VM has its own keys
    #[arg(long)]
    no_new_keyring: bool,
    /// Descriptors beyond standard error that the program is to inherit: none can
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Name for the container, unique in its root
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Do not wait for the program
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container when its program has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// For runc's sake
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Send it to all processes of the container
    #[arg(short, long)]
    pub(crate) all: bool,
    /// The container
    pub(crate) id: String,
    /// Number or name
    #[arg(default_value = "TERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// End it first if it runs, and do not mind if there is none
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ExecArgs {
    /// File with the process (process.json of the specification)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// File for the number of the process on the host
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that takes the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Run as this user: UID[:GID]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Work in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Give it a capability more
    #[arg(short, long, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// Programs that it executes give it no more rights than it has
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Further groups, by number
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Descriptors beyond standard error that it is to inherit: none can
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// For runc's sake
    #[arg(long, hide = true)]
    apparmor: Option<String>,
    /// For runc's sake
    #[arg(long, hide = true)]
    process_label: Option<String>,
    /// For runc's sake
    #[arg(long, hide = true)]
    ignore_paused: bool,
    /// The container
    pub(crate) id: String,
    /// What to run, without --process
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
    /// The container
    pub(crate) id: String,
    /// Options of ps(1) for the table
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListFormat {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Form of the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: ListFormat,
    /// Identifiers alone
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// File with the resources (linux.resources of the specification); - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Bytes of memory
    #[arg(long)]
    pub(crate) memory: Option<i64>,
    /// Bytes of memory that it is to keep
    #[arg(long)]
    pub(crate) memory_reservation: Option<i64>,
    /// Bytes of memory and swap
    #[arg(long)]
    pub(crate) memory_swap: Option<i64>,
    /// Share of CPU time beside others
    #[arg(long, visible_alias = "cpu-share")]
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period
    #[arg(long)]
    pub(crate) cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// CPUs of the host
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes of the host
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// Weight of its block I/O beside others
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// Most processes in it
    #[arg(long)]
    pub(crate) pids_limit: Option<i64>,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Show it once
    #[arg(long)]
    pub(crate) stats: bool,
    /// How often, otherwise, such as 5s
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ShimArgs {
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Stay in the session, and at the terminal, of who started us
    #[arg(long)]
    pub(crate) foreground: bool,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecShimArgs {
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    pub(crate) id: String,
}

/// Options that only an OCI runtime has, before the command.
const GLOBALS: [&str; 7] = [
    "--root",
    "--log",
    "--log-format",
    "--systemd-cgroup",
    "--cgroup-manager",
    "--rootless",
    "--criu",
];

/// Options that only an OCI runtime has, behind words that hrun itself knows as well.
const OWN: [(&str, &[&str]); 5] = [
    (
        "create",
        &[
            "--bundle",
            "-b",
            "--pid-file",
            "--console-socket",
            "--no-pivot",
            "--no-new-keyring",
            "--preserve-fds",
        ],
    ),
    ("run", &["--bundle", "-b", "--pid-file", "--console-socket"]),
    (
        "exec",
        &["--process", "-p", "--console-socket", "--pid-file"],
    ),
    ("update", &["--resources", "-r"]),
    ("events", &["--stats"]),
];

/// Whether this command line is that of an OCI runtime: by an option or a word that only one has, or
/// because it names a container that an engine has made. `create` and `run` name none that exists:
/// without such an option they are hrun's own, so in the directory of a bundle say `--bundle .`.
pub(crate) fn is_meant(args: &[OsString]) -> bool {
    let mut words = args.iter().skip(1).map(OsString::as_os_str);
    let Some(first) = words.next() else {
        return false;
    };
    if is_one_of(first, &GLOBALS) || first == "--debug" {
        return true;
    }
    let rest: Vec<_> = words.collect();
    let command = first.to_str().unwrap_or_default();
    match command {
        "state" | "delete" | "list" | "ls" | "spec" | "features" | "resume" | "oci-shim"
        | "oci-exec" => return true,
        "create" | "start" | "run" | "kill" | "exec" | "ps" | "pause" | "update" | "events" => {}
        _ => return false,
    }
    let is_option = |word: &OsStr| word.as_encoded_bytes().starts_with(b"-");
    let own = OWN.iter().find(|(word, _)| *word == command);
    let own = own.map_or(&[][..], |(_, options)| *options);
    // Behind the name of an image or of a container may stand anything.
    let before_name = rest.iter().take_while(|word| is_option(word));
    before_name.clone().any(|word| is_one_of(word, own))
        || (!matches!(command, "create" | "run") && names_a_container(&rest))
}

fn is_one_of(word: &OsStr, options: &[&str]) -> bool {
    let word = word.to_str().unwrap_or_default();
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    options.contains(&name)
}

fn names_a_container(words: &[&OsStr]) -> bool {
    let Ok(dirs) = Dirs::from_env() else {
        return false;
    };
    let containers = Containers::open(&dirs, None);
    let names = words.iter().filter_map(|word| word.to_str());
    names
        .filter(|word| !word.starts_with('-'))
        .take(8)
        .any(|word| containers.has(word))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn meant(line: &str) -> bool {
        let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
        is_meant(&args)
    }

    fn parse(line: &str) -> OciCli {
        OciCli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        OciCli::command().debug_assert();
    }

    #[test]
    fn engines_are_told_from_people() {
        for line in [
            "hrun --root /r --log /l --log-format json kill --all id 9",
            "hrun --systemd-cgroup start id",
            "hrun create --bundle /b --pid-file /p id",
            "hrun create -b=/b id",
            "hrun create --no-pivot --bundle /b id",
            "hrun run --bundle /b id",
            "hrun exec --process /p --detach id",
            "hrun exec --pid-file /p --process /p id",
            "hrun update --resources=/f id",
            "hrun state id",
            "hrun delete --force id",
            "hrun features",
        ] {
            assert!(meant(line), "{line}");
        }
        for line in [
            "hrun",
            "hrun ps -a",
            "hrun run busybox tool --bundle x",
            "hrun run --rm busybox",
            "hrun create busybox",
            "hrun create --name x busybox tool --bundle y",
            "hrun exec web tool --process 1",
            "hrun exec -it web sh",
            "hrun kill web",
            "hrun --help",
            "hrun busybox state",
        ] {
            assert!(!meant(line), "{line}");
        }
    }

    #[test]
    fn options_may_stand_on_either_side_of_the_name() {
        for line in [
            "hrun kill --all box 9",
            "hrun kill box 9 --all",
            "hrun kill box --all 9",
        ] {
            match parse(line).command {
                Command::Kill(args) => assert!(args.all && args.signal == "9", "{line}"),
                other => panic!("{other:?}"),
            }
        }
        match parse("hrun exec box --process /p --detach").command {
            Command::Exec(args) => assert!(args.detach && args.command.is_empty()),
            other => panic!("{other:?}"),
        }
        match parse("hrun exec -t box ls -l --detach").command {
            Command::Exec(args) => {
                assert!(args.tty && !args.detach);
                assert_eq!(args.command, ["ls", "-l", "--detach"]);
            }
            other => panic!("{other:?}"),
        }
        let cli = parse("hrun --root /r delete box --force");
        assert_eq!(cli.global.root.as_deref(), Some("/r".as_ref()));
        assert!(matches!(
            cli.command,
            Command::Delete(DeleteArgs { force: true, .. })
        ));
    }
}
