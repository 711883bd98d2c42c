//! ADAPTFORMER — a bottleneck parallel to the perceptron, or behind it.
//!
//! **Paper.** S. Chen, C. Ge, Z. Tong, J. Wang, Y. Song, J. Wang, P. Luo, *AdaptFormer*, NeurIPS 2022, equations 3 and 4:
//! `x + MLP(LN(x)) + s · (U ReLU(D x + d) + u)`, with `x` the stream after attention. The sequential form, which the paper
//! compares with it, reads what the perceptron says instead.
//!
//! **When.** To compare.
//!
//! **Changes** ops `bottleneck` at `mlp.out` that read `mid`; their own input in the sequential form. Cannot be folded: not linear.
//!
//! **Cost.** `2·C·h` multiply-adds for each token and block.
//!
//! **Deviations.** It stands inside the perceptron's residual branch, so drop path drops both together; the released program
//! drops the perceptron alone (its recipes set drop path to 0).

use serde::{Deserialize, Serialize};
use vitesse_model::ops::{Activation, Bottleneck, NormPlace, OpKind};
use vitesse_model::spec::{Init, TensorSpec};
use vitesse_model::{ModelSpec, Site, Tensors};
use vitesse_train::method::{Begun, Finished, Method, MethodPlan};
use vitesse_train::{Result, settings};

use super::{fold, insert, layers_with, op};

/// The name on the command line and in files.
pub const NAME: &str = "adaptformer";

settings! {
    /// How AdaptFormer is set up.
    pub struct Config {
        /// Width between the two projections, as in the comparisons on VTAB; the paper's is 64.
        pub hidden: usize = 8,
        /// Whether it stands parallel to the perceptron or behind it.
        pub form: Form = Form::Parallel,
        /// Factor of the branch.
        pub scale: f64 = 0.1,
        /// Whether that is a trained scalar, which starts at 1 then.
        pub learned_scale: bool = false,
        /// A layer norm of its own, `before` or `after` the two projections.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub norm: Option<NormPlace> = None,
        /// Probability with which a hidden unit is zeroed in training.
        pub dropout: f64 = 0.1,
    }
}

/// What an adapter reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The stream after attention.
    Parallel,
    /// What the perceptron says.
    Sequential,
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let kind = OpKind::Bottleneck(Bottleneck {
            hidden: self.hidden,
            groups: 1,
            activation: Activation::Relu,
            scale: self.scale,
            learned_scale: self.learned_scale,
            norm: self.norm,
            from: (self.form == Form::Parallel).then_some(Site::Mid),
            dropout: self.dropout,
        });
        let ops = layers_with(spec, Site::MlpOut)
            .map(|layer| op(Site::MlpOut, layer, kind.clone()))
            .collect();
        insert(NAME, spec, &[Site::MlpOut], ops)
    }

    /// `D` starts Kaiming-uniform with a slope of √5, where the op's own start is Xavier-uniform.
    fn begin(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Begun> {
        let mut begun = self.plan(spec)?.begin(tensors, seed)?;
        let own = begun.spec.ops.iter().enumerate().skip(spec.ops.len());
        let adapters: Vec<TensorSpec> = own
            .flat_map(|(index, op)| op.tensors(index, &begun.spec))
            .collect();
        for mut tensor in adapters {
            // Of an adapter's tensors, `D` alone is drawn at random.
            if matches!(tensor.init, Init::Uniform { .. }) {
                let inputs = tensor.shape.last().copied().unwrap_or(1);
                let bound = (inputs as f64).powf(-0.5);
                tensor.init = Init::Uniform { bound };
                begun.tensors.insert(tensor.name.clone(), tensor.init(seed)?);
            }
        }
        Ok(begun)
    }

    fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
        fold(spec, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{begun, planned};
    use super::*;

    #[test]
    fn counts_are_the_published_ones() {
        assert_eq!(planned(NAME, &[]).trainable.method_param_count, 156_768);
        let wide = planned(NAME, &[("hidden", "64")]);
        assert_eq!(wide.trainable.method_param_count, 12 * (2 * 64 * 768 + 64 + 768));
    }

    #[test]
    fn the_scale_and_the_norm_can_learn() {
        let begun = begun(NAME, &[("learned_scale", "true"), ("norm", "before")]);
        for end in ["scale", "norm.weight", "norm.bias"] {
            assert!(begun.trained.contains(&format!("ops.0.0.mlp.out.{end}")), "{end}");
        }
    }
}
