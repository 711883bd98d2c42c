//! Pruning structures of a model until it meets a budget: planned, proved, measured.

#[cfg(feature = "train")]
mod taylor;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Map, json};
use vitesse_compress::structure::budget::{self, Fit};
use vitesse_compress::structure::criteria::{Criterion, magnitude::Magnitude, random::Random};
use vitesse_compress::structure::rank::{Ranking, Scope, Scored};
use vitesse_compress::structure::{Group, Kind, groups, mask, slice};
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::method::Check;

use crate::images::Images;
use crate::transform::Transform;
use crate::{Events, Result};

/// What is cut: places of all heads of a block at once, and hidden units, the same share of each group, so that all blocks stay alike.
const KINDS: [Kind; 2] = [Kind::Position, Kind::Hidden];

/// By what units are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The size of the weights.
    Magnitude,
    /// Gradient times weight, over labelled images.
    #[cfg(feature = "train")]
    Taylor,
    /// At random.
    Random,
}

/// How a model is pruned, and what it is proved on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// By what units are chosen.
    pub method: Method,
    /// The share of multiply-accumulates that is left, above 0 and at most 1.
    pub macs: f64,
    /// Of what number the kept units of a group are a multiple.
    pub round_to: usize,
    /// Seed of `random`'s units, and of the images that `taylor` draws.
    pub seed: u64,
    /// The data set whose images are compared, and which a method learns from; the drawn one if `None`.
    pub data: Option<PathBuf>,
    /// How many images are compared.
    pub images: usize,
}

/// What pruning came to.
#[derive(Debug)]
pub struct Pruned {
    /// The model.
    pub checkpoint: Checkpoint,
    /// The share of head dimensions and hidden units that went.
    pub ratio: f64,
    /// Sizes, proof and speed.
    pub transform: Transform,
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

    /// What would be done: nothing is proved, measured or entered in the history.
    ///
    /// # Errors
    /// As [`Prune::run`].
    pub fn plan(&self, settings: &Settings, stop: &AtomicBool, events: &mut dyn Events) -> Result<Pruned> {
        Ok(self.cut(settings, stop, events)?.0)
    }

    /// Prunes the model, proves that the result answers as its masked twin and, where the proof is met, measures it.
    ///
    /// # Errors
    /// A model that cannot be pruned, or not so far; a data set without labels where the method needs them;
    /// [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(&self, settings: &Settings, stop: &AtomicBool, events: &mut dyn Events) -> Result<Pruned> {
        let (mut pruned, fit) = self.cut(settings, stop, events)?;
        let mut masked = self.model.clone();
        masked.tensors = mask(&self.model.spec, &self.model.tensors, &fit.selection)?;
        let images = Images::find(settings.data.as_deref(), None, settings.images, &masked, events)?;
        let pruned_ratio = pruned.ratio;
        let Pruned {
            transform,
            checkpoint,
            ..
        } = &mut pruned;
        if transform.prove(checkpoint, &masked, images, Check::default())? {
            transform.time(&self.model, checkpoint, stop, events)?;
        }
        let mut config = Map::new();
        config.insert("macs".into(), json!(settings.macs));
        config.insert("ratio".into(), json!(pruned_ratio));
        config.insert("round_to".into(), json!(settings.round_to));
        config.insert("seed".into(), json!(settings.seed));
        config.insert("data".into(), json!(settings.data));
        checkpoint.config.history.push(HistoryStep {
            step: "prune".into(),
            method: json!(settings.method).as_str().map(str::to_owned),
            config,
            parent_sha256: self.model.source_sha256()?,
            metrics: transform.metrics(),
        });
        let classes = checkpoint.spec.num_classes;
        checkpoint.config.remove_tag(classes);
        Ok(pruned)
    }

    fn cut(&self, settings: &Settings, stop: &AtomicBool, events: &mut dyn Events) -> Result<(Pruned, Fit)> {
        let (spec, tensors) = (&self.model.spec, &self.model.tensors);
        let all = groups(spec)?;
        let chosen: Vec<&Group> = all
            .iter()
            .filter(|group| KINDS.contains(&group.id.kind))
            .collect();
        let criterion = self.criterion(settings, &chosen, stop, events)?;
        let scored = Scored::all(criterion.as_ref(), tensors, &chosen)?;
        let ranking = Ranking {
            scope: Scope::Local,
            round_to: settings.round_to,
            ..Ranking::default()
        };
        let fit = budget::macs(spec, tensors, &ranking, &scored, settings.macs)?;
        let sliced = slice(spec, tensors, &fit.selection)?;
        let mut checkpoint = self.model.clone();
        (checkpoint.spec, checkpoint.tensors) = (sliced.spec, sliced.tensors);
        let pruned = Pruned {
            transform: Transform::planned(&self.model, &checkpoint)?,
            checkpoint,
            ratio: gone(&chosen, &fit),
        };
        Ok((pruned, fit))
    }

    #[cfg_attr(not(feature = "train"), allow(unused_variables, clippy::unnecessary_wraps))]
    fn criterion(
        &self,
        settings: &Settings,
        groups: &[&Group],
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Box<dyn Criterion>> {
        Ok(match settings.method {
            Method::Magnitude => Box::new(Magnitude::default()),
            Method::Random => Box::new(Random { seed: settings.seed }),
            #[cfg(feature = "train")]
            Method::Taylor => Box::new(taylor::criterion(&self.model, settings, groups, stop, events)?),
        })
    }
}

/// The share of the units of `groups` that a selection cuts.
fn gone(groups: &[&Group], fit: &Fit) -> f64 {
    let all: usize = groups.iter().map(|group| group.units).sum();
    let kept: usize = groups
        .iter()
        .map(|group| {
            let kept = fit.selection.of(group.id.kind, group.id.core);
            kept.map_or(group.units, <[usize]>::len)
        })
        .sum();
    1.0 - kept as f64 / all.max(1) as f64
}
