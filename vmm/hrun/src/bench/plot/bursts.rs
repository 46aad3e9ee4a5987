//! Starts per second, by the number of starts at once.

use super::{
    color,
    scale::Log,
    svg::{Anchor, FAINT, SOFT, Style, Svg},
    tick,
};
use crate::bench::{
    report::Report,
    stats::Summary,
    tables::{host, number},
};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 660.0;
const TOP: f64 = 100.0;
const BOTTOM: f64 = 370.0;
/// Labels at the end of lines do not come closer than this.
const LABEL: f64 = 18.0;

/// Starts per second of an arm, by the place of their number on the axis.
type Line = (&'static str, Vec<(usize, f64)>);

pub(super) fn plot(report: &Report) -> Option<String> {
    let mut counts = report.plan.at_once.clone();
    counts.sort_unstable();
    counts.dedup();
    let rate = |arm: &str, count: usize| {
        let bursts = report.bursts(arm, count);
        let rates = bursts
            .iter()
            .map(|burst| burst.count as f64 * 1000.0 / burst.all_ms);
        Summary::of(rates).map(|all| all.p50)
    };
    let lines: Vec<Line> = report
        .present()
        .map(|arm| {
            let points = counts.iter().enumerate();
            let points = points.filter_map(|(place, &count)| Some((place, rate(arm, count)?)));
            (arm, points.collect())
        })
        .filter(|(_, points): &Line| !points.is_empty())
        .collect();
    let all = lines
        .iter()
        .flat_map(|(_, points)| points.iter().map(|(_, rate)| *rate));
    let axis = Log::over(all, BOTTOM, TOP)?;
    let mut svg = Svg::new(WIDTH, HEIGHT, "Starts per second", &host(report));
    let step = (RIGHT - LEFT) / counts.len() as f64;
    let x = |place: usize| LEFT + (place as f64 + 0.5) * step;
    for value in axis.ticks() {
        let y = axis.place(value);
        svg.line((LEFT, y), (RIGHT, y), FAINT, 1.0);
        let style = Style::TICK.anchored(Anchor::End);
        svg.text(LEFT - 10.0, y + 4.0, &tick(value), style);
    }
    for (place, count) in counts.iter().enumerate() {
        svg.text(x(place), BOTTOM + 20.0, &count.to_string(), Style::TICK);
    }
    let below = Style::LABEL.colored(SOFT).anchored(Anchor::Middle);
    let middle = f64::midpoint(LEFT, RIGHT);
    svg.text(middle, BOTTOM + 44.0, "starts at the same moment", below);
    for (arm, points) in &lines {
        for pair in points.windows(2) {
            let [from, to] = [pair[0], pair[1]].map(|(place, rate)| (x(place), axis.place(rate)));
            svg.line(from, to, color(arm), 2.5);
        }
        for (place, rate) in points {
            svg.dot(x(*place), axis.place(*rate), 4.5, color(arm), 1.0);
        }
    }
    labels(&mut svg, &lines, axis, &x);
    Some(svg.finish())
}

/// The name and the last value of each line at its end, moved apart where they would overlap.
fn labels(svg: &mut Svg, lines: &[Line], axis: Log, x: &impl Fn(usize) -> f64) {
    let mut ends: Vec<_> = lines
        .iter()
        .filter_map(|(arm, points)| {
            let &(place, rate) = points.last()?;
            Some((axis.place(rate), *arm, place, rate))
        })
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = f64::NEG_INFINITY;
    for (y, arm, place, rate) in ends {
        let y = y.max(free);
        free = y + LABEL;
        let text = format!("{arm} {}/s", number(rate));
        svg.text(x(place) + 12.0, y + 4.0, &text, Style::LABEL);
    }
}
