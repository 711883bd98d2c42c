//! What is minimised: named terms, each with its weight, read from what student and teacher show of a batch.
//!
//! An [`Objective`] says once what it wants: sites of the student whose values are recorded, and of the teacher, if one
//! is asked at all. Then it turns each batch, or part of one, into terms. [Distillation](crate::loss::Distillation) is
//! one; several are one, as a list.
//!
//! An objective has no state: what changes in the course of a run follows from [`At`], or stands in the state's
//! `method`, which [hooks](crate::hooks) write. So a run resumes with the same bits whatever its objective.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use vitesse_model::network::{Ctx, Logits, Network, Trace, Value, param_id};
use vitesse_model::{Site, Tensors};

use crate::teacher::Teacher;
use crate::{Error, Result};

/// A site, and the block it is in; `None` outside blocks.
pub type Place = (Site, Option<usize>);

/// What is minimised.
pub trait Objective: Debug + Send + Sync {
    /// What it must be shown besides the student's logits.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// Whether it is all that is minimised, in the place of the recipe's loss.
    fn is_whole(&self) -> bool {
        false
    }

    /// The terms for some samples, each the mean over them. Names are as in `metrics.jsonl`, and are no fields of a step.
    ///
    /// # Errors
    /// What cannot be computed from what is there, in a sentence.
    fn terms(&self, seen: &Seen<'_>) -> Result<Vec<Term>>;
}

/// What an objective must be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Where the student's values are recorded. A recorded value cuts the fused segment that passes it.
    pub student: Vec<Place>,
    /// Where the teacher's are; `None` if there is nothing to ask a teacher.
    pub teacher: Option<Vec<Place>>,
    /// Whether it reads what the student's ops say beside their values.
    pub outputs: bool,
}

/// A part of what is minimised.
#[derive(Debug, Clone)]
pub struct Term {
    /// What it is called in `metrics.jsonl`.
    pub name: &'static str,
    /// Its value before it is weighted: `[1]`.
    pub value: Tensor<1>,
    /// What it is multiplied by.
    pub weight: f64,
}

/// When a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct At {
    /// The optimiser step, from 0.
    pub step: usize,
    /// The epoch, from 0.
    pub epoch: usize,
    /// Optimiser steps an epoch; 0 for a step that is no part of a run.
    pub steps_per_epoch: usize,
    /// Epochs of the run.
    pub epochs: usize,
}

impl At {
    /// The share of the run that is done, from 0 up to 1; 1 for a step that is no part of one.
    pub fn progress(&self) -> f64 {
        match self.epochs * self.steps_per_epoch {
            0 => 1.0,
            steps => self.step as f64 / steps as f64,
        }
    }

    /// Whether the step is the first of its epoch.
    pub fn begins_epoch(&self) -> bool {
        self.steps_per_epoch > 0 && self.step == self.epoch * self.steps_per_epoch
    }
}

/// What an objective is shown of some samples.
#[derive(Debug)]
pub struct Seen<'a> {
    /// When this is.
    pub at: At,
    /// What the student computed.
    pub student: Pass,
    /// What the teacher computed, outside the gradient's graph; there if it was wanted.
    pub teacher: Option<Pass>,
    /// Target probabilities: `[samples, classes]`.
    pub targets: Tensor<2>,
    /// What the run's hooks remember.
    pub method: &'a Tensors,
    network: &'a Network,
}

impl Seen<'_> {
    /// A parameter of the student, in the gradient's graph if it is trained.
    ///
    /// # Errors
    /// A name that the student has no parameter of, or one of another rank.
    pub fn parameter<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        struct Find<const D: usize>(ParamId, Option<Tensor<D>>);
        impl<const D: usize> ModuleVisitor for Find<D> {
            fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
                // Of equal rank: the shape stays, and only the type changes.
                let shape = <[usize; D]>::try_from(&param.dims()[..]);
                if let (true, Ok(shape)) = (param.id == self.0, shape) {
                    self.1 = Some(param.val().reshape(shape));
                }
            }
        }
        let mut find = Find(param_id(name), None);
        burn::module::Module::visit(self.network, &mut find);
        find.1
            .ok_or_else(|| Error::Backend(format!("`{name}` is no parameter of rank {D}")))
    }
}

/// What a model computed of some samples.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What its heads say.
    pub logits: Logits,
    /// What its ops say beside their values, `[samples, ..]` by name; the student's, if that was wanted.
    pub outputs: BTreeMap<String, Tensor<2>>,
    values: BTreeMap<Place, Value>,
}

impl Pass {
    /// Takes the values at `wanted` places out of the context of `who`'s forward pass.
    ///
    /// # Errors
    /// A place that was not recorded.
    pub fn new(who: &str, logits: Logits, ctx: &Ctx, wanted: &[Place]) -> Result<Pass> {
        let value = |&(site, layer): &Place| match ctx.trace.value(site, layer) {
            Some(value) => Ok(((site, layer), value.clone())),
            None => Err(missing(who, (site, layer))),
        };
        Ok(Pass {
            logits,
            outputs: BTreeMap::new(),
            values: wanted.iter().map(value).collect::<Result<_>>()?,
        })
    }

    /// The same as constants of a gradient's graph.
    #[must_use]
    pub fn constant(self) -> Pass {
        let values = self.values.into_iter().map(|(place, value)| match value {
            Value::Tokens(x) => (place, Value::Tokens(x.autodiff())),
            Value::Map(x) => (place, Value::Map(x.autodiff())),
        });
        Pass {
            logits: Logits {
                class: self.logits.class.autodiff(),
                distillation: self.logits.distillation.map(Tensor::autodiff),
            },
            // A teacher is not asked for them.
            outputs: BTreeMap::new(),
            values: values.collect(),
        }
    }

    /// The token stream `[samples, tokens, width]` at a place that was wanted.
    ///
    /// # Errors
    /// A place that was not, or where attention maps pass.
    pub fn tokens(&self, site: Site, layer: Option<usize>) -> Result<Tensor<3>> {
        match self.values.get(&(site, layer)) {
            Some(Value::Tokens(x)) => Ok(x.clone()),
            _ => Err(missing("what was recorded", (site, layer))),
        }
    }

    /// The attention maps `[samples, heads, tokens, tokens]` at a place that was wanted.
    ///
    /// # Errors
    /// A place that was not, or where no maps pass.
    pub fn map(&self, site: Site, layer: Option<usize>) -> Result<Tensor<4>> {
        match self.values.get(&(site, layer)) {
            Some(Value::Map(x)) => Ok(x.clone()),
            _ => Err(missing("what was recorded", (site, layer))),
        }
    }
}

fn missing(who: &str, (site, layer): Place) -> Error {
    let block = layer.map_or(String::new(), |layer| format!(" of block {layer}"));
    Error::NotRecorded(format!("{who} has no such value at `{site}`{block}"))
}

/// Several objectives are one: all of their terms.
impl Objective for Vec<Box<dyn Objective>> {
    fn is_whole(&self) -> bool {
        self.iter().any(|objective| objective.is_whole())
    }

    fn wants(&self) -> Wants {
        let mut all = Wants::default();
        for wants in self.iter().map(|objective| objective.wants()) {
            all.student.extend(wants.student);
            all.outputs |= wants.outputs;
            if let Some(places) = wants.teacher {
                all.teacher.get_or_insert_default().extend(places);
            }
        }
        all
    }

    fn terms(&self, seen: &Seen<'_>) -> Result<Vec<Term>> {
        let terms = self.iter().map(|objective| objective.terms(seen));
        Ok(terms.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// The weighted sum of the terms: `[1]`.
///
/// # Errors
/// No terms.
pub fn total(terms: &[Term]) -> Result<Tensor<1>> {
    // A weight of 1 needs no product.
    let weighted = terms.iter().map(|term| match term.weight {
        1.0 => term.value.clone(),
        weight => term.value.clone() * weight,
    });
    let sum = weighted.reduce(|sum, term| sum + term);
    sum.ok_or(Error::Empty {
        what: "the list of terms to minimise",
    })
}

/// Who learns from whom, and what: everything a loss is computed from besides samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) network: &'a Network,
    pub(crate) objective: &'a dyn Objective,
    pub(crate) wants: &'a Wants,
    pub(crate) teacher: Option<&'a Teacher>,
    pub(crate) method: &'a Tensors,
    pub(crate) at: At,
}

/// Samples to learn from.
// There is one at a time: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Normalised images `[samples, channels, height, width]`.
    Images(Tensor<4>),
    /// What the heads read of them.
    Features(Logits),
}

/// A loss and what it is made of.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What is minimised: `[1]`.
    pub(crate) total: Tensor<1>,
    /// Its value.
    pub(crate) loss: f64,
    /// Its terms, before they are weighted.
    pub(crate) terms: Vec<(&'static str, f64)>,
}

impl Asking<'_> {
    /// The loss of some samples; `ctx` is that of the student's forward pass.
    ///
    /// # Errors
    /// A missing teacher, what the models and the objective say, [`Error::NotFinite`].
    pub(crate) fn loss(&self, input: Input, targets: Tensor<2>, ctx: &mut Ctx) -> Result<Asked> {
        ctx.trace = Trace::pairs(self.wants.student.clone());
        ctx.labels = Some(targets.clone().autodiff());
        let (logits, teacher) = match input {
            Input::Images(images) => {
                let teacher = match (&self.wants.teacher, self.teacher) {
                    (None, _) => None,
                    (Some(_), None) => return Err(Error::TeacherMissing),
                    (Some(wanted), Some(teacher)) => Some(teacher.look(images.clone(), wanted)?.constant()),
                };
                (self.network.forward(images.autodiff(), ctx)?, teacher)
            }
            // Without traces and a teacher, or there would be images.
            Input::Features(features) => {
                let features = Logits {
                    class: features.class.autodiff(),
                    distillation: features.distillation.map(Tensor::autodiff),
                };
                (self.network.heads(features, ctx), None)
            }
        };
        let mut student = Pass::new("the student", logits, ctx, &self.wants.student)?;
        if self.wants.outputs {
            student.outputs = mem::take(&mut ctx.outputs);
        }
        let terms = self.objective.terms(&Seen {
            at: self.at,
            student,
            teacher,
            targets: targets.autodiff(),
            method: self.method,
            network: self.network,
        })?;
        let total = total(&terms)?;
        let loss = scalar(&total)?;
        if !loss.is_finite() {
            return Err(Error::NotFinite {
                what: "the loss",
                value: loss,
            });
        }
        let named = terms.iter().map(|term| Ok((term.name, scalar(&term.value)?)));
        Ok(Asked {
            loss,
            terms: named.collect::<Result<_>>()?,
            total,
        })
    }
}

fn scalar(loss: &Tensor<1>) -> Result<f64> {
    let values = loss.to_data().try_to_vec::<f32>();
    let value = values.ok().and_then(|values| values.first().copied());
    value
        .map(f64::from)
        .ok_or_else(|| Error::Backend("a loss that is not one number".into()))
}
