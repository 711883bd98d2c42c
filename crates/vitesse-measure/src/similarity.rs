//! How alike two models are, layer by layer: [`cka`](crate::cka) of what leaves each block, on the same images.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::{Checkpoint, Site, Sites};

use crate::cka::Alignment;
use crate::error::check;
use crate::images::{Images, Source};
use crate::{Error, Events, Progress, Result, origin};

/// What of a layer's output is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Features {
    /// The mean over tokens.
    Mean,
    /// All tokens, one after the other.
    Flattened,
}

/// Two models on the same images.
#[derive(Debug, Clone, Serialize)]
pub struct Likeness {
    /// Images.
    pub images: usize,
    /// The data set they are from.
    pub data: String,
    /// Whose images they are.
    pub source: Source,
    /// What of each layer was compared.
    pub features: Features,
    /// Linear CKA of each layer, from 0 to 1.
    pub layers: Vec<f64>,
    /// Layers whose features are the same for all images, in one of the models; their CKA is 0 by definition.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constant: Vec<usize>,
}

/// Compares layer by layer, on `count` images of `data`, drawn ones if there is none, `batch` at a time.
///
/// # Errors
/// Models with other images or another depth; images that cannot be read; [`Error::Interrupted`] once `stop` was set.
pub fn likeness(
    [a, b]: [&Checkpoint; 2],
    data: Option<&Path>,
    (count, batch): (usize, usize),
    features: Features,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Likeness> {
    let (own, other) = (a.preprocess()?, b.preprocess()?);
    if a.spec.input_size() != b.spec.input_size() || own.mean != other.mean || own.std != other.std {
        return Err(Error::Together(format!(
            "`{}` and `{}` take images of other sizes, or normalised in another way; layers are compared on the same numbers",
            origin(a),
            origin(b)
        )));
    }
    if a.spec.depth() != b.spec.depth() {
        return Err(Error::Together(format!(
            "`{}` has {} layers and `{}` {}; compared are layers with the same number",
            origin(a),
            a.spec.depth(),
            origin(b),
            b.spec.depth()
        )));
    }
    let images = Images::find(data, None, count, a, events)?;
    let size: usize = a.spec.input_size().iter().product();
    let count = images.pixels.len() / size;
    let mut progress = Progress::of_images(2 * count);
    let mut layers = |checkpoint: &Checkpoint| -> Result<Vec<Vec<f64>>> {
        let network = Network::new(
            &checkpoint.spec,
            &checkpoint.tensors,
            &origin(checkpoint),
            &Device::flex(),
        )?;
        let mut out = vec![Vec::new(); checkpoint.spec.depth()];
        for pixels in images.pixels.chunks(size * batch) {
            check(stop)?;
            for (to, from) in out.iter_mut().zip(of_batch(&network, pixels, features)?) {
                to.extend(from);
            }
            progress.done += pixels.len() / size;
            events.progress(progress);
        }
        Ok(out)
    };
    let (first, second) = (layers(a)?, layers(b)?);
    let pairs = first.iter().zip(&second);
    let found: Vec<Alignment> = pairs.map(|(a, b)| Alignment::of(a, b, count)).collect();
    Ok(Likeness {
        images: count,
        data: images.data,
        source: images.source,
        features,
        layers: found.iter().map(Alignment::cka).collect(),
        constant: (0..found.len())
            .filter(|&layer| found.get(layer).is_some_and(|one| one.xx == 0.0 || one.yy == 0.0))
            .collect(),
    })
}

/// What leaves each block, a row for each image.
fn of_batch(network: &Network, pixels: &[f32], features: Features) -> Result<Vec<Vec<f64>>> {
    let [channels, height, width] = network.spec().input_size();
    let count = pixels.len() / (channels * height * width);
    let data = TensorData::new(pixels.to_vec(), [count, channels, height, width]);
    let mut ctx = Ctx::tracing(Trace::sites([Site::BlockOut]));
    network.forward(Tensor::from_data(data, &Device::flex()), &mut ctx)?;
    let layers = (0..network.spec().depth()).map(|layer| {
        let Some(x) = ctx.trace.tokens(Site::BlockOut, Some(layer)) else {
            return Ok(Vec::new());
        };
        let x = match features {
            Features::Mean => x.mean_dim(1),
            Features::Flattened => x,
        };
        let values = x.into_data().try_to_vec::<f32>();
        let values =
            values.map_err(|error| vitesse_train::Error::Backend(format!("reading features: {error:?}")))?;
        Ok(values.into_iter().map(f64::from).collect())
    });
    layers.collect()
}
