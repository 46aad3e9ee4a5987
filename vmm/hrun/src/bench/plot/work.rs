//! What work costs in each arm, against the same in a namespace container.

use super::{
    color,
    scale::Log,
    svg::{Anchor, FAINT, SOFT, Style, Svg},
    tick,
};
use crate::bench::{
    report::Report,
    tables::{host, number},
    work::{WORKS, Work},
};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 820.0;
const ROW: f64 = 42.0;
const TOP: f64 = 122.0;

/// Arms that may be the measure of the others.
const YARDSTICKS: [&str; 2] = ["crun", "runc"];

/// A kind of work, its rate with the yardstick, and how many times as fast each arm is.
type Row = (&'static Work, f64, Vec<(&'static str, f64)>);

pub(super) fn plot(report: &Report) -> Option<String> {
    let arms: Vec<&'static str> = report.present().collect();
    let yardstick = YARDSTICKS
        .into_iter()
        .chain(arms.first().copied())
        .find(|arm| report.work.iter().any(|sample| sample.arm == *arm))?;
    let rows: Vec<Row> = WORKS
        .iter()
        .filter_map(|work| {
            let base = report.rate(yardstick, work.name)?;
            let rate = |arm: &&'static str| Some((*arm, report.rate(arm, work.name)? / base));
            Some((work, base, arms.iter().filter_map(rate).collect()))
        })
        .collect();
    let all = rows
        .iter()
        .flat_map(|(_, _, rates)| rates.iter().map(|(_, rate)| *rate));
    let axis = Log::over(all, LEFT, RIGHT)?;
    let bottom = TOP + rows.len() as f64 * ROW;
    let title = format!("Speed of work in a container; {yardstick} is 1");
    let mut svg = Svg::new(WIDTH, bottom + 50.0, &title, &host(report));
    let mut x = 24.0;
    for arm in &arms {
        svg.dot(x + 6.0, 88.0, 6.0, color(arm), 0.85);
        svg.text(x + 18.0, 92.5, arm, Style::LABEL);
        x += 46.0 + arm.len() as f64 * 7.0;
    }
    for value in axis.ticks() {
        let x = axis.place(value);
        let color = if (value - 1.0).abs() < 1e-9 {
            SOFT
        } else {
            FAINT
        };
        svg.line((x, TOP), (x, bottom), color, 1.0);
        svg.text(x, bottom + 16.0, &tick(value), Style::TICK);
    }
    let end = Style::TICK.anchored(Anchor::End);
    svg.text(RIGHT, bottom + 36.0, "times as fast, logarithmic", end);
    for (row, (work, base, rates)) in rows.iter().enumerate() {
        let middle = TOP + (row as f64 + 0.5) * ROW;
        svg.line((LEFT, middle), (RIGHT, middle), FAINT, 1.0);
        svg.text(24.0, middle, work.name, Style::LABEL);
        let below = format!("1 = {} {}", number(*base), work.unit);
        svg.text(
            24.0,
            middle + 15.0,
            &below,
            Style::TICK.anchored(Anchor::Start),
        );
        for (place, (arm, rate)) in rates.iter().enumerate() {
            // A little apart, so that equals are all seen.
            let lane = (place as f64 - (rates.len() - 1) as f64 / 2.0) * 4.0;
            svg.dot(axis.place(*rate), middle + lane, 6.0, color(arm), 0.85);
        }
    }
    Some(svg.finish())
}
