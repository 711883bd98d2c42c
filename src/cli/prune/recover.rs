//! A few epochs after the cut, with the model that was cut as the teacher: a run of `distill` by the preset `recover`.

use std::num::NonZeroUsize;
use std::path::Path;

use toml::{Table, Value};
use vitesse::data::{OpenOptions, Split, open};
use vitesse::model::network::fused::has_bf16;
use vitesse_train::Recipe;

use super::Args;
use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::training::{Report, RunArgs, Training};

/// The folder of the run, inside that of the pruned model.
const FOLDER: &str = "recovered";

/// Refuses what could not be trained afterwards, before anything is cut: a teacher that would be replaced, or that flags describe; data without
/// labels.
pub(super) fn check(args: &Args, teacher: &Path) -> Result<()> {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if whole(teacher).starts_with(whole(args.output.folder())) {
        let sentence = format!(
            "`{}` is the teacher of --finetune and would be replaced by what is cut out of it",
            teacher.display()
        );
        return Err(Failure::usage(sentence).hint("write to another folder with -o"));
    }
    if !args.read.is_plain() {
        let sentence =
            "--finetune reads the model once more, as the teacher, and only --key can describe it there";
        return Err(Failure::usage(sentence).hint(
            "save it as a folder first, with `vitesse prune MODEL --method magnitude --macs 1 -o FOLDER`",
        ));
    }
    if let Some(data) = &args.images.data {
        let options = OpenOptions {
            split: Some(Split::Train),
            ..OpenOptions::default()
        };
        if open(data, &options)?.class_names().is_empty() {
            let sentence = format!("`{}` has no labels to train by", data.display());
            return Err(
                Failure::usage(sentence).hint("leave --finetune out: choosing and correcting need no labels")
            );
        }
    }
    Ok(())
}

/// Trains the pruned model in `output`, and reports as `distill` does.
pub(super) fn run(
    args: &Args,
    teacher: &Path,
    output: &Path,
    epochs: NonZeroUsize,
    console: &Console,
) -> Result<Report> {
    let text = |path: &Path| Value::String(path.display().to_string());
    let mut keys = vec![
        ("preset", Value::from("recover")),
        ("model.checkpoint", text(output)),
        ("distill.teacher", text(teacher)),
        ("train.epochs", Value::Integer(epochs.get() as i64)),
    ];
    keys.extend(args.read.key().map(|key| ("distill.key", Value::from(key))));
    keys.extend(args.images.data.as_deref().map(|data| ("data.path", text(data))));
    if args.images.labels_by == crate::cli::args::LabelsBy::Index {
        keys.push(("data.labels_by", Value::from("index")));
    }
    if has_bf16() {
        keys.push(("train.amp", Value::from("bf16")));
    }
    let mut recipe = Recipe::layered(&[], Table::new(), &keys, "the preset `recover`")?;
    let note = recipe.fit_batch()?;
    note.iter().for_each(|note| console.note(note));
    Training::new("distill", recipe, RunArgs::after(output.join(FOLDER)), console)?.learn()
}
