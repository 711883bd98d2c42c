//! A model whose tokens become fewer from layer to layer, without training: planned, proved, measured.
//!
//! What is proved is that the engine, which moves and merges rows in place, answers as the network does. How far both are from the model
//! that they come from is the price of the fewer tokens, and is told beside it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Map, Value, json};
use vitesse_compress::tokens::Method;
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, LoadOptions, ModelSpec, Sites};
use vitesse_train::method::Check;

use crate::images::Images;
use crate::proof::{FromBase, compare, engine_and_network};
use crate::transform::{At, Transform};
use crate::{Events, Result};

/// A model that has all its tokens in every layer.
#[derive(Debug)]
pub struct Reduce {
    model: Checkpoint,
}

/// A model whose tokens become fewer.
#[derive(Debug)]
pub struct Reduced {
    /// The model.
    pub checkpoint: Checkpoint,
    /// How its tokens become fewer.
    pub method: Method,
    /// How many each layer sees, and saw before.
    pub tokens: Vec<Tokens>,
    /// Sizes, proof and speed.
    pub transform: Transform,
    /// How far it is from the model that it comes from, on the images of the proof; absent where nothing was computed.
    pub from_base: Option<FromBase>,
}

/// The tokens of an image in one layer, those before the patches among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// The layer, from 0.
    pub layer: usize,
    /// That it saw before.
    pub before: usize,
    /// That its attention sees.
    pub attention: usize,
    /// That its perceptron sees, and that leave it.
    pub perceptron: usize,
}

impl Reduce {
    /// Reads a model, as `options` say.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn open(model: &Path, options: &LoadOptions, events: &mut dyn Events) -> Result<Reduce> {
        let model = Checkpoint::load(model, options)?;
        for note in &model.source.notes {
            events.say("note", note);
        }
        Ok(Reduce { model })
    }

    /// The model.
    pub fn model(&self) -> &Checkpoint {
        &self.model
    }

    /// What it becomes by `method`, with the mildest knob that leaves at most the share `macs` of the multiply-accumulates where that is
    /// given: nothing is proved, measured or entered in the history.
    ///
    /// # Errors
    /// As [`Method::reduce`] and [`Method::within`].
    pub fn plan(&self, method: &Method, macs: Option<f64>) -> Result<Reduced> {
        let method = match macs {
            Some(share) => method.within(&self.model.spec, share)?,
            None => method.clone(),
        };
        method.check(&self.model.spec)?;
        let mut checkpoint = self.model.clone();
        checkpoint.spec = method.reduce(&self.model.spec)?;
        Ok(Reduced {
            transform: Transform::planned(&self.model, &checkpoint)?,
            tokens: tokens(&self.model.spec, &checkpoint.spec),
            checkpoint,
            method,
            from_base: None,
        })
    }

    /// The same, proved on `count` images of `data`, drawn ones if there is none, and, where that is met, measured against the model.
    ///
    /// # Errors
    /// As [`Reduce::plan`]; images that cannot be read; [`Error::Interrupted`](crate::Error::Interrupted) once `stop` was set.
    pub fn run(
        &self,
        (method, macs): (&Method, Option<f64>),
        (data, count): (Option<&Path>, usize),
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Reduced> {
        let mut reduced = self.plan(method, macs)?;
        let images = Images::find(data, None, count, &self.model, events)?;
        let Reduced {
            checkpoint,
            method,
            transform,
            ..
        } = &mut reduced;
        let far = compare(checkpoint, &self.model, &images.pixels, Check::default())?;
        let proof = engine_and_network(checkpoint, &images.pixels, Check::default(), stop, events)?;
        if transform.proved_by(proof, images) {
            transform.time((&self.model, checkpoint), At::one(), &[], stop, events)?;
        }
        let mut metrics = transform.metrics();
        metrics.insert("agreeing_with_base".into(), json!(far.agreeing));
        let config = match json!(method) {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        checkpoint.config.history.push(HistoryStep {
            step: "tokens".into(),
            method: Some(method.name().into()),
            config,
            parent_sha256: self.model.source_sha256()?,
            metrics,
        });
        reduced.from_base = Some(FromBase::of(&far));
        Ok(reduced)
    }
}

/// The tokens of each layer of both.
fn tokens(before: &ModelSpec, after: &ModelSpec) -> Vec<Tokens> {
    let (before, after) = (before.token_counts(), after.token_counts());
    let layers = before.iter().zip(&after).enumerate();
    let of = layers.map(|(layer, (before, after))| Tokens {
        layer,
        before: before.entering.count(),
        attention: after.attention.count(),
        perceptron: after.perceptron.count(),
    });
    of.collect()
}
