//! What comes after an epoch: it is evaluated, and what is worth keeping is kept.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::Run;
use crate::evaluate::{EvalOptions, EvalProgress, Evaluated, Evaluation, count, evaluate_together};
use crate::run::{EpochRecord, RunFolder};
use crate::state::{Best, Running};
use crate::{Error, Result};

impl Run<'_> {
    /// What the epoch came to; with an evaluation, where one is due.
    pub(super) fn evaluate_epoch(&mut self, epoch: usize) -> Result<EpochRecord> {
        let progress = &self.learner.state().progress;
        let Running { steps, loss, seconds } = progress.running;
        let mut record = EpochRecord {
            epoch,
            train_loss: loss / steps.max(1) as f64,
            lr: self.lr(progress.step.saturating_sub(1)),
            steps: progress.step,
            seconds,
            ..EpochRecord::default()
        };
        let due =
            (epoch + 1).is_multiple_of(self.recipe.train.eval_every) || epoch + 1 == self.recipe.train.epochs;
        if !due || self.validation.is_none() {
            return Ok(record);
        }
        let weights = self.evaluate(false)?;
        let average = self
            .recipe
            .train
            .ema_decay
            .map(|_| self.evaluate(true))
            .transpose()?;
        record.ema_top1 = average.as_ref().map(|average| average.joint.top1);
        let chosen = average.filter(|_| self.recipe.train.use_ema).unwrap_or(weights);
        record.eval_loss = Some(chosen.joint.loss);
        record.eval_top1 = Some(chosen.joint.top1);
        record.eval_top5 = Some(chosen.joint.top5);
        record.class_top1 = chosen.heads.as_ref().map(|heads| heads.class.top1);
        record.distillation_top1 = chosen.heads.as_ref().map(|heads| heads.distillation.top1);
        Ok(record)
    }

    fn evaluate(&mut self, ema: bool) -> Result<Evaluation> {
        let Some(validation) = &self.validation else {
            return Err(Error::Empty {
                what: "the validation set",
            });
        };
        let (network, device) = (self.learner.network(ema), self.learner.device());
        let train = &self.recipe.train;
        if let Some((_, Some(features))) = self.features.as_deref() {
            let said = features.classify(&network, &device, validation.len());
            let (spec, fusion) = (network.spec(), self.recipe.distill.joint);
            return count(spec, validation, fusion, features.failures.clone(), said);
        }
        let options = EvalOptions {
            batch_size: train.batch_size.div_ceil(train.accumulate).clamp(1, 256),
            workers: train.workers,
            fusion: self.recipe.distill.joint,
        };
        let (stop, events) = (self.stop, &mut *self.events);
        let mut progress = |progress: EvalProgress| {
            events.evaluating(progress);
            if stop.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut model = Evaluated {
            network: &network,
            device: &device,
        };
        let preprocess = &self.preprocess;
        evaluate_together(
            self.team,
            &mut model,
            validation,
            preprocess,
            options,
            &mut progress,
        )
    }

    /// Keeps what is worth keeping, writes the logs, and then the state that makes it final.
    pub(super) fn finish_epoch(&mut self, epoch: usize, record: &EpochRecord) -> Result<()> {
        let keep = self.recipe.train.keep;
        let progress = &mut self.learner.state_mut().progress;
        progress.epochs = epoch + 1;
        progress.running = Running::default();
        progress.metrics = record.metrics();
        let found = match (record.eval_top1, record.eval_loss) {
            (Some(top1), Some(loss)) if loss.is_finite() => Some(Best { epoch, top1, loss }),
            _ => None,
        };
        let improved = found.is_some_and(|found| progress.best.is_none_or(|best| found.beats(&best)));
        if improved {
            progress.best = found;
        }
        if let Some(found) = found {
            let place = progress
                .kept
                .iter()
                .position(|other| found.beats(other))
                .unwrap_or(progress.kept.len());
            progress.kept.insert(place, found);
            progress.kept.truncate(keep);
        }
        let kept: Vec<usize> = progress.kept.iter().map(|best| best.epoch).collect();
        if improved {
            self.save_checkpoint(RunFolder::best)?;
        }
        if keep > 1 && kept.contains(&epoch) {
            self.save_checkpoint(|folder| folder.epoch(epoch))?;
        }
        self.output.epoch(record)?;
        self.save_state()?;
        self.output.keep_epochs(&kept)?;
        self.events.epoch(record, improved);
        Ok(())
    }

    /// The model as it is now, as the checkpoint folder at `place`.
    pub(super) fn save_checkpoint(&self, place: impl FnOnce(&RunFolder) -> PathBuf) -> Result<()> {
        let names = self.loader.data().class_names();
        self.output
            .checkpoint(place, self.learner.state(), self.recipe, names)
    }
}

impl Best {
    /// More accurate, or as accurate with a lower loss.
    fn beats(&self, other: &Best) -> bool {
        self.top1 > other.top1 || (self.top1 == other.top1 && self.loss < other.loss)
    }
}
