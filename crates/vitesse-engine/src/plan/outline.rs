//! A plan in words.

use vitesse_kernels::Real;
use vitesse_model::site::Site;

use super::{AffineRows, Dense, Plan};
use crate::kept::Step;

impl<T: Real> Plan<T> {
    /// What stays, with its layer and its site.
    pub(super) fn kept(&self) -> impl Iterator<Item = (usize, Site, &Step<T>)> {
        self.layers.iter().enumerate().flat_map(|(i, layer)| {
            let attn = layer.attn.iter().flat_map(|attn| {
                [
                    (Site::AttnIn, &attn.kept_in),
                    (Site::AttnHeads, &attn.kept_heads),
                    (Site::AttnOut, &attn.kept_out),
                ]
            });
            let mlp = layer.mlp.iter().flat_map(|mlp| {
                [
                    (Site::MlpIn, &mlp.kept_in),
                    (Site::MlpHidden, &mlp.kept_hidden),
                    (Site::MlpOut, &mlp.kept_out),
                ]
            });
            attn.chain(mlp)
                .flat_map(move |(site, steps)| steps.iter().map(move |step| (i, site, step)))
        })
    }

    /// What is done for an image, a line a step; folded ops leave no trace in it.
    pub(crate) fn outline(&self) -> Vec<String> {
        let mut out = vec![format!("{} tokens of {} channels", self.tokens, self.dim)];
        let scaled = |affine: &AffineRows| if affine.scale.is_some() { ", scaled" } else { "" };
        for (i, layer) in self.layers.iter().enumerate() {
            let core = &self.cores[layer.core];
            let mut line = |text: String| out.push(format!("block {i}: {text}"));
            if let Some(prompts) = &layer.prompts {
                line(format!("{} prompts", prompts.rows()));
            }
            for (site, there) in [
                ("block.in", &layer.block_in),
                ("mid", &layer.mid),
                ("block.out", &layer.block_out),
            ] {
                if there.is_some() {
                    line(format!("scale and shift at {site}"));
                }
            }
            if let (Some(own), Some(core)) = (&layer.attn, &core.attn) {
                let beside =
                    |dense: &Option<Dense<T>>| dense.as_ref().map_or("", |_| " and a low-rank update");
                line(format!(
                    "norm, qkv of {} panels{}{}",
                    core.qkv.panels(),
                    scaled(&own.qkv),
                    beside(&core.qkv_beside)
                ));
                line(format!("attention of {} heads", core.heads.len()));
                line(format!(
                    "proj of {} panels{}{}",
                    core.proj.panels(),
                    scaled(&own.proj),
                    beside(&core.proj_beside)
                ));
            }
            if let (Some(own), Some(core)) = (&layer.mlp, &core.mlp) {
                let beside =
                    |dense: &Option<Dense<T>>| dense.as_ref().map_or("", |_| " and a low-rank update");
                line(format!(
                    "norm, fc1 of {} panels with gelu{}{}{}",
                    core.fc1.panels(),
                    scaled(&own.fc1),
                    if own.hidden.is_some() {
                        ", scaled after it"
                    } else {
                        ""
                    },
                    beside(&core.fc1_beside)
                ));
                line(format!(
                    "fc2 of {} panels{}{}",
                    core.fc2.panels(),
                    scaled(&own.fc2),
                    beside(&core.fc2_beside)
                ));
            }
        }
        for (i, site, step) in self.kept() {
            let what = match step {
                Step::ScaleShift(..) => "scale and shift".to_owned(),
                Step::Bottleneck(narrow) => format!("bottleneck ({})", narrow.activation.name()),
            };
            out.push(format!("block {i}: {what} at {site}"));
        }
        out.push(format!("{} heads of {} classes", self.heads.len(), self.classes));
        out
    }
}

/// Bytes of packed weights.
pub(super) fn step_bytes<T: Real>(step: &Step<T>) -> usize {
    match step {
        Step::ScaleShift(..) => 0,
        Step::Bottleneck(narrow) => narrow.down.weights.bytes() + narrow.up.weights.bytes(),
    }
}
