//! `hrun doctor`: looks at this machine and says what is wrong and what to do.

mod checks;

use serde::Serialize;

use crate::{cli::Format, dirs::Dirs, table};

/// What was found on one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// How good that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Containers run, but not as well as they could.
    Warning,
    /// Containers do not run.
    Problem,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Warning, found, advice)
    }

    fn problem(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(name, Verdict::Problem, found, advice)
    }
}

/// Prints all checks; the status is 1 if containers cannot run.
pub(crate) fn execute(format: Format) -> anyhow::Result<u8> {
    let checks = checks::all(&Dirs::from_env()?);
    match format {
        Format::Json => super::print_json(&checks)?,
        Format::Table => super::print(&report(&checks))?,
    }
    let broken = checks.iter().any(|check| check.verdict == Verdict::Problem);
    Ok(u8::from(broken))
}

fn report(checks: &[Check]) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Problem => "PROBLEM",
            };
            vec![check.name.into(), verdict.into(), check.found.clone()]
        })
        .collect();
    let mut text = table::render(&["CHECK", "RESULT", "FOUND"], &rows);
    for check in checks {
        if let Some(advice) = &check.advice {
            text.push_str(&format!("\n{}: {advice}\n", check.name));
        }
    }
    let worst = checks.iter().map(|check| check.verdict).max();
    text.push_str(match worst {
        Some(Verdict::Problem) => "\nhrun cannot run containers here until this is put right.\n",
        Some(Verdict::Warning) => "\nhrun can run containers here, with the limits named above.\n",
        _ => "\nhrun can run containers here.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_comes_with_what_to_do_and_decides_the_verdict() {
        let mut checks = vec![Check::ok("kvm", "there")];
        assert!(report(&checks).ends_with("\nhrun can run containers here.\n"));
        checks.push(Check::problem("root", "not root", "use sudo"));
        let text = report(&checks);
        assert!(text.contains("root: use sudo"));
        assert!(text.contains("cannot run containers"));
    }
}
