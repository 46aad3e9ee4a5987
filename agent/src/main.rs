//! `/init` of the guest.
#![forbid(unsafe_code)]

fn main() {
    agent::run();
}
