//! An SVG document, written by hand: a few shapes and texts, and axes.

use std::fmt::Write;

/// Ink for text, and lighter ones for what matters less.
pub(super) const INK: &str = "#1f2933";
pub(super) const SOFT: &str = "#616e7c";
pub(super) const FAINT: &str = "#e4e7eb";

/// A document under way.
#[derive(Debug)]
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text is in relation to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) size: f64,
    pub(super) color: &'static str,
    pub(super) bold: bool,
    pub(super) anchor: Anchor,
}

impl Style {
    pub(super) const LABEL: Self = Self {
        size: 13.0,
        color: INK,
        bold: false,
        anchor: Anchor::Start,
    };
    pub(super) const TICK: Self = Self {
        size: 11.0,
        color: SOFT,
        bold: false,
        anchor: Anchor::Middle,
    };

    pub(super) fn anchored(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    pub(super) fn colored(self, color: &'static str) -> Self {
        Self { color, ..self }
    }

    pub(super) fn bold(self) -> Self {
        Self { bold: true, ..self }
    }
}

impl Svg {
    /// A document with a title and a line below it.
    pub(super) fn new(width: f64, height: f64, title: &str, below: &str) -> Self {
        let mut svg = Self {
            width,
            height,
            body: String::new(),
        };
        let heading = Style {
            size: 18.0,
            bold: true,
            ..Style::LABEL
        };
        svg.text(24.0, 34.0, title, heading);
        svg.text(24.0, 54.0, below, Style::LABEL.colored(SOFT).small());
        svg
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        // A negative size is an error to SVG; nothing is nothing.
        let (width, height) = (width.max(0.0), height.max(0.0));
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{color}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    /// A dot, through which others are seen.
    pub(super) fn dot(&mut self, x: f64, y: f64, radius: f64, fill: &str, opacity: f64) {
        let _ = writeln!(
            self.body,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="{fill}" fill-opacity="{opacity}"/>"#
        );
    }

    pub(super) fn text(&mut self, x: f64, y: f64, text: &str, style: Style) {
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.bold { "600" } else { "400" };
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{}" font-weight="{weight}" fill="{}" text-anchor="{anchor}">{}</text>"#,
            style.size,
            style.color,
            escape(text)
        );
    }

    /// The whole document.
    pub(super) fn finish(self) -> String {
        let Self {
            width,
            height,
            body,
        } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" \
             font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

impl Style {
    fn small(self) -> Self {
        Self { size: 12.0, ..self }
    }
}

/// Text from images and hosts, made harmless for XML.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_out() {
        let mut svg = Svg::new(100.0, 100.0, "a <b> & \"c\"", "\u{1b}[0m");
        svg.rect(0.0, 0.0, -5.0, 1.0, INK);
        let text = svg.finish();
        assert!(text.contains("a &lt;b&gt; &amp; &quot;c&quot;"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("width=\"-"));
    }
}
