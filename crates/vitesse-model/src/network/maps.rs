//! Feature maps: what leaves chosen layers, in the shape of the patches' grid.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::{Ctx, Network, Trace};
use crate::Result;
use crate::site::Site;
use crate::spec::FeatureMap;

impl Network {
    /// These of its feature maps ([`ModelSpec::feature_maps`](crate::ModelSpec::feature_maps)) of `images`
    /// `[batch, channels, height, width]`, each `[batch, channels, height, width]` with the map's own channels, height and width. Where
    /// patches merged on the way, each cell has the token that it went into.
    ///
    /// # Errors
    /// As [`Network::forward`]; a map that the network does not have.
    pub fn feature_maps(&self, images: Tensor<4>, maps: &[FeatureMap]) -> Result<Vec<Tensor<4>>> {
        let mut streams = if self.spec.reduces_tokens() {
            self.expanded(images, maps)?
        } else {
            self.traced(images, maps)?
        };
        let taken = maps.iter().map(|map| {
            let ([height, width], missing) = (map.size, || self.no_block(map.module.clone()));
            let tokens = streams.remove(&map.layer).ok_or_else(missing)?;
            let [batch, count, channels] = tokens.dims();
            // Class tokens, registers and prompts stand before the patches.
            let before = count.checked_sub(height * width).ok_or_else(missing)?;
            let patches = tokens.narrow(1, before, height * width);
            Ok(patches.swap_dims(1, 2).reshape([batch, channels, height, width]))
        });
        taken.collect()
    }

    /// The streams that leave the layers of `maps`, by layer.
    fn traced(&self, images: Tensor<4>, maps: &[FeatureMap]) -> Result<BTreeMap<usize, Tensor<3>>> {
        let sites: Vec<_> = maps.iter().map(|map| (Site::BlockOut, Some(map.layer))).collect();
        let mut ctx = Ctx::tracing(Trace::pairs(sites));
        self.features(images, &mut ctx)?;
        let stream = |map: &FeatureMap| {
            let tokens = ctx.trace.tokens(Site::BlockOut, Some(map.layer))?;
            Some((map.layer, tokens))
        };
        Ok(maps.iter().filter_map(stream).collect())
    }

    /// The same, in which every token is there that merged with others.
    fn expanded(&self, images: Tensor<4>, maps: &[FeatureMap]) -> Result<BTreeMap<usize, Tensor<3>>> {
        let wanted = |layer| maps.iter().any(|map| map.layer == layer);
        let last = maps.iter().map(|map| map.layer).max().unwrap_or(0);
        let mut ctx = Ctx::eval();
        let mut x = self.embed(images, &mut ctx)?;
        let mut found = BTreeMap::new();
        for layer in 0..=last {
            x = self.block(layer, x, &mut ctx)?;
            let whole = wanted(layer).then(|| ctx.stream.expand(x.clone())).flatten();
            found.extend(whole.map(|whole| (layer, whole)));
        }
        Ok(found)
    }
}
