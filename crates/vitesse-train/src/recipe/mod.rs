//! A recipe: everything that decides what a training run computes, as a TOML file.
//!
//! A value comes from, last first: an override (a flag of the command line), the file, what the labels of the data set
//! demand, the preset that the file names, the documented default, which is DeiT's. The effective recipe, with every value written out, is saved in the run's
//! folder, and is itself a recipe that repeats the run.
//!
//! ```toml
//! preset = "small"
//!
//! [model]
//! name = "deit_micro_distilled_patch4_32"
//!
//! [data]
//! path = "shapes"
//!
//! [distill]
//! teacher = "runs/teacher/best"
//! kind = "hard"
//! ```

mod augment;
mod keys;
mod tables;

pub use augment::AugmentConfig;
pub use keys::set;
pub use tables::{Amp, DataConfig, DistillConfig, ModelConfig, TrainConfig};

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vitesse_words::counted;

use crate::adamw::OptimConfig;
use crate::loss::Kind;
use crate::schedule::{Curve, Schedule};
use crate::{Error, Result};

/// Presets by name.
const PRESETS: [(&str, &str); 6] = [
    ("deit", include_str!("presets/deit.toml")),
    ("small", include_str!("presets/small.toml")),
    ("finetune", include_str!("presets/finetune.toml")),
    ("highres", include_str!("presets/highres.toml")),
    ("adapt", include_str!("presets/adapt.toml")),
    ("recover", include_str!("presets/recover.toml")),
];

/// Everything that decides what a run computes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Recipe {
    /// What is trained.
    pub model: ModelConfig,
    /// On what.
    pub data: DataConfig,
    /// How long, in which batches, what is kept.
    pub train: TrainConfig,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// What happens to training images.
    pub augment: AugmentConfig,
    /// What is learned from a teacher.
    pub distill: DistillConfig,
    /// The method that begins and ends the run, with its settings: a `name`, and what only the method reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Table>,
}

impl Recipe {
    /// The names that `preset` may have.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// Reads a recipe file; `overrides` are keys with their table, such as `train.epochs`.
    ///
    /// # Errors
    /// A file that cannot be read, and whatever [`Recipe::parse`] refuses.
    pub fn read(path: &Path, overrides: &[(&str, Value)]) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Recipe::parse(&text, &path.display().to_string(), overrides)
    }

    /// As [`Recipe::read`], from the text of the file `name`. The recipe is validated.
    ///
    /// # Errors
    /// Text that is not TOML, an unknown preset, table or key (with the nearest known one), a value of the wrong type,
    /// and whatever [`Recipe::validate`] refuses.
    pub fn parse(text: &str, name: &str, overrides: &[(&str, Value)]) -> Result<Recipe> {
        let mut file: Table = keys::table(text, name)?;
        for (key, value) in overrides {
            keys::set(&mut file, key, value.clone());
        }
        Recipe::from_table(file, name)
    }

    /// As [`Recipe::parse`], from the table of the file `name`.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn from_table(mut file: Table, name: &str) -> Result<Recipe> {
        let mut root = match file.remove("preset") {
            None => Table::new(),
            Some(preset) => keys::table(self::preset(&preset)?, "preset")?,
        };
        let data = file.get("data").and_then(|data| data.get("path")?.as_str());
        keys::merge(&mut root, AugmentConfig::demanded(data.unwrap_or_default()));
        shorten(&root, &mut file);
        keys::merge(&mut root, file);
        let mut reader = keys::Reader::new(
            root,
            name,
            vec![
                ("model", keys::fields::<ModelConfig>()),
                ("data", keys::fields::<DataConfig>()),
                ("train", keys::fields::<TrainConfig>()),
                ("optim", keys::fields::<OptimConfig>()),
                ("schedule", keys::fields::<Schedule>()),
                ("augment", keys::fields::<AugmentConfig>()),
                ("distill", keys::fields::<DistillConfig>()),
                ("method", Vec::new()),
            ],
        );
        let recipe = Recipe {
            model: reader.table("model")?,
            data: reader.table("data")?,
            train: reader.table("train")?,
            optim: reader.table("optim")?,
            schedule: reader.table("schedule")?,
            augment: reader.table("augment")?,
            distill: reader.table("distill")?,
            method: reader.opaque("method")?,
        };
        reader.finish()?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Whether the key of a table can have this value, as far as its type says; of unknown tables nothing is said.
    pub fn takes(table: &str, key: &str, value: &Value) -> bool {
        match table {
            "model" => keys::takes::<ModelConfig>(key, value),
            "data" => keys::takes::<DataConfig>(key, value),
            "train" => keys::takes::<TrainConfig>(key, value),
            "optim" => keys::takes::<OptimConfig>(key, value),
            "schedule" => keys::takes::<Schedule>(key, value),
            "augment" => keys::takes::<AugmentConfig>(key, value),
            "distill" => keys::takes::<DistillConfig>(key, value),
            _ => true,
        }
    }

    /// As [`Recipe::from_table`], over `defaults`, keys for what the table does not say, and under `more`.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn layered(
        defaults: &[(&str, Value)],
        mut file: Table,
        more: &[(&str, Value)],
        name: &str,
    ) -> Result<Recipe> {
        for (key, value) in defaults {
            let said = match key.split_once('.') {
                Some((table, key)) => file.get(table).is_some_and(|table| table.get(key).is_some()),
                None => file.contains_key(*key),
            };
            if !said {
                keys::set(&mut file, key, value.clone());
            }
        }
        for (key, value) in more {
            keys::set(&mut file, key, value.clone());
        }
        Recipe::from_table(file, name)
    }

    /// The recipe as a file that [`Recipe::parse`] reads back.
    ///
    /// # Errors
    /// None for values that a recipe file can hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::Backend(format!("writing a recipe: {error}")))
    }

    /// What decides the result, as a document: everything but what only decides how fast it is there.
    ///
    /// # Errors
    /// None for values that a recipe file can hold.
    pub(crate) fn decisive(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let serde_json::Value::Object(mut document) = serde_json::json!(self) else {
            return Err(Error::Backend("a recipe that is no table".into()));
        };
        if let Some(serde_json::Value::Object(train)) = document.get_mut("train") {
            train.shift_remove("workers");
            train.shift_remove("save_every");
            train.shift_remove("grad_checkpointing");
        }
        Ok(document)
    }

    /// The name of the method, where the recipe has one.
    pub fn method_name(&self) -> Option<&str> {
        self.method.as_ref()?.get("name")?.as_str()
    }

    /// Refuses a recipe with a method, for those who know none.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the method.
    pub fn refuse_method(&self) -> Result<()> {
        match self.method_name() {
            None => Ok(()),
            Some(name) => Err(Error::recipe(
                "method.name",
                &format!("`{name}`"),
                "no [method] here: `vitesse train` and `vitesse adapt` follow such a recipe with `--recipe`",
            )),
        }
    }

    /// Checks every value that can be checked without looking at data or files.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the first key whose value cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.data.validate()?;
        self.train.validate()?;
        self.distill.validate()?;
        self.validate_optim()?;
        self.augment.validate()?;
        if let (Some(method), None) = (&self.method, self.method_name()) {
            let found = method
                .get("name")
                .map_or_else(|| "not set".to_owned(), Value::to_string);
            return Err(Error::recipe(
                "method.name",
                &found,
                "the name of a method, such as \"lora\"",
            ));
        }
        if self.augment.mixes() && self.train.batch_size % 2 == 1 {
            let expected = "an even number, since mixup and cutmix pair the samples of a batch";
            return Err(Error::recipe(
                "train.batch_size",
                &self.train.batch_size,
                expected,
            ));
        }
        Ok(())
    }

    fn validate_optim(&self) -> Result<()> {
        let (optim, schedule) = (&self.optim, &self.schedule);
        let positive = |key, value: f64| number(key, value, value > 0.0, "above 0");
        let at_least_0 = |key, value: f64| number(key, value, value >= 0.0, "at least 0");
        positive("optim.lr", optim.lr)?;
        at_least_0("optim.weight_decay", optim.weight_decay)?;
        positive("optim.eps", optim.eps)?;
        let [beta1, beta2] = optim.betas;
        for beta in [beta1, beta2] {
            number(
                "optim.betas",
                beta,
                (0.0..1.0).contains(&beta),
                "at least 0 and below 1",
            )?;
        }
        let share = optim.layer_decay > 0.0 && optim.layer_decay <= 1.0;
        number(
            "optim.layer_decay",
            optim.layer_decay,
            share,
            "above 0 and at most 1",
        )?;
        if let Some(limit) = optim.clip_grad {
            positive("optim.clip_grad", limit)?;
        }
        if optim.lr_base_size == Some(0) {
            return Err(Error::recipe(
                "optim.lr_base_size",
                &0,
                "a batch size such as 512, or nothing",
            ));
        }
        at_least_0("schedule.warmup_epochs", schedule.warmup_epochs)?;
        at_least_0("schedule.warmup_lr", schedule.warmup_lr)?;
        at_least_0("schedule.min_lr", schedule.min_lr)
    }

    /// What can be used but is hardly meant where `processes` follow the recipe together, a sentence each.
    pub fn warnings(&self, processes: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        let peak = self.optim.peak_lr(self.train.batch_size * processes);
        let schedule = &self.schedule;
        if schedule.warmup_epochs >= self.train.epochs as f64 {
            warnings.push(format!(
                "the run of {} ends before its warm-up of {} does, so the learning rate never reaches {peak:.2e}",
                counted(self.train.epochs, "epoch"),
                schedule.warmup_epochs
            ));
        }
        if schedule.curve == Curve::Cosine && schedule.min_lr > peak {
            warnings.push(format!(
                "`schedule.min_lr` {:.2e} is above the peak of {peak:.2e}: the learning rate will rise",
                schedule.min_lr
            ));
        }
        if schedule.warmup_epochs > 0.0 && schedule.warmup_lr > peak {
            warnings.push(format!(
                "`schedule.warmup_lr` {:.2e} is above the peak of {peak:.2e}: the warm-up lowers the rate",
                schedule.warmup_lr
            ));
        }
        if self.distill.kind == Some(Kind::None) && self.distill.teacher.is_some() {
            warnings.push("`distill.kind` is `none`: the teacher is not asked".into());
        }
        warnings.extend(self.augment.against(&self.data.path));
        warnings
    }
}

/// Shortens the warm-up of `preset` in proportion, where `file` asks for fewer epochs and does not say how the rate grows. So short
/// a schedule goes by steps: by epochs, with the first at the rate that the warm-up begins with, little would be left of it.
fn shorten(preset: &Table, file: &mut Table) {
    let in_table = |root: &Table, table: &str, key: &str| root.get(table)?.get(key).cloned();
    let said = |key| in_table(file, "schedule", key).is_some();
    if said("warmup_epochs") || said("per") {
        return;
    }
    let number = |value: Value| {
        value
            .as_float()
            .or_else(|| value.as_integer().map(|whole| whole as f64))
    };
    let usual = |table, key, default: f64| in_table(preset, table, key).and_then(number).unwrap_or(default);
    let (epochs, warmup) = (
        usual("train", "epochs", TrainConfig::default().epochs as f64),
        usual("schedule", "warmup_epochs", Schedule::default().warmup_epochs),
    );
    let Some(asked) = in_table(file, "train", "epochs")
        .and_then(number)
        .filter(|&asked| asked < epochs)
    else {
        return;
    };
    keys::set(
        file,
        "schedule.warmup_epochs",
        Value::Float(warmup * asked / epochs),
    );
    keys::set(file, "schedule.per", Value::from("step"));
}

fn preset(value: &Value) -> Result<&'static str> {
    let name = value.as_str().unwrap_or_default();
    PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
        .ok_or_else(|| {
            let known: Vec<&str> = Recipe::presets().collect();
            Error::recipe("preset", value, format!("one of `{}`", known.join("`, `")))
        })
}

/// Checks a number: finite, and `valid`.
fn number(key: &str, value: f64, valid: bool, expected: &str) -> Result<()> {
    if value.is_finite() && valid {
        Ok(())
    } else {
        Err(Error::recipe(key, &value, expected))
    }
}

#[cfg(test)]
mod tests;
