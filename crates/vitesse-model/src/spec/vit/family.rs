//! A vision transformer's tensors and costs.

use super::sites::PATCH_EMBED;
use super::{PrefixToken, VitSpec};
use crate::Result;
use crate::spec::block::{TRUNC, linear, norm};
use crate::spec::{Cost, Family, FeatureMap, FeatureMaps, Init, LayerTokens, TensorSpec};

impl Family for VitSpec {
    fn validate(&self) -> Result<()> {
        self.check()
    }

    fn tensors(&self, num_classes: usize) -> Vec<TensorSpec> {
        let (d, last) = (self.embed_dim, self.layers.len() + 1);
        let mut out = self.embedding_tensors();
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen)) = (self.cores.get(layer.core), seen.get_mut(layer.core)) else {
                continue;
            };
            let name = self.core_name(layer.core);
            let first = !std::mem::replace(seen, true);
            let own = layer.norms.is_none();
            let begin = out.len();
            if let Some(attn) = &core.attn {
                if own {
                    out.extend(norm(&self.norm_name(i, 1), d));
                }
                if first {
                    out.extend(attn.tensors(&name, d));
                }
            }
            if let Some(mlp) = &core.mlp {
                if own {
                    out.extend(norm(&self.norm_name(i, 2), d));
                }
                if first {
                    out.extend(mlp.tensors(&name, d));
                }
            }
            out.iter_mut().skip(begin).for_each(|tensor| tensor.depth = i + 1);
        }
        let begin = out.len();
        out.extend(norm(self.final_norm_name(), d));
        if num_classes > 0 {
            for head in self.classifiers() {
                out.extend(linear(head, [num_classes, d], true));
            }
        }
        out.iter_mut().skip(begin).for_each(|tensor| tensor.depth = last);
        out
    }

    fn costs(&self, tokens: &[LayerTokens]) -> Cost {
        let d = self.embed_dim;
        let pixels = self.in_chans * self.patch_size * self.patch_size;
        let mut cost = Cost { layers: Vec::new() };
        let bias = if self.patch_bias { d } else { 0 };
        cost.push("patch_embed", pixels * d + bias, pixels * d * self.patches());
        cost.push("tokens", (self.prefix.len() + self.pos_rows()) * d, 0);
        if self.pre_norm {
            cost.push("norm_pre", 2 * d, 0);
        }
        let mut seen = vec![false; self.cores.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(core), Some(seen)) = (self.cores.get(layer.core), seen.get_mut(layer.core)) else {
                continue;
            };
            let Some(tokens) = tokens.get(i) else { continue };
            let first = !std::mem::replace(seen, true);
            let norm = if layer.norms.is_none() { 2 * d } else { 0 };
            if let Some(attn) = &core.attn {
                let n = tokens.attention.count();
                let (rows, written) = (attn.qkv_rows(), attn.written(d));
                let products = n * n * (attn.qk_width() + attn.v_width());
                cost.push(
                    format!("blocks.{i}.attn"),
                    norm + if first { attn.parameters(d) } else { 0 },
                    n * rows * d + products + n * written * attn.v_width(),
                );
            }
            if let Some(mlp) = &core.mlp {
                cost.push(
                    format!("blocks.{i}.mlp"),
                    norm + if first { mlp.parameters(d) } else { 0 },
                    tokens.perceptron.count() * mlp.hidden * (d + mlp.written(d)),
                );
            }
        }
        cost.push(self.final_norm_name(), 2 * d, 0);
        cost
    }

    fn input_size(&self) -> [usize; 3] {
        [self.in_chans, self.img_size[0], self.img_size[1]]
    }

    fn num_features(&self) -> usize {
        self.embed_dim
    }

    fn classifiers(&self) -> Vec<&'static str> {
        if self.is_distilled() {
            vec!["head", "head_dist"]
        } else {
            vec!["head"]
        }
    }

    fn maps(&self) -> FeatureMaps {
        let map = |layer| FeatureMap {
            name: format!("layer{}", layer + 1),
            module: format!("blocks.{layer}"),
            layer,
            channels: self.embed_dim,
            size: self.grid(),
            stride: self.patch_size,
        };
        FeatureMaps::OfLayers((0..self.layers.len()).map(map).collect())
    }
}

impl VitSpec {
    fn embedding_tensors(&self) -> Vec<TensorSpec> {
        let (d, side) = (self.embed_dim, self.patch_size);
        let fan_in = self.in_chans * side * side;
        // The reference leaves the patch convolution at its framework's default.
        let conv = Init::Uniform {
            bound: (fan_in as f64).powf(-0.5),
        };
        let mut out = Vec::new();
        let mut add = |name: &str, shape: &[usize], init, decays| {
            out.push(TensorSpec {
                decays,
                ..TensorSpec::parameter(name, shape, init)
            });
        };
        // The reference spares the class token and the positions, and not `dist_token`: an oversight, with which the
        // published weights were trained.
        if self.prefix.contains(&PrefixToken::Class) {
            add("cls_token", &[1, 1, d], TRUNC, false);
        }
        if self.registers() > 0 {
            add("reg_token", &[1, self.registers(), d], TRUNC, true);
        }
        add("pos_embed", &[1, self.pos_rows(), d], TRUNC, false);
        if self.is_distilled() {
            add("dist_token", &[1, 1, d], TRUNC, true);
        }
        let weight = format!("{PATCH_EMBED}.weight");
        add(&weight, &[d, self.in_chans, side, side], conv, true);
        if self.patch_bias {
            add(&format!("{PATCH_EMBED}.bias"), &[d], conv, false);
        }
        if self.pre_norm {
            out.extend(norm("norm_pre", d));
        }
        out
    }
}
