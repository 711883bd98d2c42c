//! PROMPTS — learned tokens before the patches, from a block on.
//!
//! Paper: Jia et al., *Visual Prompt Tuning*, ECCV 2022, equations 4 to 6. The first prompts of a model, at `block.in` of
//! its first block, are inserted after the prefix tokens; those of a later block take the place of the ones that are
//! there. They carry no position. No fold: a longer sequence has no counterpart in a plain model.

use serde::{Deserialize, Serialize};

use crate::site::Site;
use crate::spec::limits::SIDE;
use crate::spec::{Init, Sites, TensorSpec};
use crate::{Error, Result};

/// Learned tokens, `[1, tokens, dim]`, the same for every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// How many.
    pub tokens: usize,
}

impl Prompts {
    pub(super) fn validate(
        &self,
        index: usize,
        site: Site,
        layer: Option<usize>,
        sites: &dyn Sites,
    ) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if site != Site::BlockIn {
            return fail(format!("prompts must stand at `block.in`, not at `{site}`"));
        }
        if !(1..=SIDE).contains(&self.tokens) {
            return fail(format!(
                "there must be from 1 to {SIDE} prompts, but there are {}",
                self.tokens
            ));
        }
        if sites.prompts() != self.tokens {
            return fail(format!(
                "there are {} prompts here, but {} in the first block; every block with prompts needs as many as the first",
                self.tokens,
                sites.prompts()
            ));
        }
        if let Some((first, _)) = sites.ops_at(site, layer).next()
            && first != index
        {
            return fail("prompts must be the first op of their block".into());
        }
        Ok(())
    }

    pub(super) fn tensors(&self, prefix: &str, width: usize, sites: &dyn Sites) -> Vec<TensorSpec> {
        // The bound that the patch embedding would have (Xavier over its fan-in and the width).
        let fan = sites.embedding().map_or(0, |embedding| embedding.inputs) + width;
        vec![TensorSpec::parameter(
            format!("{prefix}.tokens"),
            &[1, self.tokens, width],
            Init::Uniform {
                bound: (6.0 / fan as f64).sqrt(),
            },
        )]
    }
}

#[cfg(feature = "train")]
pub(super) use network::PromptsOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use crate::Result;
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct PromptsOp {
        tokens: Param<Tensor<3>>,
    }

    impl PromptsOp {
        pub(in crate::ops) fn new(prefix: &str, parameters: &Parameters<'_>) -> Result<Self> {
            Ok(PromptsOp {
                tokens: parameters.parameter(&format!("{prefix}.tokens"))?,
            })
        }
    }

    impl Act for PromptsOp {
        /// With the prompts inserted, or in the place of those before; the token stream is told.
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let [batch, tokens, _] = x.dims();
            let prompts = self.tokens.val();
            let count = prompts.dims()[1];
            let (old, first) = (ctx.stream.prompts, ctx.stream.prefix - ctx.stream.prompts);
            let mut parts = Vec::with_capacity(3);
            if first > 0 {
                parts.push(x.clone().narrow(1, 0, first));
            }
            parts.push(prompts.repeat_dim(0, batch));
            parts.push(x.narrow(1, first + old, tokens - first - old));
            ctx.stream.prompts = count;
            ctx.stream.prefix = first + count;
            Tensor::cat(parts, 1)
        }
    }
}
