//! The life of a method: `plan → begin → (train) → finish → check`.
//!
//! A method adapts a model, shares its weights, prunes it or reduces its tokens. Whatever it does, it is used in this order:
//!
//! | stage | what happens | given |
//! | --- | --- | --- |
//! | [`plan`](Method::plan) | says what would change: tensors, parameters, multiply-accumulates, bytes | the description |
//! | [`begin`](Method::begin) | makes the model that learns, and says which of its tensors do | the weights too |
//! | train | is the trainer's, which knows no method: it follows what `begin` says of objective and hooks | what `begin` made |
//! | [`finish`](Method::finish) | folds, slices or keeps what was added, and reports it | what was trained |
//! | [`check`](Method::check) | names what the finished and the trained model must agree on, and how closely | both |
//!
//! A method is one file: a `NAME`, a `Config` that [`settings!`](crate::settings) declares, and `impl Method for Config`.
//! A crate lists its methods once, with [`methods!`](crate::methods); from the list follow the enum, the names, parsing and
//! dispatch, and from the declared settings the tables of the documentation.
//!
//! A method that minimises something of its own, or acts between steps, adds an objective and hooks to what `begin` made;
//! the trainer's loop calls them. Nothing else here needs gradients, so it is there without the feature `train`.

mod list;
mod page;
mod plan;
mod settings;
mod trainable;

pub use list::{Table, from_texts, named, read, split, unknown};
pub use page::{between, described, table};
pub use plan::{Change, MethodPlan, Size, TensorChange};
pub use settings::{Field, Settings, values};
pub use trainable::{Trainable, head_tensors};

use std::fmt;

use serde::Serialize;
use vitesse_model::{ModelSpec, Tensors};

use crate::Result;
#[cfg(feature = "train")]
use crate::{hooks::Hooks, objective::Objective};

/// A method with its settings.
///
/// Only the name and the plan differ for every method. One that adds or selects tensors and ends as it was trained needs
/// nothing else; one that starts its tensors in another way than their descriptions say has its own `begin`, one that
/// changes the trained model its own `finish`.
pub trait Method: Settings + fmt::Debug + Send + Sync {
    /// The name on the command line and in files.
    fn name(&self) -> &'static str;

    /// What a recipe should say where nothing else is said, as keys of its tables.
    fn recipe(&self) -> &'static [(&'static str, f64)] {
        &[]
    }

    /// Whether it adapts a model to another task: the head is new then, recipes begin with the preset `adapt`, and what was learned is kept as
    /// an adapter where it stands beside the model's own weights.
    fn adapts(&self) -> bool {
        true
    }

    /// Whether the model computes as in evaluation while it learns, without drop path.
    fn eval_mode(&self) -> bool {
        false
    }

    /// What would change of a model. Touches no weights.
    ///
    /// # Errors
    /// A model that has no place for the method, settings that do not fit it, in a sentence.
    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan>;

    /// The model that learns; whatever is drawn is drawn from `seed`.
    ///
    /// # Errors
    /// As [`Method::plan`], and tensors that are not the spec's.
    fn begin(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Begun> {
        self.plan(spec)?.begin(tensors, seed)
    }

    /// What the model that it has begun, `student`, minimises besides the recipe's loss, or instead of it, where the recipe names a
    /// `teacher`; `None` for methods that learn from a teacher's answers alone.
    ///
    /// # Errors
    /// A teacher that cannot be compared with the student, in a sentence.
    #[cfg(feature = "train")]
    fn objective(&self, _student: &ModelSpec, _teacher: &ModelSpec) -> Result<Option<Box<dyn Objective>>> {
        Ok(None)
    }

    /// What remains of the trained model: what the method added is folded into the weights, sliced away or kept.
    ///
    /// # Errors
    /// Tensors that are not the spec's.
    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        Ok(Finished {
            spec: spec.clone(),
            tensors: tensors.clone(),
            report: Report::default(),
        })
    }

    /// What must hold between the trained and the finished model.
    fn check(&self) -> Check {
        Check::default()
    }
}

/// A model that is about to learn.
#[derive(Debug)]
pub struct Begun {
    /// Its description, with what the method added.
    pub spec: ModelSpec,
    /// Its weights, with fresh ones where the method added some.
    pub tensors: Tensors,
    /// Which of them learn.
    pub trained: Trainable,
    /// What is minimised besides the recipe's loss.
    #[cfg(feature = "train")]
    pub objective: Option<Box<dyn Objective>>,
    /// What is done in the course of the run besides following gradients.
    #[cfg(feature = "train")]
    pub hooks: Vec<Box<dyn Hooks>>,
}

/// A model as a method leaves it.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its description.
    pub spec: ModelSpec,
    /// Its weights.
    pub tensors: Tensors,
    /// What became of what the method had added.
    pub report: Report,
}

/// What became of the ops of a model that was finished.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// What is gone from the description because the weights compute it now.
    pub folded: Vec<Folded>,
    /// What the engine computes beside the weights, and why.
    pub kept: Vec<Kept>,
    /// Whether projections of blocks without a bias have one now.
    pub created_bias: bool,
}

/// One op that is folded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folded {
    /// The op, such as `bottleneck at attn.in of block 3`.
    pub op: String,
    /// The module whose weights compute it now, such as `blocks.3.attn.qkv`.
    pub into: String,
}

/// One op that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The op.
    pub op: String,
    /// Why it cannot be folded.
    pub reason: String,
}

/// The finished model must answer as the trained one does: the same images go through both, and their logits are compared.
/// Who has images and an engine does that (vitesse-measure).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Check {
    /// The largest difference of two logits that counts as equal: absolute, or relative to the largest logit where that is
    /// above 1.
    pub tolerance: f64,
}

impl Default for Check {
    /// What reordering the sums of `f32` products leaves.
    fn default() -> Self {
        Check { tolerance: 1e-4 }
    }
}
