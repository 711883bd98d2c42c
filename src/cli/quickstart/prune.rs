//! A student with a share of its arithmetic: cut, corrected without training, proved, timed.

use std::path::Path;

use serde::Serialize;
use vitesse::compress::structure::rank::Scope;
use vitesse::measure::judge::Accuracy;
use vitesse::measure::prune::{Method as By, Prune, Quantity, Settings};
use vitesse::measure::transform::Transform;
use vitesse::model::LoadOptions;
use vitesse::report::{Content, Table, format, left, right};
use vitesse_train::run::BEST;

use super::TASK;
use super::experiment::{Method, Size};
use super::report::points;
use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::shell::word;
use crate::cli::show::Show;

/// The folder, and the key in the JSON document.
pub(super) const FOLDER: &str = "pruned";
/// The student that is cut: the one that learned from labels alone.
const BASE: Method = Method::None;
/// What is left of its multiply-accumulates.
const SHARE: f64 = 0.6;

/// What pruning came to.
#[derive(Debug, Serialize)]
pub(super) struct Pruned {
    base: Method,
    /// Of the multiply-accumulates, asked for.
    share: f64,
    /// Without any correction.
    cut: Option<Accuracy>,
    /// With it.
    corrected: Option<Accuracy>,
    #[serde(flatten)]
    transform: Transform,
}

/// Cuts the student in `folder`, and writes what is left beside it.
pub(super) fn prune(size: Size, seed: u64, folder: &Path, console: &Console) -> Result<Pruned> {
    let mut show = Show::new(console);
    let student = Prune::open(
        &folder.join(BASE.key()).join(BEST),
        &LoadOptions::default(),
        &mut show,
    )?;
    let mut once = |correct: bool| -> Result<_> {
        let settings = Settings {
            method: By::Obs,
            scope: Some(Scope::Global),
            units: Vec::new(),
            quantity: Quantity::Macs,
            round_to: 8,
            steps: 1,
            seed,
            data: Some(TASK.into()),
            labels_by: Default::default(),
            calibration: size.pruned,
            correct,
            damping: 3e-3,
            images: 16,
            scored: size.validation,
            batches: vec![16],
        };
        let mut found = None;
        student
            .look(&settings, console.stop(), &mut show)?
            .run(&[SHARE], &mut show, |_, pruned, _| {
                found = Some(pruned);
                Ok::<_, vitesse::measure::Error>(())
            })?;
        // One budget, one result.
        found.ok_or_else(|| Failure::new("E_INTERNAL", "pruning to one budget gave no result"))
    };
    let cut = once(false)?;
    let pruned = once(true)?;
    pruned.checkpoint.save(&folder.join(FOLDER), false)?;
    Ok(Pruned {
        base: BASE,
        share: SHARE,
        cut: cut.accuracy,
        corrected: pruned.accuracy,
        transform: pruned.transform,
    })
}

impl Pruned {
    /// What is left, in a sentence.
    pub(super) fn finding(&self) -> String {
        let plan = &self.transform.plan;
        let macs = 100.0 * plan.after.macs as f64 / plan.before.macs.max(1) as f64;
        let accuracy = match (&self.cut, &self.corrected) {
            (Some(cut), Some(corrected)) => format!(
                ", top-1 {} where it was {} ({} before what was left was solved anew), without training",
                points(corrected.after_top1),
                points(corrected.before_top1),
                points(cut.after_top1)
            ),
            _ => String::new(),
        };
        let time = match self.transform.speed.first() {
            Some(speed) => format!(", {:.2} of the time", speed.ratio.median),
            None => String::new(),
        };
        format!(
            "the student with {macs:.0} % of its MACs: {:.0} % of its parameters{time}{accuracy}",
            { 100.0 * plan.after.param_count as f64 / plan.before.param_count.max(1) as f64 }
        )
    }

    /// The section of the page.
    pub(super) fn section(&self, output: &str) -> Content {
        let plan = &self.transform.plan;
        let mut table = Table::new([
            left("student"),
            right("MACs"),
            right("parameters"),
            right("weights"),
            right("top-1 %"),
        ]);
        let mut row = |name: &str, size: &vitesse_train::method::Size, top1: Option<f64>| {
            table.push([
                name.to_owned(),
                format::si(size.macs as f64, ""),
                format::count(size.param_count as u64),
                format::bytes(size.weight_bytes as u64),
                top1.map_or_else(|| format::MISSING.to_owned(), points),
            ]);
        };
        row(
            "as it was",
            &plan.before,
            self.corrected.as_ref().map(|found| found.before_top1),
        );
        row(
            "cut",
            &plan.after,
            self.cut.as_ref().map(|found| found.after_top1),
        );
        row(
            "cut and corrected",
            &plan.after,
            self.corrected.as_ref().map(|found| found.after_top1),
        );
        let text = format!(
            "Heads and hidden units that matter least went, block by block, until {:.0} % of the arithmetic was left; what reads the others was \
             solved anew from training pictures, without their labels and without training. The result answers as the student with zeros in the \
             place of what was cut. So {}.",
            100.0 * self.share,
            self.finding()
        );
        let inside = |path: &str| word(&format!("{output}/{path}")).into_owned();
        let command = format!(
            "vitesse prune {} --macs 0.4 --round-to 8 --data {TASK} --finetune 5 -o smaller",
            inside(&format!("{}/best", self.base.key()))
        );
        Content::new().text(&text).table(&table).command(&command)
    }
}
