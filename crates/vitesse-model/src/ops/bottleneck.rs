//! BOTTLENECK — `y = x + s · (B σ(A x̃ + a) + β)`: a narrow pair of projections beside the identity.
//!
//! | method | it is a bottleneck |
//! | --- | --- |
//! | Adapter (Houlsby et al., ICML 2019; Pfeiffer et al., 2021) | with an activation, after a sub-layer |
//! | RepAdapter (Luo et al., 2023) | without one, its `B` grouped, before a projection |
//! | AdaptFormer (Chen et al., NeurIPS 2022) | `from` the stream before the perceptron, added to what that says |
//!
//! Without activation, norm and `from` it is affine and per token, and folds into the projection before or after it.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::limits::HIDDEN;
use crate::spec::{Activation, Init, TensorSpec};
use crate::{Error, Result};

/// Epsilon of the bottleneck's own norm (AdaptFormer's).
pub const NORM_EPS: f64 = 1e-5;

/// A narrow pair of projections. Starts as the identity: `B` and both biases are zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bottleneck {
    /// Width between the two projections.
    pub hidden: usize,
    /// Groups of `B`: outputs of group `g` read only hidden units of group `g`. Divides both widths.
    #[serde(default = "one")]
    pub groups: usize,
    /// What stands between the two projections.
    #[serde(default)]
    pub activation: Activation,
    /// What the result is multiplied by.
    pub scale: f64,
    /// Whether the scale is a trained scalar, which starts there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub learned_scale: bool,
    /// Where a layer norm of its own stands, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormPlace>,
    /// The site of the same block whose value it reads, `block.in` or `mid`; its own when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Site>,
    /// Probability with which a hidden unit is zeroed in training.
    #[serde(default)]
    pub dropout: f64,
}

/// Where a bottleneck's own layer norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlace {
    /// On what it reads.
    Before,
    /// On its scaled result.
    After,
}

fn one() -> usize {
    1
}

impl Bottleneck {
    /// The sites at which one can stand: before or after a sub-layer, or before a projection.
    pub const SITES: [Site; 6] = [
        Site::AttnIn,
        Site::AttnHeads,
        Site::AttnOut,
        Site::MlpIn,
        Site::MlpHidden,
        Site::MlpOut,
    ];

    /// Why it is no affine map of each token, if it is none.
    pub fn nonlinear(&self) -> Option<String> {
        if let Some(from) = self.from {
            return Some(format!(
                "it stands parallel to what lies between `{from}` and its site, which is not linear"
            ));
        }
        if self.norm.is_some() {
            return Some("it has a layer norm inside".into());
        }
        match self.activation {
            Activation::None => None,
            other => Some(format!("it has an activation ({}) inside", other.name())),
        }
    }

    /// `B` `[width, hidden]`, zero outside its groups, of the rows `[width, hidden / groups]` that are stored: both widths are
    /// split in order, and outputs of a group read the hidden units of that group.
    pub fn dense_up<T: Copy + Default>(&self, stored: &[T], width: usize) -> Vec<T> {
        let each = self.hidden / self.groups.max(1);
        let mut dense = vec![T::default(); width * self.hidden];
        let rows = dense.chunks_exact_mut(self.hidden.max(1));
        for ((c, row), stored) in rows.enumerate().zip(stored.chunks_exact(each.max(1))) {
            let first = c * self.groups / width * each;
            if let Some(own) = row.get_mut(first..first + each) {
                own.copy_from_slice(stored);
            }
        }
        dense
    }

    pub(super) fn validate(&self, index: usize, site: Site, width: usize) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if !Bottleneck::SITES.contains(&site) {
            let known = Bottleneck::SITES.map(Site::name).join("`, `");
            return fail(format!(
                "a bottleneck cannot stand at `{site}`, only at `{known}`"
            ));
        }
        if !(1..=HIDDEN).contains(&self.hidden) {
            return fail(format!(
                "hidden must be from 1 to {HIDDEN}, but is {}",
                self.hidden
            ));
        }
        let divides = |n: usize| self.groups > 0 && n.is_multiple_of(self.groups);
        if !divides(self.hidden) || !divides(width) {
            return fail(format!(
                "groups is {}, but must divide both the hidden width {} and the width {width} at `{site}`; choose a common divisor",
                self.groups, self.hidden
            ));
        }
        if self.norm.is_some() && site == Site::AttnHeads {
            return fail(
                "a bottleneck at `attn.heads` cannot have a norm, because heads are not one vector".into(),
            );
        }
        if !self.scale.is_finite() {
            return fail("the scale must be a finite number".into());
        }
        let (early, late) = ([Site::AttnOut, Site::MlpOut], [Site::MlpOut]);
        let reaches = match self.from {
            None => true,
            Some(Site::BlockIn) => early.contains(&site),
            Some(Site::Mid) => late.contains(&site),
            Some(_) => false,
        };
        if !reaches {
            return fail(
                "`from` may be `block.in` for a bottleneck at `attn.out` or `mlp.out`, and `mid` for one at `mlp.out`"
                    .into(),
            );
        }
        super::check_dropout(index, self.dropout)
    }

    pub(super) fn tensors(&self, prefix: &str, width: usize) -> Vec<TensorSpec> {
        let (hidden, grouped) = (self.hidden, self.hidden / self.groups.max(1));
        let mut out = Vec::new();
        let mut add = |name: &str, shape: &[usize], init| {
            out.push(TensorSpec::parameter(format!("{prefix}.{name}"), shape, init));
        };
        let bound = (6.0 / (width + hidden) as f64).sqrt();
        add("down.weight", &[hidden, width], Init::Uniform { bound });
        add("down.bias", &[hidden], Init::Zeros);
        add("up.weight", &[width, grouped], Init::Zeros);
        add("up.bias", &[width], Init::Zeros);
        if self.learned_scale {
            // The constant is 1 in every published method that learns it; another start is the method's to set.
            add("scale", &[1], Init::Ones);
        }
        if self.norm.is_some() {
            add("norm.weight", &[width], Init::Ones);
            add("norm.bias", &[width], Init::Zeros);
        }
        out
    }

    /// Multiply-accumulates for one token.
    pub(super) fn macs(&self, width: usize) -> usize {
        width * (self.hidden + self.hidden / self.groups.max(1))
    }
}

#[cfg(feature = "train")]
pub(super) use network::BottleneckOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::{Bottleneck, NORM_EPS, NormPlace};
    use crate::Result;
    use crate::network::fused::{Before, linear};
    use crate::network::layers::{LayerNorm, Linear, activate, times};
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;
    use crate::site::Site;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct BottleneckOp {
        down: Linear,
        up_weight: Param<Tensor<2>>,
        up_bias: Param<Tensor<1>>,
        scale: Option<Param<Tensor<1>>>,
        norm: Option<LayerNorm>,
        #[module(skip)]
        spec: Bottleneck,
        #[module(skip)]
        name: String,
    }

    impl BottleneckOp {
        pub(in crate::ops) fn new(
            spec: &Bottleneck,
            prefix: &str,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            let scale = parameters.optional(spec.learned_scale, &format!("{prefix}.scale"))?;
            let norm = spec
                .norm
                .map(|_| LayerNorm::new(&format!("{prefix}.norm"), NORM_EPS, parameters))
                .transpose()?;
            Ok(BottleneckOp {
                down: Linear::new(&format!("{prefix}.down"), true, parameters)?,
                up_weight: parameters.parameter(&format!("{prefix}.up.weight"))?,
                up_bias: parameters.parameter(&format!("{prefix}.up.bias"))?,
                scale,
                norm,
                spec: spec.clone(),
                name: prefix.to_owned(),
            })
        }

        /// [`Bottleneck::dense_up`]: each row repeated for every group, and zeroed in all but its own. Both are tiny, and one
        /// dense product is faster than several narrow ones.
        fn dense_up(&self) -> Tensor<2> {
            let weight = self.up_weight.val();
            if self.spec.groups == 1 {
                return weight;
            }
            let [width, grouped] = weight.dims();
            let mask = self.spec.dense_up(&vec![1.0; width * grouped], width);
            times(
                weight.repeat_dim(1, self.spec.groups),
                mask,
                [width, self.spec.hidden],
            )
        }
    }

    impl Act for BottleneckOp {
        fn reads(&self) -> Option<Site> {
            self.spec.from
        }

        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let input = match self.spec.from {
                // The spec was validated: the site comes before this one in the same block.
                Some(site) => ctx.held(site).unwrap_or_else(|| x.clone()),
                None => x.clone(),
            };
            let normed = |place: NormPlace, x: Tensor<3>| match &self.norm {
                Some(norm) if self.spec.norm == Some(place) => norm.forward(x, ctx.compute),
                _ => x,
            };
            let z = self.down.forward(normed(NormPlace::Before, input), ctx.compute);
            let z = activate(z, self.spec.activation);
            let z = ctx.dropout(z, self.spec.dropout, &self.name);
            let (up, bias) = (self.dense_up(), Some(self.up_bias.val()));
            let u = linear(z, Before::Nothing, up, bias, None, ctx.compute);
            let u = match &self.scale {
                Some(scale) => u * scale.val().reshape([1, 1, 1]),
                None => u * self.spec.scale as f32,
            };
            x + normed(NormPlace::After, u)
        }
    }
}
