//! The one view of all families: the places of a network at which ops stand, traces listen and matrices are.
//!
//! Each family's description implements [`Sites`] for what it has. [`ModelSpec`](super::ModelSpec) implements it too, and
//! adds the ops that stand there. Methods, patterns, merge, adapters and compilers take `&dyn Sites`, so that they work on
//! every family there will be.

use super::{Activation, AttentionSpec, LayerTokens, TokenSet, tokens};
use crate::ops::{OpSpec, Prompts};
use crate::site::Site;

/// What a network has at its [`Site`]s, layer by layer.
pub trait Sites {
    /// Number of layers (blocks), in the order of the forward pass.
    fn depth(&self) -> usize;

    /// Number of tokens that enter `layer`; those that leave the last one where `layer` is [`Sites::depth`]. In a
    /// convolutional network, positions.
    fn tokens_at(&self, layer: usize) -> usize;

    /// Width of the value that passes `site` of `layer` (`None` for the sites outside blocks); heads for the attention
    /// maps, outputs for the projections. `None` where nothing passes.
    fn width_at(&self, site: Site, layer: Option<usize>) -> Option<usize>;

    /// The projection at `site` of `layer`; `None` where the layer has none, or `site` is none.
    fn projection(&self, site: Site, layer: usize) -> Option<Projection>;

    /// The prefix of the tensors of the norm before `attn.in`, `mlp.in` or `merge.in` of `layer`, of that of the patches at
    /// `patch.norm`, or of the last one at `final.norm`, which some networks apply to the mean of the tokens. Layers that share a norm give the same name.
    fn norm(&self, site: Site, layer: Option<usize>) -> Option<String>;

    /// The convolution that makes tokens of patches, as a projection of flattened patches.
    fn embedding(&self) -> Option<Projection>;

    /// What stands between the projections of the perceptron of `layer`.
    fn activation(&self, layer: usize) -> Activation;

    /// Whether zeros that are no tokens are put beside those of `layer` after `attn.in`, and projected with them.
    fn fills_up(&self, _layer: usize) -> bool {
        false
    }

    /// Rows and columns of the map that the patches make which leave `layer`, where they lie in one.
    fn grid_at(&self, _layer: usize) -> Option<[usize; 2]> {
        None
    }

    /// The heads of the attention of `layer`, their widths and their scale, where it has one.
    fn attention(&self, _layer: usize) -> Option<&AttentionSpec> {
        None
    }

    /// Pairs of a query and a key in an attention map of `layer`: all pairs of its tokens, or of those that share a window.
    fn pairs_at(&self, layer: usize) -> usize {
        self.tokens_at(layer) * self.tokens_at(layer)
    }

    /// The tokens of each layer, of which ops may leave fewer on the way.
    fn token_counts(&self) -> Vec<LayerTokens> {
        tokens::own(self)
    }

    /// Whether one of the tokens before the patches is a class token, and the first.
    fn has_class_token(&self) -> bool {
        false
    }

    /// Why tokens cannot be put beside the patches, nor taken away from them; `None` where they can.
    fn fixed_tokens(&self) -> Option<&'static str> {
        None
    }

    /// The ops, in the order in which those at one site are applied. A family's own description has none.
    fn ops(&self) -> &[OpSpec] {
        &[]
    }

    /// Whether something passes `site` of `layer`.
    fn has(&self, site: Site, layer: Option<usize>) -> bool {
        self.width_at(site, layer).is_some()
    }
}

/// A linear map inside a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The prefix of its tensors, such as `blocks.3.attn.qkv`. Layers that share a matrix give the same name.
    pub name: String,
    /// Rows of its weight.
    pub outputs: usize,
    /// Columns of its weight.
    pub inputs: usize,
    /// Rows of queries, keys and values, in this order, where the three are one matrix.
    pub parts: Option<[usize; 3]>,
    /// The residual channels that it writes, ascending; all, or none of the stream's, when `None`.
    pub written: Option<Vec<usize>>,
}

impl dyn Sites + '_ {
    /// The ops at `site` of `layer` (`None` for the sites outside blocks), with their index among [`Sites::ops`].
    pub fn ops_at(&self, site: Site, layer: Option<usize>) -> impl Iterator<Item = (usize, &OpSpec)> {
        self.ops()
            .iter()
            .enumerate()
            .filter(move |(_, op)| op.site == site && op.layer == layer)
    }

    /// The tokens that pass `site` of `layer`, after the ops there. Of an op that decides by image, the most there can be.
    pub fn token_set(&self, site: Site, layer: usize) -> Option<TokenSet> {
        Some(self.token_counts().get(layer)?.at(site))
    }

    /// How many they are.
    pub fn tokens_passing(&self, site: Site, layer: usize) -> usize {
        self.token_set(site, layer).map_or(0, |set| set.count())
    }

    /// Number of prompts that enter the first layer.
    pub fn prompts(&self) -> usize {
        Prompts::first(self).map_or(0, |(_, prompts)| prompts.tokens)
    }

    /// The matrix of the projection at `site`: that of `layer`, or the embedding, which stands in none.
    pub fn matrix(&self, site: Site, layer: usize) -> Option<Projection> {
        match site {
            Site::Embed => self.embedding(),
            _ => self.projection(site, layer),
        }
    }

    /// The projections of all layers in order: site, layer and projection. A matrix that several layers share is there
    /// once a layer.
    pub fn projections(&self) -> impl Iterator<Item = (Site, usize, Projection)> {
        (0..self.depth())
            .flat_map(|layer| Site::PROJECTIONS.map(|site| (site, layer)))
            .filter_map(|(site, layer)| Some((site, layer, self.projection(site, layer)?)))
    }

    /// The prefixes of all norms, each once, in the order of the forward pass.
    pub fn norms(&self) -> Vec<String> {
        const OF_LAYER: [Site; 3] = [Site::MergeIn, Site::AttnIn, Site::MlpIn];
        let places = std::iter::once((Site::PatchNorm, None))
            .chain((0..self.depth()).flat_map(|layer| OF_LAYER.map(|site| (site, Some(layer)))))
            .chain([(Site::FinalNorm, None)]);
        let mut norms: Vec<String> = Vec::new();
        for name in places.filter_map(|(site, layer)| self.norm(site, layer)) {
            if !norms.contains(&name) {
                norms.push(name);
            }
        }
        norms
    }

    /// The layers whose projection or norm at `site` is the one of `layer`, that one included: more than one where they
    /// share it.
    pub fn sharing(&self, site: Site, layer: usize) -> Vec<usize> {
        let module = |layer| match site.is_projection() {
            true => self.projection(site, layer).map(|projection| projection.name),
            false => self.norm(site, Some(layer)),
        };
        let own = module(layer);
        (0..self.depth())
            .filter(|&other| own.is_some() && module(other) == own)
            .collect()
    }
}
