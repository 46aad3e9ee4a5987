//! `hrun pool`: the daemon that keeps VMs ready, and what an operator tells it.

use anyhow::Context;

use super::run;
use crate::{
    cli::{Format, FormatArgs},
    dirs::Dirs,
    host, launch,
    options::size,
    parts::Parts,
    pool::{self, ImageId, PoolClass, PoolOptions, Status, client},
    table,
    template::Class,
};

/// What `hrun run` asks for if it is not told otherwise.
const DEFAULT_CLASS: &str = "1x256m";

/// Keep VMs ready, so that containers start faster
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PoolCommand {
    /// Keep VMs ready and hand them out, until told to end by SIGTERM or Ctrl-C
    Serve(ServeArgs),
    /// Show what the pool has and what was asked of it
    Status(FormatArgs),
    /// Keep another number of VMs
    Resize(ResizeArgs),
    /// End all VMs that wait and keep none, until `resize`
    Drain,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun pool serve                                Keep 4 VMs as hrun run wants them by default
  hrun pool serve --size 8 --memory-limit 256m   More of them, with a limit
  hrun pool serve --class 1x256m --class 2x1g    Some for hrun run --cpus 2 --memory 1g, too
  hrun pool serve --image busybox                VMs that know an image, for the fastest starts")]
pub(crate) struct ServeArgs {
    /// VMs of each class that wait for a container
    #[arg(long, value_name = "N", default_value_t = 4)]
    size: usize,
    /// CPUs and memory of the VMs; may be given several times
    #[arg(long = "class", value_name = "CPUSxMEMORY", value_parser = class,
          default_value = DEFAULT_CLASS)]
    classes: Vec<Class>,
    /// Image that the VMs are to know; may be given several times. Without it they are for any
    #[arg(long = "image", value_name = "IMAGE")]
    images: Vec<String>,
    /// Classes besides these of which one VM waits once they were asked for
    #[arg(long, value_name = "N", default_value_t = 4)]
    learn: usize,
    /// Memory that waiting VMs may have to themselves together, such as 256m
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory_limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun pool resize 16                Keep 16 VMs as hrun run wants them by default
  hrun pool resize --class 2x1g 1    Keep one with 2 CPUs and 1 GiB, too
  hrun pool resize --image nginx 2   Keep two that know an image")]
pub(crate) struct ResizeArgs {
    /// Which VMs
    #[arg(long, value_name = "CPUSxMEMORY", value_parser = class, default_value = DEFAULT_CLASS)]
    class: Class,
    /// Image that the VMs are to know
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How many of them wait for a container
    #[arg(value_name = "N")]
    size: usize,
}

pub(crate) fn execute(command: &PoolCommand) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    match command {
        PoolCommand::Serve(args) => serve(&dirs, args),
        PoolCommand::Status(args) => {
            let status = client::status(&dirs)?;
            match args.format {
                Format::Json => super::print_json(&status),
                Format::Table => super::print(&report(&status)),
            }
        }
        PoolCommand::Resize(args) => {
            let image = args.image.as_deref().map(|name| image_id(&dirs, name));
            let class = PoolClass {
                vm: args.class,
                image: image.transpose()?,
            };
            Ok(client::resize(&dirs, class, args.size)?)
        }
        PoolCommand::Drain => Ok(client::drain(&dirs)?),
    }
}

fn serve(dirs: &Dirs, args: &ServeArgs) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_kvm()?;
    let images: Vec<Option<ImageId>> = if args.images.is_empty() {
        vec![None]
    } else {
        let ids = args
            .images
            .iter()
            .map(|name| image_id(dirs, name).map(Some));
        ids.collect::<Result<_, _>>()?
    };
    let classes = args.classes.iter().flat_map(|&vm| {
        let images = images.iter();
        images.map(move |&image| PoolClass { vm, image })
    });
    let options = PoolOptions {
        classes: classes.collect(),
        size: args.size,
        memory_limit: args.memory_limit,
        learn: args.learn,
    };
    Ok(pool::serve(
        dirs,
        Parts::find()?,
        launch::boot_timeout()?,
        &options,
    )?)
}

fn image_id(dirs: &Dirs, name: &str) -> anyhow::Result<ImageId> {
    let image = super::image::open_store(dirs)?.find(name)?;
    ImageId::of(&image.id).with_context(|| format!("Image {name} has an id of an unknown kind"))
}

/// A class such as `2x1g`.
fn class(text: &str) -> anyhow::Result<Class> {
    let (cpus, memory) = text
        .split_once(['x', 'X'])
        .context("A class is a number of CPUs and a size of memory, such as 2x1g")?;
    Ok(Class {
        cpus: run::cpus(cpus)?,
        memory: run::memory(memory)?,
    })
}

fn report(status: &Status) -> String {
    let rows: Vec<Vec<String>> = status
        .classes
        .iter()
        .map(|kept| {
            let template = kept.template.as_deref().unwrap_or("-");
            vec![
                kept.class.to_string(),
                format!(
                    "{}{}",
                    kept.size,
                    if kept.learned { " (learned)" } else { "" }
                ),
                kept.ready.to_string(),
                kept.loading.to_string(),
                kept.running.to_string(),
                kept.claimed.to_string(),
                kept.missed.to_string(),
                size::format(kept.waiting_memory),
                template.into(),
            ]
        })
        .collect();
    let head = [
        "CLASS", "SIZE", "READY", "LOADING", "RUNNING", "CLAIMED", "MISSED", "MEMORY", "TEMPLATE",
    ];
    let mut text = table::render(&head, &rows);
    let memory = size::format(status.waiting_memory);
    text.push_str(&match status.memory_limit {
        Some(limit) => format!("\nWaiting VMs have {memory} of {}.\n", size::format(limit)),
        None => format!("\nWaiting VMs have {memory}.\n"),
    });
    if let Some(reason) = status.held_back {
        text.push_str(&format!("No more are loaded: {reason}.\n"));
    }
    for kept in &status.classes {
        if let Some(trouble) = &kept.trouble {
            let trouble = table::printable(trouble);
            text.push_str(&format!("Trouble with {}: {trouble}\n", kept.class));
        }
        if kept.size == 0 && kept.missed > 0 {
            text.push_str(&format!(
                "{} was asked for and is not kept: hrun pool resize --class {} N\n",
                kept.class,
                typed(kept.class)
            ));
        }
    }
    text
}

/// A class as it is typed.
fn typed(class: PoolClass) -> String {
    const MIB: u64 = 1 << 20;
    let Class { cpus, memory } = class.vm;
    let mut typed = if memory.is_multiple_of(MIB) {
        format!("{cpus}x{}m", memory / MIB)
    } else {
        format!("{cpus}x{memory}")
    };
    if let Some(image) = class.image {
        typed.push_str(&format!(" --image {image}"));
    }
    typed
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        pool::{ClassStatus, HeldBack},
    };

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    fn serve(line: &str) -> ServeArgs {
        match parse(line).unwrap() {
            Command::Pool(PoolCommand::Serve(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_default_the_pool_keeps_what_hrun_run_asks_for() {
        let Command::Run(run) = parse("hrun run busybox").unwrap() else {
            panic!("that is run");
        };
        let args = serve("hrun pool serve");
        let asked_for = Class {
            cpus: run::cpus(&run.container.cpus).unwrap(),
            memory: run::memory(&run.container.memory).unwrap(),
        };
        assert_eq!(args.classes, [asked_for]);
        assert_eq!((args.size, args.memory_limit), (4, None));
    }

    #[test]
    fn classes_are_typed_as_cpus_and_memory() {
        let args = serve("hrun pool serve --class 1x256m --class 2X1g --memory-limit 64m");
        let kept: Vec<_> = args.classes.iter().map(|c| (c.cpus, c.memory)).collect();
        assert_eq!(kept, [(1, 256 << 20), (2, 1 << 30)]);
        assert_eq!(args.memory_limit, Some(64 << 20));
        for bad in [
            "1", "x", "0x256m", "1x1k", "1.5x1g", "1x", "99x1g", "1x256mx",
        ] {
            assert!(class(bad).is_err(), "{bad}");
        }
        for memory in [256 << 20, (256 << 20) + 1] {
            let class = Class { cpus: 2, memory };
            assert_eq!(super::class(&typed(PoolClass::any(class))).unwrap(), class);
        }
    }

    #[test]
    fn the_report_says_what_is_missing_and_why() {
        let kept = |cpus, size, missed| ClassStatus {
            class: PoolClass::any(Class {
                cpus,
                memory: 256 << 20,
            }),
            size,
            learned: false,
            ready: size,
            loading: 0,
            running: 1,
            claimed: 12,
            missed,
            waiting_memory: 4 << 20,
            template: Some("0123456789abcdef".into()),
            trouble: (size > 0).then(|| "it\x1b[2J broke".into()),
        };
        let status = Status {
            pid: 1,
            waiting_memory: 4 << 20,
            memory_limit: Some(64 << 20),
            held_back: Some(HeldBack::MemoryLimit),
            classes: vec![kept(1, 3, 0), kept(2, 0, 7)],
        };
        let text = report(&status);
        let first: Vec<&str> = text.lines().nth(1).unwrap().split("   ").collect();
        assert_eq!(first[0], "1 CPU, 256 MiB");
        assert!(text.contains("4.0 MiB of 64.0 MiB"), "{text}");
        assert!(text.contains("No more are loaded"), "{text}");
        assert!(
            text.contains("Trouble with 1 CPU, 256 MiB: it\\u{1b}"),
            "{text}"
        );
        assert!(text.contains("hrun pool resize --class 2x256m N"), "{text}");
        assert!(!text.contains("--class 1x256m"), "{text}");
    }
}
