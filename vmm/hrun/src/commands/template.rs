//! `hrun template`: the saved VMs that containers start from.

use anyhow::Context;
use serde::Serialize;

use super::run;
use crate::{
    cli::{Format, FormatArgs},
    dirs::Dirs,
    exit, host, launch,
    options::size,
    parts::Parts,
    signals::Signals,
    table,
    template::{Class, Got, Making, Rehearsal, Template, Templates},
};

/// Manage the saved VMs that containers start from
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TemplateCommand {
    /// List templates
    Ls(FormatArgs),
    /// Make a template before somebody needs it
    Create(CreateArgs),
    /// Remove templates; the next container makes a new one
    Rm(NamesArgs),
    /// Read templates through and compare them with their checksums
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun template create                      For hrun run
  hrun template create --cpus 2 -m 1g       For hrun run --cpus 2 -m 1g
  hrun template create --image busybox      For hrun run busybox, which starts faster then
  hrun template create --image debian python3 -c 'import json'
                                            The same, with what this command reads at hand")]
pub(crate) struct CreateArgs {
    /// Memory that containers will see
    #[arg(short, long, value_name = "SIZE", default_value = "256m")]
    memory: String,
    /// CPUs that containers will see
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: String,
    /// Make it for this image: its containers find what COMMAND has read in memory
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// What runs once in the VM before it is saved; true if nothing is named
    #[arg(
        value_name = "COMMAND",
        requires = "image",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NamesArgs {
    /// Names of templates, which may be shortened
    #[arg(required = true, value_name = "TEMPLATE")]
    templates: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Names of templates, which may be shortened; without any, all
    #[arg(value_name = "TEMPLATE")]
    templates: Vec<String>,
}

/// A template as `ls --format json` shows it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    cpus: u8,
    memory: u64,
    /// The image that it is for.
    image: Option<String>,
    /// Bytes on disk.
    size: u64,
    /// Seconds since the Unix epoch.
    created: u64,
    /// Its kernel, initramfs or VMM was replaced: it will be removed.
    stale: bool,
}

pub(crate) fn execute(command: &TemplateCommand) -> anyhow::Result<()> {
    let dirs = Dirs::from_env()?;
    let templates = Templates::open(&dirs)?;
    match command {
        TemplateCommand::Ls(args) => ls(&templates, args.format),
        TemplateCommand::Create(args) => create(&dirs, &templates, args),
        TemplateCommand::Rm(args) => args.templates.iter().try_for_each(|name| {
            let template = templates.find(name)?;
            templates.remove(&template)?;
            super::print(&format!("{}\n", template.key))
        }),
        TemplateCommand::Verify(args) => verify(&templates, &args.templates),
    }
}

fn ls(templates: &Templates, format: Format) -> anyhow::Result<()> {
    let listed: Vec<Listed> = templates
        .list()?
        .into_iter()
        .map(|(template, about)| Listed {
            size: template.size(),
            name: template.key,
            cpus: about.class.cpus,
            memory: about.class.memory,
            created: about.created,
            stale: about.is_stale(),
            image: about.image.map(|image| image.name),
        })
        .collect();
    if format == Format::Json {
        return super::print_json(&listed);
    }
    let rows: Vec<_> = listed
        .iter()
        .map(|listed| {
            vec![
                listed.name.clone(),
                listed.cpus.to_string(),
                size::format(listed.memory),
                size::format(listed.size),
                listed.image.clone().unwrap_or_default(),
                if listed.stale { "stale" } else { "" }.into(),
            ]
        })
        .collect();
    super::print(&table::render(
        &["NAME", "CPUS", "MEMORY", "SIZE", "IMAGE", ""],
        &rows,
    ))
}

fn create(dirs: &Dirs, templates: &Templates, args: &CreateArgs) -> anyhow::Result<()> {
    let class = Class {
        cpus: run::cpus(&args.cpus)?,
        memory: run::memory(&args.memory)?,
    };
    host::require_root()?;
    host::require_kvm()?;
    let mut signals = Signals::catch().context("Failed to catch signals")?;
    let making = Making {
        signals: Some(&mut signals),
        timeout: launch::boot_timeout()?,
        begins: &|| exit::print_error(&format!("Preparing a VM with {class} ...\n")),
    };
    let parts = Parts::find()?;
    let (template, got) = match &args.image {
        None => templates.get_or_make(class, &parts, making)?,
        Some(name) => {
            let store = super::image::open_store(dirs)?;
            let image = store.find(name)?;
            let _in_use = store.use_image(&image)?;
            let rehearsal = Rehearsal::new(name, &image, class, &args.command)?;
            templates.get_or_make_for_image(class, &parts, &rehearsal, making)?
        }
    };
    if let Got::Made {
        damage: Some(damage),
    } = got
    {
        exit::print_error(&format!("hrun: {damage}; made a new template\n"));
    }
    super::print(&format!("{}\n", template.key))
}

fn verify(templates: &Templates, names: &[String]) -> anyhow::Result<()> {
    let chosen: Vec<Template> = if names.is_empty() {
        let all = templates.list()?;
        all.into_iter().map(|(template, _)| template).collect()
    } else {
        let found = names.iter().map(|name| templates.find(name));
        found.collect::<Result<_, _>>()?
    };
    for template in chosen {
        templates.verify(&template)?;
        super::print(&format!("{}: intact\n", template.key))?;
    }
    Ok(())
}
