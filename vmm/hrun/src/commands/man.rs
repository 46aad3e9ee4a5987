//! `hrun man`: the manual, a page for each command, made of the same definitions as `--help`.
//!
//! The commands of the OCI runtime are below hrun-oci(1): some of them have names that commands of
//! hrun's own have too.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use super::print;
use crate::{cli::Cli, oci::OciCli};

/// The page about hrun as an OCI runtime, and what begins the names of those below it.
const OCI_PAGE: &str = "hrun-oci";

/// Where the manual goes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun man /usr/local/share/man/man1    Write all pages, so that man hrun-run finds its one
  hrun man | man -l -                   Read hrun(1)")]
pub(crate) struct ManArgs {
    /// Directory for the pages, made if it is missing; without it hrun(1) is printed
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn execute(args: &ManArgs) -> anyhow::Result<()> {
    let pages = pages().context("Failed to make the manual")?;
    match &args.dir {
        Some(dir) => write(&pages, dir),
        None => pages.first().map_or(Ok(()), |page| print(&page.text)),
    }
}

/// A page of section 1.
struct Page {
    name: String,
    text: String,
}

fn write(pages: &[Page], dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("Failed to make {}", dir.display()))?;
    for page in pages {
        let file = dir.join(format!("{}.1", page.name));
        fs::write(&file, &page.text)
            .with_context(|| format!("Failed to write {}", file.display()))?;
    }
    Ok(())
}

/// All pages, hrun(1) first.
fn pages() -> io::Result<Vec<Page>> {
    let mut pages = Vec::new();
    add_pages(&built(Cli::command()), &[OCI_PAGE], &mut pages)?;
    let oci = OciCli::command().display_name(OCI_PAGE);
    add_pages(&built(oci), &["hrun"], &mut pages)?;
    Ok(pages)
}

/// With everything that clap works out by itself, such as the full names of commands.
fn built(root: Command) -> Command {
    let mut root = root.disable_help_subcommand(true);
    root.build();
    root
}

/// The page of a command that refers to others, and the pages of the commands below it.
fn add_pages(command: &Command, related: &[&str], pages: &mut Vec<Page>) -> io::Result<()> {
    let name = page_name(command);
    let below = visible(command).map(page_name);
    let related: Vec<_> = related.iter().copied().chain(below).collect();
    pages.push(Page {
        name: name.to_owned(),
        text: render(command, &related)?,
    });
    visible(command).try_for_each(|child| add_pages(child, &[name], pages))
}

/// Such as `hrun-image-ls`.
fn page_name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
}

fn render(command: &Command, related: &[&str]) -> io::Result<String> {
    let with_words = command
        .clone()
        .subcommand_value_name("COMMAND")
        .subcommand_help_heading("COMMANDS");
    let man = Man::new(with_words)
        // Without one the fields behind it move up; builds at two times are to be the same.
        .date(" ")
        .source(concat!("hrun ", env!("CARGO_PKG_VERSION")))
        .manual("hrun");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if visible(command).next().is_some() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    if let Some(help) = command.get_after_help() {
        add_after_help(&help.to_string(), &mut rest);
    }
    add_see_also(related, &mut rest);
    rest.to_writer(&mut page)?;
    page.flush()?;
    String::from_utf8(page).map_err(io::Error::other)
}

/// What stands below the options: headings are lines that end with a colon, lines that are set in
/// are shown as they are, all others are text.
fn add_after_help(text: &str, roff: &mut Roff) {
    let mut shown = false;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_set_in = line.starts_with("  ");
        if is_set_in != shown {
            roff.control(if is_set_in { "EX" } else { "EE" }, []);
            shown = is_set_in;
        }
        let next_is_set_in = lines.peek().is_some_and(|next| next.starts_with("  "));
        match line.strip_suffix(':') {
            Some(heading) if !is_set_in && next_is_set_in => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            _ if line.trim().is_empty() => {
                roff.control("PP", []);
            }
            _ => {
                roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
            }
        }
    }
    if shown {
        roff.control("EE", []);
    }
}

fn add_see_also(names: &[&str], roff: &mut Roff) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line: Vec<Inline> = Vec::new();
    for name in names {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(*name), roman("(1)")]);
    }
    roff.text(line);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        process::{Command as Process, Stdio},
    };

    use super::*;

    fn named(name: &str) -> Page {
        let mut pages = pages().unwrap().into_iter();
        pages.find(|page| page.name == name).unwrap()
    }

    /// Words of all visible commands, such as `image ls`.
    fn commands(below: &Command, before: &str) -> Vec<String> {
        let each = visible(below).flat_map(|command| {
            let words = format!("{before} {}", command.get_name());
            let mut all = commands(command, &words);
            all.push(words);
            all
        });
        each.collect()
    }

    #[test]
    fn every_visible_command_has_a_page_and_no_other_has() {
        let mut expected: BTreeSet<String> = ["hrun".into(), OCI_PAGE.into()].into();
        for (root, name) in [(Cli::command(), "hrun"), (OciCli::command(), OCI_PAGE)] {
            let commands = commands(&root, name);
            expected.extend(commands.iter().map(|words| words.replace(' ', "-")));
        }
        for some in ["hrun-run", "hrun-image-ls", "hrun-oci-state"] {
            assert!(expected.contains(some), "{some}");
        }
        let pages = pages().unwrap();
        assert_eq!(pages.len(), expected.len());
        let found: BTreeSet<_> = pages.into_iter().map(|page| page.name).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_page_shows_synopsis_options_and_examples() {
        let page = named("hrun-run").text;
        for text in [
            "\n.TH hrun-run 1 \" \" \"hrun ",
            "hrun\\-run \\- ",
            "\\fBhrun run\\fR [OPTIONS] IMAGE",
            "\\-\\-hostname",
            ".SH EXAMPLES\n.EX\nhrun run \\-\\-rm busybox uname \\-r\n",
            ".EE\n.PP\nThe exit status",
            ".SH \"SEE ALSO\"\n\\fBhrun\\fR(1)",
        ] {
            assert!(page.contains(text), "{text} is not in:\n{page}");
        }
    }

    #[test]
    fn commands_of_the_oci_runtime_are_shown_as_they_are_called() {
        let page = named("hrun-oci-kill").text;
        assert!(page.contains("\\fBhrun kill\\fR "), "{page}");
        let first = named("hrun").text;
        assert!(first.contains("\\fBhrun\\-oci\\fR(1)"), "{first}");
    }

    #[test]
    fn the_pages_are_written_to_a_directory_that_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let man1 = dir.path().join("share/man/man1");
        let pages = pages().unwrap();
        write(&pages, &man1).unwrap();
        assert_eq!(fs::read_dir(&man1).unwrap().count(), pages.len());
        assert!(man1.join("hrun-image-ls.1").is_file());
        fs::write(dir.path().join("file"), "").unwrap();
        let error = write(&pages, &dir.path().join("file")).unwrap_err();
        assert!(format!("{error:#}").contains("Failed to make"), "{error:#}");
    }

    /// groff warns of macros and escapes that it does not know. Not every machine has it.
    #[test]
    fn groff_has_nothing_to_say_about_the_pages() {
        let there = Process::new("groff").arg("--version").output();
        if there.is_err() {
            eprintln!("skipped: there is no groff");
            return;
        }
        let all: String = pages().unwrap().into_iter().map(|page| page.text).collect();
        let mut groff = Process::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = groff.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(all.as_bytes()));
        let output = groff.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}
