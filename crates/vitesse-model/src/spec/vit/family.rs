//! A vision transformer's tensors and costs.

use super::sites::{PATCH_EMBED, qkv_rows};
use super::{AttentionSpec, MlpSpec, PrefixToken, VitSpec};
use crate::Result;
use crate::spec::{Cost, Family, Init, TensorSpec};

const TRUNC: Init = Init::TruncatedNormal { std: 0.02 };

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
                    out.extend(self.attention_tensors(&name, attn));
                }
            }
            if let Some(mlp) = &core.mlp {
                if own {
                    out.extend(norm(&self.norm_name(i, 2), d));
                }
                if first {
                    out.extend(self.perceptron_tensors(&name, mlp));
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

    fn costs(&self, more: usize) -> Cost {
        let (d, n) = (self.embed_dim, self.prefix.len() + more + self.patches());
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
            let first = !std::mem::replace(seen, true);
            let norm = if layer.norms.is_none() { 2 * d } else { 0 };
            if let Some(attn) = &core.attn {
                let (rows, written) = (qkv_rows(attn), self.written(attn.out_idx.as_deref()));
                let bias = if attn.qkv_bias { rows } else { 0 };
                let matrices = rows * d + bias + written * attn.v_width() + written;
                let products = n * n * (attn.qk_width() + attn.v_width());
                cost.push(
                    format!("blocks.{i}.attn"),
                    norm + if first { matrices } else { 0 },
                    n * rows * d + products + n * written * attn.v_width(),
                );
            }
            if let Some(mlp) = &core.mlp {
                let written = self.written(mlp.out_idx.as_deref());
                let matrices = mlp.hidden * d + mlp.hidden + written * mlp.hidden + written;
                cost.push(
                    format!("blocks.{i}.mlp"),
                    norm + if first { matrices } else { 0 },
                    n * mlp.hidden * (d + written),
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

    fn attention_tensors(&self, core: &str, attn: &AttentionSpec) -> Vec<TensorSpec> {
        let written = self.written(attn.out_idx.as_deref());
        let qkv = linear(
            &format!("{core}.attn.qkv"),
            [qkv_rows(attn), self.embed_dim],
            attn.qkv_bias,
        );
        let proj = linear(&format!("{core}.attn.proj"), [written, attn.v_width()], true);
        qkv.into_iter().chain(proj).collect()
    }

    fn perceptron_tensors(&self, core: &str, mlp: &MlpSpec) -> Vec<TensorSpec> {
        let written = self.written(mlp.out_idx.as_deref());
        let fc1 = linear(&format!("{core}.mlp.fc1"), [mlp.hidden, self.embed_dim], true);
        let fc2 = linear(&format!("{core}.mlp.fc2"), [written, mlp.hidden], true);
        fc1.into_iter().chain(fc2).collect()
    }
}

fn norm(name: &str, width: usize) -> [TensorSpec; 2] {
    [
        TensorSpec::parameter(format!("{name}.weight"), &[width], Init::Ones),
        TensorSpec::parameter(format!("{name}.bias"), &[width], Init::Zeros),
    ]
}

/// A linear map of this shape, `[out, in]`.
fn linear(name: &str, shape: [usize; 2], bias: bool) -> Vec<TensorSpec> {
    let mut out = vec![TensorSpec::parameter(format!("{name}.weight"), &shape, TRUNC)];
    if bias {
        out.push(TensorSpec::parameter(
            format!("{name}.bias"),
            &shape[..1],
            Init::Zeros,
        ));
    }
    out
}
