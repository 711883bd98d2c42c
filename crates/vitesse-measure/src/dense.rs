//! A pruned model back in a shape that timm can build: filled up with zeros, proved, measured.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Map;
use vitesse_compress::structure::to_dense;
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::method::Check;

use crate::images::Images;
use crate::transform::{At, Transform};
use crate::{Events, Result};

/// A pruned model.
#[derive(Debug)]
pub struct Fill {
    model: Checkpoint,
}

/// A pruned model among zeros.
#[derive(Debug)]
pub struct Filled {
    /// The plain model.
    pub checkpoint: Checkpoint,
    /// Sizes, proof and speed.
    pub transform: Transform,
}

impl Fill {
    /// Reads a model, as `options` say.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn open(model: &Path, options: &LoadOptions, events: &mut dyn Events) -> Result<Fill> {
        let model = Checkpoint::load(model, options)?;
        for note in &model.source.notes {
            events.say("note", note);
        }
        Ok(Fill { model })
    }

    /// What it would become: nothing is proved, measured or entered in the history.
    ///
    /// # Errors
    /// A model of no such shape, as [`to_dense`] says.
    pub fn plan(&self) -> Result<Filled> {
        let mut checkpoint = self.model.clone();
        let dense = to_dense(&self.model.spec, &self.model.tensors)?;
        (checkpoint.spec, checkpoint.tensors) = (dense.spec, dense.tensors);
        Ok(Filled {
            transform: Transform::planned(&self.model, &checkpoint)?,
            checkpoint,
        })
    }

    /// Fills it up, compares both on `count` images of `data`, drawn ones if there is none, and, where they agree, measures both.
    ///
    /// # Errors
    /// As [`Fill::plan`]; images that cannot be read; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(
        &self,
        data: Option<&Path>,
        count: usize,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Filled> {
        let mut filled = self.plan()?;
        let Filled {
            checkpoint,
            transform,
        } = &mut filled;
        let images = Images::find(data, None, count, &self.model, events)?;
        if transform.prove(checkpoint, &self.model, images, Check::default())? {
            transform.time((&self.model, checkpoint), At::one(), &[], stop, events)?;
        }
        let step = HistoryStep {
            step: "to-dense".into(),
            method: None,
            config: Map::new(),
            parent_sha256: self.model.source_sha256()?,
            metrics: transform.metrics(),
        };
        checkpoint.config.history.push(step);
        Ok(filled)
    }
}
