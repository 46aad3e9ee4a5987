//! The report as tables for a terminal.

use super::{report::Report, stats::Summary, work::WORKS};
use crate::{options::size, table};

/// What stands where nothing was measured.
const NOTHING: &str = "-";

/// Renders the report.
pub(crate) fn render(report: &Report) -> String {
    let mut text = head(report);
    let parts = [
        starts(report),
        bursts(report),
        idle(report),
        density(report),
        work(report),
    ];
    for part in parts.into_iter().flatten() {
        text.push('\n');
        text.push_str(&part);
    }
    let failures = report
        .failures
        .iter()
        .map(|failure| format!("{}, {}: {}", failure.arm, failure.doing, failure.error));
    for (title, lines) in [
        ("Notes", report.notes.clone()),
        ("Failures", failures.collect()),
    ] {
        if !lines.is_empty() {
            text.push_str(&format!("\n{title}:\n"));
            for line in lines {
                text.push_str(&format!("  {}\n", table::printable(&line)));
            }
        }
    }
    text
}

/// The host in a sentence, for tables and plots.
pub(crate) fn host(report: &Report) -> String {
    let facts = &report.facts;
    let machine = if facts.virtual_machine {
        ", in a virtual machine"
    } else {
        ""
    };
    format!(
        "{}, Linux {}, {} x {}{machine}, {}",
        facts.kind(),
        facts.kernel,
        facts.cpus,
        facts.cpu,
        size::format(facts.memory),
    )
}

fn head(report: &Report) -> String {
    let facts = &report.facts;
    let mut text = format!(
        "hrun {} with image {} on {}\ncgroups: {}; load {:.2} at the beginning, {:.2} at the end; \
         took {:.0} s\n\n",
        facts.hrun,
        report.plan.image,
        host(report),
        facts.cgroups,
        facts.load_at_begin,
        facts.load_at_end,
        facts.took_seconds,
    );
    let rows: Vec<Vec<String>> = report
        .arms
        .iter()
        .map(|arm| {
            let about = match &arm.missing {
                None => arm.command.clone(),
                Some(reason) => format!("MISSING: {reason}"),
            };
            let version = arm.version.clone().unwrap_or_else(|| NOTHING.into());
            vec![arm.name.into(), version, about]
        })
        .collect();
    text.push_str(&table::render(&["ARM", "VERSION", "WHAT IT IS"], &rows));
    text
}

fn starts(report: &Report) -> Option<String> {
    let rows: Vec<Vec<String>> = report
        .present()
        .filter_map(|arm| {
            let exit = Summary::of(report.exits(arm))?;
            let first = Summary::of(report.first_bytes(arm));
            let cpu = report.cpu(arm);
            let mut row = vec![arm.into(), exit.n.to_string()];
            row.extend(percentiles(Some(exit)));
            row.extend(percentiles(first));
            row.push(cpu.map_or(NOTHING.into(), |cpu| number(cpu.mean)));
            Some(row)
        })
        .collect();
    let head = [
        "ARM",
        "N",
        "EXIT p50",
        "p90",
        "p99",
        "FIRST BYTE p50",
        "p90",
        "p99",
        "CPU",
    ];
    titled(
        "One start at a time, ms: command to exit (true), to first byte (echo x), CPU of a start",
        &head,
        &rows,
    )
}

fn bursts(report: &Report) -> Option<String> {
    let mut rows = Vec::new();
    for arm in report.present() {
        for &count in &report.plan.at_once {
            let bursts = report.bursts(arm, count);
            let rate = Summary::of(
                bursts
                    .iter()
                    .map(|burst| burst.count as f64 * 1000.0 / burst.all_ms),
            );
            let exits = Summary::of(bursts.iter().flat_map(|burst| burst.exit_ms.clone()));
            let cpu = Summary::of(
                bursts
                    .iter()
                    .map(|burst| burst.cpu_ms / 1000.0 / burst.count as f64),
            );
            let Some((rate, cpu)) = rate.zip(cpu) else {
                continue;
            };
            let mut row = vec![arm.into(), count.to_string(), number(rate.p50)];
            row.extend(percentiles(exits));
            row.push(format!("{:.3}", cpu.mean));
            rows.push(row);
        }
    }
    let head = [
        "ARM",
        "AT ONCE",
        "STARTS/S",
        "EXIT p50",
        "p90",
        "p99",
        "CPU s/START",
    ];
    titled("Several starts at once (true), ms", &head, &rows)
}

/// Memory of each of the most containers that an arm had.
fn idle(report: &Report) -> Option<String> {
    let mut rows = Vec::new();
    for arm in report.present() {
        let Some((_, none)) = report.most_idle(arm) else {
            continue;
        };
        for idle in report.idle.iter().filter(|idle| idle.arm == arm) {
            if idle.count == 0 {
                continue;
            }
            let each = |now: u64, before: u64| (now as f64 - before as f64) / idle.count as f64;
            let of = |now: u64, before: u64| mib(each(now, before));
            let (now, before) = (&idle.memory, &none.memory);
            let (all, all_before) = (now.total(), before.total());
            let mut row = vec![
                arm.into(),
                idle.count.to_string(),
                of(all.pss, all_before.pss),
                of(all.private_dirty, all_before.private_dirty),
            ];
            for (part, was) in now.parts().iter().zip(before.parts()) {
                if part.0 != "daemon" {
                    row.push(of(part.1.private_dirty, was.1.private_dirty));
                }
            }
            let charge = idle.cgroup_charge.zip(none.cgroup_charge);
            row.push(charge.map_or(NOTHING.into(), |(now, before)| of(now, before)));
            row.push(of(none.available, idle.available));
            let cpu = (idle.cpu_percent - none.cpu_percent) / idle.count as f64;
            row.push(format!("{:.2}", cpu.max(0.0)));
            rows.push(row);
        }
        if let Some(slope) = report.available_slope(arm)
            && let Some(last) = rows.last_mut()
        {
            last.push(mib(slope));
        }
    }
    let head = [
        "ARM",
        "N",
        "PSS",
        "PRIVATE",
        "front",
        "VMM",
        "guest",
        "app",
        "CGROUP",
        "AVAILABLE",
        "CPU %",
        "SLOPE",
    ];
    let mut text = titled(
        "Idle containers (sleep), MiB for each of N: proportional set size; private dirty pages, and \
         whose they are; charge of\nthe cgroup; loss of MemAvailable; CPU in % of one; slope of \
         MemAvailable over all N, everything included",
        &head,
        &rows,
    )?;
    let standing: Vec<String> = report
        .idle
        .iter()
        .filter(|idle| idle.count == 0 && idle.memory.processes > 0)
        .map(|idle| {
            let total = idle.memory.total();
            format!(
                "{}: {} processes that wait take {} MiB (PSS), {} MiB private\n",
                idle.arm,
                idle.memory.processes,
                mib(total.pss as f64),
                mib(total.private_dirty as f64)
            )
        })
        .collect();
    text.push_str(&standing.concat());
    Some(text)
}

fn density(report: &Report) -> Option<String> {
    let rows: Vec<Vec<String>> = report
        .density
        .iter()
        .map(|density| {
            let lost = density.available_before as f64 - density.available_after as f64;
            vec![
                density.arm.into(),
                density.count.to_string(),
                mib(lost / density.count.max(1) as f64),
                density.end.clone(),
            ]
        })
        .collect();
    titled(
        "As many idle containers as fit",
        &["ARM", "CONTAINERS", "MiB EACH", "NO MORE BECAUSE"],
        &rows,
    )
}

fn work(report: &Report) -> Option<String> {
    let arms: Vec<&str> = report
        .present()
        .filter(|arm| report.work.iter().any(|sample| sample.arm == *arm))
        .collect();
    let rows: Vec<Vec<String>> = WORKS
        .iter()
        .filter(|work| report.work.iter().any(|sample| sample.work == work.name))
        .map(|work| {
            let mut row = vec![work.name.to_owned(), work.unit.into()];
            row.extend(
                arms.iter()
                    .map(|arm| report.rate(arm, work.name).map_or(NOTHING.into(), number)),
            );
            row.push(work.about.into());
            row
        })
        .collect();
    let arms: Vec<String> = arms.iter().map(|arm| arm.to_uppercase()).collect();
    let mut head = vec!["WORK", "UNIT"];
    head.extend(arms.iter().map(String::as_str));
    head.push("WHAT IT IS");
    titled("Work in a container, more is better", &head, &rows)
}

fn titled(title: &str, head: &[&str], rows: &[Vec<String>]) -> Option<String> {
    (!rows.is_empty()).then(|| format!("{title}\n{}", table::render(head, rows)))
}

fn percentiles(summary: Option<Summary>) -> [String; 3] {
    match summary {
        Some(all) => [all.p50, all.p90, all.p99].map(number),
        None => [(); 3].map(|()| NOTHING.into()),
    }
}

/// A number with three digits that count, and a blank between thousands.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let digits = text.split('.').next().unwrap_or(&text).len();
    let mut spaced = String::new();
    for (place, digit) in text.chars().enumerate() {
        if place > 0 && place < digits && (digits - place).is_multiple_of(3) && digit != '-' {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}

fn mib(bytes: f64) -> String {
    format!("{:.1}", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_count() {
        for (value, text) in [
            (0.0123, "0.012"),
            (1.234, "1.23"),
            (9.999, "10.0"),
            (12.34, "12.3"),
            (432.1, "432"),
            (99.96, "100"),
            (1234.5, "1 234"),
            (12_345_678.0, "12 345 678"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn every_arm_is_named_the_missing_ones_with_their_reason() {
        let text = render(&super::super::plot::tests::report());
        assert!(text.contains("MISSING: not installed"), "{text}");
        for part in ["software KVM", "pool", "STARTS/S", "SLOPE", "CPU"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
