//! Numbers of tar headers: octal text, or base 256 where that does not reach.

/// The value of a numeric field; blank is 0.
pub(super) fn number(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement; bit 6 of the first byte is the sign. 12 bytes at most, so it fits.
        let start = if first & 0x40 == 0 {
            i128::from(first & 0x3f)
        } else {
            -1
        };
        return Some(
            rest.iter()
                .fold(start, |n, byte| (n << 8) | i128::from(*byte)),
        );
    }
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let text = field[..end].trim_ascii();
    text.iter().try_fold(0, |n: i128, digit| match digit {
        b'0'..=b'7' => Some(n * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_all_writers_are_read() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777"), Some(0o77_777_777));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(
            number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
            Some(-2)
        );
    }

    #[test]
    fn nonsense_is_not_a_number() {
        for field in [&b"0000648\0"[..], b"-1", b"+1", b"abc", b"1 2"] {
            assert_eq!(number(field), None);
        }
        assert_eq!(number(b""), None);
    }
}
