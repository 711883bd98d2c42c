//! What every verb that transforms a model takes and says: where the result goes, sizes, proof and speed.

#[cfg(feature = "train")]
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::measure::transform::{Speed, Transform};
use vitesse::model::{Checkpoint, LoadOptions};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left};
use vitesse::train::method::Change;

use super::failure::{Exit, Failure, Result};

/// Where the result goes, as typed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the output folder if it holds a checkpoint
    #[arg(long)]
    force: bool,
    /// Show what would become of the model, and write nothing: status 3 if it would then not be written, as where the folder is taken;
    /// what cannot be read or planned ends as without this
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// The folder that is written, or is not.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    output: String,
    /// Nothing was proved, measured or written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) dry_run: bool,
    /// Of a dry run: why the output could not be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    occupied: Option<String>,
}

/// For a verb that writes several results, and more beside them.
#[cfg(feature = "train")]
impl OutputArgs {
    /// The folder that is written.
    pub(super) fn folder(&self) -> &Path {
        &self.output
    }

    /// Whether what is there may be replaced.
    pub(super) fn forces(&self) -> bool {
        self.force
    }

    /// The same for a folder inside.
    pub(super) fn inside(&self, name: &str) -> OutputArgs {
        OutputArgs {
            output: self.output.join(name),
            ..self.clone()
        }
    }
}

impl OutputArgs {
    /// The folder of a result that was written before, and is gone on with.
    pub(super) fn found(&self) -> Written {
        Written {
            output: self.output.display().to_string(),
            dry_run: false,
            occupied: None,
        }
    }

    /// Refuses a folder that does not hold `checkpoint`, which was to be written there.
    pub(super) fn holds(&self, checkpoint: &Checkpoint) -> Result<()> {
        let found = Checkpoint::load(&self.output, &LoadOptions::default())?;
        if found.spec == checkpoint.spec && found.tensors == checkpoint.tensors {
            return Ok(());
        }
        let sentence = format!(
            "`{}` holds another model than this command makes, and its training is not gone on with",
            self.output.display()
        );
        Err(Failure::usage(sentence)
            .hint("give the flags with which it was begun, or another folder with -o"))
    }

    /// Looks whether the folder may be written, before any work; of a dry run it is only told if not.
    pub(super) fn look(&self) -> Result<Written> {
        Ok(Written {
            output: self.output.display().to_string(),
            dry_run: self.dry_run,
            occupied: match Checkpoint::may_save(&self.output, self.force) {
                Err(error) if self.dry_run => Some(error.to_string()),
                free => free.map(|()| None)?,
            },
        })
    }

    /// Writes the result, if it is proved: nothing else ever is.
    pub(super) fn save(&self, checkpoint: &Checkpoint, transform: &Transform) -> Result<()> {
        self.save_with(checkpoint, transform, |_| Ok(()))
    }

    /// As [`OutputArgs::save`], with what `more` writes into the folder.
    pub(super) fn save_with(
        &self,
        checkpoint: &Checkpoint,
        transform: &Transform,
        more: impl FnOnce(&std::path::Path) -> vitesse::model::Result<()>,
    ) -> Result<()> {
        if transform.is_proved() {
            checkpoint.save_with(&self.output, self.force, more)?;
        }
        Ok(())
    }
}

impl Written {
    /// The folder.
    #[cfg(feature = "train")]
    pub(super) fn output(&self) -> &str {
        &self.output
    }

    /// How the verb ends, where nothing else is wrong.
    pub(super) fn exit(&self, met: bool) -> Exit {
        if met && self.occupied.is_none() {
            Exit::Done
        } else {
            Exit::CheckNotMet
        }
    }

    /// The line of a report about `transform`.
    pub(super) fn row(&self, transform: &Transform) -> (&'static str, String) {
        let text = if let Some(reason) = &self.occupied {
            format!("nothing was written: {reason}")
        } else if self.dry_run {
            "nothing was written: this is a dry run".into()
        } else if transform.is_proved() {
            self.output.clone()
        } else {
            "nothing was written: the check was not met".into()
        };
        ("output", text)
    }
}

/// Lines of a report.
pub(super) fn rows(transform: &Transform) -> Vec<(&'static str, String)> {
    let Change { before, after, .. } = &transform.plan;
    let mut rows = vec![
        (
            "parameters",
            change(before.param_count, after.param_count, |n| {
                format::si(n as f64, "")
            }),
        ),
        (
            "MACs",
            change(before.macs, after.macs, |n| format::si(n as f64, "")),
        ),
        (
            "weights",
            change(before.weight_bytes, after.weight_bytes, |n| {
                format::bytes(n as u64)
            }),
        ),
    ];
    if let Some(proof) = &transform.proof {
        let text = format!("{} ({}: `{}`)", proof.check, proof.images, proof.data);
        rows.push(("check", text));
    }
    if let Some(speed) = transform.speed.first() {
        let packed = (speed.before_packed_bytes, speed.after_packed_bytes);
        rows.push((
            "in memory",
            change(packed.0, packed.1, |n| format::bytes(n as u64)),
        ));
    }
    for speed in &transform.speed {
        let what = if speed.batch == 1 { "one image" } else { "a batch" };
        rows.push((what, latency(speed)));
        rows.extend(speed.warning.clone().map(|text| ("but", text)));
    }
    rows
}

fn change<T: Copy + PartialEq>(before: T, after: T, spell: impl Fn(T) -> String) -> String {
    if before == after {
        format!("{}, as before", spell(after))
    } else {
        format!("{} → {}", spell(before), spell(after))
    }
}

fn latency(speed: &Speed) -> String {
    format!(
        "{}{:.3} ms → {:.3} ms, ratio {}, {}; {} in turns, {}, {}",
        if speed.batch == 1 {
            String::new()
        } else {
            format!("of {}: ", speed.batch)
        },
        speed.before_latency_ms,
        speed.after_latency_ms,
        speed.ratio,
        speed.verdict,
        counted(speed.rounds, "round"),
        speed.precision,
        counted(speed.threads, "thread")
    )
}

/// The tensors that differ, each with its shapes; empty where none do.
pub(super) fn tensors(plan: &Change) -> String {
    let shape = |shape: &Option<Vec<usize>>| {
        let shape = shape.as_ref();
        shape.map_or_else(|| format::MISSING.to_owned(), |shape| format!("{shape:?}"))
    };
    let mut table = Table::new([left("tensor"), left("before"), left("after")]);
    for tensor in &plan.tensors {
        table.push([tensor.name.clone(), shape(&tensor.before), shape(&tensor.after)]);
    }
    let [gone, new, reshaped] = plan.counts();
    if table.is_empty() {
        return String::new();
    }
    format!("\n{table}\ntensors: {new} added, {gone} removed, {reshaped} with another shape\n")
}
