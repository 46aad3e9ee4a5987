use std::io::Read;

use super::*;

fn archive(bytes: &[u8]) -> Archive<Stream<&[u8]>> {
    Archive::new(Stream(bytes), 1 << 16)
}

fn header(flag: u8, path: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkflag[0] = flag;
    header.set_mode(0o100_644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_cksum();
    header
}

fn append(to: &mut Vec<u8>, header: &Header, data: &[u8]) {
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(data);
    to.resize(to.len().next_multiple_of(BLOCK), 0);
}

fn contents(archive: &mut Archive<Stream<&[u8]>>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let piece = archive.data().unwrap();
        if piece.is_empty() {
            return all;
        }
        all.extend_from_slice(piece);
        let n = piece.len();
        archive.consume(n);
    }
}

#[test]
fn entries_come_in_order_with_their_data() {
    let mut bytes = Vec::new();
    append(&mut bytes, &header(b'5', "dir/", 0), b"");
    append(&mut bytes, &header(b'0', "dir/a", 3), b"abc");
    append(&mut bytes, &header(b'0', "skipped", 600), &[7; 600]);
    append(&mut bytes, &header(b'0', "last", 1), b"z");
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    let mut archive = archive(&bytes);
    let dir = archive.next_entry().unwrap().unwrap();
    assert_eq!(
        (dir.kind, dir.path.as_slice()),
        (Kind::Directory, &b"dir/"[..])
    );
    let a = archive.next_entry().unwrap().unwrap();
    assert_eq!(
        (a.kind, a.mode, a.uid, a.gid, a.size),
        (Kind::Regular, 0o644, 1, 2, 3)
    );
    assert_eq!(
        a.mtime,
        Timestamp {
            seconds: 3,
            nanoseconds: 0
        }
    );
    assert_eq!(contents(&mut archive), b"abc");
    archive.next_entry().unwrap().unwrap();
    assert_eq!(archive.next_entry().unwrap().unwrap().path, b"last");
    assert_eq!(contents(&mut archive), b"z");
    assert!(archive.next_entry().unwrap().is_none());
}

#[test]
fn long_names_and_pax_records_describe_the_next_entry() {
    let long = "n".repeat(300);
    let mut bytes = Vec::new();
    append(
        &mut bytes,
        &header(b'L', "././@LongLink", 301),
        format!("{long}\0").as_bytes(),
    );
    append(&mut bytes, &header(b'0', "short", 0), b"");
    let mut pax = Vec::new();
    for (key, value) in [
        ("path", &b"other\nname"[..]),
        ("SCHILY.xattr.user.x", b"\n\0"),
    ] {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|n| rest + n.to_string().len() == *n).unwrap();
        pax.extend_from_slice(format!("{length} {key}=").as_bytes());
        pax.extend_from_slice(value);
        pax.push(b'\n');
    }
    append(&mut bytes, &header(b'x', "pax", pax.len() as u64), &pax);
    append(&mut bytes, &header(b'0', "short", 0), b"");
    let mut archive = archive(&bytes);
    assert_eq!(archive.next_entry().unwrap().unwrap().path, long.as_bytes());
    let entry = archive.next_entry().unwrap().unwrap();
    assert_eq!(entry.path, b"other\nname");
    assert_eq!(entry.xattrs, [(b"user.x".to_vec(), b"\n\0".to_vec())]);
    assert!(archive.next_entry().unwrap().is_none());
}

#[test]
fn damaged_archives_are_errors() {
    let mut good = Vec::new();
    append(&mut good, &header(b'0', "a", 600), &[1; 600]);
    let truncated = &good[..BLOCK + 100];
    let mut reading = archive(truncated);
    reading.next_entry().unwrap().unwrap();
    assert!(reading.next_entry().is_err());
    assert!(archive(&good[..100]).next_entry().is_err());

    let mut flipped = good.clone();
    flipped[0] = b'b';
    assert!(matches!(
        archive(&flipped).next_entry(),
        Err(ArchiveError::Header { .. })
    ));

    let mut dangling = Vec::new();
    append(&mut dangling, &header(b'L', "x", 3), b"abc");
    assert!(archive(&dangling).next_entry().is_err());

    let mut after_end = vec![0; BLOCK];
    after_end.extend_from_slice(&good);
    assert!(archive(&after_end).next_entry().is_err());

    let mut huge = Vec::new();
    append(&mut huge, &header(b'x', "x", 1 << 40), b"");
    assert!(matches!(
        archive(&huge).next_entry(),
        Err(ArchiveError::ExtensionTooLong { .. })
    ));
}

#[test]
fn entries_without_data_have_none_whatever_their_size() {
    let mut bytes = Vec::new();
    append(&mut bytes, &header(b'2', "link", 512), b"");
    append(&mut bytes, &header(b'0', "next", 0), b"");
    let mut archive = archive(&bytes);
    assert_eq!(archive.next_entry().unwrap().unwrap().size, 0);
    assert_eq!(archive.next_entry().unwrap().unwrap().path, b"next");
}

#[test]
fn a_size_near_the_end_of_numbers_is_an_error_not_a_loop() {
    let mut bytes = Vec::new();
    append(&mut bytes, &header(b'0', "a", u64::MAX), b"");
    let mut archive = archive(&bytes);
    let entry = archive.next_entry();
    assert!(entry.is_err() || archive.next_entry().is_err());
}

#[test]
fn sparse_files_of_gnu_tar_have_their_segments() {
    let mut sparse = header(b'S', "sparse", 6);
    let gnu = sparse.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(3);
    gnu.sparse[1].set_offset(4096);
    gnu.sparse[1].set_length(3);
    gnu.set_real_size(10_000);
    sparse.set_cksum();
    let mut bytes = Vec::new();
    append(&mut bytes, &sparse, b"abcdef");
    let mut old = archive(&bytes);
    let entry = old.next_entry().unwrap().unwrap();
    assert_eq!(entry.size, 10_000);
    let expected = [
        Segment {
            offset: 0,
            length: 3,
        },
        Segment {
            offset: 4096,
            length: 3,
        },
    ];
    assert_eq!(entry.segments.as_deref(), Some(&expected[..]));
    assert_eq!(contents(&mut old), b"abcdef");

    let pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
        27 GNU.sparse.name=sparse2\n31 GNU.sparse.realsize=0010000\n";
    let mut map = b"2\n0\n3\n4096\n3\n".to_vec();
    map.resize(BLOCK, 0);
    map.extend_from_slice(b"abcdef");
    let mut bytes = Vec::new();
    append(&mut bytes, &header(b'x', "pax", pax.len() as u64), pax);
    append(
        &mut bytes,
        &header(b'0', "GNUSparseFile.0/x", map.len() as u64),
        &map,
    );
    append(&mut bytes, &header(b'0', "next", 0), b"");
    let mut new = archive(&bytes);
    let entry = new.next_entry().unwrap().unwrap();
    assert_eq!(
        (entry.path.as_slice(), entry.size),
        (&b"sparse2"[..], 10_000)
    );
    assert_eq!(entry.segments.as_deref(), Some(&expected[..]));
    assert_eq!(contents(&mut new), b"abcdef");
    assert_eq!(new.next_entry().unwrap().unwrap().path, b"next");
}

#[test]
fn the_stream_is_not_read_beyond_the_end_marker() {
    let mut bytes = vec![0; 2 * BLOCK];
    bytes.extend_from_slice(b"trailer");
    let mut archive = archive(&bytes);
    assert!(archive.next_entry().unwrap().is_none());
    let mut rest = String::new();
    archive.input.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "trailer");
}
