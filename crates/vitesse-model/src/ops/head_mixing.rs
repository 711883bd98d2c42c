//! HEAD MIXING — `new[h] = Σ_g W[h, g] · old[g] (+ b[h])`: the attention maps of all heads, mixed.
//!
//! Papers: Zhang et al., *MiniViT*, CVPR 2022, section 3.2 (`F1` before the softmax, `F2` after it); Shazeer et al., *Talking-Heads
//! Attention*, 2020. Mini-DeiT has no bias, Mini-Swin has one. After the softmax, rows of what comes out do not sum to 1. As the identity
//! it changes nothing; published models start from small random weights instead, so that at first attention contributes almost nothing.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::limits::check_pairs;
use crate::spec::{Init, Sites, TensorSpec};
use crate::{Error, Result};

/// A linear map over the heads, the same for each pair of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadMixing {
    /// Whether a constant is added to each head's map.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
}

impl HeadMixing {
    pub(super) fn validate(
        &self,
        index: usize,
        site: Site,
        layer: Option<usize>,
        sites: &dyn Sites,
    ) -> Result<()> {
        if site.is_map() {
            return check_pairs(layer, sites);
        }
        Err(Error::invalid_spec(format!(
            "ops[{index}]: head-mixing acts on attention maps, at `{}` or `{}`, and cannot stand at `{site}`",
            Site::AttnLogits,
            Site::AttnProbs
        )))
    }

    pub(super) fn tensors(&self, prefix: &str, heads: usize) -> Vec<TensorSpec> {
        let init = Init::TruncatedNormal { std: 0.02 };
        let mut out = vec![TensorSpec::parameter(
            format!("{prefix}.weight"),
            &[heads, heads],
            init,
        )];
        if self.bias {
            out.push(TensorSpec::parameter(
                format!("{prefix}.bias"),
                &[heads],
                Init::Zeros,
            ));
        }
        out
    }
}

#[cfg(feature = "train")]
pub(super) use network::HeadMixingOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::HeadMixing;
    use crate::Result;
    use crate::network::{Ctx, MapChange, Mixing, Parameters};
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct HeadMixingOp {
        weight: Param<Tensor<2>>,
        bias: Option<Param<Tensor<1>>>,
    }

    impl HeadMixingOp {
        pub(in crate::ops) fn new(
            spec: &HeadMixing,
            prefix: &str,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            Ok(HeadMixingOp {
                weight: parameters.parameter(&format!("{prefix}.weight"))?,
                bias: parameters.optional(spec.bias, &format!("{prefix}.bias"))?,
            })
        }
    }

    impl Act for HeadMixingOp {
        fn map(&self, x: Tensor<4>, _ctx: &mut Ctx) -> Tensor<4> {
            let [batch, heads, queries, keys] = x.dims();
            let weight = self.weight.val().unsqueeze::<3>();
            let mixed = weight.matmul(x.reshape([batch, heads, queries * keys]));
            let mixed = mixed.reshape([batch, heads, queries, keys]);
            match &self.bias {
                Some(bias) => mixed + bias.val().reshape([1, heads, 1, 1]),
                None => mixed,
            }
        }

        fn map_change(&self, _ctx: &Ctx) -> Option<MapChange> {
            Some(MapChange::Mixing(Mixing {
                weight: self.weight.val(),
                bias: self.bias.as_ref().map(Param::val),
            }))
        }
    }
}
