//! `eval`: how good a model is on a data set, and on shifted versions of it.

mod shifted;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use vitesse::data::{DataSet, Preprocess};
use vitesse::model::Checkpoint;
use vitesse::report::format;
use vitesse_train::evaluate::{Classifier, EvalOptions, EvalProgress, Evaluation, Timing, evaluate_together};
use vitesse_train::metrics::Metrics;

use super::Console;
use super::args::{DataArgs, RunArgs, positive};
use super::classify::{Arithmetic, Joint, PreprocessArgs, Runner};
use super::failure::{Exit, Failure, Result};
use super::model::{ModelArgs, Weights};
use super::outcome::{Outcome, pairs};
use shifted::{Shifted, Version};

/// Measure the accuracy of a model on a data set
///
/// Images are prepared as the checkpoint says, with the arithmetic that published accuracies were measured with. Files that
/// cannot be read are left out and named. With --shifted, the model is also measured on other versions of the same classes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse eval --model ./deit_tiny_patch16_224.fb_in1k --data ./imagenet/val
  vitesse eval --model ./my-run --data shapes:count --split test --json
  vitesse eval --model ./deit.pth --data ./photos --crop-pct 1.0 --limit 500
  vitesse eval --model ./my-run --data ./flowers --shifted ./flowers-drawn ./flowers-at-night")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Evaluate on this many images only, drawn with the classes in the proportions they have [default: all]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Data")]
    limit: Option<NonZeroUsize>,
    /// Other versions of the data set, such as drawings or noisy pictures of the same classes
    ///
    /// Classes are matched by name and may be fewer. The model then chooses among those alone, and is compared with itself on the
    /// same classes of --data, chosen so too. A version's test part is taken, else validation, else all.
    #[arg(long, num_args = 1.., value_name = "DATA", help_heading = "Data")]
    shifted: Vec<PathBuf>,
    /// End with status 3 when a file cannot be read
    #[arg(long, help_heading = "Data")]
    strict: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// How the two heads of a distilled model answer together
    #[arg(long, value_enum, default_value_t = Joint::LogitMean, help_heading = "Model")]
    joint: Joint,
    #[command(flatten)]
    run: RunArgs,
    /// Threads that read images while the model computes [default: as many as compute]
    #[arg(long, short = 'j', value_name = "N", value_parser = positive, help_heading = "Computing")]
    workers: Option<NonZeroUsize>,
}

/// What is meant: everything opened and checked.
pub(super) struct Plan {
    pub(super) checkpoint: Checkpoint,
    pub(super) data: DataSet,
    pub(super) data_name: String,
    pub(super) preprocess: Preprocess,
    pub(super) options: EvalOptions,
    pub(super) strict: bool,
}

impl Args {
    pub(super) fn run(mut self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        let (precision, backend) = (self.run.precision.precision(), self.run.engine);
        let versions = std::mem::take(&mut self.shifted);
        let limit = self.limit.map(NonZeroUsize::get);
        // The classes of a version are more than those of a few images of it.
        let whole = (!versions.is_empty()).then(|| self.data.open()).transpose()?;
        let plan = self.plan(console)?;
        let versions = versions
            .iter()
            .map(|path| Version::open(path, limit, &plan))
            .collect::<Result<Vec<_>>>()?;
        let mut runner = Runner::new(&plan.checkpoint, backend, precision, console)?;
        let mut report = plan.run(&mut runner, console)?;
        let mut unreadable = report.unreadable;
        if let Some(whole) = &whole {
            let shifted = Shifted::measure(&plan, (whole, limit), &versions, &mut runner, console)?;
            unreadable += shifted.unreadable();
            report.shifted = Some(shifted);
        }
        let unmet = plan.strict && unreadable > 0;
        Ok(Outcome::new(&report)?.with_exit(if unmet { Exit::CheckNotMet } else { Exit::Done }))
    }

    fn plan(self, console: &Console) -> Result<Plan> {
        let mut data = self.data.open()?;
        if let Some(limit) = self.limit {
            data = data.limit(limit.get(), 0);
        }
        let classes = Some(data.class_names().len()).filter(|&classes| classes > 0);
        let mut checkpoint = self.model.load(classes, console)?;
        let preprocess = self.preprocess.plan(&mut checkpoint)?;
        let plan = Plan {
            checkpoint,
            data,
            data_name: self.data.data.display().to_string(),
            preprocess,
            options: EvalOptions {
                batch_size: self.run.compute.batch_size.get(),
                workers: self
                    .workers
                    .map_or_else(rayon::current_num_threads, NonZeroUsize::get),
                fusion: self.joint.fusion(),
            },
            strict: self.strict,
        };
        plan.check_classes(console)?;
        Ok(plan)
    }
}

impl Plan {
    /// That the model can give every answer that the data set asks for.
    fn check_classes(&self, console: &Console) -> Result<()> {
        let (asked, known) = (self.data.class_names().len(), self.checkpoint.spec.num_classes);
        let sentence = format!("`{}` has {asked} classes, the model {known}", self.data_name);
        if asked > known {
            let failure = Failure::new("E_DATA_LABEL", sentence);
            return Err(failure.hint("take a model of this task, or one adapted to it"));
        }
        if asked < known {
            console.note(&format!(
                "{sentence}: right only if the data set's classes are the model's first"
            ));
        }
        Ok(())
    }

    /// Evaluates.
    pub(super) fn run(&self, runner: &mut Runner, console: &Console) -> Result<Report> {
        let begun = Instant::now();
        let evaluation = self.measure(runner, &self.data, console)?;
        self.report(evaluation, runner.arithmetic(), begun.elapsed().as_secs_f64())
    }

    /// Measures `model`, which may be a part of the plan's, on `data`, which may be other pictures than the plan's.
    fn measure(&self, model: &mut dyn Classifier, data: &DataSet, console: &Console) -> Result<Evaluation> {
        let mut progress = console.progress("images", data.len());
        let mut show = |at: EvalProgress| match progress.at(at.done) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let (team, options) = (console.team(), self.options);
        let evaluation = evaluate_together(team, model, data, &self.preprocess, options, &mut show)?;
        Ok(evaluation)
    }

    fn report(&self, evaluation: Evaluation, arithmetic: Arithmetic, seconds: f64) -> Result<Report> {
        let spec = &self.checkpoint.spec;
        let cost = spec.costs()?;
        let files = evaluation.failures.into_iter();
        let unreadable_files: Vec<_> = files
            .map(|file| Unreadable {
                name: file.name,
                reason: file.reason,
            })
            .collect();
        let [_, height, width] = self.preprocess.input_size;
        Ok(Report {
            model: spec.architecture.clone(),
            weights: Weights::of(&self.checkpoint),
            data: self.data_name.clone(),
            split: self.data.split().to_string(),
            joint: Accuracy::of(&evaluation.joint),
            heads: evaluation.heads.map(|heads| Heads {
                class: Accuracy::of(&heads.class),
                distillation: Accuracy::of(&heads.distillation),
            }),
            param_count: cost.parameters(),
            macs: cost.macs(),
            num_classes: spec.num_classes,
            img_size: if height == width {
                height.into()
            } else {
                vec![height, width].into()
            },
            preprocess: self.preprocess.clone(),
            images: evaluation.joint.samples,
            unreadable: unreadable_files.len(),
            unreadable_files,
            skipped: self.data.skipped(),
            batch_size: self.options.batch_size,
            threads: rayon::current_num_threads(),
            seconds,
            images_per_second: evaluation.joint.samples as f64 / seconds,
            timing: evaluation.timing,
            arithmetic,
            shifted: None,
        })
    }
}

/// What an evaluation found. Keys are timm's result columns where it has them.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    weights: Weights,
    data: String,
    split: String,
    #[serde(flatten)]
    pub(super) joint: Accuracy,
    /// The heads of a distilled model, each alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<Heads>,
    param_count: usize,
    macs: u64,
    num_classes: usize,
    /// One number for square images.
    img_size: serde_json::Value,
    #[serde(flatten)]
    preprocess: Preprocess,
    pub(super) images: usize,
    unreadable: usize,
    unreadable_files: Vec<Unreadable>,
    /// Files of formats that are not supported.
    skipped: usize,
    batch_size: usize,
    threads: usize,
    seconds: f64,
    pub(super) images_per_second: f64,
    #[serde(flatten)]
    timing: Timing,
    #[serde(flatten)]
    arithmetic: Arithmetic,
    #[serde(skip_serializing_if = "Option::is_none")]
    shifted: Option<Shifted>,
}

/// Accuracies in percent, rounded to three decimals.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Accuracy {
    pub(super) top1: f64,
    top5: f64,
    top1_err: f64,
    top5_err: f64,
    pub(super) balanced_accuracy: f64,
    loss: f64,
}

#[derive(Debug, Serialize)]
struct Heads {
    class: Accuracy,
    distillation: Accuracy,
}

#[derive(Debug, Serialize)]
struct Unreadable {
    name: String,
    reason: String,
}

/// To three decimals.
fn round(percent: f64) -> f64 {
    (percent * 1e3).round() / 1e3
}

impl Accuracy {
    fn of(metrics: &Metrics) -> Accuracy {
        Accuracy {
            top1: round(metrics.top1),
            top5: round(metrics.top5),
            top1_err: round(100.0 - metrics.top1),
            top5_err: round(100.0 - metrics.top5),
            balanced_accuracy: round(metrics.balanced),
            loss: metrics.loss,
        }
    }

    fn rows(&self) -> [(&'static str, String); 4] {
        [
            ("top-1", format!("{:.3} %", self.top1)),
            ("top-5", format!("{:.3} %", self.top5)),
            ("balanced accuracy", format!("{:.3} %", self.balanced_accuracy)),
            ("loss", format!("{:.4}", self.loss)),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Preprocess {
            input_size: [_, height, width],
            crop_pct,
            ..
        } = self.preprocess;
        let filter = format!("{:?}", self.preprocess.interpolation).to_lowercase();
        let fresh = if self.weights == Weights::Fresh {
            ", fresh weights"
        } else {
            ""
        };
        f.write_str(&pairs([
            ("model", format!("{}{fresh}", self.model)),
            ("parameters", format::si(self.param_count as f64, "")),
            ("MACs", format::si(self.macs as f64, "")),
            ("data", format!("{}, {}", self.data, self.split)),
            ("images", format::count(self.images as u64)),
            (
                "prepared as",
                format!("{width} x {height} pixels, crop {crop_pct}, {filter}"),
            ),
        ]))?;
        write!(f, "\n{}", pairs(self.joint.rows()))?;
        for (name, head) in self
            .heads
            .iter()
            .flat_map(|heads| [("class", heads.class), ("distillation", heads.distillation)])
        {
            write!(f, "\n{name} head alone\n{}", pairs(head.rows()))?;
        }
        let (load, forward) = (self.timing.load.as_secs_f64(), self.timing.forward.as_secs_f64());
        let threads = if self.threads == 1 {
            "1 thread".to_owned()
        } else {
            format!("{} threads", self.threads)
        };
        writeln!(
            f,
            "\n{:.1} images/s in {} with {threads}, batches of {}: {} computing, {} waiting for images",
            self.images_per_second,
            self.arithmetic.precision,
            self.batch_size,
            format::duration(forward),
            format::duration(load)
        )?;
        if self.skipped > 0 {
            writeln!(f, "{} files of unsupported formats were left out", self.skipped)?;
        }
        if self.unreadable > 0 {
            writeln!(
                f,
                "{} files could not be read and are in no number above:",
                self.unreadable
            )?;
            self.unreadable_files
                .iter()
                .try_for_each(|file| writeln!(f, "  {}", file.reason))?;
        }
        match &self.shifted {
            Some(shifted) => write!(f, "\n{shifted}"),
            None => Ok(()),
        }
    }
}
