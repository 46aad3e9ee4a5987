//! Archives for tests, also such as no archiver would write.

pub(crate) mod layout;
pub(crate) mod registry;

use tar::Header;

const BLOCK: usize = 512;

/// A tar archive under construction.
#[derive(Default, Clone)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A directory, mode 0755.
    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", 0o755, b"")
    }

    /// A file, mode 0644.
    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path, "", 0o644, data)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, 0o644, b"")
    }

    /// PAX records for the entry that comes next.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n| rest + n.to_string().len() == *n).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', "PaxHeaders/x", "", 0o644, &data)
    }

    /// Any entry; owner 1000:1001, time 1234567890.
    pub(crate) fn entry(self, flag: u8, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        self.with_header(path, link, data, |header| {
            header.as_old_mut().linkflag[0] = flag;
            header.set_mode(mode);
        })
    }

    /// An entry whose header `change` completes.
    pub(crate) fn with_header(
        mut self,
        path: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        for (flag, name) in [(b'L', path), (b'K', link)] {
            if name.len() > 100 {
                let long = format!("{name}\0");
                self = self.entry(flag, "././@LongLink", "", 0, long.as_bytes());
            }
        }
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        let short = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
        old.name[..path.len().min(100)].copy_from_slice(&short(path));
        old.linkname[..link.len().min(100)].copy_from_slice(&short(link));
        old.linkflag[0] = b'0';
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_234_567_890);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}
