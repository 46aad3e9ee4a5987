//! Tables for people: columns as wide as they must be, three spaces between them.

/// Renders a head and rows, each line ended.
pub(crate) fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(head.iter().map(|cell| (*cell).into()).collect())
        .chain(
            rows.iter()
                .map(|row| row.iter().map(|cell| printable(cell)).collect()),
        )
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Text from images and guests, made harmless for a terminal: control characters are shown as
/// their escapes.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// A number of seconds ago, as docker says it.
pub(crate) fn ago(seconds: u64) -> String {
    format!("{} ago", span(seconds))
}

/// A number of seconds, as docker says it: one unit, rounded down.
pub(crate) fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (365 * 86400, "year"),
        (30 * 86400, "month"),
        (86400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    let (count, unit) = UNITS
        .into_iter()
        .find(|(length, _)| seconds >= *length)
        .map_or((seconds, "second"), |(length, unit)| {
            (seconds / length, unit)
        });
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_where_the_text_does() {
        let rows = [
            vec!["a".to_owned(), "bbbbb".into(), String::new()],
            vec!["ccc".into(), "d".into(), "e".into()],
        ];
        assert_eq!(
            render(&["X", "YY", "Z"], &rows),
            "X     YY      Z\na     bbbbb\nccc   d       e\n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jü\n"), "a\\u{1b}[2Jü\\n");
        assert!(!render(&["X"], &[vec!["\x1b]0;x\x07".into()]]).contains('\x1b'));
    }

    #[test]
    fn times_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "0 seconds ago"),
            (1, "1 second ago"),
            (119, "1 minute ago"),
            (7200, "2 hours ago"),
            (86400 * 45, "1 month ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
    }
}
