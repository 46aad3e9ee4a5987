use std::sync::Arc;

use super::*;
use crate::rotated::Reader;

fn options(max_size: u64, max_files: u32) -> LogOptions {
    LogOptions {
        max_size,
        max_files,
    }
}

fn all(reader: &mut Reader) -> Vec<(String, String)> {
    std::iter::from_fn(|| reader.next::<Entry>().unwrap())
        .map(|entry| (entry.stream, entry.log))
        .collect()
}

fn pair(stream: &str, log: &str) -> (String, String) {
    (stream.into(), log.into())
}

#[test]
fn output_is_kept_line_by_line_with_its_stream_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), LogOptions::default()).unwrap());
    let mut out = LogStream::new(Arc::clone(&log), "stdout");
    let mut err = LogStream::new(log, "stderr");
    let before = time::now_ns();
    out.write(b"one\ntw");
    err.write(b"no \xff\n");
    out.write(b"o\nend");
    drop(out);
    let mut reader = Reader::open(dir.path(), FILE, false).unwrap();
    let first: Entry = reader.next().unwrap().unwrap();
    assert!((before..=time::now_ns()).contains(&first.time_ns()));
    assert_eq!(first.log, "one\n");
    assert_eq!(
        all(&mut reader),
        [
            pair("stderr", "no \u{fffd}\n"),
            pair("stdout", "two\n"),
            pair("stdout", "end")
        ]
    );
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), LogOptions::default()).unwrap());
    let mut out = LogStream::new(log, "stdout");
    out.write(&vec![b'\0'; MAX_LINE * 2 + 5]);
    assert_eq!(out.line.len(), 5);
    drop(out);
    let mut reader = Reader::open(dir.path(), FILE, false).unwrap();
    let lengths: Vec<usize> = all(&mut reader).iter().map(|(_, log)| log.len()).collect();
    assert_eq!(lengths, [MAX_LINE, MAX_LINE, 5]);
}

#[test]
fn files_are_rotated_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), options(1000, 3)).unwrap());
    let mut out = LogStream::new(log, "stdout");
    for number in 0..100 {
        out.write(format!("line {number}\n").as_bytes());
    }
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    files.sort_by_key(fs::DirEntry::file_name);
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(file.metadata().unwrap().len() <= 1000);
    }
    let lines = all(&mut Reader::open(dir.path(), FILE, false).unwrap());
    assert_eq!(lines.last(), Some(&pair("stdout", "line 99\n")));
    let first = 100 - lines.len();
    assert!(first > 0 && lines[0] == pair("stdout", &format!("line {first}\n")));
}

#[test]
fn one_file_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), options(200, 1)).unwrap());
    let mut out = LogStream::new(log, "stdout");
    for number in 0..20 {
        out.write(format!("line {number}\n").as_bytes());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let lines = all(&mut Reader::open(dir.path(), FILE, false).unwrap());
    assert_eq!(lines.last(), Some(&pair("stdout", "line 19\n")));
}

#[test]
fn a_reader_follows_through_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::open(dir.path(), options(300, 10)).unwrap());
    let mut out = LogStream::new(log, "stdout");
    let mut reader = Reader::open(dir.path(), FILE, true).unwrap();
    for number in 0..20 {
        out.write(format!("{number}\n").as_bytes());
        reader
            .wait(std::time::Instant::now() + std::time::Duration::from_secs(10))
            .unwrap();
        assert_eq!(all(&mut reader), [pair("stdout", &format!("{number}\n"))]);
    }
}

#[test]
fn half_a_line_does_not_spoil_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), "{\"log\":\"hal").unwrap();
    let log = Arc::new(Log::open(dir.path(), LogOptions::default()).unwrap());
    LogStream::new(log, "stdout").write(b"whole\n");
    let lines = all(&mut Reader::open(dir.path(), FILE, false).unwrap());
    assert_eq!(lines, [pair("stdout", "whole\n")]);
}

#[test]
fn options_are_dockers() {
    let parse = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).into()).collect();
        LogOptions::parse(&words)
    };
    assert_eq!(parse(&[]), Ok(LogOptions::default()));
    assert_eq!(
        parse(&["max-size=1m", "max-file=5"]),
        Ok(options(1 << 20, 5))
    );
    assert_eq!(parse(&["max-size=-1"]).unwrap().max_size, u64::MAX);
    for bad in ["", "max-size", "max-size=x", "max-file=0", "tag=x"] {
        assert!(parse(&[bad]).is_err(), "{bad}");
    }
}
