//! A model whose layers share matrices: made, proved, measured.
//!
//! What is proved is what is exact: the shared model answers as one without sharing whose layers have equal matrices, with every
//! transformation that starts as the identity. How far both are from the model they come from is what training has to make good for, and is
//! told beside it.

#[cfg(feature = "train")]
mod lesson;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};
use vitesse_compress::share::multiplex::{Start, Transformation, multiplex, untied};
use vitesse_model::config::HistoryStep;
use vitesse_model::spec::{Groups, NormsOf};
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::method::Check;

use crate::images::Images;
use crate::proof::{FromBase, compare};
use crate::transform::{At, Transform};
use crate::{Events, Result};
#[cfg(feature = "train")]
pub use lesson::Lesson;

/// How matrices are shared.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Which layers share.
    pub groups: Groups,
    /// Whose norms they have.
    pub norms: NormsOf,
    /// What a group's matrices start as.
    pub start: Start,
    /// What keeps the layers of a group different; those of the published model of the family if `None`.
    pub transformations: Option<Vec<Transformation>>,
}

/// A pretrained model.
#[derive(Debug)]
pub struct Share {
    model: Checkpoint,
    sharing: Sharing,
}

/// A model whose layers share matrices.
#[derive(Debug)]
pub struct Shared {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Sizes, proof and speed.
    pub transform: Transform,
    /// What keeps the layers of a group different.
    pub transformations: Vec<Transformation>,
    /// How far it is from the model that it comes from, on the images of the proof, before any training; absent where nothing was computed.
    pub from_base: Option<FromBase>,
}

impl Share {
    /// Reads a model, as `options` say.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn open(
        model: &Path,
        options: &LoadOptions,
        sharing: Sharing,
        events: &mut dyn Events,
    ) -> Result<Share> {
        let model = Checkpoint::load(model, options)?;
        for note in &model.source.notes {
            events.say("note", note);
        }
        Ok(Share { model, sharing })
    }

    /// The model that is shared.
    pub fn model(&self) -> &Checkpoint {
        &self.model
    }

    fn transformations(&self) -> Vec<Transformation> {
        let asked = self.sharing.transformations.clone();
        asked.unwrap_or_else(|| Transformation::published(&self.model.spec))
    }

    fn with(&self, transformations: &[Transformation]) -> Result<Checkpoint> {
        let Sharing {
            groups, norms, start, ..
        } = &self.sharing;
        let (spec, tensors) = (&self.model.spec, &self.model.tensors);
        let found = multiplex(spec, tensors, (groups, *norms), *start, transformations)?;
        let mut checkpoint = self.model.clone();
        (checkpoint.spec, checkpoint.tensors) = (found.spec, found.tensors);
        Ok(checkpoint)
    }

    /// What it would become: nothing is proved, measured or entered in the history.
    ///
    /// # Errors
    /// Groups and transformations that do not fit, as [`multiplex`] says.
    pub fn plan(&self) -> Result<Shared> {
        let transformations = self.transformations();
        let checkpoint = self.with(&transformations)?;
        Ok(Shared {
            transform: Transform::planned(&self.model, &checkpoint)?,
            checkpoint,
            transformations,
            from_base: None,
        })
    }

    /// Shares, proves on `count` images of `data`, drawn ones if there is none, and, where that is met, measures both models.
    ///
    /// # Errors
    /// As [`Share::plan`]; images that cannot be read; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(
        &self,
        data: Option<&Path>,
        count: usize,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Shared> {
        let mut shared = self.plan()?;
        let images = Images::find(data, None, count, &self.model, events)?;
        let exact: Vec<Transformation> = shared
            .transformations
            .iter()
            .copied()
            .filter(|one| one.starts_as_identity())
            .collect();
        let exact = self.with(&exact)?;
        let mut equal = self.model.clone();
        equal.tensors = untied(&self.model.spec, &exact.spec, &exact.tensors)?;
        let far = compare(&shared.checkpoint, &self.model, &images.pixels, Check::default())?;
        shared.from_base = Some(FromBase::of(&far));
        if shared.transform.prove(&exact, &equal, images, Check::default())? {
            let pair = (&self.model, &shared.checkpoint);
            shared.transform.time(pair, At::one(), &[], stop, events)?;
        }
        let mut metrics = shared.transform.metrics();
        metrics.insert("agreeing_with_base".into(), json!(far.agreeing));
        let step = HistoryStep {
            step: "share".into(),
            method: Some("minivit".into()),
            config: self.sharing.config(&shared.transformations),
            parent_sha256: self.model.source_sha256()?,
            metrics,
        };
        shared.checkpoint.config.history.push(step);
        Ok(shared)
    }
}

impl Sharing {
    fn config(&self, transformations: &[Transformation]) -> Map<String, Value> {
        // As the method's settings are called.
        let groups = match &self.groups {
            Groups::Of(size) => ("group", json!(size)),
            Groups::Sizes(sizes) => ("groups", json!(sizes)),
        };
        let values = [
            groups,
            ("shared_norms", json!(self.norms == NormsOf::Group)),
            ("init", json!(self.start)),
            ("transform", json!(transformations)),
        ];
        values
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}
