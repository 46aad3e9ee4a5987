//! The command line: what it may say, and `hrun IMAGE` turned into `hrun run IMAGE`.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    commands::{
        attach, bench, commit, cp, create, diff, events, exec, export, image, inspect, kill, life,
        login, logs, man, pool, ps, pull, push, rm, run, shim, stats, system, template, update,
    },
    exit,
};

const EXAMPLES: &str = "\
Examples:
  hrun pull busybox                    Put an image of a registry into the store
  hrun image load busybox.tar          Put one of an archive there
  hrun run --rm busybox uname -r       Run a command in a VM of its own, pulling what is missing
  hrun run -it --rm busybox sh         Have a shell there
  hrun run -d --name web app           Have one in the background
  hrun exec -it web sh                 Look into it
  hrun cp web:/etc/motd .              Copy a file out of it
  hrun attach web                      Have its streams here
  hrun busybox echo hi                 The same as hrun run busybox echo hi
  hrun commit box tools:1              Make an image of what a container has become
  hrun push registry.example/tools:1   Bring an image to a registry
  hrun doctor                          See whether this machine can do it

As an OCI runtime:
  podman --runtime /usr/local/bin/hrun run --rm busybox uname -r
  hrun --root DIR --help               What engines call: create, start, state, kill, delete, exec,
                                       ps, list, pause, resume, update, events, spec, features

Environment:
  HRUN_STORE       Images, layers and volumes [default: /var/lib/hrun]
  HRUN_STATE       Sockets of running containers [default: /run/hrun]
  HRUN_TEMPLATES   Saved VMs [default: templates in HRUN_STORE]
  HRUN_POOL        Socket of the pool's daemon [default: pool.sock in HRUN_STATE]
  HRUN_START       How VMs start: auto, image, pool, template, grow or boot [default: auto]
  HRUN_PULL        When hrun run pulls: always, missing or never [default: missing]
  HRUN_MIRRORS     Who is asked before a registry: see hrun pull --help
  HRUN_LIMIT_...   How much an image may ask for: see the README
  HRUN_KERNEL      Another guest kernel
  HRUN_INITRAMFS   Another initramfs
  HRUN_LOG         Log level of the VMM, such as debug";

/// Longest line of help, in characters.
const WIDTH: usize = 100;

/// Runs every container in its own lightweight virtual machine.
#[derive(Debug, Parser)]
#[command(
    name = "hrun",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    override_usage = "hrun COMMAND [OPTIONS]\n       hrun IMAGE [CMD...]",
    after_help = EXAMPLES,
    max_term_width = WIDTH
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What hrun can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container
    Run(Box<run::RunArgs>),
    /// Run a further command in a container that runs
    Exec(exec::ExecArgs),
    /// Copy files out of a container or into it
    Cp(cp::CpArgs),
    /// Make a container that is started later
    Create(Box<create::CreateArgs>),
    /// Attach to the standard streams of a container in the background
    Attach(attach::AttachArgs),
    /// Start containers that were made or have ended, in the background
    Start(life::StartArgs),
    /// Ask containers to end, and end them when their time is up
    Stop(kill::StopArgs),
    /// Stop containers and start them again
    Restart(life::RestartArgs),
    /// Send a signal to containers
    Kill(kill::KillArgs),
    /// Wait for the end of containers and print their exit statuses
    #[command(after_help = "Examples:\n  hrun wait job")]
    Wait(life::NamesArgs),
    /// Stop the CPUs of containers
    #[command(after_help = "Examples:\n  hrun pause web && hrun unpause web")]
    Pause(life::NamesArgs),
    /// Let the CPUs of paused containers go on
    #[command(after_help = "Examples:\n  hrun unpause web")]
    Unpause(life::NamesArgs),
    /// Give a container another name
    Rename(life::RenameArgs),
    /// Change what containers may use, and when they are started again
    Update(update::UpdateArgs),
    /// Show what a container in the background has said
    Logs(logs::LogsArgs),
    /// Show the processes of a container
    Top(life::TopArgs),
    /// Show what containers use
    Stats(stats::StatsArgs),
    /// Show what happens to containers and images
    Events(events::EventsArgs),
    /// Show all that is known about containers
    Inspect(inspect::InspectArgs),
    /// Own a container in the background
    #[command(hide = true)]
    Shim(shim::ShimArgs),
    /// List containers
    Ps(ps::PsArgs),
    /// Remove stopped containers
    Rm(rm::RmArgs),
    /// Show what a container changed in the files of its image
    Diff(diff::DiffArgs),
    /// Make an image of what a container has become
    Commit(commit::CommitArgs),
    /// Write all files of a container to a tar archive
    Export(export::ExportArgs),
    /// Manage images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// List images (hrun image ls)
    Images(image::LsArgs),
    /// Pull images from a registry (hrun image pull)
    Pull(pull::PullArgs),
    /// Push an image to a registry (hrun image push)
    Push(push::PushArgs),
    /// Load images (hrun image load)
    Load(image::LoadArgs),
    /// Make an image of a root file system (hrun image import)
    Import(image::import::ImportArgs),
    /// Remove images (hrun image rm)
    Rmi(image::RmArgs),
    /// Log in to a registry
    Login(login::LoginArgs),
    /// Forget the login to a registry
    Logout(login::LogoutArgs),
    /// Measure hrun against containers made of namespaces, on this machine
    Bench(Box<bench::BenchArgs>),
    /// Keep VMs ready, so that containers start faster
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Manage the saved VMs that containers start from
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Look after the store as a whole
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Check whether this machine can run containers, and say what to do if not
    Doctor(FormatArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  hrun completions bash > /etc/bash_completion.d/hrun")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual: a page for each command
    Man(man::ManArgs),
    /// Print the version of hrun
    Version,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// A command with nothing to choose but the format of its result.
#[derive(Debug, clap::Args)]
pub(crate) struct FormatArgs {
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// A command line that was understood.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) command: Command,
    /// The word that was no command and is taken for an image.
    pub(crate) implied_run: Option<String>,
}

/// A command line that was not, or that asked for help.
#[derive(Debug)]
pub(crate) struct Refused {
    error: clap::Error,
    for_run: bool,
}

impl Invocation {
    /// Reads a command line, the program's name first.
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, Refused> {
        let mut args: Vec<OsString> = args.collect();
        let implied_run = implied_image(&args);
        if implied_run.is_some() {
            args.insert(1, "run".into());
        }
        let for_run = args.get(1).is_some_and(|word| word == "run");
        let cli = Cli::try_parse_from(args).map_err(|error| Refused { error, for_run })?;
        Ok(Self {
            command: cli.command,
            implied_run,
        })
    }

    pub(crate) fn is_run(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }
}

impl Refused {
    /// Prints what there is to say and gives the exit status.
    pub(crate) fn print(self) -> ExitCode {
        // Nobody reads it: the status still tells.
        let _ = self.error.print();
        if self.error.use_stderr() {
            ExitCode::from(exit::status_of_usage(self.for_run))
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// The first word, if it is neither an option nor a command.
fn implied_image(args: &[OsString]) -> Option<String> {
    let word = args.get(1)?;
    let is_command = |word: &OsStr| {
        let cli = Cli::command();
        word == "help"
            || cli.get_subcommands().any(|command| {
                command
                    .get_name_and_visible_aliases()
                    .iter()
                    .any(|n| word == *n)
            })
    };
    let is_option = word.as_encoded_bytes().starts_with(b"-");
    (!word.is_empty() && !is_option && !is_command(word))
        .then(|| word.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, Refused> {
        Invocation::parse(line.split_whitespace().map(Into::into))
    }

    fn run(line: &str) -> run::RunArgs {
        match parse(line).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_said_below_the_options_fits_the_lines() {
        fn check(command: &clap::Command) {
            let text = command.get_after_help().map(ToString::to_string);
            for line in text.iter().flat_map(|text| text.lines()) {
                let length = line.chars().count();
                assert!(
                    length <= WIDTH,
                    "{}: {line:?} has {length}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn an_image_in_the_place_of_a_command_is_run() {
        let invocation = parse("hrun busybox ps -a").unwrap();
        assert_eq!(invocation.implied_run.as_deref(), Some("busybox"));
        assert!(invocation.is_run());
        assert_eq!(
            run("hrun busybox ps -a").container.words,
            ["busybox", "ps", "-a"]
        );
        assert_eq!(parse("hrun ps -a").unwrap().implied_run, None);
        assert!(parse("hrun help").is_err());
    }

    #[test]
    fn options_behind_the_image_belong_to_the_command() {
        let args = run("hrun run -it busybox sh -i --rm -c x");
        let args = args.container;
        assert!(args.interactive && args.tty && !args.rm);
        assert_eq!(args.words, ["busybox", "sh", "-i", "--rm", "-c", "x"]);
        let args = run("hrun run busybox --help").container;
        assert_eq!(args.words, ["busybox", "--help"]);
        let args = run("hrun run busybox -- x").container;
        assert_eq!(args.words, ["busybox", "--", "x"]);
    }

    #[test]
    fn short_options_are_dockers() {
        let args =
            run("hrun run -h box -w /tmp -u me -e A=1 -e B -v /a:/b:ro -m 64m busybox").container;
        assert_eq!(args.hostname.as_deref(), Some("box"));
        assert_eq!(args.workdir.as_deref(), Some("/tmp"));
        assert_eq!(args.user.as_deref(), Some("me"));
        assert_eq!(args.env, ["A=1", "B"]);
        assert_eq!(args.volume, ["/a:/b:ro"]);
        assert_eq!(args.memory, "64m");
    }

    #[test]
    fn what_is_unknown_is_refused_with_dockers_status() {
        let refused = parse("hrun run --bogus busybox").unwrap_err();
        assert!(refused.for_run && refused.error.use_stderr());
        assert!(parse("hrun run").unwrap_err().for_run);
        assert!(!parse("hrun ps --bogus").unwrap_err().for_run);
    }

    #[test]
    fn help_is_no_failure() {
        for line in ["hrun --help", "hrun run --help", "hrun image ls --help"] {
            assert!(!parse(line).unwrap_err().error.use_stderr(), "{line}");
        }
    }

    #[test]
    fn what_is_missing_is_pulled_unless_told_otherwise() {
        use pull::When;
        assert_eq!(run("hrun run busybox").container.pull, When::Missing);
        assert_eq!(
            run("hrun run --pull never busybox").container.pull,
            When::Never
        );
        assert_eq!(
            run("hrun run --pull=always busybox").container.pull,
            When::Always
        );
    }

    #[test]
    fn the_timeline_has_two_forms() {
        use run::TimelineFormat::{Json, Table};
        assert_eq!(run("hrun run busybox").timeline, None);
        assert_eq!(run("hrun run --timeline busybox").timeline, Some(Table));
        assert_eq!(run("hrun run --timeline=json busybox").timeline, Some(Json));
    }
}
