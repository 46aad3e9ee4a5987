//! `hrun ps`: lists containers.

use serde::Serialize;
use serde_json::json;

use crate::{
    container::{Containers, Record, Status, now},
    dirs::Dirs,
    options::{
        filter::{self, FilterError},
        template::Template,
    },
    table, time,
};

/// Longest command that the table shows, in characters, as docker has it.
const MAX_COMMAND: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun ps                                   What runs now
  hrun ps -a                                What has run without --rm as well
  hrun ps -a --filter status=exited -q      The identifiers of what has ended
  hrun ps --format '{{.ID}} {{.Names}}'
  hrun ps -aq | xargs -r hrun rm            Clear up

Filters: id, name (a part of it), ancestor (the image), status (created, running, paused,
restarting, exited) and exited (the exit status). A container has to fit one of each kind.")]
pub(crate) struct PsArgs {
    /// Show stopped containers as well
    #[arg(short, long)]
    all: bool,
    /// Show identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Show only those that fit, stopped ones as well if they are asked for
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<Filter>,
    /// Show the newest ones, whether they run or not
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Show the newest one, whether it runs or not
    #[arg(short, long)]
    latest: bool,
    /// Show whole identifiers and commands
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a template of ID, Image, Command, CreatedAt, RunningFor, Status, State and
    /// Names, such as {{.ID}}
    #[arg(long, default_value = "table")]
    format: String,
}

/// What a container must be to be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Id(String),
    Name(String),
    Ancestor(String),
    Status(String),
    Exited(u8),
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let refused = || FilterError::new(text);
        let (name, value) = filter::split(text)?;
        Ok(match name {
            "id" => Self::Id(value.into()),
            "name" => Self::Name(value.into()),
            "ancestor" => Self::Ancestor(value.into()),
            "status"
                if ["created", "running", "paused", "restarting", "exited"].contains(&value) =>
            {
                Self::Status(value.into())
            }
            "exited" => Self::Exited(value.parse().map_err(|_| refused())?),
            _ => return Err(refused()),
        })
    }
}

impl Filter {
    fn fits(&self, record: &Record, state: &str) -> bool {
        match self {
            Self::Id(id) => record.id.as_str().starts_with(id.as_str()),
            Self::Name(name) => record.name.contains(name.as_str()),
            Self::Ancestor(image) => {
                let digest = record.image_id.strip_prefix("sha256:");
                let latest = record.image.strip_suffix(":latest");
                record.image == *image
                    || latest == Some(image)
                    || image.strip_suffix(":latest") == Some(&record.image)
                    || (image.len() >= 4 && digest.is_some_and(|id| id.starts_with(image.as_str())))
            }
            Self::Status(wanted) => wanted == state,
            Self::Exited(wanted) => {
                matches!(&record.status, Status::Exited { code, .. } if *code == Some(*wanted))
            }
        }
    }

    /// Whether it asks for what does not run.
    fn wants_stopped(&self) -> bool {
        match self {
            Self::Status(status) => status == "exited" || status == "created",
            Self::Exited(_) => true,
            _ => false,
        }
    }
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
    /// In seconds since the Unix epoch.
    started: Option<u64>,
    auto_remove: bool,
    paused: bool,
    #[serde(flatten)]
    status: &'a Status,
}

pub(crate) fn execute(args: &PsArgs) -> anyhow::Result<()> {
    let template = match args.format.as_str() {
        "table" | "json" => None,
        text => Some(Template::parse(text)?),
    };
    let last = args.last.or(args.latest.then_some(1));
    let all = args.all || last.is_some() || args.filter.iter().any(Filter::wants_stopped);
    let containers: Vec<(Record, bool)> = Containers::open(&Dirs::from_env()?)?
        .list()?
        .into_iter()
        .filter(|record| all || !record.status.rests())
        .map(|record| {
            let paused = record.is_paused();
            (record, paused)
        })
        .filter(|(record, paused)| {
            let state = record.status.word(*paused);
            filter::fits(&args.filter, |one| one.fits(record, state))
        })
        .take(last.unwrap_or(usize::MAX))
        .collect();
    if args.format == "json" {
        let listed: Vec<_> = containers
            .iter()
            .map(|(record, paused)| listed(record, *paused))
            .collect();
        return super::print_json(&listed);
    }
    let id = |record: &Record| {
        if args.no_trunc {
            record.id.to_string()
        } else {
            record.id.short().to_owned()
        }
    };
    if args.quiet {
        let ids = containers.iter().map(|(record, _)| id(record) + "\n");
        return super::print(&ids.collect::<String>());
    }
    let now = now();
    let row = |(record, paused): &(Record, bool)| {
        vec![
            id(record),
            record.image.clone(),
            command(&record.command, args.no_trunc),
            table::ago(now.saturating_sub(record.created)),
            status(record, *paused, now),
            record.name.clone(),
        ]
    };
    if let Some(template) = template {
        let line = |container: &(Record, bool)| {
            let row = row(container);
            let value = json!({
                "ID": row[0],
                "Image": row[1],
                "Command": row[2],
                "CreatedAt": time::format_seconds(container.0.created),
                "RunningFor": row[3],
                "Status": row[4],
                "State": container.0.status.word(container.1),
                "Names": row[5],
            });
            table::printable(&template.render(&value)) + "\n"
        };
        return super::print(&containers.iter().map(line).collect::<String>());
    }
    let head = [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "NAMES",
    ];
    let rows: Vec<_> = containers.iter().map(row).collect();
    super::print(&table::render(&head, &rows))
}

fn listed(record: &Record, paused: bool) -> Listed<'_> {
    Listed {
        id: record.id.as_str(),
        name: &record.name,
        image: &record.image,
        image_id: &record.image_id,
        command: &record.command,
        created: record.created,
        started: record.started,
        auto_remove: record.auto_remove,
        paused,
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

fn status(record: &Record, paused: bool, now: u64) -> String {
    match &record.status {
        Status::Making | Status::Created => "Created".into(),
        Status::Running { .. } => {
            let started = record.started.unwrap_or(record.created);
            let paused = if paused { " (Paused)" } else { "" };
            format!("Up {}{paused}", table::span(now.saturating_sub(started)))
        }
        Status::Restarting { code, finished } => {
            format!(
                "Restarting ({code}) {}",
                table::ago(now.saturating_sub(*finished))
            )
        }
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

    fn record(status: Status) -> Record {
        let mut record = Record::sample();
        record.status = status;
        record
    }

    #[test]
    fn the_status_says_how_it_ended_and_when() {
        let exited = |code| status(&record(Status::Exited { code, finished: 40 }), false, 100);
        assert_eq!(exited(Some(3)), "Exited (3) 1 minute ago");
        assert_eq!(exited(None), "Exited (unknown) 1 minute ago");
    }

    #[test]
    fn a_container_is_chosen_by_what_it_is() {
        let fits = |filters: &[&str], code| {
            let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
            let record = record(Status::Exited { code, finished: 0 });
            filter::fits(&filters, |one| one.fits(&record, "exited"))
        };
        assert!(fits(&[], None));
        assert!(fits(&["exited=3", "exited=4"], Some(4)));
        assert!(!fits(&["exited=3", "name=none"], Some(3)));
        assert!(fits(
            &["name=a_", "ancestor=busybox:latest", "status=exited"],
            None
        ));
        assert!(!fits(&["status=running"], None));
        for bad in ["name", "color=red", "exited=x", "status=odd"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
