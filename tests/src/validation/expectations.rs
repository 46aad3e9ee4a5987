//! Which programs of a suite are known not to pass, and why: a table that is kept in the repository.
//!
//! A line of it is a program's name and the reason; `#` begins a remark.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::{Outcome, Ran};

/// Reasons by the names of programs.
#[derive(Debug, Default)]
pub struct Expectations(BTreeMap<String, String>);

/// What is to be said of a program's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It came out as it should.
    Fine(String),
    /// It did not.
    Wrong(String),
}

impl Expectations {
    /// Reads a table.
    ///
    /// # Errors
    ///
    /// A line has no reason, or there are two for one program.
    pub fn parse(table: &str) -> Result<Self> {
        let mut reasons = BTreeMap::new();
        for line in table.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, reason) = line
                .split_once(char::is_whitespace)
                .with_context(|| format!("{line} has no reason in the table of expectations"))?;
            let reason = reason.trim().to_owned();
            if reasons.insert(name.to_owned(), reason).is_some() {
                bail!("{name} is twice in the table of expectations");
            }
        }
        Ok(Self(reasons))
    }

    pub(super) fn judge(&self, ran: &Ran) -> Verdict {
        match (&ran.outcome, self.0.get(&ran.name)) {
            (Outcome::Passes { tests }, None) => Verdict::Fine(format!("passes ({tests})")),
            (Outcome::Skips(why), _) => Verdict::Fine(format!("skips: {why}")),
            (Outcome::Fails(why), Some(reason)) => {
                Verdict::Fine(format!("fails, as expected ({reason}): {why}"))
            }
            (Outcome::Fails(why), None) => Verdict::Wrong(format!("FAILS: {why}")),
            (Outcome::Passes { .. }, Some(reason)) => Verdict::Wrong(format!(
                "PASSES, and is listed as failing ({reason}): take it off the list"
            )),
        }
    }

    /// Names in the table that no program has: the suite may be of another version.
    pub(super) fn unknown(&self, ran: &[Ran]) -> Vec<&str> {
        let names = self.0.keys().map(String::as_str);
        names
            .filter(|name| ran.iter().all(|ran| ran.name != *name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(name: &str, outcome: Outcome) -> Ran {
        Ran {
            name: name.into(),
            outcome,
        }
    }

    fn is_fine(name: &str, outcome: Outcome) -> bool {
        let table = "# remark\n\nmappings  a VM has its own users\n";
        let verdict = Expectations::parse(table)
            .unwrap()
            .judge(&ran(name, outcome));
        matches!(verdict, Verdict::Fine(_))
    }

    #[test]
    fn only_what_is_listed_may_fail() {
        assert!(is_fine("mappings", Outcome::Fails("no".into())));
        assert!(!is_fine("hooks", Outcome::Fails("no".into())));
        assert!(is_fine("hooks", Outcome::Passes { tests: 1 }));
    }

    #[test]
    fn what_is_listed_has_to_fail() {
        assert!(!is_fine("mappings", Outcome::Passes { tests: 1 }));
        assert!(is_fine("mappings", Outcome::Skips(String::new())));
    }

    #[test]
    fn every_line_has_a_reason_and_every_name_one_line() {
        let error = Expectations::parse("mappings\n").unwrap_err();
        assert!(error.to_string().contains("mappings has no reason"));
        let error = Expectations::parse("a x\na y\n").unwrap_err();
        assert!(error.to_string().contains("a is twice"), "{error}");
    }

    #[test]
    fn names_that_no_program_has_are_found() {
        let table = Expectations::parse("a x\nb y\n").unwrap();
        let ran = [ran("b", Outcome::Fails(String::new()))];
        assert_eq!(table.unknown(&ran), ["a"]);
    }
}
