//! A comparison on every task of VTAB-1k that a folder holds, and its score.
//!
//! The clean protocol: settings are chosen by 200 validation images after learning from 800; then the method learns from all
//! 1,000, and its last epoch is tested once.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vitesse::data::vtab::{Score, TASKS, Task, score};
use vitesse::model::storage::atomic_write;
use vitesse::report::{Table, left, right};

use super::compare::Comparison;
use super::report::Report;
use crate::cli::failure::Result;
use crate::cli::outcome::Outcome;

/// What tells the folder of a task.
const LIST: &str = "train800.txt";

/// The tasks in a folder, in the benchmark's order; none in one that is no VTAB-1k.
pub(super) fn tasks(folder: &Path) -> Vec<(&'static Task, PathBuf)> {
    TASKS
        .iter()
        .filter_map(|task| {
            let names = std::iter::once(&task.name).chain(task.aliases);
            let mut folders = names.map(|name| folder.join(name));
            Some((task, folders.find(|folder| folder.join(LIST).is_file())?))
        })
        .collect()
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Whole {
    /// A comparison for each task.
    tasks: Vec<Found>,
    scores: Vec<Scored>,
    #[serde(skip)]
    labels: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Found {
    task: &'static str,
    #[serde(flatten)]
    report: Report,
}

#[derive(Debug, Serialize)]
struct Scored {
    method: String,
    #[serde(flatten)]
    score: Score,
}

/// Compares on one task after the other, each in its folder, and writes `vtab.csv` and `vtab.json`.
pub(super) fn run(of: &Comparison<'_>, tasks: &[(&'static Task, PathBuf)]) -> Result<Outcome> {
    of.check()?;
    let mut found = Vec::new();
    for (index, (task, folder)) in tasks.iter().enumerate() {
        let text = format!("{} of {}: {}", index + 1, tasks.len(), task.name);
        of.console.say("task", &text);
        let comparison = Comparison {
            data: Some(folder.display().to_string()),
            output: of.output.join(task.name),
            entries: of.entries.clone(),
            seeds: of.seeds.clone(),
            retrain: true,
            // The tasks differ in the head alone.
            measured: index == 0,
            ..*of
        };
        found.push(Found {
            task: task.name,
            report: comparison.report()?,
        });
    }
    let labels: Vec<String> = of.entries.iter().map(|entry| entry.label.clone()).collect();
    let scores = labels.iter().map(|label| {
        let accuracies: Vec<(&str, f64)> = found
            .iter()
            .map(|found| (found.task, found.top1(label)))
            .collect();
        Ok(Scored {
            method: label.clone(),
            score: score(&accuracies)?,
        })
    });
    let whole = Whole {
        scores: scores.collect::<Result<_>>()?,
        tasks: found,
        labels,
    };
    let outcome = Outcome::new(&whole)?;
    for (name, text) in [
        ("vtab.csv", whole.accuracies().to_csv()),
        ("vtab.json", outcome.json().to_owned()),
    ] {
        atomic_write(&of.output.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(outcome)
}

impl Found {
    fn top1(&self, label: &str) -> f64 {
        self.report
            .mean(label, |trial| trial.test.as_ref().map(|test| test.top1))
    }
}

impl Whole {
    /// A row for each task, a column for each method.
    fn accuracies(&self) -> Table {
        let columns = self.labels.iter().map(|label| right(label.as_str()));
        let mut table = Table::new(std::iter::once(left("task")).chain(columns));
        for found in &self.tasks {
            let cells = self
                .labels
                .iter()
                .map(|label| format!("{:.2}", found.top1(label)));
            table.push(std::iter::once(found.task.to_owned()).chain(cells));
        }
        table
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            left("method"),
            right("natural %"),
            right("specialised %"),
            right("structured %"),
            right("overall %"),
            right("mean of tasks %"),
        ]);
        let cell = |mean: Option<f64>| mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.2}"));
        for Scored { method, score } in &self.scores {
            table.push([
                method.clone(),
                cell(score.natural),
                cell(score.specialised),
                cell(score.structured),
                cell(score.overall),
                cell(Some(score.mean)),
            ]);
        }
        writeln!(f, "{}\n{table}", self.accuracies())?;
        writeln!(
            f,
            "Top-1 on the test images. Overall: the mean of the three groups' means, which articles call the average."
        )?;
        match self.scores.first().map(|scored| &scored.score.missing[..]) {
            Some(missing @ [_, ..]) => writeln!(f, "Not there: {}.", missing.join(", ")),
            _ => Ok(()),
        }
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
