//! What is said on the pool's socket: JSON, one line for each request and each answer.
//!
//! ```text
//! {"request":"claim","class":{"cpus":1,"memory":268435456},"key":"5e..."}
//! {"answer":"vm","pid":4711,"template":"/...","monotonic_ns":5200000000}
//!                              with pidfd, channel and lifeline by SCM_RIGHTS
//! {"answer":"none","reason":"empty"}
//! ```
//!
//! This module does no I/O.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::class::PoolClass;

/// Longest request, in bytes, its newline included.
pub(super) const MAX_REQUEST: usize = 1024;

/// Longest answer, in bytes, its newline included: the status of as many classes as there may be.
pub(super) const MAX_ANSWER: usize = 64 << 10;

/// Descriptors that come with a VM: pidfd, channel and lifeline, in this order.
pub(super) const VM_FDS: usize = 3;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Request {
    /// A VM made from the template with this key and from no other.
    Claim { class: PoolClass, key: String },
    /// How things are.
    Status,
    /// Keep so many VMs of a class.
    Resize { class: PoolClass, size: usize },
    /// Keep none of any class; answered when those that waited are gone.
    Drain,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    /// A VM, in its descriptors. The number of its process is for people.
    Vm {
        pid: i32,
        #[serde(flatten)]
        of: CloneOf,
    },
    /// No VM.
    None { reason: Refusal },
    /// How things are.
    Status(Status),
    /// It is done.
    Done,
    /// It cannot be done, or was not understood.
    Failed { message: String },
}

/// What a VM is a clone of. The template that lies there by now may be a newer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CloneOf {
    /// Directory of the template, as the daemon knows it: its store need not be the claimer's.
    pub(crate) template: PathBuf,
    /// What the guest's monotonic clock showed when it was saved, in nanoseconds.
    pub(crate) monotonic_ns: u64,
}

/// Why a claim gets no VM. The claimer restores one from the template itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// VMs of this class are not kept.
    NotKept,
    /// One of this class is kept from now on.
    Learned,
    /// Those that are kept are made from another template: another kernel, another VMM...
    OtherTemplate,
    /// All of them are taken, or not loaded yet.
    Empty,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotKept => "the pool keeps no VMs of this class",
            Self::Learned => "the pool keeps one of this class from now on",
            Self::OtherTemplate => "the pool's VMs are made from another template",
            Self::Empty => "no VM of this class is ready in the pool",
        })
    }
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The daemon's process number.
    pub(crate) pid: u32,
    /// What all waiting VMs have to themselves, in bytes.
    pub(crate) waiting_memory: u64,
    /// What they may have.
    pub(crate) memory_limit: Option<u64>,
    /// Why there are fewer than there should be.
    pub(crate) held_back: Option<HeldBack>,
    /// One by one.
    pub(crate) classes: Vec<ClassStatus>,
}

/// How a class is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClassStatus {
    pub(crate) class: PoolClass,
    /// How many are to wait. None: it is listed because somebody asked for it.
    pub(crate) size: usize,
    /// Whether one is kept because it was asked for, until others are asked for more recently.
    pub(crate) learned: bool,
    /// How many wait.
    pub(crate) ready: usize,
    /// How many are being loaded.
    pub(crate) loading: usize,
    /// How many were handed out and live.
    pub(crate) running: usize,
    /// How many were handed out since the daemon began.
    pub(crate) claimed: u64,
    /// How many claims got none.
    pub(crate) missed: u64,
    /// What those that wait have to themselves, in bytes.
    pub(crate) waiting_memory: u64,
    /// Key of the template they are made from.
    pub(crate) template: Option<String>,
    /// What went wrong last, until one was well again.
    pub(crate) trouble: Option<String>,
}

/// Why a pool does not fill up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeldBack {
    /// One more VM would be more memory than the pool may have.
    MemoryLimit,
    /// The host has little memory left.
    HostMemory,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MemoryLimit => "one more VM would exceed the memory limit",
            Self::HostMemory => "the host is short of memory",
        })
    }
}

/// The line that says `message`.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("plain data has a JSON form");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Class;

    const CLASS: PoolClass = PoolClass::any(Class {
        cpus: 1,
        memory: 256 << 20,
    });

    fn status() -> Status {
        Status {
            pid: 7,
            waiting_memory: 4096,
            memory_limit: None,
            held_back: Some(HeldBack::HostMemory),
            classes: vec![ClassStatus {
                class: CLASS,
                size: 4,
                learned: false,
                ready: 1,
                loading: 0,
                running: 2,
                claimed: 3,
                missed: 5,
                waiting_memory: 4096,
                template: Some("5e".into()),
                trouble: None,
            }],
        }
    }

    /// The wire form: a daemon and a client of two builds must understand each other.
    #[test]
    fn requests_look_like_this() {
        for (request, text) in [
            (
                Request::Claim {
                    class: CLASS,
                    key: "5e".into(),
                },
                r#"{"request":"claim","class":{"cpus":1,"memory":268435456},"key":"5e"}"#,
            ),
            (Request::Status, r#"{"request":"status"}"#),
            (
                Request::Resize {
                    class: CLASS,
                    size: 2,
                },
                r#"{"request":"resize","class":{"cpus":1,"memory":268435456},"size":2}"#,
            ),
            (Request::Drain, r#"{"request":"drain"}"#),
        ] {
            assert_eq!(line(&request), format!("{text}\n").as_bytes());
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn answers_look_like_this() {
        let reason = |reason| Answer::None { reason };
        for (answer, text) in [
            (
                Answer::Vm {
                    pid: 7,
                    of: CloneOf {
                        template: "/t".into(),
                        monotonic_ns: 5,
                    },
                },
                r#"{"answer":"vm","pid":7,"template":"/t","monotonic_ns":5}"#,
            ),
            (
                reason(Refusal::NotKept),
                r#"{"answer":"none","reason":"not_kept"}"#,
            ),
            (
                reason(Refusal::Learned),
                r#"{"answer":"none","reason":"learned"}"#,
            ),
            (
                reason(Refusal::OtherTemplate),
                r#"{"answer":"none","reason":"other_template"}"#,
            ),
            (
                reason(Refusal::Empty),
                r#"{"answer":"none","reason":"empty"}"#,
            ),
            (
                Answer::Status(status()),
                concat!(
                    r#"{"answer":"status","pid":7,"waiting_memory":4096,"memory_limit":null,"#,
                    r#""held_back":"host_memory","classes":[{"class":{"cpus":1,"memory":268435456},"#,
                    r#""size":4,"learned":false,"ready":1,"loading":0,"running":2,"claimed":3,"missed":5,"#,
                    r#""waiting_memory":4096,"template":"5e","trouble":null}]}"#
                ),
            ),
            (Answer::Done, r#"{"answer":"done"}"#),
            (
                Answer::Failed {
                    message: "no".into(),
                },
                r#"{"answer":"failed","message":"no"}"#,
            ),
        ] {
            assert_eq!(line(&answer), format!("{text}\n").as_bytes());
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"request":"shutdown"}"#,
            r#"{"request":"claim"}"#,
            r#"{"request":"claim","class":{"cpus":-1,"memory":1},"key":""}"#,
            r#"{"request":"claim","class":{"cpus":256,"memory":1},"key":""}"#,
            r#"{"request":"resize","class":{"cpus":1,"memory":1},"size":-4}"#,
            r#"{"request":"resize","class":{"cpus":1,"memory":1},"size":1,"soon":true}"#,
            r#"{"request":"status"} {"request":"drain"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
