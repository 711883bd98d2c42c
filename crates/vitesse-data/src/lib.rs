//! Images in, batches out.
//!
//! Everything between a file and the numbers a Vision Transformer takes, once for evaluation and once for training, for
//! every verb of Vitesse and without any tensor library. The chain, one file a step:
//!
//! ```text
//! bytes ── decode ── Image ── preprocess ── [3, height, width] f32 ──┐
//!            │   (or TrainTransform)                                 ├── loader ── Batch [n, 3, height, width]
//! path ── open ── DataSet ── Order (seed, epoch) ────────────────────┘
//! ```
//!
//! * **Decoding** ([`decode`]) trusts nothing: the format is read from the content, sizes are checked on the header
//!   before a pixel is decoded, a damaged file is an error that names it.
//! * **Pixels are Pillow's.** Accuracies of published checkpoints were measured behind libjpeg-turbo and Pillow's
//!   antialiased resize. The JPEG decoder here gives libjpeg's pixels to the bit, in safe Rust; [`resize`] does the same
//!   fixed-point arithmetic as Pillow and gives the same bytes, several times as fast.
//! * **Data sets** ([`open`]) are recognised by what is in the path; `shapes` is drawn by the program and needs no file.
//! * **Training sees DeiT's recipe** by default: [`TrainTransform`] for samples, [`MixConfig`] for batches,
//!   [`Order::Repeated`] for repeated augmentation. RandAugment's fifteen operations give Pillow's bytes too.
//! * **Nothing depends on threads.** The order of an epoch and every augmentation are pure functions of (seed, epoch,
//!   index, copy); the [`Loader`]'s workers only decide how soon a batch is there.
//!
//! # Example
//!
//! ```
//! use vitesse_data::{Loader, LoaderOptions, OpenOptions, Preprocess, Split, open};
//!
//! # fn main() -> vitesse_data::Result<()> {
//! let options = OpenOptions { split: Some(Split::Test), ..OpenOptions::default() };
//! let data = open("shapes:count", &options)?.limit(100, 0);
//! assert_eq!(data.class_names(), ["1", "2", "3", "4", "5"]);
//!
//! // At 32 pixels there is nothing to resize; mean and deviation are ImageNet's by default.
//! let preprocess = Preprocess { input_size: [3, 32, 32], crop_pct: 1.0, ..Preprocess::default() };
//! let loader = Loader::new(data, preprocess, LoaderOptions { batch_size: 32, ..LoaderOptions::default() })?;
//! let mut seen = 0;
//! for batch in loader.epoch(0)? {
//!     let batch = batch?;
//!     assert_eq!(batch.images.len(), batch.shape.iter().product());
//!     seen += batch.classes(loader.data())?.len();
//! }
//! assert_eq!(seen, 100);
//! # Ok(())
//! # }
//! ```

mod augment;
mod channels;
mod dataset;
mod decode;
mod error;
mod export;
mod image;
mod jpeg;
mod loader;
mod png;
mod preprocess;
mod resize;
mod sampler;
#[cfg(test)]
mod testing;
mod threads;
pub mod vtab;

pub use augment::{
    Crop, CutBox, Mix, MixConfig, Operation, RandAugment, TrainTransform, cutmix, mixup, targets,
};
pub use channels::PerChannel;
pub use dataset::inventory::Inventory;
pub use dataset::{
    DataSet, Fragile, Ignored, IgnoredReason, OpenOptions, Samples, ShapesConfig, ShapesTask, Split, form,
    ignored, ignored_notes, open, open_splits, pictures_in, splits,
};
pub use decode::{DecodeLimits, DecodeOptions, decode, decode_file};
pub use error::{Error, Result};
pub use export::{LIST, export};
pub use image::Image;
pub use loader::{Batch, Batches, Failure, Loader, LoaderOptions, OnError, Transform};
pub use preprocess::{CropMode, IMAGENET_MEAN, IMAGENET_STD, Preprocess};
pub use resize::{Interpolation, Window, resize, resize_window};
pub use sampler::{Order, Pick, Replica, repeated_augmentation};
pub use threads::{cores, most_threads};
