//! How similar models are to one, layer by layer: [`cka`](crate::cka) of what leaves each block, on the same images.

use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use vitesse_model::network::{Ctx, Network, Trace};
use vitesse_model::{Checkpoint, ModelSpec, Site, Sites};

use crate::cka::Alignment;
use crate::error::check;
use crate::finite::check_finite;
use crate::images::{Images, Source};
use crate::{Error, Events, Progress, Result, origin};

/// How many features of two models, of all images together, are kept at a time: 256 MiB of them. Where layers have more, the models run again
/// for the next layers.
const FEATURES_AT_ONCE: usize = 1 << 26;

/// What of a layer's output is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Features {
    /// The mean over tokens.
    Mean,
    /// All tokens, one after the other.
    Flattened,
}

/// Models on the same images, beside one of them.
#[derive(Debug, Clone, Serialize)]
pub struct Similarity {
    /// Images.
    pub images: usize,
    /// The data set they are from.
    pub data: String,
    /// Whose images they are.
    pub source: Source,
    /// What of each layer was compared.
    pub features: Features,
    /// Layers of the model that the others are compared with whose features are the same for all images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constant: Vec<usize>,
    /// What was found of each of the others.
    pub others: Vec<Compared>,
}

/// A model beside the one that it is compared with.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compared {
    /// Linear CKA of each layer, from 0 to 1; by definition 0 where the features of either model are the same for all images.
    pub layers: Vec<f64>,
    /// Layers whose features are the same for all images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constant: Vec<usize>,
}

/// Compares `others` with `base`, layer by layer, on `count` images of `data`, drawn ones if there is none, `batch` at a time.
///
/// # Errors
/// Models with other images or another depth, weights that are not finite; images that cannot be read, or a single one;
/// [`Error::Interrupted`] once `stop` was set.
pub fn similarity(
    base: &Checkpoint,
    others: &[Checkpoint],
    data: Option<&Path>,
    (count, batch): (usize, usize),
    features: Features,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Similarity> {
    let models = || iter::once(base).chain(others);
    others.iter().try_for_each(|other| comparable(base, other))?;
    models().try_for_each(check_finite)?;
    let images = Images::find(data, None, count, base, events)?;
    let size: usize = base.spec.input_size().iter().product();
    let count = images.pixels.len() / size;
    if count < 2 {
        return Err(Error::Together(
            "similarity shows in what differs from image to image; take at least 2 images".into(),
        ));
    }
    let networks = models().map(network).collect::<Result<Vec<_>>>()?;
    let specs: Vec<&ModelSpec> = models().map(|model| &model.spec).collect();
    let runs = runs(&specs, count, features);
    let mut progress = Progress::of_images(networks.len() * count * runs.len());
    let mut found = Similarity {
        images: count,
        data: images.data,
        source: images.source,
        features,
        constant: Vec::new(),
        others: vec![Compared::default(); others.len()],
    };
    for layers in runs {
        let mut of = |network: &Network| -> Result<Vec<Vec<f32>>> {
            let mut out = vec![Vec::new(); layers.len()];
            for pixels in images.pixels.chunks(size * batch) {
                check(stop)?;
                for (to, from) in out
                    .iter_mut()
                    .zip(of_batch(network, pixels, layers.clone(), features)?)
                {
                    to.extend(from);
                }
                progress.done += pixels.len() / size;
                events.progress(progress);
            }
            Ok(out)
        };
        let [base, others @ ..] = &networks[..] else {
            unreachable!("the first is there")
        };
        let base = of(base)?;
        for (index, (other, to)) in others.iter().zip(&mut found.others).enumerate() {
            for ((layer, x), y) in layers.clone().zip(&base).zip(of(other)?) {
                check(stop)?;
                let alignment = Alignment::of(x, &y, count);
                to.layers.push(alignment.cka());
                if alignment.yy == 0.0 {
                    to.constant.push(layer);
                }
                if alignment.xx == 0.0 && index == 0 {
                    found.constant.push(layer);
                }
            }
        }
    }
    Ok(found)
}

/// Refuses models whose layers cannot be compared one by one, on the same numbers.
fn comparable(a: &Checkpoint, b: &Checkpoint) -> Result<()> {
    let (own, other) = (a.preprocess()?, b.preprocess()?);
    if a.spec.input_size() != b.spec.input_size() || own.mean != other.mean || own.std != other.std {
        return Err(Error::Together(format!(
            "`{}` and `{}` take images of different sizes or with different normalisation; layers are compared on the same numbers",
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
    Ok(())
}

fn network(checkpoint: &Checkpoint) -> Result<Network> {
    let (spec, tensors) = (&checkpoint.spec, &checkpoint.tensors);
    Ok(Network::new(spec, tensors, &origin(checkpoint), &Device::flex())?)
}

/// Which layers are compared in each run of the models over all `images`; kept at a time are the features of the first model and of one other.
fn runs(specs: &[&ModelSpec], images: usize, features: Features) -> Vec<Range<usize>> {
    let of_layer = |spec: &ModelSpec, layer| {
        let width = spec.width_at(Site::BlockOut, Some(layer)).unwrap_or(0);
        let tokens = match features {
            Features::Mean => 1,
            Features::Flattened => spec.sites().tokens_passing(Site::BlockOut, layer),
        };
        images.saturating_mul(width).saturating_mul(tokens)
    };
    let [base, others @ ..] = specs else {
        return Vec::new();
    };
    let (mut runs, mut kept) = (Vec::<Range<usize>>::new(), 0usize);
    for layer in 0..base.depth() {
        let widest = others.iter().map(|other| of_layer(other, layer)).max();
        let more = of_layer(base, layer).saturating_add(widest.unwrap_or(0));
        kept = kept.saturating_add(more);
        match runs.last_mut() {
            Some(run) if kept <= FEATURES_AT_ONCE => run.end = layer + 1,
            _ => {
                runs.push(layer..layer + 1);
                kept = more;
            }
        }
    }
    runs
}

/// What leaves these blocks, a row for each image.
fn of_batch(
    network: &Network,
    pixels: &[f32],
    layers: Range<usize>,
    features: Features,
) -> Result<Vec<Vec<f32>>> {
    let [channels, height, width] = network.spec().input_size();
    let count = pixels.len() / (channels * height * width);
    let data = TensorData::new(pixels.to_vec(), [count, channels, height, width]);
    let places = layers.clone().map(|layer| (Site::BlockOut, Some(layer)));
    let mut ctx = Ctx::tracing(Trace::pairs(places.collect::<Vec<_>>()));
    network.forward(Tensor::from_data(data, &Device::flex()), &mut ctx)?;
    let layers = layers.map(|layer| {
        let Some(x) = ctx.trace.tokens(Site::BlockOut, Some(layer)) else {
            return Ok(Vec::new());
        };
        let x = match features {
            Features::Mean => x.mean_dim(1),
            Features::Flattened => x,
        };
        let values = x.into_data().try_to_vec::<f32>();
        values.map_err(|error| vitesse_train::Error::Backend(format!("reading features: {error:?}")).into())
    });
    layers.collect()
}

#[cfg(test)]
mod tests {
    use vitesse_model::zoo;

    use super::*;

    #[test]
    fn layers_are_compared_at_once_as_far_as_their_features_fit() {
        let spec = zoo::get("deit_tiny_patch16_224").unwrap().spec;
        let of = |images, features| runs(&[&spec, &spec, &spec], images, features);
        assert_eq!(of(128, Features::Mean).len(), 1);
        // 197 tokens of 192 channels, of two models.
        let images = FEATURES_AT_ONCE / (2 * 197 * 192) / 5;
        assert_eq!(of(images, Features::Flattened), [0..5, 5..10, 10..12]);
        let each: Vec<Range<usize>> = (0..12).map(|layer| layer..layer + 1).collect();
        assert_eq!(of(10 * images, Features::Flattened), each);
    }
}
