//! A few epochs after a transform, with a teacher: a run of `distill` by the preset `recover`, in a folder inside the result's, as `prune` and
//! `share` make one.

use std::path::{Path, PathBuf};

use toml::{Table, Value};
use vitesse::data::{OpenOptions, Split, open};
use vitesse::model::network::fused::has_bf16;
use vitesse_train::Recipe;

use super::Console;
use super::args::LabelsBy;
use super::args::model::ReadArgs;
use super::failure::{Failure, Result};
use super::training::{Report, RunArgs, Training};

/// Who learns from whom, by what.
#[derive(Debug)]
pub(super) struct Recovery<'a> {
    /// The flag that asks for it.
    pub(super) flag: &'static str,
    /// The folder of the result, which is the student.
    pub(super) student: &'a Path,
    /// The folder of the run, inside the student's.
    pub(super) folder: &'static str,
    /// The teacher.
    pub(super) teacher: &'a Path,
    /// Which state dict of it.
    pub(super) key: Option<&'a str>,
    /// The data set.
    pub(super) data: Option<&'a Path>,
    /// How its classes find those of the models.
    pub(super) labels_by: LabelsBy,
}

impl Recovery<'_> {
    /// The folder of the run.
    pub(super) fn run(&self) -> PathBuf {
        self.student.join(self.folder)
    }

    /// Refuses what could not be trained afterwards, before anything is computed: a teacher that would be replaced, or that the flags `read`
    /// describe; data without labels.
    pub(super) fn check(&self, read: Option<&ReadArgs>) -> Result<()> {
        let (flag, teacher) = (self.flag, self.teacher);
        let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if whole(teacher).starts_with(whole(self.student)) {
            let sentence = format!(
                "`{}` is the teacher of {flag} and would be replaced by what is made here",
                teacher.display()
            );
            return Err(Failure::usage(sentence).hint("write to another folder with -o"));
        }
        if !read.is_none_or(ReadArgs::is_plain) {
            let sentence = format!(
                "{flag} reads the model once more, as the teacher, and only --key can describe it there"
            );
            return Err(Failure::usage(sentence).hint(
                "save it as a folder first, with the flags that describe it: `vitesse prune MODEL … --method magnitude --macs 1 -o FOLDER` cuts nothing",
            ));
        }
        if let Some(data) = self.data {
            let options = OpenOptions {
                split: Some(Split::Train),
                ..OpenOptions::default()
            };
            if open(data, &options)?.class_names().is_empty() {
                let sentence = format!("`{}` has no labels to train by", data.display());
                return Err(Failure::usage(sentence)
                    .hint(format!("leave {flag} out: what comes before it needs no labels")));
            }
        }
        Ok(())
    }

    /// The recipe: the preset, under `file`, under what is known here, under `more`.
    pub(super) fn recipe(
        &self,
        file: Table,
        more: Vec<(&str, Value)>,
        name: &str,
        console: &Console,
    ) -> Result<Recipe> {
        let text = |path: &Path| Value::String(path.display().to_string());
        let mut defaults = vec![("preset", Value::from("recover"))];
        if has_bf16() {
            defaults.push(("train.amp", Value::from("bf16")));
        }
        let mut keys = vec![
            ("model.checkpoint", text(self.student)),
            ("distill.teacher", text(self.teacher)),
        ];
        keys.extend(self.key.map(|key| ("distill.key", Value::from(key))));
        keys.extend(self.data.map(|data| ("data.path", text(data))));
        if self.labels_by == LabelsBy::Index {
            keys.push(("data.labels_by", Value::from("index")));
        }
        keys.extend(more);
        let said = |table: &Table| {
            let train = table.get("train");
            train.is_some_and(|train| train.get("batch_size").is_some())
        };
        let sized = said(&file) || keys.iter().any(|(key, _)| *key == "train.batch_size");
        let mut recipe = Recipe::layered(&defaults, file, &keys, name)?;
        if !sized {
            let note = recipe.fit_batch()?;
            note.iter().for_each(|note| console.note(note));
        }
        Ok(recipe)
    }

    /// Trains, and reports as `distill` does.
    pub(super) fn learn(&self, recipe: Recipe, args: RunArgs, console: &Console) -> Result<Report> {
        Training::new("distill", recipe, args, console)?.learn()
    }
}
