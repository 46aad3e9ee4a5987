//! podman, docker and containerd with hrun in the place of their runtime, and with the usual one
//! beside it: what works for that one has to work for hrun.
//!
//! `make test-engines` runs it, in a mount and a network namespace of its own. Every engine has its
//! state in a temporary directory.
#![forbid(unsafe_code)]

mod ctr;
mod cycles;
mod docker_like;
mod engine;
mod groups;
mod table;

use std::{collections::BTreeMap, env, process::ExitCode};

use anyhow::{Context, Result};
use engine::{Engine, Kind, Runtime};
use tests::Built;
pub(crate) use tests::client as command;

/// How a feature came out.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Works,
    Fails(String),
    /// There is no such thing, or no such engine.
    Absent,
}

/// Results by feature and column.
pub(crate) type Results = BTreeMap<(&'static str, Column), Outcome>;

/// An engine with a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Column {
    pub(crate) kind: Kind,
    pub(crate) runtime: Runtime,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("engines: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything came out as it should.
fn run() -> Result<bool> {
    if env::var("HRUN_ENGINES").as_deref() != Ok("require") {
        println!(
            "engines: SKIPPED: `make test-engines` runs them; they need podman, docker and containerd"
        );
        return Ok(true);
    }
    let built = Built::find()?;
    built.check()?;
    // Arguments are words that the names of features must contain.
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let mut results = Results::new();
    let mut names = Vec::new();
    for kind in [Kind::Podman, Kind::Docker, Kind::Ctr] {
        for runtime in [Runtime::Hrun, Runtime::Usual] {
            let column = Column { kind, runtime };
            let engine = Engine::start(kind, runtime, &built)
                .with_context(|| format!("Failed to start {column}"))?;
            for feature in engine.features() {
                if !names.contains(&feature.name) {
                    names.push(feature.name);
                }
                if !is_wanted(feature.name) {
                    continue;
                }
                let outcome = match (feature.check)(&engine) {
                    Ok(()) => Outcome::Works,
                    Err(error) => Outcome::Fails(format!("{error:#}")),
                };
                eprintln!("{column}: {}: {}", feature.name, table::word(&outcome));
                results.insert((feature.name, column), outcome);
                engine.clear();
            }
        }
    }
    names.retain(|name| is_wanted(name));
    print!("{}", table::render(&names, &results));
    Ok(table::judge(&names, &results))
}
