//! The wire form, byte by byte. A failure here means that agents and hosts of two builds would
//! misread each other: raise `VERSION`, then write the new bytes down.

use agent_protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn golden<T>(message: &T, wire: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let frame = encode(message).unwrap();
    assert_eq!(hex(&frame), wire);
    let mut decoder = Decoder::new();
    decoder.feed(&frame);
    assert_eq!(decoder.next::<T>().unwrap().as_ref(), Some(message));
}

#[test]
fn version_is_the_one_these_bytes_belong_to() {
    assert_eq!(VERSION, 1);
}

#[test]
fn hello() {
    golden(
        &Hello {
            version: 1,
            agent: "0.1.0".into(),
            kernel: "6.12".into(),
            memory_total: 128 << 20,
            cpus: 2,
            started_us: 1000,
            ready_us: 2000,
        },
        "GOLDEN",
    );
}
