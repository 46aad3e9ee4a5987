//! Credential helpers: programs `docker-credential-NAME` that keep secrets elsewhere.
//!
//! Their protocol: the verb is the argument, registry or JSON go to standard input, JSON comes
//! from standard output.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};

use super::{Credentials, Secret, TOKEN_USER};

/// What a helper says, on standard output, if it has nothing.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Why a credential helper was of no help.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// A name that would lead elsewhere.
    #[error("{0:?} is not the name of a credential helper")]
    Name(String),
    /// It does not run.
    #[error("Failed to run {program}: is it installed and in PATH?")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{program} {verb} failed: {message}")]
    Failed {
        /// The program.
        program: String,
        /// What it was to do.
        verb: &'static str,
        /// What it said.
        message: String,
    },
    /// It said something else than what was expected.
    #[error("{program} answered something else than credentials")]
    Answer {
        /// The program.
        program: String,
        /// What the parser says.
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: String,
}

pub(super) fn get(name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
    let program = program(name)?;
    let output = run(&program, "get", server.as_bytes())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if said.trim() == NOT_FOUND {
            return Ok(None);
        }
        return Err(failed(program, "get", &output));
    }
    let kept: Kept =
        serde_json::from_slice(&output.stdout).map_err(|source| HelperError::Answer {
            program: program.clone(),
            source,
        })?;
    let (username, secret) = if kept.username == TOKEN_USER {
        (String::new(), Secret::IdentityToken(kept.secret))
    } else {
        (kept.username, Secret::Password(kept.secret))
    };
    Ok(Some(Credentials {
        username,
        secret,
        origin: program,
    }))
}

pub(super) fn store(
    name: &str,
    server: &str,
    username: &str,
    password: &str,
) -> Result<(), HelperError> {
    let kept = Kept {
        server: server.to_owned(),
        username: username.to_owned(),
        secret: password.to_owned(),
    };
    let input = serde_json::to_vec(&kept).expect("strings are valid JSON");
    demand(name, "store", &input)
}

pub(super) fn erase(name: &str, server: &str) -> Result<(), HelperError> {
    demand(name, "erase", server.as_bytes())
}

fn demand(name: &str, verb: &'static str, input: &[u8]) -> Result<(), HelperError> {
    let program = program(name)?;
    let output = run(&program, verb, input)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(program, verb, &output))
    }
}

fn program(name: &str) -> Result<String, HelperError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(good) {
        return Err(HelperError::Name(name.to_owned()));
    }
    Ok(format!("docker-credential-{name}"))
}

fn run(program: &str, verb: &'static str, input: &[u8]) -> Result<Output, HelperError> {
    let attempt = || {
        let mut child = Command::new(program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input) {
                // It knew enough, or its status will tell.
                Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        child.wait_with_output()
    };
    attempt().map_err(|source| HelperError::Run {
        program: program.to_owned(),
        source,
    })
}

fn failed(program: String, verb: &'static str, output: &Output) -> HelperError {
    let said = [&output.stderr, &output.stdout]
        .map(|stream| String::from_utf8_lossy(stream).trim().to_owned())
        .into_iter()
        .find(|text| !text.is_empty());
    HelperError::Failed {
        program,
        verb,
        message: said.unwrap_or_else(|| output.status.to_string()),
    }
}
