//! The validation programs of opencontainers/runtime-tools with hrun as the runtime:
//! `make test-oci RUNTIME_TOOLS=DIR` runs them from a checkout in which they were built.
//!
//! hrun has its state in a temporary directory, and a pool there. What is known not to pass is in the
//! file `expectations`, with the reason.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tests::{
    Built, client,
    daemon::Daemon,
    validation::{self, Expectations, Suite},
};

/// How long each program may take: some start a container for each of their tests.
const LIMIT: Duration = Duration::from_secs(300);

/// What is known not to pass.
const EXPECTATIONS: &str = include_str!("expectations");

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("oci: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything came out as it should.
fn run() -> Result<bool> {
    let expectations = Expectations::parse(EXPECTATIONS)?;
    let Some(dir) = suite_dir() else {
        println!("oci: SKIPPED: `make test-oci RUNTIME_TOOLS=DIR` runs the suite of runtime-tools");
        return Ok(true);
    };
    let suite = Suite::find(&dir)?;
    let words: Vec<_> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let built = Built::find()?;
    let hrun = built.hrun();
    ensure!(
        hrun.exists(),
        "{} is missing: run make build",
        hrun.display()
    );
    // Short: names of sockets have 108 bytes.
    let dir = tempfile::Builder::new().prefix("ho").tempdir()?;
    let env: [(&str, OsString); 4] = [
        ("RUNTIME", hrun.clone().into()),
        ("HRUN_STORE", dir.path().join("store").into()),
        ("HRUN_STATE", dir.path().join("state").into()),
        ("HRUN_BOOT_TIMEOUT", "250".into()),
    ];
    let _pool = Daemon::start(&hrun, &["pool", "serve"], &env, dir.path())?;
    let clear = || clear(&hrun, &env);
    let ran = suite.run(&words, &env, LIMIT, clear)?;
    if ran.is_empty() {
        bail!("no program has {} in its name", words.join(" or "));
    }
    let (text, as_expected) = validation::report(&ran, &expectations);
    print!("\n{text}");
    if let Some(remark) = validation::remark(&ran, &expectations).filter(|_| words.is_empty()) {
        println!("{remark}");
    }
    Ok(as_expected)
}

/// The suite that is asked for, or programs of our own where end-to-end tests are run: they show that
/// what is needed for the suite works.
fn suite_dir() -> Option<PathBuf> {
    let asked = env::var_os("HRUN_RUNTIME_TOOLS").filter(|dir| !dir.is_empty());
    let required = env::var("HRUN_E2E").as_deref() == Ok("require");
    let sample = required && Path::new("/dev/kvm").exists();
    asked
        .map(PathBuf::from)
        .or_else(|| sample.then(|| Built::sources().join("oci/sample")))
}

/// Removes containers that a program has left.
fn clear(hrun: &Path, env: &[(&str, OsString)]) -> Result<()> {
    let hrun = hrun.display().to_string();
    let listed = client::run(&hrun, ["list", "--quiet"], env, "")?.exits(0)?;
    for id in listed.stdout.split_whitespace() {
        client::run(&hrun, ["delete", "--force", id], env, "")?
            .exits(0)
            .with_context(|| format!("Failed to remove {id}"))?;
    }
    Ok(())
}
