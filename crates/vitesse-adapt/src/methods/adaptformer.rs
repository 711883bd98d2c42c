//! ADAPTFORMER — a bottleneck parallel to the perceptron.
//!
//! **Paper.** S. Chen, C. Ge, Z. Tong, J. Wang, Y. Song, J. Wang, P. Luo, *AdaptFormer*, NeurIPS 2022, equations 3 and 4:
//! `x + MLP(LN(x)) + s · (U ReLU(D x + d) + u)`, with `x` the stream after attention.
//!
//! **When.** To compare.
//!
//! **Changes** ops `bottleneck` at `mlp.out` that read `mid`. Cannot be folded: parallel to a branch that is not linear.
//!
//! **Cost.** `2·C·h` multiply-adds for each token and block.
//!
//! **Deviations.** It stands inside the perceptron's residual branch, so drop path drops both together; the released program
//! drops the perceptron alone (its recipes set drop path to 0).

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{Activation, Bottleneck, NormPlace, OpKind};
use vitesse_model::spec::Init;
use vitesse_model::{ModelSpec, Site, Tensors};

use super::{Adapted, insert, layers_with, op};
use crate::Result;

const NAME: &str = "adaptformer";

/// How AdaptFormer is set up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width between the two projections. Default 8, as in the comparisons on VTAB; the paper's 64.
    pub hidden: usize,
    /// What the branch is multiplied by. Default 0.1.
    pub scale: f64,
    /// Whether that is a trained scalar, which starts at 1 then. Default false.
    pub learned_scale: bool,
    /// A layer norm of its own, `before` or `after`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormPlace>,
    /// Probability with which a hidden unit is zeroed in training. Default 0.1.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hidden: 8,
            scale: 0.1,
            learned_scale: false,
            norm: None,
            dropout: 0.1,
        }
    }
}

impl Config {
    pub(super) fn apply(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Adapted> {
        let kind = OpKind::Bottleneck(Bottleneck {
            hidden: self.hidden,
            groups: 1,
            activation: Activation::Relu,
            scale: self.scale,
            learned_scale: self.learned_scale,
            norm: self.norm,
            from: Some(Site::Mid),
            dropout: self.dropout,
        });
        let ops = layers_with(spec, Site::MlpOut)
            .map(|layer| op(Site::MlpOut, layer, kind.clone()))
            .collect();
        let mut adapted = insert(NAME, spec, tensors, ops, seed)?;
        // Kaiming-uniform with a slope of √5, where the op's own start is Xavier-uniform.
        for mut tensor in adapted.spec.tensors()? {
            if adapted.trainable.contains(&tensor.name) && tensor.name.ends_with(".down.weight") {
                let width = tensor.shape.last().copied().unwrap_or(1);
                let bound = (width as f64).powf(-0.5);
                tensor.init = Init::Uniform { bound };
                adapted.tensors.insert(tensor.name.clone(), tensor.init(seed)?);
            }
        }
        Ok(adapted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{applied, counted};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(counted(NAME, &[]).trainable.method_parameters, 156_768);
        let wide = counted(NAME, &[("hidden", "64")]);
        assert_eq!(wide.trainable.method_parameters, 12 * (2 * 64 * 768 + 64 + 768));
    }

    #[test]
    fn the_scale_and_the_norm_can_learn() {
        let adapted = applied(NAME, &[("learned_scale", "true"), ("norm", "before")]);
        for end in ["scale", "norm.weight", "norm.bias"] {
            assert!(
                adapted.trainable.contains(&format!("ops.0.0.mlp.out.{end}")),
                "{end}"
            );
        }
    }
}
