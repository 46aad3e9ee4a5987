//! `hrun ps`: lists containers.

use serde::Serialize;

use crate::{
    cli::Format,
    container::{Containers, Record, Status, now},
    dirs::Dirs,
    table,
};

/// Longest command that the table shows, in characters, as docker has it.
const MAX_COMMAND: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun ps                         What runs now
  hrun ps -a                      What has run without --rm as well
  hrun ps -aq | xargs -r hrun rm  Clear up")]
pub(crate) struct PsArgs {
    /// Show stopped containers as well
    #[arg(short, long)]
    all: bool,
    /// Show identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Show whole identifiers and commands
    #[arg(long)]
    no_trunc: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A container as programs get to see it.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    image_id: &'a str,
    command: &'a [String],
    /// Seconds since the Unix epoch.
    created: u64,
    auto_remove: bool,
    #[serde(flatten)]
    status: &'a Status,
}

pub(crate) fn execute(args: &PsArgs) -> anyhow::Result<()> {
    let records: Vec<Record> = Containers::open(&Dirs::from_env()?)?
        .list()?
        .into_iter()
        .filter(|record| args.all || !matches!(record.status, Status::Exited { .. }))
        .collect();
    if args.format == Format::Json {
        return super::print_json(&records.iter().map(listed).collect::<Vec<_>>());
    }
    let id = |record: &Record| {
        if args.no_trunc {
            record.id.to_string()
        } else {
            record.id.short().to_owned()
        }
    };
    if args.quiet {
        return super::print(&records.iter().map(|r| id(r) + "\n").collect::<String>());
    }
    let now = now();
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            vec![
                id(record),
                record.image.clone(),
                command(&record.command, args.no_trunc),
                table::ago(now.saturating_sub(record.created)),
                status(&record.status, now),
                record.name.clone(),
            ]
        })
        .collect();
    let head = [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "NAMES",
    ];
    super::print(&table::render(&head, &rows))
}

fn listed(record: &Record) -> Listed<'_> {
    Listed {
        id: record.id.as_str(),
        name: &record.name,
        image: &record.image,
        image_id: &record.image_id,
        command: &record.command,
        created: record.created,
        auto_remove: record.auto_remove,
        status: &record.status,
    }
}

fn command(words: &[String], whole: bool) -> String {
    let command = words.join(" ");
    if whole || command.chars().count() <= MAX_COMMAND {
        return format!("\"{command}\"");
    }
    let begin: String = command.chars().take(MAX_COMMAND - 1).collect();
    format!("\"{begin}…\"")
}

fn status(status: &Status, now: u64) -> String {
    match status {
        Status::Created => "Created".into(),
        Status::Running { .. } => "Up".into(),
        Status::Exited { code, finished } => {
            let code = code.map_or_else(|| "unknown".into(), |code| code.to_string());
            format!(
                "Exited ({code}) {}",
                table::ago(now.saturating_sub(*finished))
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut_where_a_character_ends() {
        let words = ["sh".to_owned(), "-c".into(), "ü".repeat(30)];
        assert_eq!(
            command(&words, false),
            format!("\"sh -c {}…\"", "ü".repeat(13))
        );
        assert!(command(&words, true).ends_with("üü\""));
        assert_eq!(command(&["true".to_owned()], false), "\"true\"");
    }

    #[test]
    fn the_status_says_how_it_ended_and_when() {
        let exited = |code| status(&Status::Exited { code, finished: 40 }, 100);
        assert_eq!(exited(Some(3)), "Exited (3) 1 minute ago");
        assert_eq!(exited(None), "Exited (unknown) 1 minute ago");
    }
}
