//! Frames between hrun and the agent: any bytes, in any chunks, as either side may receive them.
#![no_main]

use agent_protocol::{
    DecodeError, Decoder, Event, Hello, MAX_FRAME, Open, Request, VERSION, encode,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    // The first byte is the size of the chunks in which the rest arrives.
    let Some((&chunk, stream)) = data.split_first() else {
        return;
    };
    let chunk = usize::from(chunk) + 1;
    receive::<Open>(stream, chunk);
    receive::<Request>(stream, chunk);
    receive::<Event>(stream, chunk);
    receive::<Hello>(stream, chunk);
    greet(stream, chunk);
});

/// A greeting is either read whole, or named as one of another version, or refused; and what is
/// behind it is all there.
fn greet(stream: &[u8], chunk: usize) {
    let mut decoder = Decoder::new();
    let mut fed = 0;
    for chunk in stream.chunks(chunk) {
        decoder.feed(chunk);
        fed += chunk.len();
        match decoder.next_open() {
            Ok(None) => assert_eq!(decoder.buffered(), fed),
            Ok(Some(_)) => {
                let taken = fed - decoder.buffered();
                assert_eq!(decoder.into_rest(), stream[taken..fed]);
                break;
            }
            Err(_) => break,
        }
    }
    let mut decoder = Decoder::new();
    decoder.feed(stream);
    match decoder.next_hello() {
        Ok(Some(hello)) => assert_eq!(hello.version, VERSION),
        Err(DecodeError::Version(version)) => assert_ne!(version, VERSION),
        Ok(None) | Err(_) => {}
    }
}

fn receive<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    stream: &[u8],
    chunk: usize,
) {
    let mut decoder = Decoder::new();
    for chunk in stream.chunks(chunk) {
        decoder.feed(chunk);
        loop {
            match decoder.next::<T>() {
                Ok(Some(message)) => {
                    // What was understood can be said again and means the same.
                    let frame = encode(&message).expect("a message that fit a frame fits it again");
                    let mut again = Decoder::new();
                    again.feed(&frame);
                    assert_eq!(again.next::<T>().expect("our own frame"), Some(message));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(decoder.missing() <= MAX_FRAME + 4);
    }
}
