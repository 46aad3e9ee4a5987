//! What a container is to be: what the user asked for on top of what the image says, by docker's
//! rules.

use agent_protocol::{Rlimit, SeccompFilter};
use image::{Instruction, oci_spec::image::Config};
use serde::{Deserialize, Serialize};

use crate::{
    options::{
        env::{self, EnvEdit},
        volume::Volume,
    },
    rootfs::Rootfs,
    template::Class,
};

/// What docker gives a process when nobody says otherwise.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `HOST_NAME_MAX` of Linux.
const MAX_HOSTNAME: usize = 64;

/// What the user asked for, validated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunOptions {
    /// The image, as named.
    pub(crate) image: String,
    /// Replaces the image's Cmd if not empty.
    pub(crate) command: Vec<String>,
    /// Replaces the image's Entrypoint and clears its Cmd; `""` for none at all.
    pub(crate) entrypoint: Option<String>,
    /// In the order of the command line, files before variables.
    pub(crate) env: Vec<EnvEdit>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    /// In the order in which they are to be mounted.
    pub(crate) volumes: Vec<Volume>,
    pub(crate) hostname: Option<String>,
    pub(crate) read_only: bool,
    /// How the root file system gets into the guest.
    pub(crate) rootfs: Rootfs,
    pub(crate) rlimits: Vec<Rlimit>,
    /// The capabilities of root's programs, as bits.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Vec<SeccompFilter>,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) oom_score_adj: Option<i32>,
    /// Further groups of the user.
    pub(crate) groups: Vec<String>,
    pub(crate) domainname: String,
    /// What the guest is to show as its memory, in bytes.
    pub(crate) memory: u64,
    /// CPUs of the guest.
    pub(crate) cpus: u8,
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
}

impl RunOptions {
    /// What its VM is to offer.
    pub(crate) fn class(&self) -> Class {
        Class {
            cpus: self.cpus,
            memory: self.memory,
        }
    }

    /// What differs from the image, as an image of the container is to have it: docker's rules.
    pub(crate) fn instructions(&self) -> Vec<Instruction> {
        let mut instructions = Vec::new();
        instructions.extend(self.entrypoint.iter().map(|program| {
            let words = Some(program).filter(|program| !program.is_empty());
            Instruction::Entrypoint(words.into_iter().cloned().collect())
        }));
        if !self.command.is_empty() {
            instructions.push(Instruction::Cmd(self.command.clone()));
        }
        instructions.extend(self.env.iter().map(|edit| match edit {
            EnvEdit::Set { name, value } => Instruction::Env(vec![(name.clone(), value.clone())]),
            EnvEdit::Remove(name) => Instruction::Unset(name.clone()),
        }));
        instructions.extend(self.user.iter().cloned().map(Instruction::User));
        instructions.extend(self.workdir.iter().cloned().map(Instruction::WorkDir));
        instructions
    }
}

/// What runs in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Program and arguments.
    pub(crate) args: Vec<String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// User as the agent looks it up.
    pub(crate) user: String,
    image_env: Vec<String>,
    env: Vec<EnvEdit>,
    tty: bool,
}

/// A container that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// Neither the user nor the image names a program.
    #[error("No command to run: image {0} names none")]
    NoCommand(String),
    /// `-w` is relative.
    #[error("Invalid working directory {0:?}: it must be an absolute path")]
    Workdir(String),
    /// `--hostname` is none.
    #[error(
        "Invalid hostname {0:?}: one to {MAX_HOSTNAME} letters, digits, '-', '.' and '_', \
         the first a letter or digit"
    )]
    Hostname(String),
}

impl Process {
    /// Brings together what the user asked for and what the image says.
    pub(crate) fn resolve(
        options: &RunOptions,
        config: Option<&Config>,
    ) -> Result<Self, SpecError> {
        let owned =
            |list: Option<&Option<Vec<String>>>| list.and_then(Option::clone).unwrap_or_default();
        let args = command(
            options,
            owned(config.map(Config::entrypoint)),
            owned(config.map(Config::cmd)),
        );
        if args.is_empty() {
            return Err(SpecError::NoCommand(options.image.clone()));
        }
        let image_text = |text: Option<&Option<String>>| {
            text.and_then(Option::clone).filter(|text| !text.is_empty())
        };
        let cwd = match &options.workdir {
            Some(workdir) if workdir.starts_with('/') => workdir.clone(),
            Some(workdir) => return Err(SpecError::Workdir(workdir.clone())),
            None => match image_text(config.map(Config::working_dir)) {
                Some(workdir) if workdir.starts_with('/') => workdir,
                Some(workdir) => format!("/{workdir}"),
                None => "/".into(),
            },
        };
        let user = options
            .user
            .clone()
            .or_else(|| image_text(config.map(Config::user)))
            .unwrap_or_default();
        Ok(Self {
            args,
            cwd,
            user,
            image_env: owned(config.map(Config::env)),
            env: options.env.clone(),
            tty: options.tty,
        })
    }

    /// The environment of a further process in the container: the container's, by the same rules,
    /// then what is asked for.
    pub(crate) fn environment_of_exec(
        &self,
        hostname: &str,
        tty: bool,
        edits: &[EnvEdit],
    ) -> Vec<String> {
        let process = Self {
            tty,
            ..self.clone()
        };
        env::merge(&process.environment(hostname), edits)
    }

    /// Its environment in a container of this host name: docker's defaults, then the image's,
    /// then the user's.
    pub(crate) fn environment(&self, hostname: &str) -> Vec<String> {
        let mut base = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
        if self.tty {
            base.push("TERM=xterm".into());
        }
        let image: Vec<EnvEdit> = self
            .image_env
            .iter()
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| EnvEdit::Set {
                name: name.into(),
                value: value.into(),
            })
            .collect();
        env::merge(&env::merge(&base, &image), &self.env)
    }
}

/// Entrypoint and Cmd: the user's command replaces the image's Cmd; `--entrypoint` replaces the
/// image's Entrypoint, and then the image's Cmd, which was meant for it, does not count.
fn command(options: &RunOptions, entrypoint: Vec<String>, cmd: Vec<String>) -> Vec<String> {
    let (mut args, default_cmd) = match &options.entrypoint {
        Some(own) if own.is_empty() => (Vec::new(), Vec::new()),
        Some(own) => (vec![own.clone()], Vec::new()),
        None => (entrypoint, cmd),
    };
    if options.command.is_empty() {
        args.extend(default_cmd);
    } else {
        args.extend(options.command.iter().cloned());
    }
    args
}

/// Checks a host name that a user gave.
pub(crate) fn check_hostname(hostname: &str) -> Result<(), SpecError> {
    let valid = hostname.len() <= MAX_HOSTNAME
        && hostname.starts_with(|c: char| c.is_ascii_alphanumeric())
        && hostname
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if valid {
        Ok(())
    } else {
        Err(SpecError::Hostname(hostname.into()))
    }
}

#[cfg(test)]
mod tests {
    use image::oci_spec::image::ConfigBuilder;

    use super::*;

    fn strings(words: &str) -> Vec<String> {
        words.split_whitespace().map(Into::into).collect()
    }

    fn config(entrypoint: &str, cmd: &str) -> Config {
        ConfigBuilder::default()
            .entrypoint(strings(entrypoint))
            .cmd(strings(cmd))
            .env(strings("PATH=/image LANG=C"))
            .working_dir("/srv")
            .user("web")
            .build()
            .unwrap()
    }

    fn args(options: &RunOptions, entrypoint: &str, cmd: &str) -> Vec<String> {
        Process::resolve(options, Some(&config(entrypoint, cmd)))
            .unwrap()
            .args
    }

    #[test]
    fn entrypoint_and_cmd_follow_dockers_table() {
        let run = |entrypoint: Option<&str>, command: &str| RunOptions {
            entrypoint: entrypoint.map(Into::into),
            command: strings(command),
            ..RunOptions::default()
        };
        assert_eq!(args(&run(None, ""), "e", "c d"), strings("e c d"));
        assert_eq!(args(&run(None, "x y"), "e", "c d"), strings("e x y"));
        assert_eq!(args(&run(None, "x"), "", "c"), strings("x"));
        assert_eq!(args(&run(Some("f"), ""), "e", "c"), strings("f"));
        assert_eq!(args(&run(Some("f"), "x"), "e", "c"), strings("f x"));
        assert_eq!(args(&run(Some(""), "x"), "e", "c"), strings("x"));
    }

    #[test]
    fn an_image_of_the_container_would_say_what_the_user_said() {
        assert!(RunOptions::default().instructions().is_empty());
        let options = RunOptions {
            entrypoint: Some(String::new()),
            command: strings("x y"),
            env: vec![EnvEdit::Remove("A".into())],
            user: Some("me".into()),
            workdir: Some("/w".into()),
            ..RunOptions::default()
        };
        assert_eq!(
            options.instructions(),
            [
                Instruction::Entrypoint(Vec::new()),
                Instruction::Cmd(strings("x y")),
                Instruction::Unset("A".into()),
                Instruction::User("me".into()),
                Instruction::WorkDir("/w".into()),
            ]
        );
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        let options = RunOptions::default();
        assert!(matches!(
            Process::resolve(&options, None),
            Err(SpecError::NoCommand(_))
        ));
        let options = RunOptions {
            entrypoint: Some(String::new()),
            ..options
        };
        assert!(Process::resolve(&options, Some(&config("e", "c"))).is_err());
    }

    #[test]
    fn the_environment_is_defaults_then_image_then_user() {
        let options = RunOptions {
            env: vec![EnvEdit::Set {
                name: "LANG".into(),
                value: "de".into(),
            }],
            tty: true,
            ..RunOptions::default()
        };
        let process = Process::resolve(&options, Some(&config("e", ""))).unwrap();
        assert_eq!(
            process.environment("box"),
            ["PATH=/image", "HOSTNAME=box", "TERM=xterm", "LANG=de"]
        );
    }

    #[test]
    fn user_and_directory_come_from_the_image_unless_given() {
        let options = RunOptions::default();
        let process = Process::resolve(&options, Some(&config("e", ""))).unwrap();
        assert_eq!(
            (process.user.as_str(), process.cwd.as_str()),
            ("web", "/srv")
        );
        let options = RunOptions {
            user: Some("0:0".into()),
            workdir: Some("/tmp".into()),
            ..options
        };
        let process = Process::resolve(&options, Some(&config("e", ""))).unwrap();
        assert_eq!(
            (process.user.as_str(), process.cwd.as_str()),
            ("0:0", "/tmp")
        );
        let options = RunOptions {
            workdir: Some("tmp".into()),
            ..options
        };
        assert_eq!(
            Process::resolve(&options, Some(&config("e", ""))),
            Err(SpecError::Workdir("tmp".into()))
        );
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["a", "web-1.example", &"a".repeat(64)] {
            assert_eq!(check_hostname(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", &"a".repeat(65)] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }
}
