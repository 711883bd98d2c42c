//! Feature maps, out of a trace.

use burn::tensor::Tensor;

use super::{Ctx, Network, Trace};
use crate::Result;
use crate::site::Site;
use crate::spec::FeatureMap;

impl Network {
    /// These of its feature maps ([`ModelSpec::feature_maps`](crate::ModelSpec::feature_maps)) of `images`
    /// `[batch, channels, height, width]`, each `[batch, channels, height, width]` with the map's own channels, height and width.
    ///
    /// # Errors
    /// As [`Network::forward`]; a map that the network does not have.
    pub fn feature_maps(&self, images: Tensor<4>, maps: &[FeatureMap]) -> Result<Vec<Tensor<4>>> {
        let sites: Vec<_> = maps.iter().map(|map| (Site::BlockOut, Some(map.layer))).collect();
        let mut ctx = Ctx::tracing(Trace::pairs(sites));
        self.features(images, &mut ctx)?;
        let taken = maps.iter().map(|map| {
            let tokens = ctx.trace.tokens(Site::BlockOut, Some(map.layer));
            let ([height, width], missing) = (map.size, || self.no_block(map.module.clone()));
            let tokens = tokens.ok_or_else(missing)?;
            let [batch, count, channels] = tokens.dims();
            // Class tokens, registers and prompts stand before the patches.
            let before = count.checked_sub(height * width).ok_or_else(missing)?;
            let patches = tokens.narrow(1, before, height * width);
            Ok(patches.swap_dims(1, 2).reshape([batch, channels, height, width]))
        });
        taken.collect()
    }
}
