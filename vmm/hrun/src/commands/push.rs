//! `hrun push`: brings images from the store into registries.

use anyhow::Context;
use image::{
    PushOptions, Pushed, Reference,
    registry::{Access, AuthFiles},
};

use super::image::{open_store, progress::Bars};
use crate::{dirs::Dirs, options::size};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hrun push registry.example/team/app:1.4         Under the name that it has
  hrun push app registry.example/team/app:1.4     Under another
  hrun push --insecure app registry.lan:5000/app  To a registry without TLS

Only what the registry does not have is sent. Log in with `hrun login REGISTRY`; the logins of docker
and podman count as well.")]
pub(crate) struct PushArgs {
    /// Allow a registry without encryption, or with a certificate that nobody vouches for
    #[arg(long)]
    insecure: bool,
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
    let pushed = store.push(&args.image, &destination, &options, &bars);
    bars.clear();
    let pushed = pushed.with_context(|| format!("Failed to push {destination}"))?;
    super::print(&said(&destination, &pushed, args.quiet))
}

fn said(destination: &Reference, pushed: &Pushed, quiet: bool) -> String {
    let digest = &pushed.digest;
    if quiet {
        return format!("{digest}\n");
    }
    let mut news = Vec::new();
    if pushed.sent > 0 {
        let plural = if pushed.sent == 1 { "" } else { "s" };
        let bytes = size::format(pushed.sent_bytes);
        news.push(format!("{} blob{plural} sent, {bytes}", pushed.sent));
    }
    if pushed.mounted > 0 {
        news.push(format!("{} taken over", pushed.mounted));
    }
    if news.is_empty() {
        news.push("all there already".into());
    }
    format!("Pushed {destination} ({digest}): {}\n", news.join(", "))
}
