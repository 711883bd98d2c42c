//! Which tokens a layer works on: how many there are, and of what kind, where ops make them fewer on the way.

use serde::Serialize;

use super::Sites;
use crate::ops::{OpKind, OpSpec};
use crate::site::Site;

/// The tokens of an image at one place, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenSet {
    /// Those before the patches: class and distillation tokens, registers, prompts. No op takes them away.
    pub prefix: usize,
    /// Patches, and what patches were merged into.
    pub patches: usize,
    /// Tokens after the patches, which stand for patches that left.
    pub tail: usize,
    /// Rows and columns of the map in which the patches lie; `None` once some left or were merged with others than their
    /// neighbours.
    pub grid: Option<[usize; 2]>,
}

impl TokenSet {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.prefix + self.patches + self.tail
    }

    /// How many of them an op may take away.
    pub fn behind_prefix(&self) -> usize {
        self.patches + self.tail
    }

    /// The same with fewer patches, which lie in no map any more.
    pub(crate) fn with_patches(self, patches: usize) -> TokenSet {
        let grid = self.grid.filter(|_| patches == self.patches);
        TokenSet {
            patches,
            grid,
            ..self
        }
    }
}

/// The tokens of an image in one layer. Where an op decides by itself how many stay, these are the most there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayerTokens {
    /// Those that enter it.
    pub entering: TokenSet,
    /// Those that its attention sees: an op at `block.in` may have made them fewer.
    pub attention: TokenSet,
    /// Those that its perceptron sees and that leave it: an op at `mid` may have made them fewer.
    pub perceptron: TokenSet,
}

impl LayerTokens {
    /// A layer that all of them pass.
    fn of(set: TokenSet) -> Self {
        LayerTokens {
            entering: set,
            attention: set,
            perceptron: set,
        }
    }

    /// Those at a site of the layer, after the ops there.
    pub fn at(&self, site: Site) -> TokenSet {
        match site {
            Site::Mid
            | Site::MlpIn
            | Site::Fc1
            | Site::MlpFc1
            | Site::MlpHidden
            | Site::Fc2
            | Site::MlpOut
            | Site::BlockOut => self.perceptron,
            _ => self.attention,
        }
    }
}

/// The tokens of each layer of a family, where nothing takes any away.
pub(super) fn own(sites: &(impl Sites + ?Sized)) -> Vec<LayerTokens> {
    let of = |layer| {
        let (tokens, grid) = (sites.tokens_at(layer), sites.grid_at(layer));
        let patches = grid.map_or(tokens, |[rows, columns]| tokens.min(rows * columns));
        LayerTokens::of(TokenSet {
            prefix: tokens - patches,
            patches,
            tail: 0,
            grid,
        })
    };
    (0..sites.depth()).map(of).collect()
}

/// The same of a model in which `ops` stand, the first of which bring `prompts`.
pub(super) fn with_ops(family: &(impl Sites + ?Sized), prompts: usize, ops: &[OpSpec]) -> Vec<LayerTokens> {
    let mut layers = own(family);
    for layer in &mut layers {
        for set in [&mut layer.entering, &mut layer.attention, &mut layer.perceptron] {
            set.prefix += prompts;
        }
    }
    let patches = layers.first().map_or(0, |first| first.entering.patches);
    let mut reducing: Vec<[Option<&OpKind>; 2]> = vec![[None; 2]; layers.len()];
    let mut any = false;
    for op in ops.iter().filter(|op| op.kind.reduces_tokens()) {
        let place = op.layer.and_then(|layer| reducing.get_mut(layer));
        let [before, between] = match place {
            Some(place) => place,
            None => continue,
        };
        *(if op.site == Site::Mid { between } else { before }) = Some(&op.kind);
        any = true;
    }
    if !any {
        return layers;
    }
    let Some(mut set) = layers.first().map(|first| first.entering) else {
        return layers;
    };
    // What cannot be done is refused elsewhere, and here changes nothing.
    let after = |kind: Option<&OpKind>, set| {
        let leaves = kind.and_then(|kind| kind.leaves(set, patches)?.ok());
        leaves.unwrap_or(set)
    };
    for (layer, [before, between]) in layers.iter_mut().zip(reducing) {
        layer.entering = set;
        layer.attention = after(before, set);
        layer.perceptron = after(between, layer.attention);
        set = layer.perceptron;
    }
    layers
}
