//! One run of the experiment: trained, reloaded, tested; and how it is shown.

use std::path::Path;

use vitesse::data::DataSet;
use vitesse::measure::taught::teach;
use vitesse::measure::{self, TrainEvents};
use vitesse::report::format;
use vitesse_train::Recipe;
use vitesse_train::events::{Events, Plan};
use vitesse_train::run::{BEST, EpochRecord, StepRecord};

use super::experiment::Method;
use super::report::Run;
use super::test_options;
use crate::cli::console::{Console, Progress};
use crate::cli::failure::Result;
use crate::cli::show::Show;

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
    let teacher = folder.join(Method::Teacher.key()).join(BEST);
    let options = test_options(recipe.train.workers);
    let mut watch = Watch::new(console);
    let found = teach(
        recipe,
        &folder.join(method.key()),
        method.distils().then_some(&*teacher),
        (test, options),
        console.stop(),
        &mut watch,
    )?;
    Ok(Run {
        method,
        model: method.architecture(),
        checkpoint: format!("{}/best", method.key()),
        param_count: found.param_count,
        macs: found.macs,
        train_seconds: found.curve.iter().map(|record| record.seconds).sum(),
        curve: found.curve,
        best_epoch: found.best.epoch,
        validation_top1: found.best.top1,
        validation_loss: found.best.loss,
        images_per_s: found.test.joint.samples as f64 / found.test.timing.forward.as_secs_f64(),
        test: found.test.joint,
        heads: found.test.heads,
    })
}

/// Shows a run with one bar for all epochs, and its test.
struct Watch<'a> {
    console: &'a Console,
    show: Show<'a>,
    progress: Option<Progress<'a>>,
    epochs: usize,
    done: usize,
}

impl<'a> Watch<'a> {
    fn new(console: &'a Console) -> Watch<'a> {
        Watch {
            console,
            show: Show::new(console),
            progress: None,
            epochs: 0,
            done: 0,
        }
    }
}

impl measure::Events for Watch<'_> {}

impl TrainEvents for Watch<'_> {
    fn training(&mut self) -> &mut dyn Events {
        self
    }

    fn as_events(&mut self) -> &mut dyn measure::Events {
        self.progress = None;
        &mut self.show
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
    }

    fn warning(&mut self, text: &str) {
        self.console.note(text);
    }
}
