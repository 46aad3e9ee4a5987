//! Every start as a dot, with the percentiles in words.

use super::{
    color,
    scale::Log,
    svg::{Anchor, FAINT, INK, Style, Svg},
    tick,
};
use crate::bench::{
    report::Report,
    stats::Summary,
    tables::{host, number},
};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 620.0;
const ROW: f64 = 34.0;
const TOP: f64 = 104.0;
/// Between two panels.
const GAP: f64 = 84.0;

/// A measure: its title, and samples by arm.
type Panel = (&'static str, Vec<(&'static str, Vec<f64>)>);

pub(super) fn plot(report: &Report) -> Option<String> {
    let of = |samples: &dyn Fn(&str) -> Vec<f64>| -> Vec<(&'static str, Vec<f64>)> {
        report
            .present()
            .map(|arm| (arm, samples(arm)))
            .filter(|(_, samples)| !samples.is_empty())
            .collect()
    };
    let panels: [Panel; 2] = [
        (
            "From the command to its end: true",
            of(&|arm| report.exits(arm)),
        ),
        (
            "From the command to the first byte of its output: echo x",
            of(&|arm| report.first_bytes(arm)),
        ),
    ];
    let all = panels
        .iter()
        .flat_map(|(_, rows)| rows.iter().flat_map(|(_, samples)| samples.iter().copied()));
    let axis = Log::over(all, LEFT, RIGHT)?;
    let rows: usize = panels.iter().map(|(_, rows)| rows.len()).sum();
    let height = TOP + rows as f64 * ROW + GAP + 56.0;
    let mut svg = Svg::new(WIDTH, height, "How long a start takes", &host(report));
    let mut y = TOP;
    for (title, rows) in &panels {
        panel(&mut svg, title, rows, axis, y);
        y += rows.len() as f64 * ROW + GAP;
    }
    Some(svg.finish())
}

fn panel(svg: &mut Svg, title: &str, rows: &[(&'static str, Vec<f64>)], axis: Log, top: f64) {
    let bottom = top + rows.len() as f64 * ROW;
    svg.text(24.0, top - 14.0, title, Style::LABEL.bold());
    let head = Style::TICK.anchored(Anchor::End);
    for (x, text) in [(700.0, "p50"), (760.0, "p90"), (820.0, "p99")] {
        svg.text(x, top - 14.0, text, head);
    }
    for value in axis.ticks() {
        let x = axis.place(value);
        svg.line((x, top), (x, bottom), FAINT, 1.0);
        svg.text(x, bottom + 16.0, &tick(value), Style::TICK);
    }
    svg.text(820.0, bottom + 16.0, "ms, logarithmic", head);
    for (row, (arm, samples)) in rows.iter().enumerate() {
        let middle = top + (row as f64 + 0.5) * ROW;
        svg.text(24.0, middle + 4.0, arm, Style::LABEL);
        let Some(all) = Summary::of(samples.iter().copied()) else {
            continue;
        };
        for (index, sample) in samples.iter().enumerate() {
            // Seven lanes, so that equal samples are seen beside each other.
            let lane = ((index + 1) * 3 % 7) as f64 - 3.0;
            let x = axis.place(*sample);
            svg.dot(x, middle + lane * 3.0, 3.2, color(arm), 0.45);
        }
        let x = axis.place(all.p50);
        svg.line((x, middle - 13.0), (x, middle + 13.0), INK, 2.0);
        let label = Style::LABEL.anchored(Anchor::End);
        for (x, value) in [(700.0, all.p50), (760.0, all.p90), (820.0, all.p99)] {
            svg.text(x, middle + 4.0, &number(value), label);
        }
    }
}
