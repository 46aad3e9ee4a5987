//! The validation programs of opencontainers/runtime-tools, run with a runtime and judged.
//!
//! Each is a program that makes bundles, calls the runtime that the variable `RUNTIME` names, and
//! tells its results in the Test Anything Protocol. They are run one after the other, in the
//! directory of the suite, where they find their root file system.

mod expectations;
mod tap;

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

pub use expectations::Expectations;
pub use tap::Outcome;

use crate::client;
use expectations::Verdict;
use tap::Tap;

/// A built suite.
#[derive(Debug)]
pub struct Suite {
    dir: PathBuf,
    programs: Vec<PathBuf>,
}

/// A program that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its file name, without `.t`.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
}

impl Suite {
    /// The suite in this directory, which has been built: `make runtimetest validation-executables`
    /// leaves programs with names that end in `.t` in `validation` or a level below it.
    ///
    /// # Errors
    ///
    /// There is none, or it has not been built.
    pub fn find(dir: &Path) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("Failed to find the suite in {}", dir.display()))?;
        let validation = dir.join("validation");
        let mut programs = Vec::new();
        for path in entries(&validation)? {
            if path.is_dir() {
                programs.extend(entries(&path)?);
            } else {
                programs.push(path);
            }
        }
        programs.retain(|path| is_program(path));
        programs.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
        ensure!(
            !programs.is_empty(),
            "No programs (*.t) are in {}: run `make runtimetest validation-executables` in {}",
            validation.display(),
            dir.display()
        );
        Ok(Self { dir, programs })
    }

    /// Runs the programs whose names have one of these words in them, or all if there are none.
    ///
    /// After each of them `clear` removes what it has left.
    ///
    /// # Errors
    ///
    /// A program could not be started, or `clear` failed.
    pub fn run(
        &self,
        words: &[String],
        env: &[(&str, OsString)],
        limit: Duration,
        clear: impl Fn() -> Result<()>,
    ) -> Result<Vec<Ran>> {
        let mut all = Vec::new();
        for program in &self.programs {
            let name = program.file_stem().unwrap_or_default().to_string_lossy();
            if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
                continue;
            }
            let outcome = self.run_one(program, env, limit)?;
            eprintln!("{name}: {outcome:?}");
            all.push(Ran {
                name: name.into_owned(),
                outcome,
            });
            clear()?;
        }
        Ok(all)
    }

    fn run_one(
        &self,
        program: &Path,
        env: &[(&str, OsString)],
        limit: Duration,
    ) -> Result<Outcome> {
        let chdir = format!("--chdir={}", self.dir.display());
        let words = [OsString::from(chdir), program.into()];
        let done = client::run_within(limit, "env", words, env, "")?;
        let said = Tap::parse(&done.stdout).outcome();
        let last = done.stderr.lines().last().unwrap_or_default();
        Ok(match (said, done.code) {
            (Outcome::Fails(why), 0) => Outcome::Fails(why),
            (Outcome::Fails(_), 137 | -1) => {
                Outcome::Fails(format!("it did not end within {} s", limit.as_secs()))
            }
            (Outcome::Fails(why), code) => Outcome::Fails(format!("{why} (status {code}: {last})")),
            (said, 0) => said,
            (_, code) => Outcome::Fails(format!("status {code}: {last}")),
        })
    }
}

/// The table of results, and whether all of them are as expected.
#[must_use]
pub fn report(ran: &[Ran], expectations: &Expectations) -> (String, bool) {
    let mut text = String::new();
    let mut wrong = 0;
    let width = ran.iter().map(|ran| ran.name.len()).max().unwrap_or(0);
    for ran in ran {
        let said = match expectations.judge(ran) {
            Verdict::Fine(said) => said,
            Verdict::Wrong(said) => {
                wrong += 1;
                said
            }
        };
        text.push_str(&format!("{:width$}  {said}\n", ran.name));
    }
    let count = |is_it: fn(&Outcome) -> bool| ran.iter().filter(|ran| is_it(&ran.outcome)).count();
    text.push_str(&format!(
        "{} programs: {} pass, {} skip, {} fail; {wrong} not as expected\n",
        ran.len(),
        count(|outcome| matches!(outcome, Outcome::Passes { .. })),
        count(|outcome| matches!(outcome, Outcome::Skips(_))),
        count(|outcome| matches!(outcome, Outcome::Fails(_))),
    ));
    (text, wrong == 0)
}

/// A remark on what the table of expectations lists and the suite does not have.
#[must_use]
pub fn remark(ran: &[Ran], expectations: &Expectations) -> Option<String> {
    let unknown = expectations.unknown(ran);
    (!unknown.is_empty()).then(|| {
        format!(
            "listed as failing, but not in this suite: {}",
            unknown.join(", ")
        )
    })
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect();
    let entries: std::io::Result<_> = read();
    entries.with_context(|| format!("Failed to list {}: is it a suite?", dir.display()))
}

fn is_program(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "t")
        && fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A suite of programs in sh.
    fn suite(programs: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, script) in programs {
            let file = dir.path().join("validation").join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(dir.path().join("beside"), "").unwrap();
        dir
    }

    fn run(dir: &Path, words: &[&str], limit: u64) -> Vec<Ran> {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        let env = [("RUNTIME", OsString::from("/the/runtime"))];
        let limit = Duration::from_secs(limit);
        let suite = Suite::find(dir).unwrap();
        suite.run(&words, &env, limit, || Ok(())).unwrap()
    }

    fn why(outcome: &Outcome) -> &str {
        match outcome {
            Outcome::Fails(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn programs_of_both_layouts_are_run_by_name_in_the_suites_directory() {
        let script = "test -e beside && test \"$RUNTIME\" = /the/runtime && echo 1..1 && echo ok 1";
        let dir = suite(&[("b/b.t", script), ("a.t", script), ("a.go", "exit 1")]);
        let ran = run(dir.path(), &[], 60);
        let names: Vec<_> = ran.iter().map(|ran| ran.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(
            ran.iter()
                .all(|ran| ran.outcome == Outcome::Passes { tests: 1 })
        );
        assert_eq!(run(dir.path(), &["b"], 60).len(), 1);
    }

    #[test]
    fn a_status_and_a_result_can_each_make_it_fail() {
        let dir = suite(&[
            ("a.t", "echo 1..1; echo ok 1; echo oops >&2; exit 3"),
            ("b.t", "echo 1..1; echo not ok 1 - root"),
            (
                "c.t",
                "echo 1..2; echo ok 1; echo cannot create >&2; exit 1",
            ),
        ]);
        let ran = run(dir.path(), &[], 60);
        assert_eq!(why(&ran[0].outcome), "status 3: oops");
        assert_eq!(why(&ran[1].outcome), "1 of 1 tests: root");
        let both = "1 of 2 tests were run (status 1: cannot create)";
        assert_eq!(why(&ran[2].outcome), both);
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let dir = suite(&[("a.t", "echo 1..1; sleep 1000")]);
        let ran = run(dir.path(), &[], 1);
        assert_eq!(why(&ran[0].outcome), "it did not end within 1 s");
    }

    #[test]
    fn a_suite_that_is_not_built_is_named() {
        let dir = suite(&[("a.go", "")]);
        let error = format!("{:#}", Suite::find(dir.path()).unwrap_err());
        assert!(
            error.contains("make runtimetest validation-executables"),
            "{error}"
        );
        let error = format!("{:#}", Suite::find(&dir.path().join("no")).unwrap_err());
        assert!(error.contains("Failed to find the suite in"), "{error}");
    }

    #[test]
    fn what_is_not_as_expected_is_counted() {
        let fails = |name: &str| Ran {
            name: name.into(),
            outcome: Outcome::Fails("no".into()),
        };
        let table = Expectations::parse("a users\nz gone\n").unwrap();
        let (text, fine) = report(&[fails("a")], &table);
        assert!(
            fine && text.contains("1 programs: 0 pass, 0 skip, 1 fail; 0 not"),
            "{text}"
        );
        assert_eq!(
            remark(&[fails("a")], &table).unwrap().split(": ").last(),
            Some("z")
        );
        let (text, fine) = report(&[fails("a"), fails("b")], &table);
        assert!(!fine && text.contains("b  FAILS: no"), "{text}");
    }
}
