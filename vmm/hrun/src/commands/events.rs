//! `hrun events`: what happens to containers and images, while it happens or afterwards.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    dirs::Dirs,
    events::{Event, FILE, Kind},
    options::{
        filter::{self, FilterError},
        template::Template,
    },
    rotated::Reader,
    table, time,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun events                                   What happens from now on
  hrun events --since 1h --until 0s             What happened within the last hour
  hrun events --filter container=web --filter event=die
  hrun events --format '{{.Action}} {{.Actor.Attributes.name}}'
  hrun events --format json | jq -r .Action

Filters: container (name or the beginning of its identifier), image, event and type (container or
image). An event has to fit one of each kind. A megabyte or two of events are kept, until the host
is started anew.")]
pub(crate) struct EventsArgs {
    /// Begin with what happened at that time: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End with what happens at that time: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show only what fits
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<Filter>,
    /// json, or a template of Type, Action, Actor.ID, Actor.Attributes, Time and TimeNano, such as
    /// {{.Action}} {{.Actor.Attributes.name}}
    #[arg(long)]
    format: Option<String>,
}

/// What an event must be to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Container(String),
    Image(String),
    Action(String),
    Type(String),
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (name, value) = filter::split(text)?;
        let value = value.to_owned();
        match name {
            "container" => Ok(Self::Container(value)),
            "image" => Ok(Self::Image(value)),
            "event" => Ok(Self::Action(value)),
            "type" if ["container", "image"].contains(&&*value) => Ok(Self::Type(value)),
            _ => Err(FilterError::new(text)),
        }
    }
}

impl Filter {
    fn fits(&self, event: &Event) -> bool {
        let is = |name: &str, value: &String| event.attributes.get(name) == Some(value);
        let is_of_container = event.kind == Kind::Container;
        match self {
            Self::Container(wanted) => {
                let is_begin = !wanted.is_empty() && event.id.starts_with(wanted.as_str());
                is_of_container && (is("name", wanted) || is_begin)
            }
            Self::Image(wanted) if is_of_container => is("image", wanted),
            Self::Image(wanted) => is("name", wanted),
            // What is executed is a part of the word.
            Self::Action(wanted) => {
                let word = event.action.split(':').next();
                event.action == *wanted || word == Some(wanted)
            }
            Self::Type(wanted) => event.kind.word() == wanted,
        }
    }
}

pub(crate) fn execute(args: &EventsArgs) -> anyhow::Result<()> {
    let now = time::now_ns();
    let moment = |text: &Option<String>| {
        let parsed = text.as_deref().map(|text| time::parse(text, now));
        parsed.transpose()
    };
    let since = moment(&args.since)?.unwrap_or(now);
    let until = moment(&args.until)?;
    let form = match args.format.as_deref() {
        None | Some("") => Form::Plain,
        Some("json") => Form::Json,
        Some(text) => Form::Template(Template::parse(text)?),
    };
    let dir = Dirs::from_env()?.state;
    std::fs::create_dir_all(&dir)
        .and_then(|()| Reader::open(&dir, FILE, true))
        .and_then(|mut reader| show(&mut reader, since..=until.unwrap_or(i64::MAX), args, &form))
        .or_else(|error| match error.kind() {
            // Who stopped reading has seen enough.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })
        .with_context(|| format!("Failed to show the events of {}", dir.display()))
}

fn show(
    reader: &mut Reader,
    times: std::ops::RangeInclusive<i64>,
    args: &EventsArgs,
    form: &Form,
) -> io::Result<()> {
    loop {
        // Asked before the last look, so that nothing is missed.
        let left = times.end().saturating_sub(time::now_ns());
        while let Some(event) = reader.next::<Event>()? {
            if times.contains(&event.time) && filter::fits(&args.filter, |one| one.fits(&event)) {
                let mut stdout = io::stdout().lock();
                stdout.write_all(form.line(&event).as_bytes())?;
                stdout.flush()?;
            }
        }
        let Ok(left @ 1..) = u64::try_from(left) else {
            return Ok(());
        };
        reader.wait(Instant::now() + Duration::from_nanos(left))?;
    }
}

/// How an event is shown.
enum Form {
    Plain,
    Json,
    Template(Template),
}

impl Form {
    fn line(&self, event: &Event) -> String {
        match self {
            Self::Plain => table::printable(&plain(event)) + "\n",
            Self::Json => value(event).to_string() + "\n",
            Self::Template(template) => {
                let mut value = value(event);
                // docker's templates have other names for them than its JSON.
                value["ID"] = value["Actor"]["ID"].clone();
                value["Status"] = value["Action"].clone();
                value["Time"] = value["time"].clone();
                value["TimeNano"] = value["timeNano"].clone();
                table::printable(&template.render(&value)) + "\n"
            }
        }
    }
}

fn plain(event: &Event) -> String {
    let attributes: Vec<String> = event
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!(
        "{} {} {} {} ({})",
        time::format_ns(event.time),
        event.kind.word(),
        event.action,
        event.id,
        attributes.join(", ")
    )
}

/// As docker's API has it.
fn value(event: &Event) -> Value {
    json!({
        "Type": event.kind.word(),
        "Action": event.action,
        "Actor": { "ID": event.id, "Attributes": event.attributes },
        "scope": "local",
        "time": event.time / 1_000_000_000,
        "timeNano": event.time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let attributes = [("name", "web"), ("image", "busybox")];
        let mut event = Event::now(Kind::Container, "exec_start: ls", "4f0a", &attributes);
        event.time = 1_500_000_000;
        event
    }

    #[test]
    fn an_event_is_chosen_by_what_it_happened_to() {
        let fits = |filters: &[&str]| {
            let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
            filter::fits(&filters, |one| one.fits(&event()))
        };
        assert!(fits(&[]));
        assert!(fits(&["container=web", "container=db", "event=exec_start"]));
        assert!(fits(&["container=4f", "image=busybox", "type=container"]));
        assert!(!fits(&["container=web", "event=die"]));
        assert!(!fits(&["container="]));
        for bad in ["container", "color=red", "type=odd"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_is_shown_as_dockers_users_know_it() {
        assert_eq!(
            plain(&event()),
            "1970-01-01T00:00:01.500000000Z container exec_start: ls 4f0a (image=busybox, name=web)"
        );
        let value = value(&event());
        assert_eq!(value["Actor"]["Attributes"]["name"], "web");
        assert_eq!(value["time"], 1);
    }
}
