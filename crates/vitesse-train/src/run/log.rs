//! The logs of a run: a line a step, a row an epoch.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vitesse_model::storage::atomic_write;

use crate::{Error, Result};

/// The log of steps, and that of epochs.
pub(super) const METRICS: &str = "metrics.jsonl";
pub(super) const SUMMARY: &str = "summary.csv";

/// One step, as it stands in `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The optimiser step, from 0.
    pub step: usize,
    /// The epoch, from 0.
    pub epoch: usize,
    /// The learning rate.
    pub lr: f64,
    /// What was minimised, mean over the batch.
    pub loss: f64,
    /// Its terms, before they are weighted: `base`, against the targets; `distill`, against the teacher; whatever else an
    /// objective names.
    #[serde(flatten)]
    pub terms: BTreeMap<String, f64>,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Samples in the batch.
    pub samples: usize,
    /// Seconds the step took, waiting for images included.
    pub seconds: f64,
    /// Of which waiting for images.
    pub wait: f64,
}

/// One epoch, as it stands in `summary.csv`. Accuracies are in percent; what was not measured is empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Mean training loss over its steps.
    pub train_loss: f64,
    /// Validation loss.
    pub eval_loss: Option<f64>,
    /// Validation accuracy.
    pub eval_top1: Option<f64>,
    /// Share of validation samples whose class is among the five most likely.
    pub eval_top5: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Validation accuracy of the class head alone, in a distilled model.
    pub class_top1: Option<f64>,
    /// Validation accuracy of the distillation head alone.
    pub distillation_top1: Option<f64>,
    /// Validation accuracy of the averaged weights, where an average is kept.
    pub ema_top1: Option<f64>,
    /// Optimiser steps taken since the beginning.
    pub steps: usize,
    /// Seconds the epoch took, evaluation included, all resumed parts together.
    pub seconds: f64,
}

/// The header of `summary.csv`: the fields of [`EpochRecord`].
pub(super) const COLUMNS: &str =
    "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,class_top1,distillation_top1,ema_top1,steps,seconds";

/// A log in append mode, holding only those whole lines of the old one that `keep` keeps.
fn reopen(path: &Path, header: &str, keep: impl Fn(&str) -> bool) -> Result<Log> {
    let old = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let old = String::from_utf8_lossy(&old);
    let whole = old.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut text: String = whole.filter(|line| keep(line.trim_end())).collect();
    if text.is_empty() && !header.is_empty() {
        text = format!("{header}\n");
    }
    atomic_write(path, |file| file.write_all(text.as_bytes()))?;
    let file = OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    Ok(Log {
        file,
        path: path.to_owned(),
    })
}

/// The logs of a run.
#[derive(Debug)]
pub struct Logs {
    metrics: Log,
    summary: Log,
}

#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    fn line(&mut self, mut text: String) -> Result<()> {
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(Error::io("write", &self.path))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

impl Logs {
    /// Those of the run in `folder`, without what is ahead of a state after `steps` steps and `epochs` finished epochs.
    pub(super) fn open(folder: &Path, steps: usize, epochs: usize) -> Result<Logs> {
        let step =
            |line: &str| serde_json::from_str::<StepRecord>(line).is_ok_and(|record| record.step < steps);
        let row = |line: &str| {
            let epoch = line
                .split(',')
                .next()
                .and_then(|field| field.parse::<usize>().ok());
            line == COLUMNS || epoch.is_some_and(|epoch| epoch < epochs)
        };
        let metrics = reopen(&folder.join(METRICS), "", step)?;
        let summary = reopen(&folder.join(SUMMARY), COLUMNS, row)?;
        Ok(Logs { metrics, summary })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        let line = serde_json::to_string(record);
        self.metrics
            .line(line.map_err(|error| Error::Backend(format!("writing a step: {error}")))?)
    }

    /// Appends an epoch.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.summary.line(record.row())
    }

    /// Brings everything to the disk, before a state is written that counts on it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.summary.sync()
    }
}

impl EpochRecord {
    /// What a checkpoint's history says about the epoch.
    pub(crate) fn metrics(&self) -> Map<String, Value> {
        let mut metrics = Map::new();
        metrics.insert("epoch".into(), json!(self.epoch));
        metrics.insert("train_loss".into(), json!(self.train_loss));
        let measured = [
            ("eval_loss", self.eval_loss),
            ("eval_top1", self.eval_top1),
            ("eval_top5", self.eval_top5),
        ];
        let measured = measured
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        metrics.extend(measured.map(|(key, value)| (key.to_owned(), json!(value))));
        metrics
    }

    fn row(&self) -> String {
        let percent = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3}"));
        let loss = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.6}"));
        [
            self.epoch.to_string(),
            format!("{:.6}", self.train_loss),
            loss(self.eval_loss),
            percent(self.eval_top1),
            percent(self.eval_top5),
            format!("{:e}", self.lr),
            percent(self.class_top1),
            percent(self.distillation_top1),
            percent(self.ema_top1),
            self.steps.to_string(),
            format!("{:.1}", self.seconds),
        ]
        .join(",")
    }

    pub(super) fn parse(row: &str) -> Option<EpochRecord> {
        let mut fields = row.split(',');
        let number = |field: Option<&str>| field?.parse::<f64>().ok();
        // `?` for fields that are always there, a plain `Option` for those that may be empty.
        Some(EpochRecord {
            epoch: fields.next()?.parse().ok()?,
            train_loss: number(fields.next())?,
            eval_loss: number(fields.next()),
            eval_top1: number(fields.next()),
            eval_top5: number(fields.next()),
            lr: number(fields.next())?,
            class_top1: number(fields.next()),
            distillation_top1: number(fields.next()),
            ema_top1: number(fields.next()),
            steps: fields.next()?.parse().ok()?,
            seconds: number(fields.next())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_are_written() {
        let whole = EpochRecord {
            epoch: 3,
            train_loss: 1.25,
            eval_loss: Some(0.5),
            eval_top1: Some(81.125),
            eval_top5: Some(95.0),
            lr: 1e-5,
            class_top1: None,
            distillation_top1: Some(80.5),
            ema_top1: None,
            steps: 40,
            seconds: 2.5,
        };
        assert_eq!(COLUMNS.split(',').count(), whole.row().split(',').count());
        for record in [whole, EpochRecord::default()] {
            assert_eq!(EpochRecord::parse(&record.row()), Some(record));
        }
        assert_eq!(EpochRecord::parse("3,0.5"), None);
    }
}
