//! `hrun image history`: how an image was made, by its own account.

use image::{Image, oci_spec::image::History};
use serde::Serialize;

use super::open_store;
use crate::{cli::Format, dirs::Dirs, options::size, table};

/// Longest command that is shown without `--no-trunc`, in characters.
const SHOWN: usize = 60;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hrun image history debian\n  hrun image history --no-trunc app"
)]
pub(crate) struct HistoryArgs {
    /// Name or identifier
    image: String,
    /// Show whole commands
    #[arg(long)]
    no_trunc: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One step, as programs get to see it.
#[derive(Debug, Serialize, PartialEq)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    /// Bytes of the files of its layer; none if it has no layer.
    size: Option<u64>,
}

pub(crate) fn execute(args: &HistoryArgs) -> anyhow::Result<()> {
    let image = open_store(&Dirs::from_env()?)?.find(&args.image)?;
    let steps = steps(&image);
    if args.format == Format::Json {
        return crate::commands::print_json(&steps);
    }
    let rows: Vec<Vec<String>> = steps.iter().map(|step| row(step, args.no_trunc)).collect();
    let head = ["CREATED", "SIZE", "CREATED BY", "COMMENT"];
    crate::commands::print(&table::render(&head, &rows))
}

/// The steps, last first as docker has them.
fn steps(image: &Image) -> Vec<Step> {
    let history = image.config.history().clone().unwrap_or_default();
    pair(&history, &image.layer_sizes)
}

/// Pairs steps with layers. Layers that no step tells of come as steps without a word.
fn pair(history: &[History], layers: &[u64]) -> Vec<Step> {
    let mut layers = layers.iter().copied();
    let mut steps: Vec<Step> = history
        .iter()
        .map(|step| Step {
            created: step.created().clone(),
            created_by: step.created_by().clone(),
            author: step.author().clone(),
            comment: step.comment().clone(),
            size: if step.empty_layer().unwrap_or(false) {
                None
            } else {
                layers.next()
            },
        })
        .collect();
    steps.extend(layers.map(|size| Step {
        created: None,
        created_by: None,
        author: None,
        comment: None,
        size: Some(size),
    }));
    steps.reverse();
    steps
}

fn row(step: &Step, whole: bool) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut command = text(&step.created_by);
    if !whole && command.chars().count() > SHOWN {
        command = command.chars().take(SHOWN - 3).collect();
        command.push_str("...");
    }
    vec![
        text(&step.created),
        size::format(step.size.unwrap_or(0)),
        command,
        text(&step.comment),
    ]
}

#[cfg(test)]
mod tests {
    use image::oci_spec::image::HistoryBuilder;

    use super::*;

    fn step(command: &str, empty: bool) -> History {
        HistoryBuilder::default()
            .created_by(command)
            .empty_layer(empty)
            .build()
            .unwrap()
    }

    #[test]
    fn steps_without_a_layer_take_none_from_the_others() {
        let history = [step("ADD", false), step("ENV", true), step("RUN", false)];
        let sizes = |layers: &[u64]| -> Vec<_> {
            let steps = pair(&history, layers);
            steps.into_iter().map(|s| (s.created_by, s.size)).collect()
        };
        let named = |name: &str, size| (Some(name.to_owned()), size);
        assert_eq!(
            sizes(&[1, 2]),
            [
                named("RUN", Some(2)),
                named("ENV", None),
                named("ADD", Some(1))
            ]
        );
        assert_eq!(sizes(&[1])[0], named("RUN", None), "a history that lies");
        assert_eq!(sizes(&[1, 2, 3])[0], (None, Some(3)));
    }

    #[test]
    fn long_commands_are_cut_unless_wanted() {
        let steps = pair(&[step(&"é".repeat(100), false)], &[5]);
        assert_eq!(row(&steps[0], false)[2].chars().count(), SHOWN);
        assert_eq!(row(&steps[0], true)[2].chars().count(), 100);
    }
}
