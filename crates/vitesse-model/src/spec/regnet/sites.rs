//! What a RegNet has of the places of [`Sites`]: layers.

use super::RegNetSpec;
use crate::site::Site;
use crate::spec::{Activation, Projection, Sites};

impl Sites for RegNetSpec {
    fn depth(&self) -> usize {
        self.stages.iter().map(|stage| stage.depth).sum()
    }

    fn tokens_at(&self, layer: usize) -> usize {
        let blocks = self.blocks();
        let (entering, last) = (blocks.get(layer), blocks.last());
        entering
            .map(|block| block.conv1.in_size)
            .or(last.map(|block| block.conv3.in_size))
            .unwrap_or(self.stem().out_size())
            .iter()
            .product()
    }

    /// No token stream passes, so no op can stand anywhere.
    fn width_at(&self, _site: Site, _layer: Option<usize>) -> Option<usize> {
        None
    }

    fn projection(&self, _site: Site, _layer: usize) -> Option<Projection> {
        None
    }

    fn norm(&self, _site: Site, _layer: Option<usize>) -> Option<String> {
        None
    }

    fn embedding(&self) -> Option<Projection> {
        None
    }

    fn activation(&self, _layer: usize) -> Activation {
        Activation::Relu
    }
}
