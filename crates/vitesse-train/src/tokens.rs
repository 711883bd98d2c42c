//! How alike the class and the distillation token of a distilled model are.
//!
//! Paper: Touvron et al., ICML 2021, section 4. The two learned vectors are nearly orthogonal (cosine 0.06 in the
//! published models); through the blocks the two embeddings approach each other, to 0.93 after the last one, and stay
//! distinct. Two class tokens with one target would end at 0.999. The 0.06 belongs to the parameters and is no mean over
//! layers: the similarity over depth is measured on images.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vitesse_data::{DataSet, Loader, LoaderOptions, Preprocess};
use vitesse_model::Site;
use vitesse_model::network::{Ctx, Network, Trace};

use crate::evaluate::{EvalOptions, EvalProgress};
use crate::{Error, Result};

/// Cosines between the class and the distillation token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenSimilarity {
    /// Of the parameters `cls_token` and `dist_token`.
    pub learned: f64,
    /// Where the first block begins, positions added; mean over the images.
    pub input: f64,
    /// After each block; mean over the images.
    pub blocks: Vec<f64>,
    /// After the final norm; mean over the images.
    pub norm: f64,
    /// Images the means are over; those that cannot be read are left out.
    pub images: usize,
}

/// Measures a distilled network in evaluation mode on the images of `data`.
///
/// # Errors
/// A model without both tokens, images of another size, or none that can be read; [`Error::Interrupted`] when
/// `progress` breaks off.
pub fn token_similarity(
    network: &Network,
    device: &Device,
    data: &DataSet,
    preprocess: &Preprocess,
    options: EvalOptions,
    progress: &mut dyn FnMut(EvalProgress) -> ControlFlow<()>,
) -> Result<TokenSimilarity> {
    let vit = network.spec().vit()?;
    if !vit.is_distilled() {
        return Err(Error::NotDistilled {
            architecture: network.spec().architecture.clone(),
        });
    }
    let depth = vit.layers.len();
    let mut sites = vec![(Site::BlockIn, Some(0))];
    sites.extend((0..depth).map(|layer| (Site::BlockOut, Some(layer))));
    sites.push((Site::FinalNorm, None));
    let parameters = network.tensors()?;
    let learned = cosine(
        &parameters.get("cls_token")?.to_f32(),
        &parameters.get("dist_token")?.to_f32(),
    );

    let loader = LoaderOptions {
        batch_size: options.batch_size,
        workers: options.workers,
        ..LoaderOptions::default()
    };
    let loader = Loader::new(data.clone(), preprocess.clone(), loader)?;
    let mut sums = vec![0.0; sites.len()];
    let (mut images, mut done) = (0, 0);
    for batch in loader.epoch(0)? {
        let batch = batch?;
        done += batch.len() + batch.failures.len();
        if !batch.is_empty() {
            images += batch.len();
            let mut ctx = Ctx::tracing(Trace::pairs(sites.clone()));
            let pixels = Tensor::from_data(TensorData::new(batch.images, batch.shape), device);
            network.forward(pixels, &mut ctx)?;
            for (sum, &(site, layer)) in sums.iter_mut().zip(&sites) {
                let stream = ctx.trace.tokens(site, layer);
                let stream = stream.ok_or_else(|| Error::Backend(format!("nothing passed `{site}`")))?;
                *sum += pairs(stream)?;
            }
        }
        if progress(EvalProgress {
            done,
            total: data.len(),
        })
        .is_break()
        {
            return Err(Error::Interrupted);
        }
    }
    if images == 0 {
        return Err(Error::Empty {
            what: "the data set to measure on",
        });
    }
    let mut means = sums.into_iter().map(|sum| sum / images as f64);
    Ok(TokenSimilarity {
        learned,
        input: means.next().unwrap_or(f64::NAN),
        blocks: means.by_ref().take(depth).collect(),
        norm: means.next().unwrap_or(f64::NAN),
        images,
    })
}

/// The sum over a batch `[batch, tokens, dim]` of the cosines between its first two tokens.
fn pairs(stream: Tensor<3>) -> Result<f64> {
    let dim = stream.dims()[2];
    let tokens = stream.narrow(1, 0, 2).into_data().try_into_vec::<f32>();
    let tokens = tokens.map_err(|error| Error::Backend(format!("reading tokens: {error:?}")))?;
    Ok(tokens
        .chunks_exact(2 * dim.max(1))
        .map(|pair| pair.split_at(dim))
        .map(|(a, b)| cosine(a, b))
        .sum())
}

/// The cosine of the angle between two vectors; 0 where one of them has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::testing::{noise, prepared, regnet, vit};

    #[test]
    fn similarity_is_measured_at_every_depth() {
        let (model, device) = (vit(3), Device::flex());
        let network = Network::new(&model.spec, &model.tensors, "test", &device).unwrap();
        let measure = |network: &Network, batch_size| {
            let options = EvalOptions {
                batch_size,
                workers: 1,
                ..EvalOptions::default()
            };
            let go_on = &mut |_| ControlFlow::Continue(());
            token_similarity(network, &device, &noise(9), &prepared(), options, go_on)
        };
        let found = measure(&network, 9).unwrap();
        assert_eq!((found.blocks.len(), found.images), (3, 8));
        // Before the first block a token is its parameter and its position, whatever the image.
        let row =
            |name: &str, i: usize| model.tensors.get(name).unwrap().to_f32()[i * 12..(i + 1) * 12].to_vec();
        let sum = |a: Vec<f32>, b: Vec<f32>| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let (class, distil) = (row("cls_token", 0), row("dist_token", 0));
        assert_eq!(found.learned, cosine(&class, &distil));
        let input = cosine(
            &sum(class, row("pos_embed", 0)),
            &sum(distil, row("pos_embed", 1)),
        );
        assert!((found.input - input).abs() < 1e-6);
        assert!((measure(&network, 2).unwrap().norm - found.norm).abs() < 1e-6);

        let other = regnet(3);
        let network = Network::new(&other.spec, &other.tensors, "test", &device).unwrap();
        assert!(measure(&network, 2).is_err());
    }

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
        let stream = Tensor::<3>::from_data([[[1.0f32, 0.0], [0.0, 2.0], [5.0, 5.0]]; 2], &Device::flex());
        assert_eq!(pairs(stream).unwrap(), 0.0);
        let stream = Tensor::<3>::from_data([[[1.0f32, 1.0], [2.0, 2.0]]; 3], &Device::flex());
        assert!((pairs(stream).unwrap() - 3.0).abs() < 1e-12);
    }
}
