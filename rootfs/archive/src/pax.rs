//! PAX extended header records: `LENGTH KEY=VALUE\n`, the length counting the whole record.

use super::sparse::{PaxSparse, Segment};

pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// A modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Since the Unix epoch.
    pub seconds: i64,
    /// 0 to 999,999,999, added to the seconds.
    pub nanoseconds: u32,
}

/// What a PAX header says about the entry after it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("a PAX record is malformed")?;
            pax.set(key, value)?;
            bytes = rest;
        }
        Ok(pax)
    }

    /// Of two records with one key the later counts; an empty value takes the key back.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = Some(decimal(value).ok_or("PAX size")?),
            b"uid" => self.uid = Some(decimal(value).ok_or("PAX uid")?),
            b"gid" => self.gid = Some(decimal(value).ok_or("PAX gid")?),
            b"mtime" => self.mtime = Some(timestamp(value).ok_or("PAX mtime")?),
            b"GNU.sparse.major" => {
                self.sparse.major = Some(decimal(value).ok_or("GNU.sparse.major")?);
            }
            b"GNU.sparse.name" => self.sparse.path = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = Some(decimal(value).ok_or("GNU.sparse.realsize")?);
            }
            b"GNU.sparse.map" => {
                self.sparse.segments = segments(value).ok_or("GNU.sparse.map")?;
            }
            b"GNU.sparse.offset" => {
                let offset = decimal(value).ok_or("GNU.sparse.offset")?;
                self.sparse.segments.push(Segment { offset, length: 0 });
            }
            b"GNU.sparse.numbytes" => {
                let length = decimal(value).ok_or("GNU.sparse.numbytes")?;
                self.sparse
                    .segments
                    .last_mut()
                    .ok_or("GNU.sparse.numbytes")?
                    .length = length;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    if name.is_empty() || name.contains(&0) {
                        return Err("an extended attribute has no valid name");
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Splits off the first record: key, value, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (line, rest) = bytes.split_at_checked(length)?;
    let line = line.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|b| *b == b'=')?;
    let (key, value) = (&line[..equals], &line[equals + 1..]);
    (!key.is_empty()).then_some((key, value, rest))
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a PAX path has a NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, digit| match digit {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `-12.5` is 12.5 seconds before the epoch.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|b| *b == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = fraction
        .iter()
        .chain(std::iter::repeat(&b'0'))
        .take(9)
        .fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

/// `offset,length,offset,length...`
fn segments(value: &[u8]) -> Option<Vec<Segment>> {
    let numbers: Vec<u64> = value
        .split(|b| *b == b',')
        .map(decimal)
        .collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| {
        pairs
            .iter()
            .map(|&[offset, length]| Segment { offset, length })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bounded_by_length_not_by_newline() {
        let pax = Pax::parse(b"31 SCHILY.xattr.user.nl=a\nb=c\n\n15 uid=1000000\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.nl".to_vec(), b"a\nb=c\n".to_vec())]);
        assert_eq!(pax.uid, Some(1_000_000));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"6 abcd\n",
            b"5 =b\n",
            b"x a=b\n",
            b"3 a=b\n",
            b"0 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"12 path=a\0b\n",
            b"9 uid=-1\n",
            b"17 SCHILY.xattr.=\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        let time = |text: &str| timestamp(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.000000001"), Some((12, 1)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time("-12"), Some((-12, 0)));
        assert_eq!(time("-12.25"), Some((-13, 750_000_000)));
        assert_eq!(time("1e9"), None);
        assert_eq!(time(".5"), None);
    }
}
