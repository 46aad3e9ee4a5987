//! `hrun bench`: measures hrun against containers made of namespaces, on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{
    bench::{
        self, Interrupt,
        plan::{Part, Plan},
        plot, tables,
    },
    cli::Format,
    dirs::Dirs,
    exit, host,
    signals::Signals,
};

/// A signal ended it.
#[derive(Debug, thiserror::Error)]
#[error("Interrupted by signal {0}: everything was cleaned up")]
pub(crate) struct Interrupted(pub(crate) i32);

/// The largest numbers that make sense: more would not end.
const MOST_SAMPLES: i64 = 100_000;
const MOST_CONTAINERS: usize = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun bench --quick                          A first look, within three minutes
  hrun bench -o results                       All of it: a table, JSON and plots in ./results
  hrun bench --arms template,crun --parts starts --samples 200
  hrun bench --parts idle --idle 1,100        Memory of idle containers
  hrun bench --parts starts --samples 10 --density 1000

Arms: pool, template and cold are hrun's ways of starting a VM; crun and runc run the same image in
namespaces, with the same root file system, without a network. One that is not there is named as
missing. Everything is measured by turns in one run; the machine should have nothing else to do.")]
pub(crate) struct BenchArgs {
    /// Image to run; it must have sh, true, echo, sleep and dd
    #[arg(long, default_value = "busybox")]
    image: String,
    /// Measure less: what takes three minutes where guest kernels are interpreted
    #[arg(long)]
    quick: bool,
    /// What takes part
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values = bench::NAMES)]
    arms: Vec<String>,
    /// What is measured
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',', default_values = ["starts", "bursts", "idle", "work"])]
    parts: Vec<Part>,
    /// Starts of each arm [default: 50, quick 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..MOST_SAMPLES))]
    samples: Option<u32>,
    /// Starts of the cold arm, each of which is a boot [default: 10, quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..MOST_SAMPLES))]
    cold_samples: Option<u32>,
    /// Numbers of starts at once [default: 1,4,16]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    at_once: Option<Vec<usize>>,
    /// Numbers of idle containers [default: 1,10,50, quick 1,10]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    idle: Option<Vec<usize>>,
    /// Most containers that the cold arm runs at once [default: 16, quick 2]
    #[arg(long, value_name = "N")]
    cold_most: Option<usize>,
    /// Also see how many idle containers fit, up to N, until 80 % of the memory is full
    #[arg(long, value_name = "N")]
    density: Option<usize>,
    /// VMs that the pool holds ready [default: the most starts at once]
    #[arg(long, value_name = "N")]
    pool_size: Option<usize>,
    /// Seconds after which it ends with what it has [default: 3600, quick 150]
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Number that decides the order of turns
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Directory for report.json and the plots
    #[arg(short, long, value_name = "DIR", default_value = "hrun-bench")]
    output: PathBuf,
    /// Form of what is printed; report.json is written in any case
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn execute(args: &BenchArgs) -> anyhow::Result<()> {
    let plan = args.plan()?;
    host::require_root()?;
    // Comes back in another process. Without unshare(1) the mounts are made here.
    let _ = bench::namespace::enter();
    let dirs = Dirs::from_env()?;
    let store = super::image::open_store(&dirs)?;
    let image = store.find(&plan.image)?;
    let _in_use = store.use_image(&image)?;
    // What cannot be written shall not be found out in the end.
    fs::create_dir_all(&args.output)
        .with_context(|| format!("Failed to make {}", args.output.display()))?;
    let mut signals = Signals::catch().context("Failed to catch signals")?;

    let (report, interrupt) = bench::run(&plan, image, &dirs, args.quiet, &mut signals)?;

    let mut json = serde_json::to_string_pretty(&report).context("Failed to make JSON")?;
    json.push('\n');
    write(&args.output, "report.json", &json)?;
    let mut files = vec!["report.json"];
    for (name, svg) in plot::all(&report) {
        write(&args.output, name, &svg)?;
        files.push(name);
    }
    match args.format {
        Format::Json => super::print(&json)?,
        Format::Table => super::print(&tables::render(&report))?,
    }
    let shown = args.output.display();
    exit::print_error(&format!("\nWrote {} to {shown}\n", files.join(", ")));
    match interrupt {
        None => Ok(()),
        Some(Interrupt(signal)) => bail!(Interrupted(signal)),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("Failed to write {}", path.display()))
}

impl BenchArgs {
    /// What is to be measured, with the defaults of either form.
    fn plan(&self) -> anyhow::Result<Plan> {
        let either = |full: usize, quick: usize| if self.quick { quick } else { full };
        let count = |wanted: Option<u32>, full, quick| {
            wanted
                .and_then(|wanted| usize::try_from(wanted).ok())
                .unwrap_or_else(|| either(full, quick))
        };
        let list = |wanted: &Option<Vec<usize>>, default: &[usize]| {
            let mut list = wanted.clone().unwrap_or_else(|| default.to_vec());
            list.retain(|count| *count > 0);
            list.sort_unstable();
            list.dedup();
            list
        };
        let at_once = list(&self.at_once, &[1, 4, 16]);
        let idle = list(&self.idle, if self.quick { &[1, 10] } else { &[1, 10, 50] });
        let largest = at_once.iter().chain(&idle).chain(&self.density).max();
        if let Some(largest) = largest.filter(|largest| **largest > MOST_CONTAINERS) {
            bail!("{largest} containers are too many: at most {MOST_CONTAINERS}");
        }
        let arms = self
            .arms
            .iter()
            .map(|wanted| {
                let known = bench::NAMES.into_iter().find(|name| name == wanted);
                known.with_context(|| {
                    format!(
                        "There is no arm {wanted:?}, only {}",
                        bench::NAMES.join(", ")
                    )
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Plan {
            image: self.image.clone(),
            arms,
            parts: self.parts.clone(),
            samples: count(self.samples, 50, 10),
            cold_samples: count(self.cold_samples, 10, 2),
            warm_up: either(2, 1),
            burst_rounds: either(3, 1),
            cold_most: self.cold_most.unwrap_or_else(|| either(16, 2)),
            cold_works: !self.quick,
            density: self.density,
            work_rounds: either(3, 1),
            work_ms: either(1000, 300) as u64,
            pool_size: self
                .pool_size
                .unwrap_or_else(|| at_once.last().copied().unwrap_or(1))
                .max(1),
            time_limit_seconds: self.time_limit.unwrap_or(either(3600, 150) as u64),
            seed: self.seed,
            at_once,
            idle,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(line: &str) -> anyhow::Result<Plan> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words)?.args.plan()
    }

    #[test]
    fn the_full_form_has_fifty_samples_of_everything() {
        let plan = plan("").unwrap();
        assert_eq!(plan.arms, bench::NAMES);
        assert_eq!(plan.parts, Part::ALL);
        assert_eq!((plan.samples, plan.cold_samples), (50, 10));
        assert_eq!(plan.at_once, [1, 4, 16]);
        assert_eq!(plan.idle, [1, 10, 50]);
        assert_eq!(plan.pool_size, 16);
    }

    #[test]
    fn the_quick_form_ends_in_time_and_numbers_can_be_chosen_still() {
        let plan = plan("--quick --samples 5 --arms crun,pool --at-once 3,1,3,0").unwrap();
        assert!(plan.time_limit_seconds < 170);
        assert_eq!((plan.samples, plan.cold_samples), (5, 2));
        assert_eq!(plan.arms, ["crun", "pool"]);
        assert_eq!(plan.at_once, [1, 3]);
        assert_eq!(plan.pool_size, 3);
    }

    #[test]
    fn what_would_never_end_or_is_unknown_is_refused() {
        assert!(plan("--idle 100000").is_err());
        assert!(plan("--samples 0").is_err());
        let error = plan("--arms docker").unwrap_err().to_string();
        assert!(
            error.contains("docker") && error.contains("crun"),
            "{error}"
        );
    }
}
