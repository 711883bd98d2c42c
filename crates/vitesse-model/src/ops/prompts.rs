//! PROMPTS — learned tokens before the patches, from a block on.
//!
//! Paper: Jia et al., *Visual Prompt Tuning*, ECCV 2022, equations 4 to 6. The first prompts of a model, at `block.in` of
//! its first block, are inserted after the prefix tokens; those of a later block take the place of the ones that are
//! there. They carry no position. No fold: a longer sequence has no counterpart in a plain model.
//!
//! Prompts narrower than the stream (`project`) become tokens by one linear map, the same for all blocks, as in the
//! released program. The first prompts of a model have its tensors.

use serde::{Deserialize, Serialize};

use super::OpKind;
use crate::site::Site;
use crate::spec::limits::{SIDE, WIDTH};
use crate::spec::{Init, Sites, TensorSpec};
use crate::{Error, Result};

/// Learned tokens, `[1, tokens, width]`, the same for every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// How many.
    pub tokens: usize,
    /// Their width, where it is not the stream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<usize>,
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
        if let Some(why) = sites.fixed_tokens() {
            return fail(format!("prompts cannot be put before the patches: {why}"));
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
        if let Some(width) = self.project.filter(|width| !(1..=WIDTH).contains(width)) {
            return fail(format!("`project` must be from 1 to {WIDTH}, but is {width}"));
        }
        if let Some((_, first)) = Prompts::first(sites).filter(|(_, first)| first.project != self.project) {
            let width = |project: Option<usize>| project.map_or("none".to_owned(), |width| width.to_string());
            return fail(format!(
                "`project` is {} here, but {} in the first block, whose map all prompts share",
                width(self.project),
                width(first.project)
            ));
        }
        if let Some((first, _)) = sites.ops_at(site, layer).next()
            && first != index
        {
            return fail("prompts must be the first op of their block".into());
        }
        Ok(())
    }

    /// Those that enter the first block, with their number among the ops.
    pub fn first(sites: &dyn Sites) -> Option<(usize, &Prompts)> {
        sites
            .ops_at(Site::BlockIn, Some(0))
            .find_map(|(index, op)| match &op.kind {
                OpKind::Prompts(prompts) => Some((index, prompts)),
                _ => None,
            })
    }

    pub(super) fn tensors(
        &self,
        index: usize,
        prefix: &str,
        width: usize,
        sites: &dyn Sites,
    ) -> Vec<TensorSpec> {
        let own = self.project.unwrap_or(width);
        // The bound that the patch embedding would have (Xavier over its fan-in and the width).
        let fan = sites.embedding().map_or(0, |embedding| embedding.inputs) + own;
        let uniform = |bound: f64| Init::Uniform { bound };
        let tokens = uniform((6.0 / fan as f64).sqrt());
        let mut out = vec![TensorSpec::parameter(
            format!("{prefix}.tokens"),
            &[1, self.tokens, own],
            tokens,
        )];
        if self.project.is_some() && Prompts::first(sites).is_some_and(|(first, _)| first == index) {
            // Kaiming over the outputs, and a framework's usual bias, as in the released program.
            let kaiming = Init::Normal {
                std: (2.0 / width as f64).sqrt(),
            };
            let weight = TensorSpec::parameter(format!("{prefix}.proj.weight"), &[width, own], kaiming);
            let bias = uniform((own as f64).powf(-0.5));
            out.push(weight);
            out.push(TensorSpec::parameter(
                format!("{prefix}.proj.bias"),
                &[width],
                bias,
            ));
        }
        out
    }
}

#[cfg(feature = "train")]
pub(super) use network::PromptsOp;

#[cfg(feature = "train")]
mod network {
    use burn::module::{Module, Param};
    use burn::tensor::Tensor;

    use super::Prompts;
    use crate::Result;
    use crate::network::fused::{Before, linear};
    use crate::network::{Ctx, Parameters};
    use crate::ops::network::Act;
    use crate::spec::Sites;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct PromptsOp {
        tokens: Param<Tensor<3>>,
        /// Weight `[dim, width]` and bias of the map of narrower prompts, at the first of them.
        weight: Option<Param<Tensor<2>>>,
        bias: Option<Param<Tensor<1>>>,
    }

    impl PromptsOp {
        pub(in crate::ops) fn new(
            spec: &Prompts,
            index: usize,
            prefix: &str,
            sites: &dyn Sites,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            let owns =
                spec.project.is_some() && Prompts::first(sites).is_some_and(|(first, _)| first == index);
            let name = |end| format!("{prefix}.proj.{end}");
            Ok(PromptsOp {
                tokens: parameters.parameter(&format!("{prefix}.tokens"))?,
                weight: parameters.optional(owns, &name("weight"))?,
                bias: parameters.optional(owns, &name("bias"))?,
            })
        }

        /// The prompts as tokens of the stream.
        fn widened(&self, ctx: &mut Ctx) -> Tensor<3> {
            if let (Some(weight), Some(bias)) = (&self.weight, &self.bias) {
                let (weight, bias) = (weight.val(), bias.val());
                ctx.stream.prompt_map = Some(Tensor::cat(vec![weight, bias.unsqueeze_dim(1)], 1));
            }
            let tokens = self.tokens.val();
            let Some(map) = ctx.stream.prompt_map.clone() else {
                return tokens;
            };
            let [dim, columns] = map.dims();
            let (weight, bias) = (
                map.clone().narrow(1, 0, columns - 1),
                map.narrow(1, columns - 1, 1),
            );
            let bias = Some(bias.reshape([dim]));
            linear(tokens, Before::Nothing, weight, bias, None, ctx.compute)
        }
    }

    impl Act for PromptsOp {
        /// With the prompts inserted, or in the place of those before; the token stream is told.
        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let [batch, tokens, _] = x.dims();
            let prompts = self.widened(ctx);
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
