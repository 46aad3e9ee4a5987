//! Runs tests, each with a case of its own, and reports as cargo's own harness does.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Error, Result, anyhow};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    Built, Case, Store,
    case::Shared,
    leaks::{LeakCheck, Machine},
};

/// Tests side by side: each has a VM that keeps a CPU busy.
const THREADS: usize = 2;

/// One test.
pub struct Test {
    name: String,
    store: Store,
    needs_kvm: bool,
    run: fn(&Case) -> Result<()>,
}

impl Test {
    /// A test named by its path, on a store with busybox, that runs VMs.
    #[must_use]
    pub fn new(path: &str, run: fn(&Case) -> Result<()>) -> Self {
        Self {
            name: path.trim_start_matches("e2e::").into(),
            store: Store::Busybox,
            needs_kvm: true,
            run,
        }
    }

    /// Gives it another store.
    #[must_use]
    pub fn on(mut self, store: Store) -> Self {
        self.store = store;
        self
    }

    /// Says that it runs no VM.
    #[must_use]
    pub fn without_vm(mut self) -> Self {
        self.needs_kvm = false;
        self
    }
}

/// All tests.
#[derive(Debug)]
pub struct Suite;

impl Suite {
    /// Runs what the command line asks for.
    ///
    /// With `HRUN_E2E=require` in the environment, tests fail if something is not built; without
    /// it they are ignored. Without KVM, those that need it are ignored in either case.
    #[must_use]
    pub fn run(tests: Vec<Test>) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(THREADS);
        let required = std::env::var_os("HRUN_E2E").is_some_and(|value| value == "require");

        let built = Built::find().and_then(|built| built.check().map(|()| built));
        let unbuilt = built.as_ref().err().map(|error| format!("{error:#}"));
        let shared = Arc::new(OnceLock::<Shared>::new());
        if let Ok(built) = built
            && !arguments.list
        {
            match Shared::new(built) {
                Ok(made) => drop(shared.set(made)),
                Err(error) => {
                    eprintln!("e2e: {error:#}");
                    return ExitCode::FAILURE;
                }
            }
        }
        let no_kvm = no_kvm();
        if let Some(reason) = unbuilt.as_ref().or(no_kvm.as_ref()) {
            eprintln!("\n*** END-TO-END TESTS ARE SKIPPED: {reason} ***\n");
        }

        if let Some(shared) = shared.get() {
            end_with_us(shared.dir());
        }
        let machine = Machine::now();
        let trials = tests
            .into_iter()
            .map(|test| {
                let shared = Arc::clone(&shared);
                let skip = unbuilt
                    .clone()
                    .or_else(|| no_kvm.clone().filter(|_| test.needs_kvm));
                let fatal = required && unbuilt.is_some();
                Trial::ignorable_test(test.name.clone(), move || match (skip, shared.get()) {
                    (Some(reason), _) if fatal => Err(Failed::from(reason)),
                    (None, Some(shared)) => match run(&test, shared) {
                        Ok(()) => Ok(Completion::Completed),
                        Err(error) => Err(Failed::from(format!("{error:#}"))),
                    },
                    (reason, _) => Ok(Completion::ignored_with(reason.unwrap_or_default())),
                })
            })
            .collect();
        let conclusion = libtest_mimic::run(&arguments, trials);

        let Some(shared) = shared.get() else {
            return conclusion.exit_code();
        };
        eprintln!(
            "e2e: {} containers were run, each in a VM of its own",
            shared.containers()
        );
        if let Err(error) = shared.finish() {
            eprintln!("e2e: {error:#}");
            return ExitCode::FAILURE;
        }
        let left = left_on_machine(&machine, shared.dir());
        for line in &left {
            eprintln!("e2e: after all tests: {line}");
        }
        if left.is_empty() {
            conclusion.exit_code()
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Has a thread that takes everything on `dir` with it if this process is told to end.
fn end_with_us(dir: &Path) {
    let dir = dir.to_path_buf();
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    let reaper = move || {
        if let Some(signal) = signals
            .ok()
            .and_then(|mut signals| signals.forever().next())
        {
            LeakCheck::of(&dir).kill();
            let _ = std::fs::remove_dir_all(&dir);
            std::process::exit(128 + signal);
        }
    };
    let spawned = thread::Builder::new().name("reaper".into()).spawn(reaper);
    if let Err(error) = spawned {
        eprintln!("e2e: what is interrupted will not be cleaned up: {error}");
    }
}

fn run(test: &Test, shared: &Shared) -> Result<()> {
    let case = Case::new(shared, test.store)?;
    let result = catch_unwind(AssertUnwindSafe(|| (test.run)(&case)))
        .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    let litter = case.finish();
    match result {
        Ok(()) if litter.is_empty() => Ok(()),
        Ok(()) => {
            let shown = litter[..litter.len().min(20)].join("\n");
            Err(anyhow!(
                "the test passed, but {} are left:\n{shown}",
                litter.len()
            ))
        }
        Err(error) => Err(error),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    anyhow!("panicked: {}", text.unwrap_or("no message"))
}

fn left_on_machine(before: &Machine, dir: &Path) -> Vec<String> {
    let processes = crate::processes::users_of(dir)
        .into_iter()
        .map(|process| format!("process {} is left: {}", process.pid, process.command));
    before.more().into_iter().chain(processes).collect()
}

fn no_kvm() -> Option<String> {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm cannot be used: {error}")),
    }
}
