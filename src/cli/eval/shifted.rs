//! `eval --shifted`: one model on other pictures of the same classes.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vitesse::data::{DataSet, OpenOptions, open};
use vitesse::report::{Table, format, left, right};
use vitesse_train::restricted::Restricted;

use super::{Accuracy, Plan, round};
use crate::cli::Console;
use crate::cli::classify::Runner;
use crate::cli::failure::{Failure, Result};

/// A shifted version of a data set, with the classes of it that have pictures.
pub(super) struct Version {
    name: String,
    data: DataSet,
}

/// What a model does on each shifted version.
#[derive(Debug, Serialize)]
pub(super) struct Shifted {
    sets: Vec<Row>,
    /// Each version counting alike.
    mean: Mean,
}

/// One version. Accuracies in percent, logits restricted to its classes.
#[derive(Debug, Serialize)]
struct Row {
    data: String,
    split: String,
    images: usize,
    unreadable: usize,
    classes: usize,
    top1: f64,
    balanced_accuracy: f64,
    /// On the pictures of these classes that are not shifted.
    clean_top1: f64,
    clean_balanced_accuracy: f64,
    /// Top-1 minus that of the pictures that are not shifted, in points.
    difference: f64,
}

#[derive(Debug, Serialize)]
struct Mean {
    top1: f64,
    balanced_accuracy: f64,
    difference: f64,
}

impl Version {
    /// Opens `path`, whose classes must be among those of `clean`: matched by name, in any order, not necessarily all.
    pub(super) fn open(path: &Path, limit: Option<usize>, clean: &Plan) -> Result<Version> {
        let name = path.display().to_string();
        let data = open(path, &OpenOptions::default())?;
        if let Some(index) = (0..data.len()).find(|&index| data.label(index).is_none()) {
            let sentence = format!("`{}` of `{name}` has no label", data.name(index));
            return Err(Failure::new("E_DATA_LABEL", sentence));
        }
        let known = clean.data.class_names();
        let sizes = data.class_sizes();
        let present = data.class_names().iter().zip(sizes).filter(|(_, size)| *size > 0);
        let names: Vec<String> = present.map(|(name, _)| name.clone()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            let sentence = format!(
                "`{name}` has the class `{unknown}`, and `{}` has none of that name",
                clean.data_name
            );
            let hint = "classes are matched by name: a shifted version has the class names of the data set, or some of them";
            return Err(Failure::new("E_DATA_LABEL", sentence).hint(hint));
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
    pub(super) fn measure(
        clean: &Plan,
        (whole, limit): (&DataSet, Option<usize>),
        versions: &[Version],
        runner: &mut Runner,
        console: &Console,
    ) -> Result<Shifted> {
        let mut sets = Vec::new();
        // Of the pictures that are not shifted, by classes: versions often have the same.
        let mut baselines: Vec<(Vec<String>, Accuracy)> = Vec::new();
        for Version { name, data } in versions {
            console.say("shifted", name);
            let names = data.class_names();
            let column = |name: &String| clean.data.class_names().iter().position(|known| known == name);
            let columns: Vec<usize> = names.iter().filter_map(column).collect();
            let mut restricted = Restricted::new(runner, columns)?;
            let baseline = match baselines.iter().find(|(known, _)| known == names) {
                Some((_, accuracy)) => *accuracy,
                None => {
                    let same = limited(whole.of_classes(names), limit);
                    let accuracy = Accuracy::of(&clean.measure(&mut restricted, &same, console)?.joint);
                    baselines.push((names.to_vec(), accuracy));
                    accuracy
                }
            };
            let evaluation = clean.measure(&mut restricted, data, console)?;
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
    pub(super) fn unreadable(&self) -> usize {
        self.sets.iter().map(|row| row.unreadable).sum()
    }
}

impl fmt::Display for Shifted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: f64| format!("{value:.3} %");
        let points = |value: f64| format!("{value:+.3}");
        let mut table = Table::new([
            left("shifted"),
            right("images"),
            right("classes"),
            right("top-1"),
            right("balanced"),
            right("clean top-1"),
            right("difference"),
        ]);
        for row in &self.sets {
            table.push([
                row.data.clone(),
                format::count(row.images as u64),
                row.classes.to_string(),
                percent(row.top1),
                percent(row.balanced_accuracy),
                percent(row.clean_top1),
                points(row.difference),
            ]);
        }
        let Mean {
            top1,
            balanced_accuracy,
            difference,
        } = self.mean;
        let blank = String::new;
        table.push([
            "mean".to_owned(),
            blank(),
            blank(),
            percent(top1),
            percent(balanced_accuracy),
            blank(),
            points(difference),
        ]);
        write!(f, "{table}")?;
        match self.unreadable() {
            0 => Ok(()),
            n => writeln!(
                f,
                "{n} files of them could not be read and are in no number above"
            ),
        }
    }
}
