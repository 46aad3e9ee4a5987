//! What each idle container takes of the host's memory, and whose it is.

use super::{
    color,
    scale::Linear,
    svg::{Anchor, FAINT, INK, SOFT, Style, Svg},
    tick,
};
use crate::bench::{
    report::{Idle, Report},
    tables::host,
};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 640.0;
const ROW: f64 = 44.0;
const TOP: f64 = 122.0;
const MIB: f64 = 1048576.0;

/// What a bar consists of, with the strength of its color.
const PARTS: [(&str, &str, f64); 4] = [
    ("guest", "the guest", 1.0),
    ("vmm", "hrun-vmm's own", 0.65),
    ("front", "hrun run, crun run", 0.4),
    ("app", "the command", 0.2),
];

/// An arm: its name, how many containers, the MiB of each part, and the slope of MemAvailable.
struct Bar {
    arm: &'static str,
    count: usize,
    parts: Vec<(f64, f64)>,
    slope: Option<f64>,
}

pub(super) fn plot(report: &Report) -> Option<String> {
    let bars: Vec<Bar> = report
        .present()
        .filter_map(|arm| {
            let (most, none) = report.most_idle(arm)?;
            Some(bar(most, none, report.available_slope(arm)))
        })
        .collect();
    let widest = bars
        .iter()
        .flat_map(|bar| [bar.total(), bar.slope.unwrap_or(0.0)])
        .fold(0.0, f64::max);
    if bars.is_empty() {
        return None;
    }
    let axis = Linear::up_to(widest, LEFT, RIGHT);
    let bottom = TOP + bars.len() as f64 * ROW;
    let title = "Private memory of an idle container";
    let mut svg = Svg::new(WIDTH, bottom + 56.0, title, &host(report));
    legend(&mut svg);
    for value in axis.ticks() {
        let x = axis.place(value);
        svg.line((x, TOP), (x, bottom), FAINT, 1.0);
        svg.text(x, bottom + 16.0, &tick(value), Style::TICK);
    }
    let unit = Style::TICK.anchored(Anchor::Start);
    svg.text(RIGHT + 12.0, bottom + 16.0, "MiB", unit);
    for (row, bar) in bars.iter().enumerate() {
        draw(&mut svg, bar, axis, TOP + row as f64 * ROW);
    }
    Some(svg.finish())
}

impl Bar {
    fn total(&self) -> f64 {
        self.parts.iter().map(|(mib, _)| mib).sum()
    }
}

fn bar(most: &Idle, none: &Idle, slope: Option<f64>) -> Bar {
    let (now, before) = (most.memory.parts(), none.memory.parts());
    let of = |name: &str| {
        let find = |parts: &[(&str, crate::bench::processes::Share)]| {
            let found = parts.iter().find(|(part, _)| *part == name);
            found.map_or(0.0, |(_, share)| share.private_dirty as f64)
        };
        // Shared pages may move from one to another: less than nothing is nothing.
        ((find(&now) - find(&before)) / most.count as f64 / MIB).max(0.0)
    };
    Bar {
        arm: most.arm,
        count: most.count,
        parts: PARTS
            .iter()
            .map(|(name, _, opacity)| (of(name), *opacity))
            .collect(),
        slope: slope.map(|bytes| bytes / MIB),
    }
}

fn draw(svg: &mut Svg, bar: &Bar, axis: Linear, top: f64) {
    let middle = top + ROW / 2.0;
    let of = match bar.count {
        1 => "one container".into(),
        count => format!("each of {count}"),
    };
    svg.text(24.0, middle, bar.arm, Style::LABEL);
    svg.text(
        24.0,
        middle + 15.0,
        &of,
        Style::TICK.anchored(Anchor::Start),
    );
    let mut done = 0.0;
    for (mib, opacity) in &bar.parts {
        let (from, to) = (axis.place(done), axis.place(done + mib));
        let fill = format!("{}\" fill-opacity=\"{opacity}", color(bar.arm));
        svg.rect(from, middle - 12.0, to - from, 24.0, &fill);
        done += mib;
    }
    let mut end = axis.place(done);
    let mut text = format!("{:.1} MiB", bar.total());
    if let Some(slope) = bar.slope {
        let x = axis.place(slope.max(0.0));
        svg.line((x, middle - 17.0), (x, middle + 17.0), INK, 2.0);
        text.push_str(&format!(", slope {slope:.1}"));
        end = end.max(x);
    }
    svg.text(end + 8.0, middle + 4.0, &text, Style::LABEL);
}

fn legend(svg: &mut Svg) {
    let mut x = 24.0;
    for (_, text, opacity) in PARTS {
        let fill = format!("{}\" fill-opacity=\"{opacity}", color("pool"));
        svg.rect(x, 80.0, 14.0, 14.0, &fill);
        svg.text(x + 20.0, 91.5, text, Style::LABEL.colored(SOFT));
        x += 42.0 + text.len() as f64 * 7.2;
    }
    svg.line((x + 4.0, 77.0), (x + 4.0, 97.0), INK, 2.0);
    let style = Style::LABEL.colored(SOFT);
    svg.text(x + 12.0, 91.5, "slope of MemAvailable, all included", style);
}
