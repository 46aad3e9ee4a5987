//! Instructions of a Dockerfile that change a configuration, as docker's `--change` takes them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What runs a command that is no JSON array.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A change to what an image says about running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    /// The default command, or arguments.
    Cmd(Vec<String>),
    /// The program; without a `Cmd` beside it, the image's no longer counts.
    Entrypoint(Vec<String>),
    /// Variables of the environment, set.
    Env(Vec<(String, String)>),
    /// Variables of the environment, taken out. No Dockerfile can say this.
    Unset(String),
    /// Ports, such as `80` or `53/udp`.
    Expose(Vec<String>),
    /// Labels, set.
    Label(Vec<(String, String)>),
    /// An instruction for builds upon the image.
    OnBuild(String),
    /// The user, with a group if wanted.
    User(String),
    /// Places for volumes.
    Volume(Vec<String>),
    /// The working directory; a relative one is below the image's.
    WorkDir(String),
    /// The signal that asks the container to end.
    StopSignal(String),
}

/// Why a text is no instruction that can be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstructionError {
    /// Not one of those that change a configuration.
    #[error(
        "{0:?} changes no configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, \
         USER, VOLUME and WORKDIR do"
    )]
    Unknown(String),
    /// It needs something behind it.
    #[error("{0} needs something behind it")]
    Empty(&'static str),
    /// What is behind it cannot be.
    #[error("{text:?} is nothing for {instruction}: {reason}")]
    Arguments {
        /// The instruction.
        instruction: &'static str,
        /// What stands behind it.
        text: String,
        /// What is wrong with that.
        reason: &'static str,
    },
}

impl FromStr for Instruction {
    type Err = InstructionError;

    /// Reads an instruction such as `CMD ["sh", "-l"]`; `CMD=...`, which docker takes, too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let end = text
            .find(|c: char| c.is_whitespace() || c == '=')
            .unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim();
        let name = word.to_ascii_uppercase();
        let some = |instruction| match rest {
            "" => Err(InstructionError::Empty(instruction)),
            rest => Ok(rest.to_owned()),
        };
        Ok(match name.as_str() {
            "CMD" => Self::Cmd(command("CMD", rest)?),
            "ENTRYPOINT" => Self::Entrypoint(command("ENTRYPOINT", rest)?),
            "ENV" => Self::Env(pairs("ENV", &some("ENV")?)?),
            "LABEL" => Self::Label(pairs("LABEL", &some("LABEL")?)?),
            "EXPOSE" => Self::Expose(ports(&some("EXPOSE")?)?),
            "ONBUILD" => Self::OnBuild(some("ONBUILD")?),
            "USER" => Self::User(some("USER")?),
            "VOLUME" => Self::Volume(list("VOLUME", &some("VOLUME")?)?),
            "WORKDIR" => Self::WorkDir(some("WORKDIR")?),
            "STOPSIGNAL" => Self::StopSignal(some("STOPSIGNAL")?),
            _ => return Err(InstructionError::Unknown(word.to_owned())),
        })
    }
}

/// Applies instructions to the object `config` of an image's configuration.
pub(crate) fn apply(instructions: &[Instruction], config: &mut Map<String, Value>) {
    let has_cmd = instructions
        .iter()
        .any(|instruction| matches!(instruction, Instruction::Cmd(_)));
    for instruction in instructions {
        match instruction {
            Instruction::Cmd(words) => set(config, "Cmd", json!(words)),
            Instruction::Entrypoint(words) => {
                set(config, "Entrypoint", json!(words));
                if !has_cmd {
                    config.remove("Cmd");
                }
            }
            Instruction::Env(pairs) => {
                for (name, value) in pairs {
                    set_env(config, name, Some(value));
                }
            }
            Instruction::Unset(name) => set_env(config, name, None),
            Instruction::Expose(ports) => add_keys(config, "ExposedPorts", ports),
            Instruction::Volume(paths) => add_keys(config, "Volumes", paths),
            Instruction::Label(pairs) => {
                let labels = object(config, "Labels");
                for (name, value) in pairs {
                    labels.insert(name.clone(), json!(value));
                }
            }
            Instruction::OnBuild(text) => array(config, "OnBuild").push(json!(text)),
            Instruction::User(user) => set(config, "User", json!(user)),
            Instruction::StopSignal(signal) => set(config, "StopSignal", json!(signal)),
            Instruction::WorkDir(path) if path.starts_with('/') => {
                set(config, "WorkingDir", json!(path));
            }
            Instruction::WorkDir(path) => {
                let base = config.get("WorkingDir").and_then(Value::as_str);
                let base = base.unwrap_or_default().trim_end_matches('/');
                let path = format!("{base}/{path}");
                set(config, "WorkingDir", json!(path));
            }
        }
    }
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// The object `key`; images write null where they have none.
fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one")
}

fn array<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = config.entry(key).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one")
}

fn add_keys(config: &mut Map<String, Value>, key: &str, names: &[String]) {
    let known = object(config, key);
    for name in names {
        known.insert(name.clone(), json!({}));
    }
}

/// Sets a variable where it stands, or at the end; without a value, takes it out.
fn set_env(config: &mut Map<String, Value>, name: &str, value: Option<&str>) {
    let env = array(config, "Env");
    let is_it = |entry: &Value| {
        let entry = entry.as_str().unwrap_or_default();
        entry.split_once('=').map_or(entry, |(name, _)| name) == name
    };
    match (value, env.iter_mut().find(|entry| is_it(entry))) {
        (Some(value), Some(entry)) => *entry = json!(format!("{name}={value}")),
        (Some(value), None) => env.push(json!(format!("{name}={value}"))),
        (None, _) => env.retain(|entry| !is_it(entry)),
    }
}

/// A JSON array of words, or a text for the shell.
fn command(instruction: &'static str, text: &str) -> Result<Vec<String>, InstructionError> {
    if text.starts_with('[') {
        return json_words(instruction, text);
    }
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Ok(SHELL.into_iter().chain([text]).map(str::to_owned).collect())
}

fn list(instruction: &'static str, text: &str) -> Result<Vec<String>, InstructionError> {
    if text.starts_with('[') {
        return json_words(instruction, text);
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn json_words(instruction: &'static str, text: &str) -> Result<Vec<String>, InstructionError> {
    serde_json::from_str(text).map_err(|_| InstructionError::Arguments {
        instruction,
        text: text.to_owned(),
        reason: "in brackets stand words in double quotes, with commas between them",
    })
}

fn ports(text: &str) -> Result<Vec<String>, InstructionError> {
    let port = |word: &str| {
        let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let is_number = |number: &str| number.parse::<u16>().is_ok_and(|port| port > 0);
        let numbers = number.split_once('-');
        let valid = numbers.map_or_else(
            || is_number(number),
            |(first, last)| is_number(first) && is_number(last),
        );
        if valid && ["tcp", "udp", "sctp"].contains(&protocol) {
            return Ok(format!("{number}/{protocol}"));
        }
        Err(InstructionError::Arguments {
            instruction: "EXPOSE",
            text: word.to_owned(),
            reason: "a port is a number, such as 80 or 53/udp",
        })
    };
    text.split_whitespace().map(port).collect()
}

/// `NAME=VALUE ...` with quotes and backslashes as a Dockerfile has them, or `NAME VALUE`.
fn pairs(instruction: &'static str, text: &str) -> Result<Vec<(String, String)>, InstructionError> {
    let wrong = |reason| InstructionError::Arguments {
        instruction,
        text: text.to_owned(),
        reason,
    };
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| wrong("a name needs a value: NAME=VALUE"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let words = words(text).ok_or_else(|| wrong("a quotation does not end"))?;
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(wrong("each word is NAME=VALUE")),
    };
    words.into_iter().map(pair).collect()
}

/// Splits at white space that is neither quoted nor escaped.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(config: Value, instructions: &[&str]) -> Value {
        let parsed: Vec<Instruction> = instructions.iter().map(|i| i.parse().unwrap()).collect();
        let Value::Object(mut config) = config else {
            panic!("{config}")
        };
        apply(&parsed, &mut config);
        Value::Object(config)
    }

    #[test]
    fn commands_are_words_or_a_shell_s() {
        let config = applied(json!({}), &[r#"CMD ["a", "b c"]"#, "entrypoint echo $X"]);
        let expected = json!({"Cmd": ["a", "b c"], "Entrypoint": ["/bin/sh", "-c", "echo $X"]});
        assert_eq!(config, expected);
        assert_eq!(applied(json!({}), &["CMD=[\"x\"]"]), json!({"Cmd": ["x"]}));
    }

    #[test]
    fn a_new_entrypoint_takes_the_old_command_away() {
        let old = json!({"Cmd": ["old"], "Entrypoint": ["old"]});
        let config = applied(old.clone(), &[r#"ENTRYPOINT ["new"]"#]);
        assert_eq!(config, json!({"Entrypoint": ["new"]}));
        let config = applied(old, &["CMD [\"mine\"]", "ENTRYPOINT []"]);
        assert_eq!(config, json!({"Cmd": ["mine"], "Entrypoint": []}));
    }

    #[test]
    fn variables_and_labels_are_set_in_their_place() {
        let config = applied(
            json!({"Env": ["A=1", "B=2"], "Labels": null}),
            &[
                r#"ENV A="x y" C='$z' D=a\ b"#,
                "ENV E with words",
                "LABEL v=1.0 \"k k\"=v",
            ],
        );
        let expected = json!({
            "Env": ["A=x y", "B=2", "C=$z", "D=a b", "E=with words"],
            "Labels": {"v": "1.0", "k k": "v"},
        });
        assert_eq!(config, expected);
        let mut object = config.as_object().unwrap().clone();
        apply(&[Instruction::Unset("B".into())], &mut object);
        assert_eq!(object["Env"][1], "C=$z");
    }

    #[test]
    fn the_rest_lands_under_the_names_of_the_specification() {
        let config = applied(
            json!({"WorkingDir": "/srv"}),
            &[
                "EXPOSE 80 53/udp",
                "VOLUME /a /b",
                "WORKDIR sub",
                "USER me:us",
                "ONBUILD RUN x",
                "STOPSIGNAL SIGINT",
            ],
        );
        let expected = json!({
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": {"/a": {}, "/b": {}},
            "WorkingDir": "/srv/sub",
            "User": "me:us",
            "OnBuild": ["RUN x"],
            "StopSignal": "SIGINT",
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn what_is_no_instruction_is_refused() {
        for text in [
            "",
            "RUN x",
            "ENV",
            "ENV A",
            "ENV A=\"x",
            "ENV =x",
            "CMD [x]",
            "EXPOSE web",
            "EXPOSE 0",
            "USER",
            "LABEL a=1 b",
        ] {
            assert!(text.parse::<Instruction>().is_err(), "{text}");
        }
    }
}
