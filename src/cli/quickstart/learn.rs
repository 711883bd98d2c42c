//! One run of the experiment: trained, reloaded, tested.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use vitesse::data::DataSet;
use vitesse::measure::classify::network;
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse::report::format;
use vitesse_train::evaluate::{EvalOptions, Evaluated, evaluate};
use vitesse_train::events::{Events, Plan};
use vitesse_train::prepare::preprocess;
use vitesse_train::run::{EpochRecord, Existing, StepRecord};
use vitesse_train::state::State;
use vitesse_train::teacher::Teacher;
use vitesse_train::tokens::{TokenSimilarity, token_similarity};
use vitesse_train::trainer::{Start, train};
use vitesse_train::{Error, Recipe};

use super::experiment::Method;
use super::report::Run;
use super::test_options;
use crate::cli::console::{Console, Progress};
use crate::cli::failure::Result;

/// Trains `method` in its folder below `folder`, and tests its best checkpoint on `test`.
///
/// The recipe names the teacher where it will be found when the experiment has its final name; until then it is below
/// `folder`.
pub(super) fn learn(
    method: Method,
    recipe: &Recipe,
    folder: &Path,
    test: &DataSet,
    console: &Console,
) -> Result<Run> {
    let device = Device::flex();
    let path = folder.join(method.key());
    let (learn, validation) = recipe.data.open()?;
    let student = recipe.model.checkpoint(&learn, recipe.train.seed)?;
    let prepared = preprocess(&student.spec, &student.config.pretrained_cfg)?;
    let teacher = method.distils().then(|| {
        let teacher = folder.join(Method::Teacher.key()).join("best");
        Teacher::load(&teacher, &student.spec, &prepared, &device)
    });
    let start = Start {
        state: State::new(&student, &recipe.optim, false, &|_| true)?,
        train: learn,
        validation,
        objective: Box::new(recipe.distill.distillation()),
        hooks: Vec::new(),
        teacher: teacher.transpose()?,
        device,
    };
    let mut watch = Watch::new(console);
    let outcome = train(recipe, start, &path, Existing::Refuse, console.stop(), &mut watch)?;
    let curve = watch.curve;
    let best = outcome.best.ok_or(Error::Empty {
        what: "the validation set",
    })?;

    let best_path = path.join("best");
    let checkpoint = Checkpoint::load(&best_path, &LoadOptions::default())?;
    let cost = checkpoint.spec.costs()?;
    let (network, device) = network(&checkpoint)?;
    let mut model = Evaluated {
        network: &network,
        device: &device,
    };
    let options = EvalOptions {
        fusion: recipe.distill.joint,
        ..test_options(recipe.train.workers)
    };
    let mut progress = console.progress("images", test.len());
    progress.about("testing");
    let found = evaluate(&mut model, test, &prepared, options, &mut |at| {
        control(&progress.at(at.done))
    })?;
    Ok(Run {
        method,
        model: method.architecture(),
        checkpoint: format!("{}/best", method.key()),
        param_count: cost.parameters(),
        macs: cost.macs(),
        train_seconds: curve.iter().map(|record| record.seconds).sum(),
        curve,
        best_epoch: best.epoch,
        validation_top1: best.top1,
        validation_loss: best.loss,
        images_per_second: found.joint.samples as f64 / found.timing.forward.as_secs_f64(),
        test: found.joint,
        heads: found.heads,
    })
}

/// How alike the two tokens of the checkpoint in `path` are on `data`.
pub(super) fn tokens(
    path: &Path,
    data: &DataSet,
    workers: usize,
    console: &Console,
) -> Result<TokenSimilarity> {
    let checkpoint = Checkpoint::load(path, &LoadOptions::default())?;
    let prepared = preprocess(&checkpoint.spec, &checkpoint.config.pretrained_cfg)?;
    let (network, device) = network(&checkpoint)?;
    let mut progress = console.progress("images", data.len());
    let options = test_options(workers);
    Ok(token_similarity(
        &network,
        &device,
        data,
        &prepared,
        options,
        &mut |at| control(&progress.at(at.done)),
    )?)
}

fn control(gone: &Result<()>) -> ControlFlow<()> {
    if gone.is_ok() {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

/// Shows a run and keeps its epochs.
struct Watch<'a> {
    console: &'a Console,
    progress: Option<Progress<'a>>,
    epochs: usize,
    done: usize,
    curve: Vec<EpochRecord>,
}

impl<'a> Watch<'a> {
    fn new(console: &'a Console) -> Watch<'a> {
        Watch {
            console,
            progress: None,
            epochs: 0,
            done: 0,
            curve: Vec::new(),
        }
    }
}

impl Events for Watch<'_> {
    fn begin(&mut self, plan: &Plan) {
        let images = plan.epochs * plan.steps_per_epoch * plan.batch_size;
        self.progress = Some(self.console.progress("images", images));
        self.epochs = plan.epochs;
    }

    fn step(&mut self, record: &StepRecord) {
        self.done += record.samples;
        if let Some(progress) = &mut self.progress {
            progress.about(&format!(
                "epoch {} of {}, loss {:.3}",
                record.epoch + 1,
                self.epochs,
                record.loss
            ));
            // Who asked to stop is heard by the trainer.
            let _ = progress.at(self.done);
        }
    }

    fn epoch(&mut self, record: &EpochRecord, _: bool) {
        let text = format!(
            "{} of {}: loss {:.3}, validation top-1 {:.1} %, {}",
            record.epoch + 1,
            self.epochs,
            record.train_loss,
            record.eval_top1.unwrap_or(f64::NAN),
            format::duration(record.seconds)
        );
        self.console.say("epoch", &text);
        self.curve.push(record.clone());
    }

    fn warning(&mut self, text: &str) {
        self.console.note(text);
    }
}
