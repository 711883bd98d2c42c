//! What a student knows, put to other uses: three tasks that it was not trained for, from few pictures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vitesse::measure::timing::Budget;
use vitesse::measure::trial::reuse::{Reuse, Reused};
use vitesse::report::{Content, Table, format, left, right};
use vitesse_train::run::BEST;

use super::experiment::{Method, Size};
use super::report::points;
use crate::cli::Console;
use crate::cli::failure::Result;
use crate::cli::shell::word;
use crate::cli::show::ShowRuns;

/// The folder, and the key in the JSON document.
pub(super) const FOLDER: &str = "adapted";
/// The student that is adapted: the one that learned from labels alone.
pub(super) const BASE: Method = Method::None;
/// What it has never been asked.
const TASKS: [&str; 3] = ["plain-location", "plain-count", "plain-orientation"];
/// Rounds in which the models take turns where latency is measured, and how long a turn is.
const ROUNDS: usize = 15;
const TURN: Budget = Budget {
    time: Duration::from_millis(20),
    runs: 3,
};

/// What adapting came to.
#[derive(Debug, Serialize)]
pub(super) struct Adapted {
    /// The student that was adapted.
    base: Method,
    #[serde(flatten)]
    pub(super) found: Reused,
}

/// Adapts the student in `folder`, of an experiment that will be in the folder `output`.
pub(super) fn adapt(
    size: Size,
    seed: u64,
    workers: usize,
    (folder, output): (&Path, &Path),
    console: &Console,
) -> Result<Adapted> {
    let reuse = Reuse {
        base: student(folder),
        base_later: student(output),
        folder,
        place: Path::new(FOLDER),
        tasks: &TASKS,
        images: [size.adapt, size.validation, size.test],
        epochs: size.adapt_epochs,
        batch_size: size.batch_size,
        seed,
        workers,
        turns: (ROUNDS, TURN),
    };
    let found = reuse.run(console.stop(), &mut ShowRuns::new(console));
    // Nothing stays of a quickstart that is interrupted, so there is nothing to go on with.
    console.check()?;
    Ok(Adapted {
        base: BASE,
        found: found?,
    })
}

fn student(folder: &Path) -> PathBuf {
    folder.join(BASE.key()).join(BEST)
}

impl Adapted {
    /// What merging leaves, in a sentence.
    pub(super) fn finding(&self) -> String {
        let Some(latency) = &self.found.latency else {
            return "the adapter could not be merged".into();
        };
        format!(
            "one picture takes {:.2} times as long with the adapter beside the student, {:.2} times merged{}",
            latency.with_ops.median,
            latency.merged.median,
            if latency.same_plan {
                ", with the plain student's plan step for step"
            } else {
                ""
            }
        )
    }

    /// The section of the page.
    pub(super) fn section(&self, output: &str) -> Content {
        let mut table = Table::new([
            left("task"),
            right("guessing"),
            right("new head alone"),
            right("RepAdapter"),
            right("parameters"),
            right("share %"),
            right("files"),
            right("moved by merging"),
        ]);
        for task in &self.found.tasks {
            table.push([
                task.task.clone(),
                points(task.chance),
                points(task.linear_top1),
                points(task.repadapter_top1),
                format::count(task.method_param_count as u64),
                format!("{:.2}", 100.0 * task.share),
                format::bytes(task.adapter_bytes),
                format!("{:.0e}", task.largest_difference),
            ]);
        }
        let text = format!(
            "The student that learned from labels alone was asked three things it was never taught, with {} pictures each. Its \
             own weights stay as they are: a new head learns, alone or with RepAdapter's bottlenecks, which are folded into the \
             weights afterwards (parameters, their share of the model's and files are the adapter's; what merging moves is the largest \
             difference of logits). Then {}.",
            format::count(self.found.train_images as u64),
            self.finding()
        );
        let mut content = Content::new().text(&text).table(&table);
        if let Some(task) = self.found.tasks.first() {
            let inside = |path: &str| word(&format!("{output}/{path}")).into_owned();
            let merged = format!(
                "vitesse eval --model {} --data {} --split test",
                inside(&task.merged),
                task.task
            );
            let again = format!(
                "vitesse merge --model {} --adapter {} -o merged",
                inside(&format!("{}/best", self.base.key())),
                inside(&task.adapter)
            );
            content = content.command(&merged).command(&again);
        }
        content
    }
}
