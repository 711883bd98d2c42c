//! Which images a proof is made on: pictures, as the model will see them.

use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::Serialize;
use vitesse_data::{DataSet, OpenOptions, Split, open};
use vitesse_model::Checkpoint;

use crate::accuracy::Unreadable;
use crate::error::check;
use crate::{Error, Events, Progress, Result};

/// The data set that the program draws.
const DRAWN: &str = "shapes";

/// Whose images they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Of the data set that was asked for.
    Data,
    /// Of the data set that the adapter learned from.
    Training,
    /// Drawn by the program.
    Drawn,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Data => "images of the data set",
            Source::Training => "images that the adapter learned from",
            Source::Drawn => "drawn images",
        })
    }
}

/// Prepared images.
#[derive(Debug)]
pub struct Images {
    /// `[images, channels, height, width]`, normalised.
    pub pixels: Vec<f32>,
    /// Whose they are.
    pub source: Source,
    /// The data set.
    pub data: String,
}

impl Images {
    /// At most `count` images for `model`: of `asked`, else of the data set that the adapter `learned` from, if it is still
    /// there, else drawn.
    ///
    /// # Errors
    /// No data set, or none that can be read.
    pub fn find(
        asked: Option<&Path>,
        learned: Option<&str>,
        count: usize,
        model: &Checkpoint,
        events: &mut dyn Events,
    ) -> Result<Images> {
        if let Some(path) = asked {
            let data = open(path, &OpenOptions::default())?;
            return Images::read(&data, count, model, Source::Data, path.display().to_string());
        }
        if let Some(name) = learned {
            let options = OpenOptions {
                split: Some(Split::Train),
                ..OpenOptions::default()
            };
            let found = open(name, &options)
                .map_err(Error::from)
                .and_then(|data| Images::read(&data, count, model, Source::Training, name.to_owned()));
            match found {
                Ok(images) => return Ok(images),
                Err(error) => events.say(
                    "note",
                    &format!(
                        "the images that the adapter learned from cannot be compared ({error}); drawn ones are"
                    ),
                ),
            }
        }
        let drawn = open(DRAWN, &OpenOptions::default())?;
        Images::read(&drawn, count, model, Source::Drawn, DRAWN.to_owned())
    }

    fn read(
        data: &DataSet,
        count: usize,
        model: &Checkpoint,
        source: Source,
        name: String,
    ) -> Result<Images> {
        let pixels = pixels(data, count, model)?;
        if pixels.is_empty() {
            return Err(Error::NoImages { data: name });
        }
        Ok(Images {
            pixels,
            source,
            data: name,
        })
    }
}

/// At most `count` images of all classes that can be read, prepared for `model`, one after the other.
pub(crate) fn pixels(data: &DataSet, count: usize, model: &Checkpoint) -> Result<Vec<f32>> {
    let prepare = model.preprocess()?;
    let data = data.limit(count, 0);
    let mut pixels = Vec::with_capacity(data.len() * model.spec.input_size().iter().product::<usize>());
    for image in (0..data.len()).filter_map(|index| data.load(index).ok()) {
        pixels.extend(prepare.run(&image)?);
    }
    Ok(pixels)
}

/// The images of `data` that cannot be read, and why: each is decoded.
///
/// # Errors
/// [`Error::Interrupted`] once `stop` was set.
pub fn unreadable(data: &DataSet, stop: &AtomicBool, events: &mut dyn Events) -> Result<Vec<Unreadable>> {
    /// Images between two looks at the flag.
    const STEP: usize = 256;
    let begun = Progress::of_images(data.len());
    events.progress(begun);
    let mut unreadable = Vec::new();
    for start in (0..data.len()).step_by(STEP) {
        let end = (start + STEP).min(data.len());
        let failed = (start..end).into_par_iter().filter_map(|sample| {
            let reason = data.load(sample).err()?.to_string();
            Some(Unreadable {
                name: data.name(sample),
                reason,
            })
        });
        unreadable.par_extend(failed);
        events.progress(Progress { done: end, ..begun });
        check(stop)?;
    }
    Ok(unreadable)
}
