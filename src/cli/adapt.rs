//! `adapt`: a pretrained model learns a new task by a small part of it.

use std::fmt;

use burn::tensor::Device;
use serde::Serialize;
use toml::Value;
use vitesse::adapt::peft::{Adapter, Record};
use vitesse::adapt::{Adapted, Method, Trainable};
use vitesse::data::DataSet;
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse_train::Recipe;
use vitesse_train::run::{Existing, RunFolder};
use vitesse_train::state::State;
use vitesse_train::trainer::{Start, train};

use super::Console;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::training::{RecipeArgs, RunArgs, RunReport, Training, Watch};

/// Adapt a pretrained model to a new task with few parameters
///
/// The head is new and always learns; besides it, what the method adds or selects. Everything else stays as it is. The run is
/// one of `vitesse train` with the preset `adapt`, whose flags apply; its result is the folder `adapter`, which holds what was
/// learned and nothing else, and which `vitesse merge` folds into the base.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse adapt --model ./deit_tiny --data ./flowers --method repadapter -o runs/flowers
  vitesse adapt --model ./deit_tiny --data ./flowers --method repadapter --set scale=0.5 --set placement=repattn -o runs/attn
  vitesse adapt --model ./deit_tiny --data ./flowers --method lora --set targets=qkv,fc1 --set rank=4 --epochs 20 -o runs/lora
  vitesse merge --model ./deit_tiny --adapter runs/flowers/adapter -o flowers")]
pub(super) struct Args {
    /// What learns besides the head
    #[arg(long, value_name = "METHOD", default_value = "repadapter", value_parser = Method::NAMES, help_heading = "Method")]
    method: String,
    /// A setting of the method that is not as its default, such as rank=4; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, help_heading = "Method")]
    settings: Vec<(String, String)>,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run: RunArgs,
}

fn setting(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected a key and a value, such as rank=4".to_owned()),
    }
}

/// What a run came to.
#[derive(Debug, Serialize)]
struct Report {
    method: Method,
    trainable: Trainable,
    adapter: String,
    #[serde(flatten)]
    run: RunReport,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.start_threads()?;
        let settings: Vec<(&str, String)> = self
            .settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        let method = Method::parse(&self.method, &settings)?;
        let mut defaults = vec![("preset", Value::String("adapt".into()))];
        defaults.extend(
            method
                .recipe()
                .iter()
                .map(|&(key, value)| (key, Value::Float(value))),
        );
        defaults.push(("model.eval_mode", Value::Boolean(method.eval_mode())));
        let recipe = self.recipe.resolve_over(&self.run, defaults, Vec::new())?;
        let dry = self.run.dry_run;
        let existing = self.run.existing();
        let output = self.run.output.clone();
        let training = Training::new("adapt", recipe.clone(), self.run, console)?;

        let (learn, validation) = recipe.data.open().map_err(Failure::from)?;
        let (base, adapted) = adapted(&method, &recipe, &learn, console)?;
        console.note(&adapted.trainable.to_string());
        if dry {
            return training.run();
        }
        let model = Checkpoint {
            spec: adapted.spec,
            tensors: adapted.tensors,
            ..base.clone()
        };
        let trainable = adapted.trainable;
        let saved = RunFolder::state_in(&output);
        let state = if existing == Existing::Resume && saved.is_file() {
            let state = State::load(&saved, &recipe.optim)?;
            if state.spec != model.spec {
                let sentence = "the run was begun with another method or other settings";
                return Err(Failure::new("E_RESUME", sentence).hint("repeat its `--method` and `--set`"));
            }
            state
        } else {
            let ema = recipe.train.ema_decay.is_some();
            State::new(&model, &recipe.optim, ema, &|name| trainable.contains(name))?
        };
        let start = Start {
            state,
            train: learn.clone(),
            validation,
            teacher: None,
            device: Device::flex(),
        };
        let mut watch = Watch::new(console);
        let learned = train(&recipe, start, &output, existing, console.stop(), &mut watch)
            .map_err(|error| training.failure(error))?;
        let run = training.finish(&learned, watch)?;

        let best = Checkpoint::load(training.checkpoint(&learned), &LoadOptions::default())?;
        let ops = best.spec.vit()?.ops.len() - base.spec.vit()?.ops.len();
        let record = Record {
            base_sha256: base.source_sha256()?,
            architecture: Some(base.spec.architecture.clone()),
            method: Some(method.clone()),
            data: Some(recipe.data.path.clone()),
            label_names: best.config.label_names.clone(),
            metrics: best
                .config
                .history
                .last()
                .map(|step| step.metrics.clone())
                .unwrap_or_default(),
        };
        let adapter = output.join("adapter");
        Adapter::of(&best.spec, &best.tensors, &trainable, ops, record)?.write(&adapter, true)?;
        Outcome::new(&Report {
            method,
            trainable,
            adapter: adapter.display().to_string(),
            run,
        })
    }
}

/// The base with a fresh head for the classes of the data, and with what the method adds.
fn adapted(
    method: &Method,
    recipe: &Recipe,
    learn: &DataSet,
    console: &Console,
) -> Result<(Checkpoint, Adapted)> {
    let classes = recipe.model.num_classes.unwrap_or(learn.class_names().len());
    if classes < 2 {
        let sentence = format!(
            "`{}` has {classes} class, and there is nothing to tell apart",
            recipe.data.path
        );
        return Err(
            Failure::new("E_DATA_SET", sentence).hint("a data set needs images of two classes at least")
        );
    }
    let mut base = recipe.model.checkpoint(learn, recipe.train.seed)?;
    if base.source.weights.is_none() {
        console.note("the model is a name: its weights are fresh, and there is little to adapt");
    }
    // The head is always new, also where the number of classes is the same by chance.
    base.set_num_classes(0, recipe.train.seed)?;
    base.set_num_classes(classes, recipe.train.seed)?;
    let adapted = method.apply(&base.spec, &base.tensors, recipe.train.seed)?;
    Ok((base, adapted))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.trainable)?;
        write!(f, "{}", self.run)?;
        writeln!(f, "adapter  {}", self.adapter)
    }
}
