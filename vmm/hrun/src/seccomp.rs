//! Profiles of system calls, as the OCI runtime specification and docker have them, compiled for the
//! guest's kernel.
//!
//! A profile gives each call an action; a filter of seccompiler knows two, one for the calls that it
//! lists and one for all others. So a profile becomes several filters: one that lets pass what is
//! listed, with the default action for the rest, and one for each other action. Of what several
//! filters say, the kernel takes the strictest (seccomp(2)).

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use agent_protocol::SeccompFilter as Program;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde::Deserialize;
use syscalls::x86_64::Sysno;

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
    /// seccompiler refuses it.
    #[error("Failed to compile a seccomp profile")]
    Compile(#[from] seccompiler::BackendError),
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
            // Beyond six the compiler refuses it.
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

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

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

    /// Compiles it for a process with these capabilities.
    pub(crate) fn compile(&self, capabilities: u64) -> Result<Vec<Program>, SeccompError> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut listed = Rules::new();
        // Few: they are compared one by one, as they have no order.
        let mut others: Vec<(SeccompAction, Rules)> = Vec::new();
        for rule in &self.syscalls {
            if !rule.includes.hold(capabilities) || rule.excludes.any_holds(capabilities) {
                continue;
            }
            let action = action(&rule.action, rule.errno_ret)?;
            if action == default {
                continue;
            }
            let rules = rule.rules()?;
            extend(&mut listed, &rules);
            if action == SeccompAction::Allow {
                continue;
            }
            match others.iter_mut().find(|(known, _)| *known == action) {
                Some((_, known)) => extend(known, &rules),
                None => others.push((action, rules)),
            }
        }
        let mut filters = Vec::new();
        if default != SeccompAction::Allow {
            filters.push(filter(listed, default, SeccompAction::Allow)?);
        }
        for (action, rules) in others {
            filters.push(filter(rules, SeccompAction::Allow, action)?);
        }
        Ok(filters)
    }
}

impl Rule {
    /// What it says of each of its calls. Those that this kernel does not know cannot be made.
    fn rules(&self) -> Result<Rules, SeccompError> {
        let args = self.args.as_deref().unwrap_or_default();
        let conditions = args
            .iter()
            .map(Argument::condition)
            .collect::<Result<Vec<_>, _>>()?;
        let repeats =
            |(at, arg): (usize, &Argument)| args[..at].iter().any(|other| other.index == arg.index);
        let rules = if conditions.is_empty() {
            // Whatever the arguments are.
            Vec::new()
        } else if args.iter().enumerate().any(repeats) {
            // As runc has it: of several conditions on one argument any will do.
            let each = conditions.into_iter();
            each.map(|condition| SeccompRule::new(vec![condition]))
                .collect::<Result<_, _>>()?
        } else {
            vec![SeccompRule::new(conditions)?]
        };
        let names = self.names.iter().chain(&self.name);
        let numbers = names.filter_map(|name| name.parse::<Sysno>().ok());
        Ok(numbers
            .map(|number| (i64::from(number.id()), rules.clone()))
            .collect())
    }
}

impl Argument {
    fn condition(&self) -> Result<SeccompCondition, SeccompError> {
        let (operator, value) = match &*self.op {
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, self.value),
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, self.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, self.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, self.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, self.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(self.value), self.value_two),
            other => return Err(SeccompError::Operator(other.into())),
        };
        let length = SeccompCmpArgLen::Qword;
        Ok(SeccompCondition::new(self.index, length, operator, value)?)
    }
}

/// Adds rules; a call without conditions is one whatever else is said of it.
fn extend(all: &mut Rules, more: &Rules) {
    for (number, rules) in more {
        match all.get_mut(number) {
            Some(known) if known.is_empty() || rules.is_empty() => known.clear(),
            Some(known) => known.extend(rules.iter().cloned()),
            None => drop(all.insert(*number, rules.clone())),
        }
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, SeccompError> {
    let number = errno.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(number),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(number),
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(SeccompError::Action(other.into())),
    })
}

fn filter(
    rules: Rules,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<Program, SeccompError> {
    let filter = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?;
    let program = BpfProgram::try_from(filter)?;
    let instruction = |i: seccompiler::sock_filter| {
        let [code, jt, jf] = [u64::from(i.code), u64::from(i.jt), u64::from(i.jf)];
        code << 48 | jt << 40 | jf << 32 | u64::from(i.k)
    };
    Ok(Program(program.into_iter().map(instruction).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(json: &str) -> Result<usize, SeccompError> {
        let profile = Profile::parse("test", json.as_bytes())?;
        Ok(profile.compile(1)?.len())
    }

    #[test]
    fn a_profile_becomes_as_many_filters_as_it_has_actions() {
        let allow = r#"{"names":["read","write","no_such_call"],"action":"SCMP_ACT_ALLOW"}"#;
        let errno = r#"{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}"#;
        let kill = r#"{"name":"reboot","action":"SCMP_ACT_KILL","args":
            [{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}"#;
        let profile = |default: &str, rules: &[&str]| {
            let rules = rules.join(",");
            compiled(&format!(
                r#"{{"defaultAction":"{default}","syscalls":[{rules}]}}"#
            ))
            .unwrap()
        };
        assert_eq!(profile("SCMP_ACT_ERRNO", &[allow]), 1);
        assert_eq!(profile("SCMP_ACT_ERRNO", &[allow, errno, kill]), 3);
        assert_eq!(profile("SCMP_ACT_ALLOW", &[allow]), 0);
        assert_eq!(profile("SCMP_ACT_ALLOW", &[errno, kill, errno]), 2);
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
        assert!(refused(&index).contains("compile"));
    }
}
