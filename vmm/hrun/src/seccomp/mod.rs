//! Profiles of system calls, as the OCI runtime specification and docker have them, compiled for the
//! guest's kernel.
//!
//! Boundary: what a profile says is here, the kernel's program is made by `program`.

mod program;

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use agent_protocol::SeccompFilter as Program;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use serde::Deserialize;
use syscalls::x86_64::Sysno;

use self::program::{Answer, Condition, Table, Test, TooLong};
use crate::options::capability;

/// What an ERRNO action answers if nothing else is said.
const EPERM: u32 = 1;

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// Its file cannot be read.
    #[error("Failed to read seccomp profile {path}")]
    Read { path: PathBuf, source: io::Error },
    /// It is no JSON of this form.
    #[error("Failed to parse seccomp profile {name}")]
    Parse {
        name: String,
        source: serde_json::Error,
    },
    /// An action is unknown, or not to be had.
    #[error("Seccomp profile: action {0:?} is not supported")]
    Action(String),
    /// A comparison is unknown.
    #[error("Seccomp profile: comparison {0:?} is not supported")]
    Operator(String),
    /// A system call has six.
    #[error("Seccomp profile: a system call has no argument {0}")]
    Argument(u8),
    /// It is longer than a filter can be.
    #[error(transparent)]
    Length(#[from] TooLong),
}

/// A profile: the OCI specification's `linux.seccomp`, and what docker's files have beyond that.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// Docker's old form.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    /// Docker's: the rule counts only if all of this holds...
    #[serde(default)]
    includes: Conditions,
    /// ...and none of this.
    #[serde(default)]
    excludes: Conditions,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl From<&LinuxSeccomp> for Profile {
    fn from(seccomp: &LinuxSeccomp) -> Self {
        let argument = |asked: &LinuxSeccompArg| Argument {
            // Whatever it is, it is none of six.
            index: u8::try_from(asked.index()).unwrap_or(u8::MAX),
            value: asked.value(),
            value_two: asked.value_two().unwrap_or(0),
            op: asked.op().to_string(),
        };
        let rule = |asked: &LinuxSyscall| Rule {
            names: asked.names().clone(),
            name: None,
            action: asked.action().to_string(),
            errno_ret: asked.errno_ret(),
            args: asked
                .args()
                .as_ref()
                .map(|args| args.iter().map(argument).collect()),
            includes: Conditions::default(),
            excludes: Conditions::default(),
        };
        Self {
            default_action: seccomp.default_action().to_string(),
            default_errno_ret: seccomp.default_errno_ret(),
            syscalls: seccomp.syscalls().iter().flatten().map(rule).collect(),
        }
    }
}

impl Conditions {
    fn hold(&self, capabilities: u64) -> bool {
        self.caps.iter().all(|name| has(name, capabilities))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| is_ours(arch)))
    }

    fn any_holds(&self, capabilities: u64) -> bool {
        self.caps.iter().any(|name| has(name, capabilities))
            || self.arches.iter().any(|arch| is_ours(arch))
    }
}

fn has(name: &str, capabilities: u64) -> bool {
    capability::parse(name).is_ok_and(|bit| capabilities & bit == bit)
}

fn is_ours(arch: &str) -> bool {
    matches!(arch, "amd64" | "x86_64" | "SCMP_ARCH_X86_64")
}

impl Profile {
    /// Reads a file, docker's or a part of an OCI specification.
    pub(crate) fn read(path: PathBuf) -> Result<Self, SeccompError> {
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&path.display().to_string(), &bytes),
            Err(source) => Err(SeccompError::Read { path, source }),
        }
    }

    pub(crate) fn parse(name: &str, json: &[u8]) -> Result<Self, SeccompError> {
        serde_json::from_slice(json).map_err(|source| SeccompError::Parse {
            name: name.into(),
            source,
        })
    }

    /// Compiles it for a process with these capabilities. What allows everything is no filter.
    pub(crate) fn compile(&self, capabilities: u64) -> Result<Vec<Program>, SeccompError> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut calls: BTreeMap<u32, Vec<Answer>> = BTreeMap::new();
        for rule in &self.syscalls {
            if !rule.includes.hold(capabilities) || rule.excludes.any_holds(capabilities) {
                continue;
            }
            let action = action(&rule.action, rule.errno_ret)?;
            if action == default {
                continue;
            }
            let answers = rule.answers(action)?;
            for number in rule.numbers() {
                calls.entry(number).or_default().extend(answers.clone());
            }
        }
        if calls.is_empty() && default == program::ALLOW {
            return Ok(Vec::new());
        }
        Ok(vec![Program(Table { default, calls }.program()?)])
    }
}

impl Rule {
    /// Its calls. Those that this kernel does not know cannot be made.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let names = self.names.iter().chain(&self.name);
        let numbers = names.filter_map(|name| name.parse::<Sysno>().ok());
        numbers.filter_map(|number| u32::try_from(number.id()).ok())
    }

    /// What it says of each of them.
    fn answers(&self, action: u32) -> Result<Vec<Answer>, SeccompError> {
        let args = self.args.as_deref().unwrap_or_default();
        let conditions = args
            .iter()
            .map(Argument::condition)
            .collect::<Result<Vec<_>, _>>()?;
        let repeats =
            |(at, arg): (usize, &Argument)| args[..at].iter().any(|other| other.index == arg.index);
        let answer = |conditions| Answer { action, conditions };
        if args.iter().enumerate().any(repeats) {
            // As runc has it: of several conditions on one argument any will do.
            let each = conditions.into_iter();
            return Ok(each.map(|condition| answer(vec![condition])).collect());
        }
        Ok(vec![answer(conditions)])
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, SeccompError> {
        if self.index > 5 {
            return Err(SeccompError::Argument(self.index));
        }
        let test = match &*self.op {
            "SCMP_CMP_EQ" => Test::Equal(self.value),
            "SCMP_CMP_NE" => Test::NotEqual(self.value),
            "SCMP_CMP_LT" => Test::Less(self.value),
            "SCMP_CMP_LE" => Test::LessOrEqual(self.value),
            "SCMP_CMP_GE" => Test::GreaterOrEqual(self.value),
            "SCMP_CMP_GT" => Test::Greater(self.value),
            "SCMP_CMP_MASKED_EQ" => Test::Masked {
                mask: self.value,
                value: self.value_two,
            },
            other => return Err(SeccompError::Operator(other.into())),
        };
        Ok(Condition {
            argument: self.index,
            test,
        })
    }
}

/// The kernel's number of an action, with what it says to the program or its tracer.
fn action(name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => program::ALLOW,
        "SCMP_ACT_ERRNO" => program::ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => program::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => program::KILL_PROCESS,
        "SCMP_ACT_LOG" => program::LOG,
        "SCMP_ACT_TRACE" => program::TRACE | data,
        "SCMP_ACT_TRAP" => program::TRAP,
        other => return Err(SeccompError::Action(other.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(json: &str) -> Result<usize, SeccompError> {
        let profile = Profile::parse("test", json.as_bytes())?;
        Ok(profile.compile(1)?.len())
    }

    /// What a profile answers to a call with these first two arguments.
    fn answer(json: &str, call: Sysno, args: [u64; 2]) -> u32 {
        const X86_64: u32 = 0xc000_003e;
        let profile = Profile::parse("test", json.as_bytes()).unwrap();
        let program = &profile.compile(1).unwrap()[0].0;
        let number = u32::try_from(call.id()).unwrap();
        let args = [args[0], args[1], 0, 0, 0, 0];
        program::tests::run(program, X86_64, number, args).0
    }

    #[test]
    fn each_call_gets_the_answer_of_its_rule() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
            {"name":"reboot","action":"SCMP_ACT_KILL","args":
                [{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":
                [{"index":0,"value":8,"op":"SCMP_CMP_EQ"},
                 {"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
            {"names":["kill"],"action":"SCMP_ACT_ALLOW","args":
                [{"index":0,"value":8,"op":"SCMP_CMP_EQ"},
                 {"index":1,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#;
        let answer = |call, first, second| answer(json, call, [first, second]);
        let refused = program::ERRNO | 1;
        assert_eq!(answer(Sysno::read, 5, 5), program::ALLOW);
        assert_eq!(answer(Sysno::open, 5, 5), refused);
        assert_eq!(answer(Sysno::clone3, 0, 0), program::ERRNO | 38);
        assert_eq!(answer(Sysno::reboot, 1, 0), program::KILL_THREAD);
        assert_eq!(answer(Sysno::reboot, 2, 0), refused);
        let personalities = [8, 0, 4].map(|value| answer(Sysno::personality, value, 0));
        assert_eq!(personalities, [program::ALLOW, program::ALLOW, refused]);
        assert_eq!(answer(Sysno::kill, 8, 9), program::ALLOW);
        assert_eq!(answer(Sysno::kill, 8, 1), refused);
    }

    #[test]
    fn what_allows_everything_is_no_filter() {
        let rule = r#"{"names":["read"],"action":"SCMP_ACT_ALLOW"}"#;
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
        assert_eq!(compiled(&json).unwrap(), 0);
    }

    #[test]
    fn rules_may_depend_on_capabilities_and_architecture() {
        let count = |conditions: &str| {
            let rule = format!(r#"{{"names":["mount"],"action":"SCMP_ACT_ERRNO",{conditions}}}"#);
            compiled(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#
            ))
            .unwrap()
        };
        assert_eq!(count(r#""includes":{"caps":["CAP_CHOWN"]}"#), 1);
        assert_eq!(count(r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#), 0);
        assert_eq!(count(r#""excludes":{"caps":["CAP_CHOWN"]}"#), 0);
        assert_eq!(count(r#""excludes":{"arches":["arm64"]}"#), 1);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |json: &str| compiled(json).unwrap_err().to_string();
        assert!(refused(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).contains("NOTIFY"));
        assert!(refused("{}").contains("test"));
        let odd = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],
            "action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"SCMP_CMP_ODD"}]}]}"#;
        assert!(refused(odd).contains("SCMP_CMP_ODD"));
        let index = odd
            .replace("ODD", "EQ")
            .replace(r#""index":0"#, r#""index":6"#);
        assert!(refused(&index).contains("argument 6"));
    }
}
