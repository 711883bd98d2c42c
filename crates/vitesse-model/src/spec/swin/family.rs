//! A Swin's tensors and costs.

use super::sites::PATCH_EMBED;
use super::{Place, SwinSpec};
use crate::Result;
use crate::spec::block::{TRUNC, linear, norm};
use crate::spec::{AttentionSpec, Cost, Family, FeatureMap, FeatureMaps, Init, LayerTokens, TensorSpec};

/// The name of the module that classifies.
const HEAD: &str = "head.fc";

impl Family for SwinSpec {
    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn tensors(&self, num_classes: usize) -> Vec<TensorSpec> {
        let mut out = self.embedding_tensors();
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen), Some(Place { stage, within })) = (
                self.cores.get(layer.core),
                seen.get_mut(layer.core),
                self.place(i),
            ) else {
                continue;
            };
            let (name, dim) = (self.core_name(layer.core), self.stage_dim(stage));
            let first = !std::mem::replace(seen, true);
            let own = layer.norms.is_none();
            let begin = out.len();
            if stage > 0 && within == 0 {
                out.extend(merging_tensors(stage, dim));
            }
            if let Some(attn) = &core.attn {
                if own {
                    out.extend(norm(&self.norm_name(i, 1), dim));
                }
                if first {
                    out.push(self.table(layer.core, attn));
                    out.extend(attn.tensors(&name, dim));
                }
            }
            if let Some(mlp) = &core.mlp {
                if own {
                    out.extend(norm(&self.norm_name(i, 2), dim));
                }
                if first {
                    out.extend(mlp.tensors(&name, dim));
                }
            }
            out.iter_mut().skip(begin).for_each(|tensor| tensor.depth = i + 1);
        }
        let begin = out.len();
        out.extend(norm("norm", self.last_dim()));
        if num_classes > 0 {
            out.extend(linear(HEAD, [num_classes, self.last_dim()], true));
        }
        let last = self.layers.len() + 1;
        out.iter_mut().skip(begin).for_each(|tensor| tensor.depth = last);
        out
    }

    fn costs(&self, _tokens: &[LayerTokens]) -> Cost {
        let mut cost = Cost { layers: Vec::new() };
        let (d, pixels) = (self.embed_dim, self.in_chans * self.patch_size * self.patch_size);
        let patches: usize = self.stage_map(0).iter().product();
        cost.push("patch_embed", pixels * d + d + 2 * d, pixels * d * patches);
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen), Some(Place { stage, within }), Some(windows)) = (
                self.cores.get(layer.core),
                seen.get_mut(layer.core),
                self.place(i),
                self.windows(i),
            ) else {
                continue;
            };
            let first = !std::mem::replace(seen, true);
            let (d, tokens) = (
                self.stage_dim(stage),
                self.stage_map(stage).iter().product::<usize>(),
            );
            if stage > 0 && within == 0 {
                let weights = 4 * self.stage_dim(stage - 1) * d;
                let norm = 8 * self.stage_dim(stage - 1);
                cost.push(merging(stage), norm + weights, tokens * weights);
            }
            let norm = if layer.norms.is_none() { 2 * d } else { 0 };
            let name = format!("layers.{stage}.blocks.{within}");
            if let Some(attn) = &core.attn {
                let (rows, written) = (attn.qkv_rows(), attn.written(d));
                let table = self.table_rows(layer.core) * attn.num_heads();
                let matrices = attn.parameters(d) + table;
                // Tokens with which the map is filled up have queries, keys and values too.
                let inside = windows.count() * windows.area();
                let products = inside * windows.area() * (attn.qk_width() + attn.v_width());
                cost.push(
                    format!("{name}.attn"),
                    norm + if first { matrices } else { 0 },
                    inside * rows * d + products + tokens * written * attn.v_width(),
                );
            }
            if let Some(mlp) = &core.mlp {
                cost.push(
                    format!("{name}.mlp"),
                    norm + if first { mlp.parameters(d) } else { 0 },
                    tokens * mlp.hidden * (d + mlp.written(d)),
                );
            }
        }
        cost.push("norm", 2 * self.last_dim(), 0);
        cost
    }

    fn input_size(&self) -> [usize; 3] {
        [self.in_chans, self.img_size[0], self.img_size[1]]
    }

    fn num_features(&self) -> usize {
        self.last_dim()
    }

    fn classifiers(&self) -> Vec<&'static str> {
        vec![HEAD]
    }

    fn maps(&self) -> FeatureMaps {
        let map = |stage| FeatureMap {
            name: format!("stage{}", stage + 1),
            module: format!("layers.{stage}"),
            layer: self.first_layer(stage + 1).saturating_sub(1),
            channels: self.stage_dim(stage),
            size: self.stage_map(stage),
            stride: self.patch_size << stage,
        };
        FeatureMaps::OfStages((0..self.stages()).map(map).collect())
    }
}

impl SwinSpec {
    fn embedding_tensors(&self) -> Vec<TensorSpec> {
        let (d, side) = (self.embed_dim, self.patch_size);
        let fan_in = self.in_chans * side * side;
        // The reference leaves the patch convolution at its framework's default.
        let conv = Init::Uniform {
            bound: (fan_in as f64).powf(-0.5),
        };
        let shape = [d, self.in_chans, side, side];
        let mut out = vec![
            TensorSpec::parameter(format!("{PATCH_EMBED}.weight"), &shape, conv),
            TensorSpec::parameter(format!("{PATCH_EMBED}.bias"), &[d], conv),
        ];
        out.extend(norm("patch_embed.norm", d));
        out
    }

    /// The bias table of a core: a number for each relative position and head.
    fn table(&self, core: usize, attn: &AttentionSpec) -> TensorSpec {
        let shape = [self.table_rows(core), attn.num_heads()];
        TensorSpec {
            decays: false,
            ..TensorSpec::parameter(self.bias_table(core), &shape, TRUNC)
        }
    }
}

/// The prefix of the tensors of the patch merging with which a stage begins.
pub(crate) fn merging(stage: usize) -> String {
    format!("layers.{stage}.downsample")
}

fn merging_tensors(stage: usize, dim: usize) -> Vec<TensorSpec> {
    let (name, inputs) = (merging(stage), 2 * dim);
    let mut out = norm(&format!("{name}.norm"), inputs).to_vec();
    out.extend(linear(&format!("{name}.reduction"), [dim, inputs], false));
    out
}
