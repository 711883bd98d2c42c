//! Pruning structures of a model until it meets a budget: chosen, cut, corrected, proved, measured.
//!
//! ```text
//! images ─▶ what units are worth ─▶ what is kept within the budget ─▶ slice ─▶ correction ─▶ proof ─▶ speed
//! ```

mod calibration;
mod choice;
mod latency;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Map, json};
use vitesse_compress::structure::budget::{Budget, Fit, share_gone};
use vitesse_compress::structure::correct::{self, Corrected, correct};
use vitesse_compress::structure::rank::{Scope, matching};
use vitesse_compress::structure::{Group, Kind, Selection, Sliced, groups, outline, slice, widen};
use vitesse_model::checkpoint::sha256;
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, LoadOptions, ModelSpec};
use vitesse_train::classes::LabelsBy;
use vitesse_train::method::Check;

pub use correct::Fit as Correction;

use crate::images::Images;
use crate::judge::{Accuracy, Judge, Scored};
use crate::transform::{At, SAME_PLAN, Transform};
use crate::{Error, Events, Progress, Result};
use calibration::Calibration;
use choice::{Ranked, Worth, blocks};
use latency::Latencies;

/// How often the search goes on from a model that was measured to be too slow.
const TRIES: usize = 3;

/// By what units are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Optimal brain surgery: what the corrected half of a block is off by without them.
    Obs,
    /// Gradient times weight, over labelled images.
    Taylor,
    /// Squared weight times the diagonal of the Fisher matrix, over labelled images one by one.
    Fisher,
    /// What passes them, times the weights that read it.
    Activation,
    /// The size of the weights.
    Magnitude,
    /// At random.
    Random,
}

impl Method {
    /// The name on the command line and in a model's history.
    pub fn name(self) -> &'static str {
        match self {
            Method::Obs => "obs",
            Method::Taylor => "taylor",
            Method::Fisher => "fisher",
            Method::Activation => "activation",
            Method::Magnitude => "magnitude",
            Method::Random => "random",
        }
    }

    /// Whether it looks at images.
    fn wants_images(self) -> bool {
        !matches!(self, Method::Magnitude | Method::Random)
    }

    /// Whether it learns from labels.
    fn wants_labels(self) -> bool {
        matches!(self, Method::Taylor | Method::Fisher)
    }

    /// The units it is best at.
    fn units(self) -> &'static [Kind] {
        match self {
            Method::Obs | Method::Activation => &[Kind::Head, Kind::Hidden],
            _ => &[Kind::Position, Kind::Hidden],
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Multiply-accumulates of one image.
    Macs,
    /// Parameters.
    Params,
    /// Bytes that the weights are stored in.
    Bytes,
    /// Time of a forward pass on this machine.
    Latency(At),
}

impl Quantity {
    /// The name on the command line, in JSON and in a model's history.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Macs => "macs",
            Quantity::Params => "params",
            Quantity::Bytes => "bytes",
            Quantity::Latency(_) => "latency",
        }
    }

    /// As sentences call it.
    pub fn words(self) -> &'static str {
        match self {
            Quantity::Macs => "MACs",
            Quantity::Params => "parameters",
            Quantity::Bytes => "bytes",
            Quantity::Latency(_) => "latency",
        }
    }
}

/// How a model is pruned, and what it is proved on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// By what units are chosen.
    pub method: Method,
    /// Who competes with whom; the method's own way if `None`.
    pub scope: Option<Scope>,
    /// What is cut; what the method is best at if empty.
    pub units: Vec<Kind>,
    /// What is counted.
    pub quantity: Quantity,
    /// Of what number the kept units of a group are a multiple.
    pub round_to: usize,
    /// In how many steps the budget is reached: units are judged anew after each.
    pub steps: usize,
    /// Seed of `random`'s units, and of the images that are drawn.
    pub seed: u64,
    /// The data set from whose training images units are chosen and corrected, and whose images are compared.
    pub data: Option<PathBuf>,
    /// How its classes are matched with the model's, where a method learns from labels.
    pub labels_by: LabelsBy,
    /// The most images to choose and correct by.
    pub calibration: usize,
    /// Whether what is left is corrected; only with a data set.
    pub correct: bool,
    /// Damping of the correction, a share of the mean variance of an input.
    pub damping: f64,
    /// How many images are compared.
    pub images: usize,
    /// The most validation images on which model and result are scored; none if 0, or if there are no labels.
    pub scored: usize,
    /// Batch sizes that are timed.
    pub batches: Vec<usize>,
}

impl Settings {
    /// Who judges `model` and what becomes of it, where there is anything to judge them on.
    fn judge(&self, model: &Checkpoint, stop: &AtomicBool, events: &mut dyn Events) -> Result<Option<Judge>> {
        let Some(path) = self.data.as_deref().filter(|_| self.scored > 0) else {
            return Ok(None);
        };
        match Scored::validation(path, self.scored, self.labels_by)? {
            Some(scored) => Judge::open(scored, model, stop, events),
            None => Ok(None),
        }
    }

    /// Refuses what does not go together.
    fn check(&self) -> Result<()> {
        let refuse = |sentence: &str| Err(Error::Together(sentence.to_owned()));
        if self.method == Method::Obs && matches!(self.scope, Some(Scope::Kind)) {
            return refuse(
                "`obs` weighs all groups against each other (--scope global) or cuts all blocks alike (--scope local); `kind` is for scores",
            );
        }
        let has = |kind| self.units.contains(&kind);
        let columns = [Kind::Head, Kind::VDim, Kind::Position];
        if self.method == Method::Obs && columns.iter().filter(|&&kind| has(kind)).count() > 1 {
            return refuse(
                "heads, positions and single dimensions of values are the same columns of `proj`, and `obs` weighs each by itself; take one of them",
            );
        }
        if self.method != Method::Obs && (has(Kind::Attn) || has(Kind::Mlp)) {
            return refuse(
                "whole halves of blocks (`attn`, `mlp`) are dropped by `obs` alone, which knows what that costs",
            );
        }
        let of_heads = [Kind::Head, Kind::VDim, Kind::Position, Kind::QkDim];
        if self.steps > 1 && of_heads.iter().filter(|&&kind| has(kind)).count() > 1 {
            return refuse(
                "heads, positions and single dimensions cannot go together in several steps; take one of them, or one step",
            );
        }
        let alone =
            has(Kind::Attn) && !columns.iter().any(|&kind| has(kind)) || has(Kind::Mlp) && !has(Kind::Hidden);
        if alone {
            return refuse(
                "a half of a block is dropped where that costs less than what is left of it: `attn` needs `head` beside it, `mlp` needs `hidden`",
            );
        }
        Ok(())
    }

    /// The groups that are cut.
    fn groups(&self, spec: &ModelSpec) -> Result<Vec<Group>> {
        let mut all = groups(spec)?;
        all.retain(|group| {
            self.units.contains(&group.id.kind) && !matches!(group.id.kind, Kind::Attn | Kind::Mlp)
        });
        match &self.scope {
            Some(Scope::Patterns(patterns)) => Ok(matching(patterns, all)?),
            _ => Ok(all),
        }
    }

    fn scope(&self) -> Scope {
        self.scope.clone().unwrap_or(match self.method {
            Method::Obs => Scope::Global,
            _ => Scope::Local,
        })
    }
}

/// What pruning came to.
#[derive(Debug)]
pub struct Pruned {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The share of units that went.
    pub gone: f64,
    /// Of a latency that was not reached, the share that was measured.
    pub missed: Option<f64>,
    /// Step by step what every unit was worth and which were kept, as JSON: its SHA-256 stands in the history.
    pub ranking: Vec<u8>,
    /// What was corrected.
    pub corrected: Vec<correct::Fit>,
    /// How good both are, if there are labels.
    pub accuracy: Option<Accuracy>,
    /// Sizes, proof and speed.
    pub transform: Transform,
}

/// How much the units of one group matter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The group, such as `blocks.3.hidden`.
    pub group: String,
    /// Its units.
    pub units: usize,
    /// How many of them were kept, of the others none: the better half.
    pub kept: usize,
    /// Accuracy then, in percent, with nothing corrected.
    pub top1: f64,
}

/// A model that is pruned.
#[derive(Debug)]
pub struct Prune {
    model: Checkpoint,
}

impl Prune {
    /// Reads a model, as `options` say.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn open(model: &Path, options: &LoadOptions, events: &mut dyn Events) -> Result<Prune> {
        let model = Checkpoint::load(model, options)?;
        for note in &model.source.notes {
            events.say("note", note);
        }
        Ok(Prune { model })
    }

    /// The model as it is.
    pub fn model(&self) -> &Checkpoint {
        &self.model
    }

    /// Looks at the model, once for all budgets.
    ///
    /// # Errors
    /// A model that cannot be pruned; a data set that is not there, or without what the method needs;
    /// [`Error::Interrupted`] once `stop` was set.
    pub fn look<'a>(
        &'a self,
        settings: &'a Settings,
        stop: &'a AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Look<'a>> {
        let mut settings = settings.clone();
        if settings.units.is_empty() {
            settings.units = settings.method.units().to_vec();
        }
        settings.check()?;
        let groups = settings.groups(&self.model.spec)?;
        let labels_by = settings.method.wants_labels().then_some(settings.labels_by);
        let drawn = (settings.calibration, settings.seed);
        let calibration = settings
            .data
            .as_deref()
            .map(|path| Calibration::open(path, drawn, &self.model, labels_by, stop, events))
            .transpose()?;
        if calibration.is_none() && settings.method.wants_images() {
            return Err(Error::NoCalibration(settings.method.name()));
        }
        if settings.correct && calibration.is_none() {
            events.say(
                "note",
                "nothing is corrected, since there are no images to correct by: name a data set with --data",
            );
            settings.correct = false;
        }
        Ok(Look {
            model: &self.model,
            settings,
            groups,
            calibration,
            stop,
        })
    }
}

/// A model that was looked at.
#[derive(Debug)]
pub struct Look<'a> {
    model: &'a Checkpoint,
    settings: Settings,
    groups: Vec<Group>,
    calibration: Option<Calibration>,
    stop: &'a AtomicBool,
}

impl Look<'_> {
    /// Of each kind that is cut, what is solved anew for it; empty where nothing is corrected.
    pub fn remedies(&self) -> Vec<(Kind, Option<&'static str>)> {
        let units = self.settings.units.iter().filter(|_| self.settings.correct);
        units.map(|&kind| (kind, correct::remedy(kind))).collect()
    }

    /// What would be left within each budget, a share of the settings' quantity, in one step: nothing is corrected, proved or measured.
    ///
    /// # Errors
    /// As [`Look::run`].
    pub fn plan(&self, shares: &[f64], events: &mut dyn Events) -> Result<Vec<Pruned>> {
        let groups: Vec<&Group> = self.groups.iter().collect();
        let worth = self.worth(&groups, events)?;
        let each = shares.iter().map(|&share| {
            let fit = self.fit(self.model, &worth, &groups, share, events)?;
            let mut checkpoint = self.model.clone();
            let sliced = slice(&self.model.spec, &self.model.tensors, &fit.selection)?;
            if let Some(calibration) = self.calibration.as_ref().filter(|_| self.settings.correct) {
                correct::enough(&sliced.spec, calibration.len())?;
            }
            (checkpoint.spec, checkpoint.tensors) = (sliced.spec, sliced.tensors);
            self.pruned(checkpoint, &groups, &fit, &[worth.ranked(&groups, &fit)])
        });
        each.collect()
    }

    /// Prunes the model to each budget, corrects what is left, proves that it answers as its masked twin and, where the proof is met,
    /// measures it. `done` is given each result as it comes.
    ///
    /// # Errors
    /// A budget that cannot be met; too few images; what `done` says; [`Error::Interrupted`] once the flag was set.
    pub fn run<E: From<Error>>(
        &self,
        shares: &[f64],
        events: &mut dyn Events,
        mut done: impl FnMut(f64, Pruned, &mut dyn Events) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let groups: Vec<&Group> = self.groups.iter().collect();
        let judge = self.settings.judge(self.model, self.stop, events)?;
        let worth = match self.settings.steps {
            0 | 1 => Some(self.worth(&groups, events)?),
            _ => None,
        };
        // All budgets can be met, or nothing is done for any.
        if let Some(worth) = &worth {
            for &share in shares {
                self.fit(self.model, worth, &groups, share, events)?;
            }
        }
        for &share in shares {
            let mut pruned = self.within(worth.as_ref(), &groups, share, events)?;
            if let Some(judge) = &judge {
                pruned.accuracy = Some(judge.accuracy(&pruned.checkpoint, self.stop, events)?);
            }
            self.enter(&mut pruned, share)?;
            done(share, pruned, events)?;
        }
        Ok(())
    }

    /// Cuts half of the units of one group after the other, and tests what that does; empty where there are no labels.
    ///
    /// # Errors
    /// As [`Look::run`].
    pub fn sensitivity(&self, events: &mut dyn Events) -> Result<Vec<Sensitivity>> {
        let groups: Vec<&Group> = self.groups.iter().collect();
        let worth = self.worth(&groups, events)?;
        let Some(judge) = self.settings.judge(self.model, self.stop, events)? else {
            events.say(
                "note",
                "sensitivity is accuracy, which takes validation images with labels: there are none",
            );
            return Ok(Vec::new());
        };
        let each = groups.iter().map(|group| {
            let kept = worth.better_half(group);
            let mut selection = Selection::default();
            selection.keep(group.id.kind, group.id.core, kept.iter().copied());
            let sliced = slice(&self.model.spec, &self.model.tensors, &selection)?;
            let mut checkpoint = self.model.clone();
            (checkpoint.spec, checkpoint.tensors) = (sliced.spec, sliced.tensors);
            Ok(Sensitivity {
                group: group.id.to_string(),
                units: group.units,
                kept: kept.len(),
                top1: judge.accuracy(&checkpoint, self.stop, events)?.after_top1,
            })
        });
        each.collect()
    }

    fn worth<'g>(&self, groups: &[&'g Group], events: &mut dyn Events) -> Result<Worth<'g>> {
        let calibration = self.calibration.as_ref();
        Worth::measure(self.model, &self.settings, groups, calibration, self.stop, events)
    }

    /// One budget. A model that is measured to be slower than it was to be is cut further; of those that still are, the fastest stays.
    fn within(
        &self,
        worth: Option<&Worth<'_>>,
        groups: &[&Group],
        share: f64,
        events: &mut dyn Events,
    ) -> Result<Pruned> {
        let mut best = self.attempt(worth, groups, share, events)?;
        let mut tightened = share;
        for _ in 1..TRIES {
            let Some(found) = self.slower(&best, share) else {
                break;
            };
            events.say(
                "note",
                &format!("{found:.3} of the latency was measured where the table said {tightened:.3}: the search goes on"),
            );
            tightened *= share / found;
            let next = match self.attempt(worth, groups, tightened, events) {
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                // The table knows of nothing that fast.
                Err(_) => break,
                Ok(next) => next,
            };
            if self.slower(&next, share).is_none_or(|next| next < found) {
                best = next;
            }
        }
        best.missed = self.slower(&best, share);
        Ok(best)
    }

    /// The share of the latency that was measured, if it is above the one asked for by more than the rounds differ.
    fn slower(&self, pruned: &Pruned, share: f64) -> Option<f64> {
        let Quantity::Latency(at) = self.settings.quantity else {
            return None;
        };
        let mut speeds = pruned.transform.speed.iter();
        let speed = speeds.find(|speed| speed.batch == at.batch)?;
        if speed.verdict == SAME_PLAN {
            return None;
        }
        let ratio = speed.ratio;
        let noise = ((ratio.max - ratio.min) / 4.0).min(0.02 * share);
        (ratio.median > share + noise).then_some(ratio.median)
    }

    /// Chooses, cuts, corrects, proves and measures.
    fn attempt(
        &self,
        worth: Option<&Worth<'_>>,
        groups: &[&Group],
        share: f64,
        events: &mut dyn Events,
    ) -> Result<Pruned> {
        let (fit, steps) = match worth {
            Some(worth) => {
                let fit = self.fit(self.model, worth, groups, share, events)?;
                let ranked = worth.ranked(groups, &fit);
                (fit, vec![ranked])
            }
            None => self.gradually(share, events)?,
        };
        let Corrected { sliced, fits } = self.corrected(&fit.selection, events)?;
        let mut checkpoint = self.model.clone();
        (checkpoint.spec, checkpoint.tensors) = (sliced.spec, sliced.tensors);
        let mut twin = self.model.clone();
        twin.tensors = widen(
            &self.model.spec,
            &self.model.tensors,
            &fit.selection,
            &checkpoint.tensors,
        )?;
        let mut pruned = self.pruned(checkpoint, groups, &fit, &steps)?;
        pruned.corrected = fits;
        let data = self.settings.data.as_deref();
        let images = Images::find(data, None, self.settings.images, &twin, events)?;
        let transform = &mut pruned.transform;
        if transform.prove(&pruned.checkpoint, &twin, images, Check::default())? {
            let (at, batches) = self.timed();
            transform.time((self.model, &pruned.checkpoint), at, &batches, self.stop, events)?;
        }
        Ok(pruned)
    }

    /// The number format and the threads of what is timed, and its batches.
    fn timed(&self) -> (At, Vec<usize>) {
        match self.settings.quantity {
            Quantity::Latency(at) => (at, Vec::new()),
            _ => (At::one(), self.settings.batches.clone()),
        }
    }

    /// In several steps, each of which judges the units of what the one before has left.
    fn gradually(&self, share: f64, events: &mut dyn Events) -> Result<(Fit, Vec<Vec<Ranked>>)> {
        let steps = self.settings.steps;
        let mut ranked = Vec::with_capacity(steps);
        let mut model = self.model.clone();
        let mut selection = Selection::default();
        for step in 1..=steps {
            events.say("step", &format!("cut {step} of {steps}"));
            let groups = self.settings.groups(&model.spec)?;
            let groups: Vec<&Group> = groups.iter().collect();
            let calibration = self.calibration.as_ref();
            let worth = Worth::measure(&model, &self.settings, &groups, calibration, self.stop, events)?;
            let left = 1.0 - (1.0 - share) * step as f64 / steps as f64;
            let fit = self.fit(&model, &worth, &groups, left, events)?;
            ranked.push(worth.ranked(&groups, &fit));
            selection = selection.then(&fit.selection);
            if step < steps {
                let Sliced { spec, tensors, .. } = self.corrected(&selection, events)?.sliced;
                (model.spec, model.tensors) = (spec, tensors);
            }
        }
        let spec = outline(&self.model.spec, &self.model.tensors, &selection)?;
        Ok((Fit { selection, spec }, ranked))
    }

    /// What is kept of `model`, whose units are worth so much, within a share of what the dense model costs.
    fn fit(
        &self,
        model: &Checkpoint,
        worth: &Worth<'_>,
        groups: &[&Group],
        share: f64,
        events: &mut dyn Events,
    ) -> Result<Fit> {
        let quantity = self.settings.quantity;
        let latencies = match quantity {
            Quantity::Latency(at) => Some(Latencies::open(at, self.stop, events)),
            _ => None,
        };
        let bytes = self.model.tensors.total_bytes() as f64 / self.model.tensors.parameters().max(1) as f64;
        let cost = |spec: &ModelSpec| {
            Ok(match &latencies {
                Some(latencies) => latencies
                    .predict(spec)
                    .map_err(|error| vitesse_compress::Error::Cost(Box::new(error)))?,
                None => match quantity {
                    Quantity::Bytes => spec.costs()?.parameters() as f64 * bytes,
                    Quantity::Params => spec.costs()?.parameters() as f64,
                    _ => spec.costs()?.macs() as f64,
                },
            })
        };
        let budget = Budget {
            what: quantity.words(),
            most: share * cost(&self.model.spec)?,
            cost: &cost,
        };
        let fit = worth.fit(model, &self.settings, groups, &budget);
        if let Some(latencies) = &latencies {
            latencies.save();
        }
        fit
    }

    /// The model without what `selection` does not keep, corrected if that is wanted.
    fn corrected(&self, selection: &Selection, events: &mut dyn Events) -> Result<Corrected> {
        let (spec, tensors) = (&self.model.spec, &self.model.tensors);
        let Some(calibration) = self.calibration.as_ref().filter(|_| self.settings.correct) else {
            return Ok(Corrected {
                sliced: slice(spec, tensors, selection)?,
                fits: Vec::new(),
            });
        };
        let settings = correct::Settings {
            damping: self.settings.damping,
        };
        let begun = blocks("correcting", spec.sites().depth());
        let images = calibration.images(self.stop);
        let found = correct(spec, tensors, selection, settings, images, |done| {
            crate::error::check(self.stop)?;
            events.progress(Progress { done, ..begun });
            Ok::<_, Error>(())
        })?;
        events.progress(Progress {
            done: begun.total,
            ..begun
        });
        Ok(found)
    }

    fn pruned(
        &self,
        checkpoint: Checkpoint,
        groups: &[&Group],
        fit: &Fit,
        steps: &[Vec<Ranked>],
    ) -> Result<Pruned> {
        Ok(Pruned {
            transform: Transform::planned(self.model, &checkpoint)?,
            checkpoint,
            gone: share_gone(groups, &fit.selection),
            ranking: serde_json::to_vec(steps).unwrap_or_default(),
            missed: None,
            corrected: Vec::new(),
            accuracy: None,
        })
    }

    /// Writes down what was done.
    fn enter(&self, pruned: &mut Pruned, share: f64) -> Result<()> {
        let settings = &self.settings;
        let mut config = Map::new();
        let mut put = |key: &str, value| config.insert(key.into(), value);
        put(settings.quantity.name(), json!(share));
        if let Quantity::Latency(at) = settings.quantity {
            put("at", json!(at));
        }
        put("scope", json!(words(&settings.scope())));
        put("units", json!(settings.units));
        put("round_to", json!(settings.round_to));
        put("steps", json!(settings.steps));
        if let Some(calibration) = &self.calibration {
            put("data", json!(calibration.name()));
            put("calibration", json!(calibration.len()));
        }
        put("seed", json!(settings.seed));
        put("corrected", json!(settings.correct));
        if settings.correct || settings.method == Method::Obs {
            put("damping", json!(settings.damping));
        }
        let mut metrics = pruned.transform.metrics();
        metrics.insert("units_gone".into(), json!(pruned.gone));
        metrics.insert("ranking_sha256".into(), json!(sha256(&pruned.ranking)));
        if let Some(found) = &pruned.accuracy {
            metrics.insert("top1".into(), json!(found.after_top1));
            metrics.insert("images".into(), json!(found.images));
        }
        let checkpoint = &mut pruned.checkpoint;
        checkpoint.config.history.push(HistoryStep {
            step: "prune".into(),
            method: Some(settings.method.name().to_owned()),
            config,
            parent_sha256: self.model.source_sha256()?,
            metrics,
        });
        let classes = checkpoint.spec.num_classes;
        checkpoint.config.remove_tag(classes);
        Ok(())
    }
}

/// A scope as it is typed.
fn words(scope: &Scope) -> String {
    match scope {
        Scope::Local => "local".into(),
        Scope::Kind => "kind".into(),
        Scope::Global => "global".into(),
        Scope::Patterns(patterns) => patterns.join(" "),
    }
}
