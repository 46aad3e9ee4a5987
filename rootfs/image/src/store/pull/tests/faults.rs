//! Connections that break, servers that have enough, ranges that are refused.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Changes the first `count` replies about `digest`.
fn at_first(
    count: usize,
    digest: &Digest,
    change: impl Fn(Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    let digest = digest.to_string();
    move |request, reply| {
        if request.path.ends_with(&digest) && seen.fetch_add(1, Ordering::Relaxed) < count {
            change(reply)
        } else {
            reply
        }
    }
}

fn cut(at: usize) -> impl Fn(Reply) -> Reply {
    move |mut reply| {
        reply.cut = Some(at);
        reply
    }
}

/// The beginnings of the ranges in which `digest` was asked for.
fn ranges(registry: &Registry, digest: &Digest) -> Vec<Option<usize>> {
    registry
        .take_blob_requests()
        .iter()
        .filter(|request| request.path.ends_with(digest.as_ref()))
        .map(Request::range)
        .collect()
}

#[test]
fn a_cut_connection_is_continued_where_it_ended() {
    let (layout, digest) = two_layers();
    let registry = Registry::serve(&layout, at_first(2, &digest, cut(100_000)));
    Bench::new().pull(&registry).unwrap();
    let ranges = ranges(&registry, &digest);
    assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn an_early_end_without_a_length_is_a_cut_too() {
    let (layout, digest) = two_layers();
    let early = |mut reply: Reply| {
        reply.has_length = false;
        reply.cut = Some(100_000);
        reply
    };
    let registry = Registry::serve(&layout, at_first(1, &digest, early));
    Bench::new().pull(&registry).unwrap();
    assert_eq!(ranges(&registry, &digest), [None, Some(100_000)]);
}

#[test]
fn the_download_of_a_killed_process_is_continued() {
    let (layout, digest) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    bench.leave(&digest, &blob_bytes(&layout, &digest)[..123_456]);
    bench.pull(&registry).unwrap();
    assert_eq!(ranges(&registry, &digest), [Some(123_456)]);
    assert!(bench.files("downloads").is_empty());
}

#[test]
fn a_complete_download_of_a_killed_process_is_not_repeated() {
    let (layout, digest) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let bench = Bench::new();
    bench.leave(&digest, blob_bytes(&layout, &digest));
    bench.pull(&registry).unwrap();
    assert_eq!(ranges(&registry, &digest), []);
}

#[test]
fn a_damaged_beginning_is_found_and_fetched_anew() {
    let (layout, digest) = two_layers();
    let bytes = blob_bytes(&layout, &digest);
    let mut flipped = bytes[..200_000].to_vec();
    flipped[1000] ^= 1;
    let longer = [bytes, b"and more"].concat();
    for (left, expected) in [(flipped, vec![Some(200_000), None]), (longer, vec![None])] {
        let registry = Registry::serve(&layout, honest);
        let bench = Bench::new();
        bench.leave(&digest, &left);
        bench.pull(&registry).unwrap();
        assert_eq!(ranges(&registry, &digest), expected);
    }
}

#[test]
fn a_server_that_refuses_ranges_sends_all_of_it_again() {
    let (layout, digest) = two_layers();
    let whole = blob_bytes(&layout, &digest).to_vec();
    type Refusal = fn(&[u8]) -> Reply;
    let refusals: [Refusal; 4] = [
        // It does not look at the range.
        |whole| Reply::new(200, whole),
        |_| Reply::new(416, ""),
        // It answers with another one.
        |whole| Reply::new(206, &whole[7..]).with("Content-Range", "bytes 7-99/100"),
        |whole| Reply::new(206, &whole[7..]),
    ];
    for refusal in refusals {
        let whole = whole.clone();
        let registry = Registry::serve(&layout, move |request, reply| {
            match (request.is_blob(), request.range()) {
                (true, Some(_)) => refusal(&whole),
                _ => reply,
            }
        });
        let bench = Bench::new();
        bench.leave(&digest, &blob_bytes(&layout, &digest)[..1000]);
        bench.pull(&registry).unwrap();
    }
}

#[test]
fn a_registry_that_never_gets_further_is_given_up() {
    let (layout, digest) = two_layers();
    let stuck = move |request: &Request, mut reply: Reply| {
        if request.path.ends_with(digest.as_ref()) {
            // Refuses ranges, and breaks off at the same place each time.
            reply = Reply::new(503, "").with("Retry-After", "0");
        }
        reply
    };
    let registry = Registry::serve(&layout, stuck);
    let err = Bench::new().refused(&registry);
    assert!(err.contains("503") && err.contains("blob sha256:"), "{err}");
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let (layout, digest) = two_layers();
    for status in [429, 500, 502, 503, 504] {
        let busy = move |_| Reply::new(status, "").with("Retry-After", "0");
        let registry = Registry::serve(&layout, at_first(3, &digest, busy));
        Bench::new().pull(&registry).unwrap();
        assert_eq!(ranges(&registry, &digest).len(), 4);
    }
}

#[test]
fn a_server_that_wants_a_long_pause_is_obeyed() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, |request, reply| {
        if request.path.contains("/manifests/") {
            return Reply::new(429, "").with("Retry-After", "3600");
        }
        reply
    });
    let err = Bench::new().refused(&registry);
    assert!(err.contains("3600 seconds"), "{err}");
}

#[test]
fn other_errors_are_told_at_once_with_the_registry_s_words() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, |request, reply| {
        if request.is_blob() {
            let said = r#"{"errors": [{"code": "X", "message": "out of order\u001b[0m"}]}"#;
            return Reply::new(418, said);
        }
        reply
    });
    let err = Bench::new().refused(&registry);
    assert!(
        err.contains("418") && err.contains(": out of order[0m"),
        "{err}"
    );
}
