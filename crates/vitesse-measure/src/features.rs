//! Feature maps of images, into a file: for detection and segmentation heads, and for whatever else is built on a backbone.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

#[cfg(feature = "train")]
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use vitesse_data::{DecodeOptions, Preprocess};
#[cfg(feature = "train")]
use vitesse_engine::check_images;
use vitesse_engine::{FeatureExtractor, Options};
#[cfg(feature = "train")]
use vitesse_model::network::Network;
use vitesse_model::spec::FeatureMap;
use vitesse_model::storage::safetensors::Metadata;
use vitesse_model::storage::streamed::Streamed;
use vitesse_model::{Checkpoint, ModelSpec};

use crate::classify::{Arithmetic, Backend, choose, with_threads};
use crate::error::{check, check_size};
use crate::predict::prepare_all;
use crate::{Events, Picture, Progress, Result, origin, raw};

/// A model ready to give feature maps.
#[derive(Debug)]
pub struct Features {
    spec: ModelSpec,
    maps: Vec<FeatureMap>,
    extractor: Extractor,
}

#[derive(Debug)]
enum Extractor {
    Engine(Box<FeatureExtractor>),
    #[cfg(feature = "train")]
    Network(Box<(Network, Device)>),
}

/// Images, prepared as they are needed.
#[derive(Debug, Clone, Copy)]
pub enum Images<'a> {
    /// Those of a file of tensors.
    Tensor(&'a raw::Images),
    /// Picture files.
    Pictures {
        /// The files.
        files: &'a [PathBuf],
        /// How files become pictures.
        decode: &'a DecodeOptions,
        /// How pictures are prepared for the model.
        preprocess: &'a Preprocess,
    },
}

/// What was computed and written.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The architecture.
    pub model: String,
    /// The file.
    pub output: String,
    /// Images in it.
    pub images: usize,
    /// The maps in it, in the order of the forward pass.
    pub maps: Vec<FeatureMap>,
    /// The computation, with the reading of the images and the writing.
    pub seconds: f64,
    /// Images over that.
    pub images_per_s: f64,
    /// What computed.
    #[serde(flatten)]
    pub arithmetic: Arithmetic,
}

impl Images<'_> {
    fn count(&self) -> usize {
        match self {
            Images::Tensor(images) => images.count(),
            Images::Pictures { files, .. } => files.len(),
        }
    }

    /// `[channels, height, width]` of each.
    fn size(&self) -> [usize; 3] {
        match self {
            Images::Tensor(images) => images.size(),
            Images::Pictures { preprocess, .. } => preprocess.input_size,
        }
    }

    /// Some of them, normalised, one after the other.
    fn pixels(&self, images: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Images::Tensor(tensor) => tensor.pixels(images),
            Images::Pictures {
                files,
                decode,
                preprocess,
            } => {
                let files = files.get(images).unwrap_or_default();
                let pictures: Vec<Picture<'_>> = files.iter().map(Picture::from).collect();
                let prepared = prepare_all(&pictures, decode, preprocess).into_iter();
                // Of several that cannot be read, the first is told.
                let prepared: Vec<Vec<f32>> = prepared.collect::<Result<_>>()?;
                Ok(prepared.concat())
            }
        }
    }

    /// The names of the files, as a JSON list.
    fn names(&self) -> Option<String> {
        match self {
            Images::Tensor(_) => None,
            Images::Pictures { files, .. } => {
                let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                Some(serde_json::json!(names).to_string())
            }
        }
    }
}

impl Features {
    /// Makes a model ready for the maps of its stages; a vision transformer for those after `layers`, counted from 1, or after
    /// its last one. The engine computes, unless the network is asked for or the engine does not run the model. Without
    /// a number of threads there are as many as rayon has.
    ///
    /// # Errors
    /// A model that is not run so; layers that it does not have.
    pub fn new(
        checkpoint: &Checkpoint,
        layers: &[usize],
        backend: Option<Backend>,
        options: Options,
        events: &mut dyn Events,
    ) -> Result<Features> {
        let (spec, tensors) = (&checkpoint.spec, &checkpoint.tensors);
        let maps = spec.feature_maps(layers)?;
        let extractor = match choose(checkpoint, backend, options.precision, events)? {
            Backend::Engine => {
                let options = with_threads(options);
                let extractor = FeatureExtractor::new(spec, tensors, &origin(checkpoint), layers, options)?;
                Extractor::Engine(Box::new(extractor))
            }
            #[cfg(feature = "train")]
            Backend::Network => Extractor::Network(Box::new(crate::classify::network(checkpoint)?)),
        };
        Ok(Features {
            spec: spec.clone(),
            maps,
            extractor,
        })
    }

    /// The maps, in the order of the forward pass.
    pub fn maps(&self) -> &[FeatureMap] {
        &self.maps
    }

    /// The maps of `images` `[count, channels, height, width]`, normalised as the checkpoint says: the values of each of
    /// [`Features::maps`], `[count, channels, height, width]` with its channels, height and width.
    ///
    /// # Errors
    /// Images of another size than the model's.
    pub fn run(&self, images: &[f32], count: usize) -> Result<Vec<Vec<f32>>> {
        match &self.extractor {
            Extractor::Engine(extractor) => Ok(extractor.run(images, count)?),
            #[cfg(feature = "train")]
            Extractor::Network(network) => {
                let (network, device) = &**network;
                check_images(&self.spec, images, count)?;
                let [channels, height, width] = self.spec.input_size();
                let images = TensorData::new(images.to_vec(), [count, channels, height, width]);
                let maps = network.feature_maps(Tensor::from_data(images, device), &self.maps)?;
                let values = maps.into_iter().map(|map| map.into_data().try_to_vec::<f32>());
                let read = |error| vitesse_train::Error::Backend(format!("reading feature maps: {error:?}"));
                Ok(values.collect::<std::result::Result<_, _>>().map_err(read)?)
            }
        }
    }

    /// Writes the maps of `images` to the safetensors file `output`: one tensor `[images, channels, height, width]` per map,
    /// of its name. It is written batch by batch, so that no more than a batch and the names of the files are kept in memory, and
    /// whole or not at all. The metadata has the `architecture`, the `maps` (JSON: name, timm's module, channels, size, stride)
    /// and of pictures the `files` (a JSON list).
    ///
    /// # Errors
    /// An image that cannot be read; images of another size than the model's; more names than the header has room for; a file that
    /// cannot be written; [`crate::Error::Interrupted`] once `stop` was set.
    pub fn write(
        &self,
        images: Images<'_>,
        batch_size: usize,
        output: &Path,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Report> {
        check_size(&self.spec, images.size())?;
        let (begun, count) = (Instant::now(), images.count());
        let tensors: Vec<(String, Vec<usize>)> = self
            .maps
            .iter()
            .map(|map| {
                let [height, width] = map.size;
                (map.name.clone(), vec![count, map.channels, height, width])
            })
            .collect();
        let mut metadata = Metadata::from([
            ("architecture".to_owned(), self.spec.architecture.clone()),
            ("maps".to_owned(), serde_json::json!(self.maps).to_string()),
        ]);
        metadata.extend(images.names().map(|names| ("files".to_owned(), names)));
        let mut file = Streamed::create(output, &tensors, &metadata)?;

        let mut at = Progress::of_images(count);
        events.progress(at);
        while at.done < count {
            let batch = at.done..count.min(at.done + batch_size.max(1));
            let (done, size) = (batch.end, batch.len());
            let maps = self.run(&images.pixels(batch)?, size)?;
            for (map, values) in self.maps.iter().zip(maps) {
                file.append(&map.name, &values)?;
            }
            at.done = done;
            events.progress(at);
            check(stop)?;
        }
        file.commit()?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Report {
            model: self.spec.architecture.clone(),
            output: output.display().to_string(),
            images: count,
            maps: self.maps.clone(),
            seconds,
            images_per_s: count as f64 / seconds,
            arithmetic: match &self.extractor {
                Extractor::Engine(extractor) => Arithmetic::of_engine(extractor.precision(), extractor.isa()),
                #[cfg(feature = "train")]
                Extractor::Network(_) => Arithmetic::of_network(),
            },
        })
    }
}
