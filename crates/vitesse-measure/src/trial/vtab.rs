//! A comparison on every task of VTAB-1k that a folder holds, and its score.
//!
//! The clean protocol: settings are chosen by 200 validation images after learning from 800; then the method learns from all
//! 1,000, and its last epoch is tested once.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vitesse_data::vtab::{Score, TASKS, Task, score};

use super::comparison::Comparison;
use super::found::Report;
use super::keep;
use crate::{Error, Result, TrainEvents};

/// What is left in the folder of all tasks.
const DOCUMENT: &str = "vtab.json";
const TABLE: &str = "vtab.csv";
/// What tells the folder of a task.
const LIST: &str = "train800.txt";

/// The tasks in a folder, in the benchmark's order; none in one that is no VTAB-1k.
pub fn tasks(folder: &Path) -> Vec<(&'static Task, PathBuf)> {
    TASKS
        .iter()
        .filter_map(|task| {
            let names = std::iter::once(&task.name).chain(task.aliases);
            let mut folders = names.map(|name| folder.join(name));
            Some((task, folders.find(|folder| folder.join(LIST).is_file())?))
        })
        .collect()
}

/// Compares as `of` says on each of the `tasks`. What was found on one is given to `keep` before the next begins.
///
/// # Errors
/// As [`Comparison::run`] and `keep`.
pub fn run<E: From<Error>>(
    of: &Comparison,
    tasks: &[(&'static Task, PathBuf)],
    stop: &AtomicBool,
    events: &mut dyn TrainEvents,
    mut keep: impl FnMut(&Comparison, &Report) -> std::result::Result<(), E>,
) -> std::result::Result<Whole, E> {
    let mut all = Vec::new();
    for (task, comparison) in comparisons(of, tasks) {
        let text = format!("{} of {}: {task}", all.len() + 1, tasks.len());
        events.as_events().say("task", &text);
        let report = comparison.run(stop, events)?;
        keep(&comparison, &report)?;
        all.push(Found { task, report });
    }
    Ok(Whole::of(all)?)
}

/// The comparison on each task, in a folder of its own.
fn comparisons(of: &Comparison, tasks: &[(&'static Task, PathBuf)]) -> Vec<(&'static str, Comparison)> {
    let one = |(index, (task, folder)): (usize, &(&'static Task, PathBuf))| {
        let comparison = Comparison {
            data: Some(folder.display().to_string()),
            output: of.output.join(task.name),
            retrain: true,
            // The tasks differ in the head alone.
            rounds: of.rounds.filter(|_| index == 0),
            ..of.clone()
        };
        (task.name, comparison)
    };
    tasks.iter().enumerate().map(one).collect()
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Whole {
    /// A comparison for each task.
    pub tasks: Vec<Found>,
    /// In the order of the entries.
    pub scores: Vec<Scored>,
}

/// A comparison on one task.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The task.
    pub task: &'static str,
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
}

/// What an entry comes to on all tasks.
#[derive(Debug, Serialize)]
pub struct Scored {
    /// The entry.
    pub method: String,
    /// Its score.
    #[serde(flatten)]
    pub score: Score,
}

impl Found {
    /// Top-1 of an entry, in percent, the mean over the seeds.
    pub fn top1(&self, label: &str) -> f64 {
        self.report
            .mean(label, |trial| trial.test.as_ref().map(|test| test.top1))
    }
}

impl Whole {
    /// Keeps what was found in `folder`: as a document, and as who shows it has made a `table` (CSV) of it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn keep(&self, folder: &Path, table: &str) -> Result<()> {
        keep(folder, (DOCUMENT, self), &[(TABLE, table)])
    }

    /// Scores the entries by what was found on the tasks.
    ///
    /// # Errors
    /// As [`score`].
    fn of(tasks: Vec<Found>) -> Result<Whole> {
        let entries = tasks.first().map(|first| first.report.entries.clone());
        let scored = |label: String| {
            let accuracies: Vec<(&str, f64)> = tasks
                .iter()
                .map(|found| (found.task, found.top1(&label)))
                .collect();
            Ok(Scored {
                score: score(&accuracies)?,
                method: label,
            })
        };
        let scores = entries.unwrap_or_default().into_iter().map(scored);
        Ok(Whole {
            scores: scores.collect::<Result<_>>()?,
            tasks,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn tasks_are_found_by_their_lists() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["oxford_pet", "cifar", "svhn"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert!(tasks(folder.path()).is_empty());
        for name in ["oxford_pet", "cifar"] {
            fs::write(folder.path().join(name).join(LIST), "").unwrap();
        }
        let names: Vec<&str> = tasks(folder.path()).iter().map(|(task, _)| task.name).collect();
        assert_eq!(names, ["cifar", "oxford_iiit_pet"]);
    }
}
