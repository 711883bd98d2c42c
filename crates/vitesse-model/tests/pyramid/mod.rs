//! A family that no part of the program knows: two stages of different width and length, as in Swin. What works on it
//! works on the sites alone.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use vitesse_model::ops::{self, OpSpec};
use vitesse_model::spec::{Activation, Projection, Sites};
use vitesse_model::{Site, Tensors};
use vitesse_rng::Key;

/// Four layers, two a stage. Layer 1 uses the norms of layer 0; layers 2 and 3 share the matrices of their attention; layer
/// 3 has no perceptron; the perceptron of layer 1 writes three channels.
#[derive(Default)]
pub struct Pyramid {
    pub ops: Vec<OpSpec>,
}

const HIDDEN: usize = 12;
const WRITTEN: [usize; 3] = [1, 4, 7];

impl Pyramid {
    pub fn width(layer: usize) -> usize {
        if layer < 2 { 8 } else { 16 }
    }

    fn name(layer: usize) -> String {
        format!("layers.{}.blocks.{}", layer / 2, layer % 2)
    }

    fn has_mlp(layer: usize) -> bool {
        layer < 3
    }

    /// All its tensors at random, those of the ops included.
    pub fn tensors(&self, seed: u64) -> Tensors {
        let sites: &dyn Sites = self;
        let mut out = Tensors::new();
        let mut put = |name: String, shape: &[usize]| {
            let mut rng = Key::new(seed).with(&name).rng();
            let values = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
            out.insert_f32(name, shape, values).unwrap();
        };
        let projections = sites.projections().map(|(_, _, projection)| projection);
        for projection in projections.chain(sites.embedding()) {
            let name = &projection.name;
            put(format!("{name}.weight"), &[projection.outputs, projection.inputs]);
            put(format!("{name}.bias"), &[projection.outputs]);
        }
        for (norm, width) in sites.norms().into_iter().zip([8, 8, 16, 16, 16, 16]) {
            put(format!("{norm}.weight"), &[width]);
            put(format!("{norm}.bias"), &[width]);
        }
        for tensor in ops::tensors(self) {
            put(tensor.name, &tensor.shape);
        }
        out
    }
}

impl Sites for Pyramid {
    fn depth(&self) -> usize {
        4
    }

    fn tokens_at(&self, layer: usize) -> usize {
        if layer < 2 { 16 } else { 4 }
    }

    fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize> {
        let Some(layer) = layer else {
            return match site {
                Site::PatchOut => Some(8),
                Site::FinalNorm => Some(16),
                _ => None,
            };
        };
        let (width, mlp) = (Pyramid::width(layer), Pyramid::has_mlp(layer));
        match site {
            _ if layer >= 4 => None,
            Site::PatchOut | Site::FinalNorm => None,
            Site::AttnQkv => Some(3 * width),
            Site::AttnLogits | Site::AttnProbs => Some(width / 4),
            Site::MlpIn | Site::MlpOut => mlp.then_some(width),
            Site::MlpFc1 | Site::MlpHidden => mlp.then_some(HIDDEN),
            site if site.is_projection() => Some(self.projection(site, layer)?.outputs),
            _ => Some(width),
        }
    }

    fn projection(&self, site: Site, layer: usize) -> Option<Projection> {
        let width = Pyramid::width(layer);
        // The second stage has one set of attention's matrices.
        let attn = Pyramid::name(if layer == 3 { 2 } else { layer });
        let mlp = Pyramid::has_mlp(layer).then(|| Pyramid::name(layer));
        let written = (layer == 1).then(|| WRITTEN.to_vec());
        let plain = |name: String, outputs, inputs| Projection {
            name,
            outputs,
            inputs,
            parts: None,
            written: None,
        };
        match site {
            _ if layer >= 4 => None,
            Site::Qkv => Some(Projection {
                parts: Some([width; 3]),
                ..plain(format!("{attn}.attn.qkv"), 3 * width, width)
            }),
            Site::Proj => Some(plain(format!("{attn}.attn.proj"), width, width)),
            Site::Fc1 => Some(plain(format!("{}.mlp.fc1", mlp?), HIDDEN, width)),
            Site::Fc2 => Some(Projection {
                written: written.clone(),
                ..plain(
                    format!("{}.mlp.fc2", mlp?),
                    written.map_or(width, |idx| idx.len()),
                    HIDDEN,
                )
            }),
            _ => None,
        }
    }

    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String> {
        let owner = layer.map(|layer| Pyramid::name(if layer == 1 { 0 } else { layer }));
        match (site, owner) {
            (Site::FinalNorm, None) => Some("norm".into()),
            (Site::AttnIn, Some(owner)) => Some(format!("{owner}.norm1")),
            (Site::MlpIn, Some(owner)) => Pyramid::has_mlp(layer?).then(|| format!("{owner}.norm2")),
            _ => None,
        }
    }

    fn embedding(&self) -> Option<Projection> {
        Some(Projection {
            name: "patch_embed.proj".into(),
            outputs: 8,
            inputs: 48,
            parts: None,
            written: None,
        })
    }

    fn activation(&self, layer: usize) -> Activation {
        if layer < 2 {
            Activation::Gelu
        } else {
            Activation::QuickGelu
        }
    }

    fn ops(&self) -> &[OpSpec] {
        &self.ops
    }
}
