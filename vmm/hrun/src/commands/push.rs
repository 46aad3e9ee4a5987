//! `hrun push`: brings images from the store into registries.

use anyhow::Context;
use image::{
    PushOptions, Pushed, PushedIndex, Reference,
    registry::{Access, AuthFiles},
};

use super::image::{open_store, progress::Bars};
use crate::{dirs::Dirs, events, exit, options::size, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun push registry.example/team/app:1.4         Under the name that it has
  hrun push app registry.example/team/app:1.4     Under another
  hrun push --insecure app registry.lan:5000/app  To a registry without TLS
  hrun push --all-platforms app registry.example/app:2   With its images for other machines

Only what the registry does not have is sent. Log in with `hrun login REGISTRY`; the logins of
docker and podman count as well.

With --all-platforms the index from which the image was pulled or loaded is pushed as it is, with
those of its images that the store has; what it does not have is named. `hrun pull --platform` gets
one image after the other. Most registries take an index only if they have all that it lists.")]
pub(crate) struct PushArgs {
    /// Allow a registry without encryption, or with a certificate that nobody vouches for
    #[arg(long)]
    insecure: bool,
    /// Push the index that the image came from, and all its images that are here
    #[arg(long, visible_alias = "all")]
    all_platforms: bool,
    /// Show no progress and print the digest only
    #[arg(short, long)]
    quiet: bool,
    /// Name or identifier of the image
    image: String,
    /// Where to, if its name does not say that
    #[arg(value_name = "DEST")]
    destination: Option<Reference>,
}

pub(crate) fn execute(args: &PushArgs) -> anyhow::Result<()> {
    let store = open_store(&Dirs::from_env()?)?;
    let destination = match &args.destination {
        Some(destination) => destination.clone(),
        None => args.image.parse()?,
    };
    let options = PushOptions {
        access: Access {
            insecure: args.insecure,
        },
        credentials: AuthFiles::from_env(),
    };
    let bars = Bars::new(!args.quiet);
    bars.say(&format!("Pushing {destination}"));
    let failed = || format!("Failed to push {destination}");
    let (pushed, index) = if args.all_platforms {
        let done = store.push_all_platforms(&args.image, &destination, &options, &bars);
        bars.clear();
        let index = done.with_context(failed)?;
        (index.pushed.clone(), Some(index))
    } else {
        let done = store.push(&args.image, &destination, &options, &bars);
        bars.clear();
        (done.with_context(failed)?, None)
    };
    for missing in index.iter().flat_map(|index| &index.missing) {
        let there = match missing.is_there {
            true => "the registry has it",
            false => "nor in the registry",
        };
        exit::print_error(&format!(
            "note: not in the store, {there}: {}\n",
            table::printable(&missing.what)
        ));
    }
    events::image("push", &destination);
    super::print(&said(&destination, &pushed, index.as_ref(), args.quiet))
}

fn said(
    destination: &Reference,
    pushed: &Pushed,
    index: Option<&PushedIndex>,
    quiet: bool,
) -> String {
    let digest = &pushed.digest;
    if quiet {
        return format!("{digest}\n");
    }
    let mut news = Vec::new();
    if let Some(PushedIndex {
        images, missing, ..
    }) = index
    {
        let all = images + missing.len();
        news.push(format!("{images} of {all} images"));
    }
    if pushed.sent > 0 {
        let plural = if pushed.sent == 1 { "" } else { "s" };
        let bytes = size::format(pushed.sent_bytes);
        news.push(format!("{} blob{plural} sent, {bytes}", pushed.sent));
    }
    if pushed.mounted > 0 {
        news.push(format!("{} taken over", pushed.mounted));
    }
    if pushed.sent + pushed.mounted == 0 {
        news.push("all there already".into());
    }
    format!("Pushed {destination} ({digest}): {}\n", news.join(", "))
}
