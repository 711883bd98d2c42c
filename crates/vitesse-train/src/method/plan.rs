//! What a method would change, known from descriptions alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use vitesse_model::spec::TensorSpec;
use vitesse_model::{ModelSpec, Tensors};
use vitesse_words::count;

use super::{Begun, Trainable};
use crate::Result;

/// What a method would change of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodPlan {
    /// The description of the model that learns.
    #[serde(skip)]
    pub spec: ModelSpec,
    /// What learns.
    pub trainable: Trainable,
    /// From the model as it is to the one that learns.
    #[serde(flatten)]
    pub change: Change,
}

/// What one model has and another has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The model before.
    pub before: Size,
    /// The model after.
    pub after: Size,
    /// Tensors that go, come, or have another shape, in this model's order and then in the other's.
    pub tensors: Vec<TensorChange>,
}

/// One tensor that comes, goes, or has another shape afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorChange {
    /// Its name.
    pub name: String,
    /// Its shape before, if it is there.
    pub before: Option<Vec<usize>>,
    /// Its shape afterwards, if it is there.
    pub after: Option<Vec<usize>>,
}

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Trained parameters.
    pub param_count: usize,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Bytes of its tensors as `f32`.
    pub weight_bytes: usize,
}

impl Size {
    fn of(spec: &ModelSpec, tensors: &[TensorSpec]) -> Result<Size> {
        let cost = spec.costs()?;
        let numbers: usize = tensors.iter().map(TensorSpec::numel).sum();
        Ok(Size {
            param_count: cost.parameters(),
            macs: cost.macs(),
            weight_bytes: 4 * numbers,
        })
    }
}

impl Change {
    /// From `before` to `after`.
    ///
    /// # Errors
    /// A spec that describes no model.
    pub fn of(before: &ModelSpec, after: &ModelSpec) -> Result<Change> {
        let (old, new) = (before.tensors()?, after.tensors()?);
        let shapes = |tensors: &[TensorSpec]| -> BTreeMap<String, Vec<usize>> {
            let pair = |tensor: &TensorSpec| (tensor.name.clone(), tensor.shape.clone());
            tensors.iter().map(pair).collect()
        };
        let (old_shapes, new_shapes) = (shapes(&old), shapes(&new));
        let come = new.iter().filter(|tensor| !old_shapes.contains_key(&tensor.name));
        let tensors = old
            .iter()
            .chain(come)
            .map(|tensor| TensorChange {
                name: tensor.name.clone(),
                before: old_shapes.get(&tensor.name).cloned(),
                after: new_shapes.get(&tensor.name).cloned(),
            })
            .filter(|change| change.before != change.after)
            .collect();
        Ok(Change {
            before: Size::of(before, &old)?,
            after: Size::of(after, &new)?,
            tensors,
        })
    }

    /// How many tensors go, come, and have another shape.
    pub fn counts(&self) -> [usize; 3] {
        let count =
            |what: fn(&TensorChange) -> bool| self.tensors.iter().filter(|change| what(change)).count();
        [
            count(|change| change.after.is_none()),
            count(|change| change.before.is_none()),
            count(|change| change.before.is_some() && change.after.is_some()),
        ]
    }
}

impl MethodPlan {
    /// The plan that makes `before` into `after`, in which the tensors that `rule` selects learn, and the heads.
    ///
    /// # Errors
    /// A spec that describes no model.
    pub fn new(
        method: &'static str,
        before: &ModelSpec,
        after: ModelSpec,
        rule: impl Fn(&TensorSpec) -> bool,
    ) -> Result<MethodPlan> {
        Ok(MethodPlan {
            trainable: Trainable::select(method, &after, rule)?,
            change: Change::of(before, &after)?,
            spec: after,
        })
    }

    /// The model that learns: the given weights, and fresh ones, drawn from `seed`, for tensors that are new.
    ///
    /// # Errors
    /// Tensors that are not those of the model that was planned for.
    pub fn begin(self, tensors: &Tensors, seed: u64) -> Result<Begun> {
        let mut tensors = tensors.clone();
        let fresh = |tensor: &TensorSpec| {
            let mut changes = self
                .change
                .tensors
                .iter()
                .filter(|change| change.before.is_none());
            changes.any(|change| change.name == tensor.name)
        };
        for tensor in self.spec.tensors()?.iter().filter(|tensor| fresh(tensor)) {
            tensors.insert(tensor.name.clone(), tensor.init(seed)?);
        }
        for gone in self.change.tensors.iter().filter(|change| change.after.is_none()) {
            tensors.remove(&gone.name)?;
        }
        self.spec.check(&tensors, "the model that learns")?;
        Ok(Begun {
            spec: self.spec,
            tensors,
            trained: self.trainable,
            #[cfg(feature = "train")]
            objective: None,
            #[cfg(feature = "train")]
            hooks: Vec::new(),
        })
    }
}

impl fmt::Display for MethodPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.trainable)?;
        let Change { before, after, .. } = &self.change;
        let [gone, come, reshaped] = self.change.counts();
        writeln!(
            f,
            "tensors: {come} added, {gone} removed, {reshaped} with another shape"
        )?;
        write!(
            f,
            "while it learns: {} parameters ({} before), {} MACs an image ({} before), {} bytes as f32 ({} before)",
            count(after.param_count as u64),
            count(before.param_count as u64),
            count(after.macs),
            count(before.macs),
            count(after.weight_bytes as u64),
            count(before.weight_bytes as u64)
        )
    }
}
