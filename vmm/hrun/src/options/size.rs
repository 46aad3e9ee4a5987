//! Sizes such as `256m`, as docker writes them, and back again for people.

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid size {0:?}: give a number with b, k, m, g or t, such as 256m")]
pub(crate) struct SizeError(String);

/// Parses a size in bytes: a number, perhaps with a fraction, and a unit of 1024's powers (`b`,
/// `k`, `m`, `g`, `t`, in either case, with `b` or `ib` behind it if one likes). No unit is bytes.
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    let bad = || SizeError(text.into());
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let unit = 1u64 << shift;
    // Nine digits decide the byte of anything up to a GiB; more would overflow.
    let fraction = &fraction[..fraction.len().min(9)];
    let fraction_bytes = match fraction {
        "" => 0,
        digits => {
            let value: u128 = digits.parse().map_err(|_| bad())?;
            let scale = digits.bytes().fold(1u128, |scale, _| scale * 10);
            u64::try_from(value * u128::from(unit) / scale).map_err(|_| bad())?
        }
    };
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(fraction_bytes))
        .ok_or_else(bad)
}

/// A size for people: three digits at most and a unit, such as `4.1 MiB`.
pub(crate) fn format(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, in integers: a float would have to be cast back.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if whole >= 100 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("5b", 5),
            ("1k", 1 << 10),
            ("256m", 256 << 20),
            ("256M", 256 << 20),
            ("256MB", 256 << 20),
            ("256MiB", 256 << 20),
            ("1.5g", 3 << 29),
            ("0.25k", 256),
            ("2 g", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "m",
            "-1m",
            "1x",
            "1.2.3m",
            "1e3",
            "99999999999t",
            ".5m",
            "0x10",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (4 << 20, "4.0 MiB"),
            ((4 << 20) + (1 << 17), "4.1 MiB"),
            (256 << 20, "256 MiB"),
            (u64::MAX, "16383 PiB"),
        ] {
            assert_eq!(format(bytes), text);
        }
    }
}
