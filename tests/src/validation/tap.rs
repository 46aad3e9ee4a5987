//! What a test program says, in the Test Anything Protocol (testanything.org, version 13).
//!
//! Only lines that are not set in count: what stands deeper belongs to the test above, whose result
//! sums it up. Several documents one after the other are taken for one.

/// Results of a program's tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tap {
    /// How many it wanted to run, if it said so.
    planned: Option<u64>,
    /// Lines of results.
    told: u64,
    passed: u64,
    skipped: u64,
    /// Descriptions of those that failed.
    failed: Vec<String>,
    /// Why nothing is to be run at all.
    skips_all: Option<String>,
    /// Why it gave up.
    bailed_out: Option<String>,
}

/// How a program came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of its tests passed, or were skipped one by one.
    Passes {
        /// How many did.
        tests: u64,
    },
    /// It ran none.
    Skips(String),
    /// It did not do what it was to.
    Fails(String),
}

impl Tap {
    pub(super) fn parse(output: &str) -> Self {
        let mut tap = Self::default();
        for line in output.lines() {
            tap.read(line.trim_end());
        }
        tap
    }

    fn read(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("Bail out!") {
            self.bailed_out = Some(rest.trim().to_owned());
        } else if let Some(rest) = line.strip_prefix("1..") {
            self.read_plan(rest);
        } else if let Some(rest) = after_word(line, "not ok") {
            self.told += 1;
            match directive(rest) {
                // It is known not to work yet.
                Some(("todo", _)) => self.passed += 1,
                _ => self.failed.push(description(rest)),
            }
        } else if let Some(rest) = after_word(line, "ok") {
            self.told += 1;
            match directive(rest) {
                Some(("skip", _)) => self.skipped += 1,
                _ => self.passed += 1,
            }
        }
    }

    fn read_plan(&mut self, rest: &str) {
        let end = rest
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let Ok(count) = rest[..end].parse::<u64>() else {
            return;
        };
        self.planned = Some(self.planned.unwrap_or(0).saturating_add(count));
        if let (0, Some(("skip", why))) = (count, directive(&rest[end..])) {
            self.skips_all = Some(why.to_owned());
        }
    }

    /// What it amounts to. Without a plan nobody knows whether a program came to its end.
    pub(super) fn outcome(self) -> Outcome {
        let failed = self.failed.len();
        if let Some(why) = self.bailed_out {
            return Outcome::Fails(format!("it gave up: {why}"));
        }
        if failed > 0 {
            let shown = self.failed.join("; ");
            return Outcome::Fails(format!("{failed} of {} tests: {shown}", self.told));
        }
        match self.planned {
            None => Outcome::Fails("it had no plan: it did not come to its end".into()),
            Some(0) => Outcome::Skips(self.skips_all.unwrap_or_default()),
            Some(planned) if planned != self.told => {
                Outcome::Fails(format!("{} of {planned} tests were run", self.told))
            }
            Some(_) if self.passed == 0 => Outcome::Skips("each of its tests".into()),
            Some(_) => Outcome::Passes { tests: self.passed },
        }
    }
}

/// The rest of a line that begins with this word.
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(word)?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim_start())
}

/// Such as `("skip", "no AppArmor")` of `3 - profile # SKIP no AppArmor`.
fn directive(rest: &str) -> Option<(&'static str, &str)> {
    let (_, after) = rest.split_once('#')?;
    let after = after.trim_start();
    ["skip", "todo"].into_iter().find_map(|word| {
        let is_it = after.get(..word.len())?.eq_ignore_ascii_case(word);
        is_it.then(|| (word, after[word.len()..].trim_start_matches(':').trim()))
    })
}

/// The description of a result, without its number.
fn description(rest: &str) -> String {
    let text = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let text = text.trim_start_matches([' ', '-']).trim();
    if text.is_empty() {
        format!("test {rest}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        Tap::parse(text).outcome()
    }

    fn fails(text: &str) -> String {
        match outcome(text) {
            Outcome::Fails(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plan_may_stand_at_either_end() {
        let passes = Outcome::Passes { tests: 2 };
        assert_eq!(outcome("TAP version 13\n1..2\nok 1 - a\nok 2\n"), passes);
        assert_eq!(outcome("ok 1 - a\nok 2 - b # 3 ms\n1..2\n"), passes);
    }

    #[test]
    fn failures_are_named() {
        let text = "1..3\nok 1 - a\nnot ok 2 - has root\n  ---\n  not ok: x\n  ...\nnot ok 3\n";
        assert_eq!(fails(text), "2 of 3 tests: has root; test 3");
    }

    #[test]
    fn tests_that_were_not_run_are_missed() {
        assert_eq!(fails("1..3\nok 1\nok 2\n"), "2 of 3 tests were run");
        assert_eq!(fails("1..1\nok 1\nok 2\n"), "2 of 1 tests were run");
        assert!(fails("ok 1 - a\n").contains("no plan"));
        assert!(fails("").contains("no plan"));
        assert!(fails("1..2\nok 1\nBail out! no room\n").contains("no room"));
    }

    #[test]
    fn what_is_skipped_does_not_count_as_passed() {
        let skipped = "1..0 # SKIP no AppArmor\n";
        assert_eq!(outcome(skipped), Outcome::Skips("no AppArmor".into()));
        let one_by_one = "1..1\nok 1 # skip: cgroups v2\n";
        assert!(matches!(outcome(one_by_one), Outcome::Skips(_)));
        let some = "1..2\nok 1 - a # SKIP no\nok 2 - b\n";
        assert_eq!(outcome(some), Outcome::Passes { tests: 1 });
    }

    #[test]
    fn what_is_not_to_work_yet_does_not_fail() {
        let text = "1..1\nnot ok 1 - later # TODO write it\n";
        assert_eq!(outcome(text), Outcome::Passes { tests: 1 });
    }

    #[test]
    fn several_documents_add_up() {
        let text = "1..1\nok 1\nTAP version 13\n1..2\nok 1\nok 2\n";
        assert_eq!(outcome(text), Outcome::Passes { tests: 3 });
    }

    #[test]
    fn other_lines_are_no_results() {
        let text = "# ok\nokay\n    ok 7 - nested\nnot okay\n1..1\nok 1\n1..x\n";
        assert_eq!(outcome(text), Outcome::Passes { tests: 1 });
    }
}
