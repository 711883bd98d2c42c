//! Which tensors learn: an explicit rule, and counts of what it selects.
//!
//! Never a search for loose substrings: `head`, `bias` and `adapter` occur in unrelated names. A method names its
//! tensors from the model's description; the head always learns and is counted by itself.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use vitesse_model::ModelSpec;
use vitesse_model::spec::{Role, TensorSpec};
use vitesse_words::{count, counted};

use crate::Result;

/// The tensors that learn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trainable {
    /// The name of the method.
    pub method_name: &'static str,
    /// The method's tensors, in the model's order.
    pub method: Vec<String>,
    /// The heads' tensors, in the model's order.
    pub head: Vec<String>,
    /// Parameters in [`Trainable::method`].
    pub method_param_count: usize,
    /// Of which in matrices, biases not counted: what papers print.
    pub method_matrix_param_count: usize,
    /// Parameters in [`Trainable::head`].
    pub head_param_count: usize,
    /// Parameters of the whole model, ops included.
    pub param_count: usize,
}

impl Trainable {
    /// Selects from the model's tensors by name; heads are always selected, and never by the rule.
    ///
    /// # Errors
    /// A spec that describes no model.
    pub fn select(
        method_name: &'static str,
        spec: &ModelSpec,
        rule: impl Fn(&TensorSpec) -> bool,
    ) -> Result<Trainable> {
        let tensors = spec.tensors()?;
        let heads = head_tensors(spec);
        let (mut method, mut head) = (Vec::new(), Vec::new());
        for tensor in tensors.iter().filter(|tensor| tensor.role == Role::Parameter) {
            if heads.contains(&tensor.name) {
                head.push(tensor);
            } else if rule(tensor) {
                method.push(tensor);
            }
        }
        let count = |tensors: &[&TensorSpec]| tensors.iter().map(|tensor| tensor.numel()).sum();
        let names = |tensors: &[&TensorSpec]| tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let matrices: Vec<&TensorSpec> = method
            .iter()
            .copied()
            .filter(|tensor| tensor.shape.len() > 1)
            .collect();
        Ok(Trainable {
            method_name,
            method: names(&method),
            head: names(&head),
            method_param_count: count(&method),
            method_matrix_param_count: count(&matrices),
            head_param_count: count(&head),
            param_count: spec.costs()?.parameters(),
        })
    }

    /// Whether a tensor learns.
    pub fn contains(&self, name: &str) -> bool {
        self.method.iter().chain(&self.head).any(|other| other == name)
    }

    /// The names of all that learn.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.method.iter().chain(&self.head).map(String::as_str)
    }

    /// Parameters that learn, as a share of the model's.
    pub fn share(&self) -> f64 {
        (self.method_param_count + self.head_param_count) as f64 / self.param_count.max(1) as f64
    }
}

/// The names of the tensors of the heads.
pub fn head_tensors(spec: &ModelSpec) -> BTreeSet<String> {
    let heads = if spec.num_classes == 0 {
        Vec::new()
    } else {
        spec.classifiers()
    };
    heads
        .iter()
        .flat_map(|head| [format!("{head}.weight"), format!("{head}.bias")])
        .collect()
}

impl fmt::Display for Trainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, head) = (&self.method_name, self.head_param_count);
        if self.method.is_empty() {
            write!(
                f,
                "{name}: {} of the head learn, and nothing else",
                counted(head, "parameter")
            )?;
        } else {
            write!(
                f,
                "{name}: {} learn in {} ({} of them in matrices), and {} in the head",
                counted(self.method_param_count, "parameter"),
                counted(self.method.len(), "tensor"),
                count(self.method_matrix_param_count as u64),
                count(head as u64)
            )?;
        }
        let total = count(self.param_count as u64);
        write!(f, "; {:.3} % of {total}", 100.0 * self.share())
    }
}
