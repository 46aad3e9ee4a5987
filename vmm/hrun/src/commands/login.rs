//! `hrun login` and `hrun logout`: credentials for registries, where docker and podman have theirs.

use std::io::{self, BufRead, Read};

use anyhow::{Context, bail};
use image::{
    Reference,
    registry::{Access, AuthFiles, Credentials, check_login},
};

use crate::{exit, terminal};

const HUB: &str = "docker.io";
/// A password is not longer than this, in bytes; a token may be long.
const PASSWORD_MAX: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun login                                       Docker Hub, asking for name and password
  hrun login -u me registry.example
  hrun login -u me --password-stdin quay.io < token

The registry is asked first. The login is kept in REGISTRY_AUTH_FILE if that is set, else in
${DOCKER_CONFIG:-~/.docker}/config.json or the credential helper that it names.")]
pub(crate) struct LoginArgs {
    /// Name of the user
    #[arg(short, long)]
    username: Option<String>,
    /// Read the password, or a token, from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Allow a registry without encryption, or with a certificate that nobody vouches for
    #[arg(long)]
    insecure: bool,
    /// The registry
    #[arg(default_value = HUB)]
    registry: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hrun logout\n  hrun logout registry.example")]
pub(crate) struct LogoutArgs {
    /// The registry
    #[arg(default_value = HUB)]
    registry: String,
}

pub(crate) fn login(args: &LoginArgs) -> anyhow::Result<()> {
    let registry = Reference::registry_of(&args.registry)?;
    let username = match &args.username {
        Some(name) => name.clone(),
        None if args.password_stdin => bail!("--password-stdin needs --username NAME beside it"),
        None => ask_name()?,
    };
    if username.is_empty() || username.contains(':') {
        bail!("{username:?} is not the name of a user: it must not be empty or have a colon");
    }
    let password = if args.password_stdin {
        read_password()?
    } else {
        ask_password()?
    };
    if password.is_empty() {
        bail!("The password is empty");
    }
    let access = Access {
        insecure: args.insecure,
    };
    let credentials = Credentials::typed(username.clone(), password.clone());
    check_login(&registry, credentials, &access, &())
        .with_context(|| format!("Failed to log in to {registry}"))?;
    let place = AuthFiles::from_env().store(&registry, &username, &password)?;
    super::print(&format!("Logged in to {registry}; kept in {place}\n"))
}

pub(crate) fn logout(args: &LogoutArgs) -> anyhow::Result<()> {
    let registry = Reference::registry_of(&args.registry)?;
    let places = AuthFiles::from_env().erase(&registry)?;
    if places.is_empty() {
        return super::print(&format!("There was no login to {registry}\n"));
    }
    let places = places.join(", ");
    super::print(&format!("Removed the login to {registry} from {places}\n"))
}

fn ask_name() -> anyhow::Result<String> {
    if !terminal::stdin_is_terminal() {
        bail!("There is no terminal to ask for a name: use --username and --password-stdin");
    }
    exit::print_error("Username: ");
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .context("Failed to read the name from the terminal")?;
    Ok(line.trim().to_owned())
}

fn ask_password() -> anyhow::Result<String> {
    if !terminal::stdin_is_terminal() {
        bail!("There is no terminal to ask for the password: use --password-stdin");
    }
    exit::print_error("Password: ");
    let password = terminal::read_secret().context("Failed to read the password")?;
    exit::print_error("\n");
    text(password)
}

/// All of standard input but the end of its line.
fn read_password() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(PASSWORD_MAX)
        .read_to_end(&mut bytes)
        .context("Failed to read the password from standard input")?;
    let end = bytes
        .iter()
        .rposition(|b| !matches!(b, b'\r' | b'\n'))
        .map_or(0, |last| last + 1);
    bytes.truncate(end);
    text(bytes)
}

fn text(password: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(password)
        .ok()
        .context("The password is not valid UTF-8")
}
