//! `hrun logs`: what a container in the background has said.

use std::{
    collections::VecDeque,
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{
    container::{Containers, Waiting},
    dirs::Dirs,
    log::{self, Entry},
    rotated::Reader,
    time,
};

/// How often the end of a container is looked for that says nothing.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun logs web
  hrun logs -f --tail 10 web            The last ten lines, and what follows
  hrun logs -t --since 10m web          Those of the last ten minutes, with their times
  hrun logs --since 2026-01-31T12:00:00Z --until 2026-01-31T13:00:00Z web

What the container wrote to standard output and standard error comes out there again.")]
pub(crate) struct LogsArgs {
    /// Go on with what the container says, until it ends
    #[arg(short, long)]
    follow: bool,
    /// Leave out what was said before: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Leave out what was said after: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show that many lines from the end
    #[arg(
        short = 'n',
        long,
        value_name = "LINES",
        default_value = "all",
        allow_hyphen_values = true
    )]
    tail: String,
    /// Show times
    #[arg(short, long)]
    timestamps: bool,
    /// Name or identifier, which may be shortened
    container: String,
}

/// Which entries are shown, and how.
struct Show {
    since: Option<i64>,
    until: Option<i64>,
    timestamps: bool,
    /// The last entry that was shown did not end its line.
    inside: [bool; 2],
}

/// What comes of an entry.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Early,
    Shown,
    Late,
}

pub(crate) fn execute(args: &LogsArgs) -> anyhow::Result<()> {
    let now = time::now_ns();
    let moment = |text: &Option<String>| {
        let parsed = text.as_deref().map(|text| time::parse(text, now));
        parsed.transpose()
    };
    let mut show = Show {
        since: moment(&args.since)?,
        until: moment(&args.until)?,
        timestamps: args.timestamps,
        inside: [false; 2],
    };
    // As docker has it: what is no number is all.
    let tail: Option<usize> = args.tail.parse().ok();
    let containers = Containers::open(&Dirs::from_env()?)?;
    let record = containers.find(&args.container)?;
    let waiting = args
        .follow
        .then(|| containers.waiting(&record))
        .transpose()?;
    let mut reader = Reader::open(&containers.log_dir(&record), log::FILE, args.follow)
        .with_context(|| format!("Failed to open the log of container {}", record.name))?;
    match print(&mut reader, tail, waiting, &mut show) {
        // Who stopped reading has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("Failed to show the container's log"),
    }
}

fn print(
    reader: &mut Reader,
    tail: Option<usize>,
    mut waiting: Option<Waiting>,
    show: &mut Show,
) -> io::Result<()> {
    let mut last = VecDeque::new();
    while let Some(entry) = reader.next()? {
        match show.verdict(&entry) {
            Verdict::Early => {}
            Verdict::Late => {
                waiting = None;
                break;
            }
            Verdict::Shown => match tail {
                None => show.print(&entry)?,
                Some(lines) => {
                    last.push_back(entry);
                    if last.len() > lines {
                        last.pop_front();
                    }
                }
            },
        }
    }
    for entry in last {
        show.print(&entry)?;
    }
    let Some(mut waiting) = waiting else {
        return Ok(());
    };
    loop {
        // Asked before the last look, so that nothing is missed.
        let ended = !matches!(waiting.wait(Some(Instant::now())), Ok(None));
        while let Some(entry) = reader.next()? {
            match show.verdict(&entry) {
                Verdict::Early => {}
                Verdict::Late => return Ok(()),
                Verdict::Shown => show.print(&entry)?,
            }
        }
        if ended {
            return Ok(());
        }
        reader.wait(Instant::now() + LOOK)?;
    }
}

impl Show {
    fn verdict(&self, entry: &Entry) -> Verdict {
        let at = entry.time_ns();
        if self.since.is_some_and(|since| at < since) {
            Verdict::Early
        } else if self.until.is_some_and(|until| at > until) {
            Verdict::Late
        } else {
            Verdict::Shown
        }
    }

    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let is_error = entry.stream == "stderr";
        let inside = &mut self.inside[usize::from(is_error)];
        let mut text = String::new();
        // An entry that goes on with a line has no time of its own.
        if self.timestamps && !*inside {
            text = format!("{} ", entry.time);
        }
        *inside = !entry.log.ends_with('\n');
        text.push_str(&entry.log);
        let write = |mut to: Box<dyn Write>| {
            to.write_all(text.as_bytes())?;
            to.flush()
        };
        if is_error {
            write(Box::new(io::stderr().lock()))
        } else {
            write(Box::new(io::stdout().lock()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_chosen_by_their_time() {
        let entry = |time: &str| Entry {
            log: "x\n".into(),
            stream: "stdout".into(),
            time: time.into(),
        };
        let show = Show {
            since: Some(1_000_000_000),
            until: Some(2_000_000_000),
            timestamps: false,
            inside: [false; 2],
        };
        for (time, verdict) in [
            ("1970-01-01T00:00:00.999999999Z", Verdict::Early),
            ("1970-01-01T00:00:01Z", Verdict::Shown),
            ("1970-01-01T00:00:02.000000000Z", Verdict::Shown),
            ("1970-01-01T00:00:02.000000001Z", Verdict::Late),
        ] {
            assert_eq!(show.verdict(&entry(time)), verdict, "{time}");
        }
    }
}
