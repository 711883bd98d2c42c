//! `quickstart`: the chain from data to predictions on the built-in set, without a download.
//!
//! Each step is one function that adds a line to the story; what a step leaves in the folder, the next one reads.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vitesse::data::{DataSet, OpenOptions, Split, open};
use vitesse::model::checkpoint::Checkpoint;
use vitesse::model::network::Fusion;
use vitesse::model::storage::AtomicDir;
use vitesse::report::format;
use vitesse_train::evaluate::EvalOptions;
use vitesse_train::prepare::preprocess;

use super::args::{positive, start_threads};
use super::data::draw::draw;
use super::failure::Result;
use super::labels::Labels;
use super::outcome::{Outcome, pairs};
use super::{Console, eval, predict};

/// Show the whole chain on the built-in data set, without a download, in under a minute
///
/// Draws pictures, builds a small model, evaluates it and predicts with it. The model has fresh weights: it has learned
/// nothing, and its accuracy is chance.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse quickstart
  vitesse quickstart -o ./first-steps")]
pub(super) struct Args {
    /// Folder to write
    #[arg(short, long, value_name = "DIR", default_value = "vitesse-quickstart")]
    output: PathBuf,
    /// Replace a folder that this verb wrote before
    #[arg(long)]
    force: bool,
    /// Threads that compute and read images [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<NonZeroUsize>,
}

/// The data set, the model, and how much of the data is used.
const DATA: &str = "shapes";
const MODEL: &str = "vit_nano_patch4_32";
const DRAWN: usize = 16;
const EVALUATED: usize = 512;
/// Subfolders.
const IMAGES: &str = "images";
const CHECKPOINT: &str = "model";

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        start_threads(self.threads)?;
        let folder = AtomicDir::create(&self.output, self.force, "model/config.json")?;
        let data = open(
            DATA,
            &OpenOptions {
                split: Some(Split::Test),
                ..OpenOptions::default()
            },
        )?;
        let mut story = Report {
            output: self.output.display().to_string(),
            steps: Vec::new(),
        };
        story.draw(&data, folder.path(), console)?;
        let checkpoint = story.build(&data, folder.path())?;
        story.evaluate(&data, &checkpoint, console)?;
        story.predict(&checkpoint, folder.path(), console)?;
        folder.commit()?;
        Outcome::new(&story)
    }
}

/// The story so far.
#[derive(Debug, Serialize)]
struct Report {
    output: String,
    steps: Vec<Step>,
}

/// One step, told in a line; `values` holds its numbers for programs.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    text: String,
    values: serde_json::Value,
}

impl Report {
    fn tell(&mut self, step: &'static str, text: String, values: serde_json::Value) {
        self.steps.push(Step { step, text, values });
    }

    /// Pictures to look at.
    fn draw(&mut self, data: &DataSet, folder: &Path, console: &Console) -> Result<()> {
        let drawn = draw(&data.limit(DRAWN, 0), &folder.join(IMAGES), false, console)?;
        let classes = data.class_names().join(", ");
        let text = format!("{} pictures of {DATA} ({classes}) in {IMAGES}/", drawn.images);
        self.tell(
            "draw",
            text,
            serde_json::json!({ "images": drawn.images, "classes": data.class_names() }),
        );
        Ok(())
    }

    /// A model with fresh weights.
    fn build(&mut self, data: &DataSet, folder: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::fresh(MODEL, Some(data.class_names().len()), None, 0)?;
        checkpoint.config.label_names = data.class_names().iter().cloned().enumerate().collect();
        checkpoint.save(&folder.join(CHECKPOINT), false)?;
        let cost = checkpoint.spec.costs()?;
        let (parameters, macs) = (cost.parameters(), cost.macs());
        let sizes = [format::si(parameters as f64, ""), format::si(macs as f64, "")];
        let text = format!(
            "{MODEL}, {} parameters, {} MACs, fresh weights, in {CHECKPOINT}/",
            sizes[0], sizes[1]
        );
        self.tell(
            "build",
            text,
            serde_json::json!({ "model": MODEL, "param_count": parameters, "macs": macs }),
        );
        Ok(checkpoint)
    }

    /// Its accuracy.
    fn evaluate(&mut self, data: &DataSet, checkpoint: &Checkpoint, console: &Console) -> Result<()> {
        let plan = eval::Plan {
            preprocess: preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg)?,
            checkpoint: checkpoint.clone(),
            data: data.limit(EVALUATED, 0),
            data_name: DATA.to_owned(),
            options: EvalOptions {
                batch_size: 32,
                ..EvalOptions::default()
            },
            strict: false,
        };
        let found = plan.run(console)?;
        let chance = 100.0 / data.class_names().len() as f64;
        let (top1, images, speed) = (found.joint.top1, found.images, found.images_per_second);
        let text = format!(
            "top-1 {top1:.1} % on {images} test pictures; chance is {chance:.1} %; {speed:.0} images/s"
        );
        let values = serde_json::json!({ "top1": top1, "chance": chance, "images": images, "images_per_second": speed });
        self.tell("eval", text, values);
        Ok(())
    }

    /// What it says about one of the pictures.
    fn predict(&mut self, checkpoint: &Checkpoint, folder: &Path, console: &Console) -> Result<()> {
        let drawn = open(folder.join(IMAGES), &OpenOptions::default())?;
        let picture = Path::new(IMAGES).join(drawn.name(0));
        let plan = predict::Plan {
            preprocess: preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg)?,
            labels: Labels::of(checkpoint),
            checkpoint: checkpoint.clone(),
            topk: 1,
            fusion: Fusion::default(),
            batch_size: 1,
        };
        let found = plan.run(&[folder.join(&picture)], console)?;
        for class in found
            .predictions
            .into_iter()
            .flat_map(|prediction| prediction.classes)
            .flatten()
        {
            let text = format!(
                "{} is a {} (probability {:.2})",
                picture.display(),
                class.name,
                class.score
            );
            self.tell(
                "predict",
                text,
                serde_json::json!({ "file": picture, "name": class.name, "score": class.score }),
            );
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = &self.output;
        f.write_str(&pairs(self.steps.iter().map(|step| (step.step, &step.text))))?;
        write!(
            f,
            "\nThe weights are fresh: the model has learned nothing, so chance is what to expect.\n\
             Everything is in `{folder}`. Next:\n  \
             vitesse inspect --model {folder}/{CHECKPOINT}\n  \
             vitesse eval --model {folder}/{CHECKPOINT} --data shapes\n  \
             vitesse doctor\n"
        )
    }
}
