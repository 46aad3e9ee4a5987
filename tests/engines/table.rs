//! The results as a table, a column for each engine and runtime.

use crate::{
    Column, Outcome, Results,
    engine::{Kind, Runtime},
};

pub(crate) fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Works => "works",
        Outcome::Fails(_) => "fails",
        Outcome::Absent => "-",
    }
}

pub(crate) fn render(names: &[&'static str], results: &Results) -> String {
    let columns: Vec<_> = [Kind::Podman, Kind::Docker, Kind::Ctr]
        .into_iter()
        .flat_map(|kind| [Runtime::Hrun, Runtime::Usual].map(|runtime| Column { kind, runtime }))
        .collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut text = format!("\n{:width$}", "");
    for column in &columns {
        text.push_str(&format!("  {:11}", column.to_string()));
    }
    text.push('\n');
    for &name in names {
        text.push_str(&format!("{name:width$}"));
        for &column in &columns {
            let outcome = results.get(&(name, column)).unwrap_or(&Outcome::Absent);
            text.push_str(&format!("  {:11}", word(outcome)));
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

/// Whether hrun does all that the usual runtime does. Says what it does not.
pub(crate) fn judge(names: &[&'static str], results: &Results) -> bool {
    let mut fine = true;
    for kind in [Kind::Podman, Kind::Docker, Kind::Ctr] {
        for &name in names {
            let outcome = |runtime| results.get(&(name, Column { kind, runtime }));
            let Some(Outcome::Fails(error)) = outcome(Runtime::Hrun) else {
                continue;
            };
            let usual = matches!(outcome(Runtime::Usual), Some(Outcome::Works));
            let column = Column {
                kind,
                runtime: Runtime::Hrun,
            };
            let verdict = if usual {
                "FAILED"
            } else {
                "fails, as with the usual runtime"
            };
            println!("{column}: {name}: {verdict}: {error}");
            fine &= !usual;
        }
    }
    fine
}
