//! Hooks: programs of the engine's that run at set points of a container's life, with its state on
//! their standard input (runtime-spec, config.md).

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::Hook;

use super::record::State;

/// How much of a hook's output is reported, in bytes.
const MAX_WORDS: u64 = 4096;

/// How often a hook with a time limit is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("Failed to run the {point} hook {path}")]
    Run {
        point: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("The {point} hook {path} failed: {status}{words}")]
    Failed {
        point: &'static str,
        path: String,
        status: ExitStatus,
        words: String,
    },
    #[error("The {point} hook {path} did not end within {seconds} seconds")]
    Timeout {
        point: &'static str,
        path: String,
        seconds: i64,
    },
}

/// Runs the hooks of one point, one after the other; the first that fails is the last.
pub(crate) fn run(
    point: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &State<'_>,
) -> Result<(), HookError> {
    hooks
        .into_iter()
        .flatten()
        .try_for_each(|hook| run_one(point, hook, state))
}

fn run_one(point: &'static str, hook: &Hook, state: &State<'_>) -> Result<(), HookError> {
    let path = hook.path().display().to_string();
    let failed = |source| HookError::Run {
        point,
        path: path.clone(),
        source,
    };
    let state = serde_json::to_vec(state).map_err(|error| failed(error.into()))?;
    // Unlinked: what a hook that goes on in the background writes must not hold us up.
    let mut output = tempfile::tempfile().map_err(failed)?;
    let mut child = spawn(hook, &output).map_err(failed)?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    // One that does not read its state has no use for it.
    let writer = thread::spawn(move || stdin.write_all(&state));
    let status = wait(&mut child, hook.timeout()).map_err(failed)?;
    drop(writer);
    match status {
        None => Err(HookError::Timeout {
            point,
            path,
            seconds: hook.timeout().unwrap_or_default(),
        }),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HookError::Failed {
            point,
            path,
            status,
            words: words(&mut output),
        }),
    }
}

fn spawn(hook: &Hook, output: &File) -> io::Result<Child> {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if !name.is_empty() {
            command.env(name, value);
        }
    }
    command
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
}

/// Waits for its end; none if it took too long, and then it was killed.
fn wait(child: &mut Child, timeout: Option<i64>) -> io::Result<Option<ExitStatus>> {
    let Some(seconds) = timeout.and_then(|seconds| u64::try_from(seconds).ok()) else {
        return child.wait().map(Some);
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn words(output: &mut File) -> String {
    use std::io::Seek;
    let mut bytes = Vec::new();
    let read = output
        .rewind()
        .and_then(|()| output.take(MAX_WORDS).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match (read, text.trim()) {
        (Ok(_), text) if !text.is_empty() => format!(": {text}"),
        _ => String::new(),
    }
}

impl HookError {
    /// The signal that ended the hook, if one did.
    #[cfg(test)]
    fn signal(&self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        match self {
            Self::Failed { status, .. } => status.signal(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::oci::record::Record;

    fn hook(script: &str, timeout: Option<i64>) -> Vec<Hook> {
        let json = serde_json::json!({
            "path": "/bin/sh",
            "args": ["hook", "-c", script],
            "env": ["COLOUR=red"],
            "timeout": timeout,
        });
        vec![serde_json::from_value(json).unwrap()]
    }

    fn run_script(script: &str, timeout: Option<i64>) -> Result<(), HookError> {
        let record = Record::new("web".into(), "/b".into(), "/r".into(), 0);
        run(
            "prestart",
            Some(&hook(script, timeout)),
            &record.state("created"),
        )
    }

    #[test]
    fn a_hook_gets_the_state_and_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {0}; echo $COLOUR $PATH >> {0}", out.display());
        run_script(&script, Some(30)).unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        assert!(text.contains(r#""id":"web""#), "{text}");
        assert!(
            text.contains("\"created\"") && text.contains("}red"),
            "{text}"
        );
        assert!(!text.contains(env!("CARGO")), "{text}");
    }

    #[test]
    fn a_hook_that_fails_is_quoted() {
        let error = run_script("echo no way >&2; exit 3", None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3: no way"), "{text}");
        assert_eq!(
            run_script("kill -9 $$", None).unwrap_err().signal(),
            Some(9)
        );
        run(
            "x",
            None,
            &Record::new("a".into(), "/".into(), "/".into(), 0).state("created"),
        )
        .unwrap();
        assert!(!Path::new("/nonexistent").exists());
    }

    #[test]
    fn a_hook_that_hangs_is_ended() {
        let error = run_script("exec sleep 100", Some(0)).unwrap_err();
        assert!(matches!(error, HookError::Timeout { .. }), "{error}");
    }

    #[test]
    fn what_a_hook_leaves_in_the_background_is_not_waited_for() {
        let begin = Instant::now();
        run_script("sleep 5 & echo $!", None).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(4));
    }
}
