//! Plots of a report: one SVG file for each question that somebody might ask.

mod bursts;
mod memory;
mod scale;
mod starts;
mod svg;
mod work;

use super::report::Report;

/// The color of an arm, the same in every plot: ours are blue, containers are warm. They can be
/// told apart by eyes that see no red or no green.
fn color(arm: &str) -> &'static str {
    match arm {
        "pool" => "#0b4f9e",
        "image" => "#2367b4",
        "template" => "#3d8bd4",
        "cold" => "#7fbaec",
        "crun" => "#e07b1a",
        _ => "#8a4b08",
    }
}

/// All plots for which there are samples, by the names of their files.
pub(crate) fn all(report: &Report) -> Vec<(&'static str, String)> {
    [
        ("starts.svg", starts::plot(report)),
        ("bursts.svg", bursts::plot(report)),
        ("memory.svg", memory::plot(report)),
        ("work.svg", work::plot(report)),
    ]
    .into_iter()
    .filter_map(|(name, plot)| Some((name, plot?)))
    .collect()
}

/// A value as it stands at a tick.
fn tick(value: f64) -> String {
    if value >= 1.0 {
        super::tables::number(value.round())
            .trim_end_matches(".00")
            .trim_end_matches(".0")
            .to_owned()
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bench::{
        arm::{Described, NAMES},
        facts::Facts,
        plan::{Part, Plan},
        processes::{Footprint, Share},
        report::{Burst, Idle, StartSample, WorkSample},
        work::WORKS,
    };

    /// A report with all there can be.
    pub(crate) fn report() -> Report {
        let plan = Plan {
            image: "busybox".into(),
            arms: NAMES.into(),
            parts: Part::ALL.into(),
            samples: 9,
            cold_samples: 9,
            warm_up: 0,
            at_once: vec![1, 4],
            burst_rounds: 1,
            idle: vec![1],
            cold_most: 9,
            cold_works: true,
            density: None,
            work_rounds: 1,
            work_ms: 1,
            pool_size: 1,
            time_limit_seconds: 1,
            seed: 1,
        };
        let mut facts = Facts::collect("version 2".into());
        facts.kvm = Some(vmm::api::HostKind::Software);
        let mut report = Report::new(facts, plan);
        for (place, name) in NAMES.into_iter().enumerate() {
            report.arms.push(Described {
                name,
                command: format!("{name} run"),
                version: None,
                missing: (name == "runc").then(|| "not installed".into()),
            });
            if name != "runc" {
                samples(&mut report, name, 10f64.powf(3.5 - place as f64));
            }
        }
        report
    }

    fn samples(report: &mut Report, arm: &'static str, time: f64) {
        for round in 0..9 {
            for command in ["true", "echo"] {
                report.starts.push(StartSample {
                    arm,
                    round,
                    command,
                    first_byte_ms: (command == "echo").then_some(time),
                    exit_ms: time * (1.0 + round as f64 / 50.0),
                    cpu_ms: time,
                });
            }
        }
        for count in [1, 4] {
            report.bursts.push(Burst {
                arm,
                round: 0,
                count,
                all_ms: time * 2.0,
                cpu_ms: time,
                exit_ms: vec![time; count],
            });
        }
        for count in [0, 1] {
            let share = Share {
                pss: (count as u64) << 21,
                private_dirty: (count as u64) << 20,
                rss: 0,
            };
            report.idle.push(Idle {
                arm,
                count,
                memory: Footprint {
                    front: share,
                    guest: share,
                    ..Footprint::default()
                },
                cgroup_charge: Some(1 << 20),
                available: 1 << 30,
                cpu_percent: 0.5,
            });
        }
        for work in &WORKS {
            report.work.push(WorkSample {
                arm,
                work: work.name,
                unit: work.unit,
                round: 0,
                amount: 1.0,
                seconds: 1.0,
                rate: 1000.0 / time,
            });
        }
    }

    /// Tags are closed in the order in which they were opened, and every attribute is quoted.
    fn assert_well_formed(name: &str, svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            assert_eq!(tag.matches('"').count() % 2, 0, "{name}: {tag}");
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(closed), "{name}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty(), "{name}: {open:?}");
    }

    #[test]
    fn every_plot_shows_every_arm_that_was_measured() {
        let plots = all(&report());
        assert_eq!(plots.len(), 4);
        for (name, svg) in plots {
            assert_well_formed(name, &svg);
            for arm in ["pool", "template", "cold", "crun"] {
                assert!(svg.contains(color(arm)), "{name}: {arm}");
                assert!(svg.contains(&format!(">{arm}")), "{name}: {arm}");
            }
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        }
    }

    #[test]
    fn what_was_not_measured_has_no_plot() {
        let mut report = report();
        report.starts.clear();
        report.work.clear();
        let names: Vec<_> = all(&report).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["bursts.svg", "memory.svg"]);
    }

    #[test]
    fn ticks_are_short() {
        let texts = [0.05, 1.0, 20.0, 300.0, 5000.0].map(tick);
        assert_eq!(texts, ["0.05", "1", "20", "300", "5 000"]);
    }
}
