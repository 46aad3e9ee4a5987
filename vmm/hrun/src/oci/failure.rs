//! Failures, as engines learn of them: docker and containerd show the last error of the log file,
//! conmon what stands on standard error.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use super::{orders::OrderError, report::ReportError};
use crate::{exit, table, time};

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where failures are written besides standard error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) path: Option<PathBuf>,
    pub(crate) format: LogFormat,
}

impl Log {
    pub(crate) fn error(&self, message: &str) {
        self.write("error", message);
    }

    pub(crate) fn warning(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.path else {
            return;
        };
        let now = time::format_ns(time::now_ns());
        let line = match self.format {
            LogFormat::Text => {
                format!("time={now:?} level={level} msg={message:?}\n")
            }
            LogFormat::Json => {
                let line = serde_json::json!({"level": level, "msg": message, "time": now});
                format!("{line}\n")
            }
        };
        // A log that cannot be written keeps nobody from anything; standard error has it as well.
        let _ = append(path, line.as_bytes());
    }
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(line)
}

/// A failure as it is passed on: its text, and what `hrun run` would exit with.
pub(crate) fn describe(error: &anyhow::Error) -> (String, u8) {
    let text = table::printable(&format!("{error:#}"));
    (text, exit::status_of(error, true))
}

/// The status of a failure that another process of ours had.
pub(crate) fn status_of(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(ReportError::Failed { status, .. }), _)
        | (_, Some(OrderError::Failed { status, .. })) => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_log_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = Log {
                path: Some(path.clone()),
                format,
            };
            log.error("no \"way\"");
        }
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].ends_with(r#"level=error msg="no \"way\"""#),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(
            (&json["level"], &json["msg"]),
            (&"error".into(), &"no \"way\"".into())
        );
        Log::default().error("nowhere");
    }
}
