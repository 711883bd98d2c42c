//! How much an engine really multiplies.

use vitesse_model::ops::OpKind;
use vitesse_model::site::Site;
use vitesse_model::spec::{Pool, VitSpec};
use vitesse_model::{ModelSpec, Sites};

use crate::Engine;

impl Engine {
    /// Multiply-accumulates that it really does for one image: those of [`ModelSpec::costs`], less what nobody reads (after
    /// the last keys and values only the tokens go on that the heads read), and less the ops that are folded into their
    /// neighbours. What rows and columns are filled up with is not counted.
    pub fn macs(&self) -> u64 {
        macs(self.spec())
    }
}

fn macs(spec: &ModelSpec) -> u64 {
    // An engine has no other.
    spec.vit().map_or(0, |vit| body(vit, spec.sites()) + heads(spec))
}

/// Rows that the heads read: a model of the mean reads one, made of all tokens.
fn heads(spec: &ModelSpec) -> u64 {
    if spec.num_classes == 0 {
        return 0;
    }
    (spec.classifiers().len() * spec.num_classes * spec.num_features()) as u64
}

fn body(vit: &VitSpec, sites: &dyn Sites) -> u64 {
    let (dim, tokens) = (vit.embed_dim, sites.tokens_at(0));
    let read = match vit.pool {
        Pool::Token => 1 + usize::from(vit.is_distilled()),
        Pool::Avg | Pool::AvgThenNorm => tokens,
    };
    let last = (0..vit.layers.len())
        .rev()
        .find(|&i| vit.block(i).is_some_and(|block| block.attn.is_some()));
    let pixels = vit.in_chans * vit.patch_size * vit.patch_size;
    let mut macs = pixels * dim * vit.patches();
    for i in 0..vit.layers.len() {
        let Some(block) = vit.block(i) else { continue };
        // Those that go on after this layer's keys and values.
        let live = if last.is_none_or(|last| i >= last) {
            read
        } else {
            tokens
        };
        if let Some(attn) = &block.attn {
            let (qk, v) = (attn.qk_width(), attn.v_width());
            let written = attn.out_idx.as_ref().map_or(dim, Vec::len);
            macs += tokens * dim * (qk + v) + live * (dim * qk + tokens * (qk + v) + v * written);
        }
        if let Some(mlp) = &block.mlp {
            let written = mlp.out_idx.as_ref().map_or(dim, Vec::len);
            macs += live * mlp.hidden * (dim + written);
        }
    }
    (macs + kept(sites, tokens, read, last)) as u64
}

/// Of the ops that stay: each runs on all tokens before the last keys and values, and on those that go on after.
fn kept(sites: &dyn Sites, tokens: usize, read: usize, last: Option<usize>) -> usize {
    let mut macs = 0;
    for op in sites.ops() {
        let Some(layer) = op.layer else { continue };
        let early = matches!(op.site, Site::AttnIn | Site::Qkv);
        let live = if last.is_some_and(|last| layer < last || (layer == last && early)) {
            tokens
        } else {
            read
        };
        let width = sites.width_at(op.site, op.layer).unwrap_or(0);
        macs += live
            * match &op.kind {
                OpKind::Bottleneck(kind) => 2 * width * kind.hidden,
                OpKind::LowRank(kind) => {
                    let inputs = sites.projection(op.site, layer).map_or(0, |p| p.inputs);
                    kind.rank * kind.ranges(op.site, layer, sites).len() * (inputs + width)
                }
                // Scaling is folded, or no product; what prompts cost is in the number of tokens.
                OpKind::ScaleShift(_) | OpKind::Prompts(_) => 0,
            };
    }
    macs
}

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::zoo;

    #[test]
    fn only_the_last_layer_is_cheaper_than_it_seems() {
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let nominal = spec.costs().unwrap().macs();
        let (n, d, hidden) = (197, 192, 768);
        // 196 of 197 tokens have no queries, no results, no projection and no perceptron in it.
        let skipped = (n - 1) * (d * d + 2 * n * d + d * d + 2 * d * hidden);
        assert_eq!(macs(&spec), nominal - skipped);
    }

    #[test]
    fn a_model_of_the_mean_skips_nothing() {
        let mut spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let vitesse_model::NetworkSpec::Vit(vit) = &mut spec.network else {
            panic!("no vision transformer");
        };
        vit.pool = Pool::Avg;
        assert_eq!(macs(&spec), spec.costs().unwrap().macs());
    }
}
