//! Moments as text: RFC 3339 in UTC, and the ways in which docker's users name one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: i64 = 86400;

/// Text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Invalid time {0:?}: give one such as 2026-01-31T12:00:00Z, seconds since the Unix epoch, or \
     how long ago, such as 10m or 1h30m"
)]
pub(crate) struct TimeError(String);

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| {
        i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
    })
}

/// A moment, in nanoseconds since the Unix epoch, to its last digit.
pub(crate) fn format_ns(ns: i64) -> String {
    let (seconds, fraction) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let second = seconds.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// A moment, in seconds since the Unix epoch.
pub(crate) fn format_seconds(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    format_ns(seconds.saturating_mul(1_000_000_000)).replace(".000000000Z", "Z")
}

/// Reads what a user gave: RFC 3339, a date, seconds since the epoch, or a duration before `now`.
pub(crate) fn parse(text: &str, now: i64) -> Result<i64, TimeError> {
    seconds(text)
        .or_else(|| rfc3339(text))
        .or_else(|| {
            let ago = i64::try_from(duration(text)?.as_nanos()).ok()?;
            Some(now.saturating_sub(ago))
        })
        .ok_or_else(|| TimeError(text.into()))
}

/// Seconds since the epoch, with a fraction if wanted.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || !whole.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let whole = whole.parse::<i64>().ok()?.checked_mul(1_000_000_000)?;
    whole.checked_add(nanoseconds(fraction)?)
}

fn nanoseconds(fraction: &str) -> Option<i64> {
    if !fraction.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(9)];
    format!("{digits:0<9}").parse().ok()
}

/// A duration such as `1h30m`, `90s`, `1.5h` or `100ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[end..];
        total += number * unit;
    }
    Duration::try_from_secs_f64(total).ok()
}

/// `2026-01-31`, with a time behind it if wanted; without an offset it is UTC.
pub(crate) fn rfc3339(text: &str) -> Option<i64> {
    if !text.is_ascii() {
        return None;
    }
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let midnight = days.checked_mul(DAY)?;
    let Some(rest) = rest.strip_prefix(['T', 't', ' ']) else {
        return rest
            .is_empty()
            .then_some(())
            .and_then(|()| midnight.checked_mul(1_000_000_000));
    };
    let zone = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(zone);
    let offset = match zone {
        "" | "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            sign * (number(hours)? * 3600 + number(minutes)? * 60)
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second = parts.next().map_or(Some(0), number)?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    (midnight + hour * 3600 + minute * 60 + second - offset)
        .checked_mul(1_000_000_000)?
        .checked_add(nanoseconds(fraction)?)
}

fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// The date of a number of days since 1970-01-01: years of 400 repeat, and begin in March here, so
/// that the leap day is their last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// The reverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march = (month + 9) % 12;
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn moments_are_written_and_read_back() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400 * SECOND + 5, "2000-02-29T00:00:00.000000005Z"),
            (1_767_225_599 * SECOND, "2025-12-31T23:59:59.000000000Z"),
            (-SECOND, "1969-12-31T23:59:59.000000000Z"),
        ] {
            assert_eq!(format_ns(ns), text);
            assert_eq!(rfc3339(text), Some(ns));
        }
        assert_eq!(format_seconds(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn every_day_of_four_centuries_is_its_own() {
        for day in 0..146_097 {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
    }

    #[test]
    fn users_name_moments_in_many_ways() {
        let now = 1_000_000 * SECOND;
        for (text, ns) in [
            ("0", 0),
            ("1.5", SECOND * 3 / 2),
            ("10m", now - 600 * SECOND),
            ("1h30m", now - 5400 * SECOND),
            ("500ms", now - SECOND / 2),
            ("1970-01-02", DAY * SECOND),
            ("1970-01-01T01:00", 3600 * SECOND),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:00.25Z", SECOND / 4),
        ] {
            assert_eq!(parse(text, now), Ok(ns), "{text}");
        }
        for text in [
            "",
            "x",
            "-1",
            "10",
            "1970-02-30",
            "1970-01-01T24:00",
            "10q",
            "é",
        ] {
            let parsed = parse(text, now);
            assert!(text == "10" || parsed.is_err(), "{text}: {parsed:?}");
        }
    }
}
