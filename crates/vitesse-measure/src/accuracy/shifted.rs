//! One model on other pictures of the same classes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vitesse_data::{DataSet, DecodeOptions, OpenOptions, open};
use vitesse_train::parallel::Team;
use vitesse_train::restricted::Restricted;

use super::{Accuracy, Exam, round};
use crate::classify::Runner;
use crate::{Error, Events, Result};

/// A shifted version of a data set, with the classes of it that have pictures.
#[derive(Debug)]
pub struct Version {
    name: String,
    data: DataSet,
}

/// What a model does on each shifted version.
#[derive(Debug, Serialize)]
pub struct Shifted {
    /// The versions, in their order.
    pub sets: Vec<Row>,
    /// Each version counting alike.
    pub mean: Mean,
}

/// One version. Accuracies in percent, logits restricted to its classes.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The version.
    pub data: String,
    /// Its part.
    pub split: String,
    /// Images that were read.
    pub images: usize,
    /// Files that could not be.
    pub unreadable: usize,
    /// Classes that have pictures.
    pub classes: usize,
    /// Images that are recognised.
    pub top1: f64,
    /// The mean of the classes' top-1.
    pub balanced_accuracy: f64,
    /// On the pictures of these classes that are not shifted.
    pub clean_top1: f64,
    /// The mean of these classes' top-1, not shifted.
    pub clean_balanced_accuracy: f64,
    /// Top-1 minus that of the pictures that are not shifted, in points.
    pub difference: f64,
}

/// Means over the versions.
#[derive(Debug, Serialize)]
pub struct Mean {
    /// Images that are recognised.
    pub top1: f64,
    /// The mean of the classes' top-1.
    pub balanced_accuracy: f64,
    /// To the pictures that are not shifted, in points.
    pub difference: f64,
}

impl Version {
    /// Opens `path`, with pictures read as `decode` says, whose classes must be among those of `clean`: matched by name, in any order, not necessarily all. At
    /// most `limit` images are taken.
    ///
    /// # Errors
    /// No data set, images without a label, classes of other names.
    pub fn open(path: &Path, decode: &DecodeOptions, limit: Option<usize>, clean: &Exam) -> Result<Version> {
        let name = path.display().to_string();
        let options = OpenOptions {
            decode: decode.clone(),
            ..OpenOptions::default()
        };
        let data = open(path, &options)?;
        if let Some(index) = (0..data.len()).find(|&index| data.label(index).is_none()) {
            return Err(Error::Unlabelled {
                sample: data.name(index),
                data: name,
            });
        }
        let known = clean.data.class_names();
        let sizes = data.class_sizes();
        let present = data.class_names().iter().zip(sizes).filter(|(_, size)| *size > 0);
        let names: Vec<String> = present.map(|(name, _)| name.clone()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            return Err(Error::UnknownClass {
                class: unknown.clone(),
                clean: clean.data_name.clone(),
                data: name,
            });
        }
        Ok(Version {
            data: limited(data.of_classes(&names), limit),
            name,
        })
    }
}

fn limited(data: DataSet, limit: Option<usize>) -> DataSet {
    match limit {
        Some(limit) => data.limit(limit, 0),
        None => data,
    }
}

impl Shifted {
    /// Evaluates all versions, and for each the same classes of `whole`, what they are versions of; at most `limit` images of
    /// each.
    ///
    /// # Errors
    /// As [`Exam::run`].
    pub fn measure(
        clean: &Exam,
        (whole, limit): (&DataSet, Option<usize>),
        versions: &[Version],
        runner: &mut Runner,
        (team, stop): (&Team, &AtomicBool),
        events: &mut dyn Events,
    ) -> Result<Shifted> {
        let mut sets = Vec::new();
        let places = clean.matched()?.places;
        // Of the pictures that are not shifted, by classes: versions often have the same.
        let mut baselines: Vec<(Vec<String>, Accuracy)> = Vec::new();
        for Version { name, data } in versions {
            events.say("shifted", name);
            let names = data.class_names();
            let column = |name: &String| {
                let own = clean.data.class_names().iter().position(|known| known == name)?;
                // Taken by position, classes of the data are the model's.
                Some(places.get(own).copied().unwrap_or(own))
            };
            let columns: Vec<usize> = names.iter().filter_map(column).collect();
            let mut restricted = Restricted::new(runner, columns)?;
            let baseline = match baselines.iter().find(|(known, _)| known == names) {
                Some((_, accuracy)) => *accuracy,
                None => {
                    let same = limited(whole.of_classes(names), limit);
                    let accuracy =
                        Accuracy::of(&clean.measure(&mut restricted, &same, team, stop, events)?.joint);
                    baselines.push((names.to_vec(), accuracy));
                    accuracy
                }
            };
            let evaluation = clean.measure(&mut restricted, data, team, stop, events)?;
            let accuracy = Accuracy::of(&evaluation.joint);
            sets.push(Row {
                data: name.clone(),
                split: data.split().to_string(),
                images: evaluation.joint.samples,
                unreadable: evaluation.failures.len(),
                classes: names.len(),
                top1: accuracy.top1,
                balanced_accuracy: accuracy.balanced_accuracy,
                clean_top1: baseline.top1,
                clean_balanced_accuracy: baseline.balanced_accuracy,
                difference: round(accuracy.top1 - baseline.top1),
            });
        }
        let mean = |value: fn(&Row) -> f64| round(sets.iter().map(value).sum::<f64>() / sets.len() as f64);
        Ok(Shifted {
            mean: Mean {
                top1: mean(|row| row.top1),
                balanced_accuracy: mean(|row| row.balanced_accuracy),
                difference: mean(|row| row.difference),
            },
            sets,
        })
    }

    /// Files of all versions that could not be read.
    pub fn unreadable(&self) -> usize {
        self.sets.iter().map(|row| row.unreadable).sum()
    }
}
