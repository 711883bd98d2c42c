//! Feature maps by the engine.

use std::fmt;

use vitesse_kernels::Isa;
use vitesse_model::spec::FeatureMap;
use vitesse_model::{ModelSpec, Tensors};

use crate::engine::{Engine, Options, Precision};
use crate::{Error, Result};

/// A model that is compiled as far as its last feature map: what detectors and segmenters read of a backbone. It can be
/// shared by threads; runs follow one another.
///
/// A map is what leaves a block, before any norm that follows it, as timm's `features_only` and
/// `forward_intermediates(norm=False)` give it.
///
/// ```no_run
/// use vitesse_engine::{FeatureExtractor, Options};
/// use vitesse_model::{Checkpoint, LoadOptions};
///
/// # let images = vec![0.0; 3 * 224 * 224];
/// let swin = Checkpoint::load("swin_tiny", &LoadOptions::default())?;
/// let extractor = FeatureExtractor::new(&swin.spec, &swin.tensors, "swin_tiny", &[], Options::default())?;
/// let values = extractor.run(&images, 1)?;
/// for (map, values) in extractor.maps().iter().zip(values) {
///     // stage1: [1, 96, 56, 56], stride 4
///     println!("{}: [1, {}, {:?}], stride {}: {} numbers", map.name, map.channels, map.size, map.stride, values.len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FeatureExtractor {
    engine: Engine,
    maps: Vec<FeatureMap>,
}

impl fmt::Debug for FeatureExtractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.maps.iter().map(|map| map.name.as_str()).collect();
        write!(f, "FeatureExtractor({:?}, {})", self.engine, names.join(", "))
    }
}

impl FeatureExtractor {
    /// Compiles a model for the maps of its stages; a vision transformer for those after `layers`, counted from 1, or after
    /// its last one. `source` names the tensors' origin in errors.
    ///
    /// # Errors
    /// As [`Engine::new`] and [`ModelSpec::feature_maps`].
    pub fn new(
        spec: &ModelSpec,
        tensors: &Tensors,
        source: &str,
        layers: &[usize],
        options: Options,
    ) -> Result<FeatureExtractor> {
        spec.check(tensors, source)?;
        let maps = spec.feature_maps(layers)?;
        if maps.is_empty() {
            return Err(Error::Unsupported(format!(
                "`{}` has no feature maps",
                spec.architecture
            )));
        }
        Ok(FeatureExtractor {
            engine: Engine::compile((spec, tensors), &maps, options)?,
            maps,
        })
    }

    /// The maps, in the order of the forward pass.
    pub fn maps(&self) -> &[FeatureMap] {
        &self.maps
    }

    /// The maps of `images` `[count, channels, height, width]`, normalised as the checkpoint says: the values of each of
    /// [`FeatureExtractor::maps`], `[count, channels, height, width]` with its channels, height and width.
    ///
    /// # Errors
    /// As many numbers as `count` images do not have.
    pub fn run(&self, images: &[f32], count: usize) -> Result<Vec<Vec<f32>>> {
        // Image after image, and of each all maps.
        let all = self.engine.run(images, count)?.class;
        let image = all.len() / count.max(1);
        let mut first = 0;
        let of_map = |map: &FeatureMap| {
            let own = first..first + map.numel();
            first = own.end;
            let mut values = Vec::with_capacity(count * own.len());
            for image in all.chunks_exact(image.max(1)) {
                values.extend_from_slice(&image[own.clone()]);
            }
            values
        };
        Ok(self.maps.iter().map(of_map).collect())
    }

    /// In what numbers it computes.
    pub fn precision(&self) -> Precision {
        self.engine.precision()
    }

    /// With which instructions.
    pub fn isa(&self) -> Isa {
        self.engine.isa()
    }

    /// Multiply-accumulates that it does for one image: what follows the last map is not computed.
    pub fn macs(&self) -> u64 {
        self.engine.macs()
    }
}
