//! What was cut, what it cost and what it saved.

use std::fmt;

use serde::Serialize;
use vitesse::compress::structure::Kind;
use vitesse::measure::judge::Accuracy;
use vitesse::measure::prune::{Correction, Method, Pruned, Quantity, Sensitivity};
use vitesse::measure::transform::Transform;
use vitesse::model::Checkpoint;
use vitesse::model::spec::BlockSpec;
use vitesse::report::{Table, format, left, right};
use vitesse_train::method::Change;

use crate::cli::outcome::pairs;
use crate::cli::training;
use crate::cli::transform::{self, Written};

/// What was done, and its proof; or what would be.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    step: &'static str,
    pub(super) method: Method,
    budget: &'static str,
    /// The same in words.
    #[serde(skip)]
    pub(super) quantity: &'static str,
    /// One for each budget.
    pub(super) results: Vec<ResultOf>,
    /// Of a dry run: of each kind of units, what would be solved anew for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) remedies: Vec<Remedy>,
    /// How much each group matters by itself, if it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sensitivity: Vec<Sensitivity>,
    /// The blocks of the model before.
    #[serde(skip)]
    dense: Vec<Block>,
}

/// What became of one budget.
#[derive(Debug, Serialize)]
pub(super) struct ResultOf {
    /// What was asked for: the share of the budget's quantity that may be left.
    pub(super) share: f64,
    #[serde(flatten)]
    written: Written,
    /// Of a latency that was not reached, the share that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<f64>,
    /// The share of units that went.
    pub(super) units_gone: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accuracy: Option<Accuracy>,
    /// Block by block: heads and hidden units that are left.
    pub(super) blocks: Vec<Block>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) corrections: Vec<Correction>,
    #[serde(flatten)]
    pub(super) transform: Transform,
    /// The run that came after, as `distill` reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recovered: Option<training::Report>,
}

/// What would be solved anew where units of a kind are cut.
#[derive(Debug, Serialize)]
pub(super) struct Remedy {
    pub(super) units: Kind,
    pub(super) correction: Option<&'static str>,
}

/// What is left of a block.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Block {
    /// Width of queries and of values of each head.
    pub(super) heads: Vec<[usize; 2]>,
    /// Hidden units.
    pub(super) hidden: usize,
}

impl Block {
    pub(super) fn of(block: &BlockSpec) -> Block {
        let heads = block
            .attn
            .as_ref()
            .map(|attn| attn.qk_dims.iter().zip(&attn.v_dims));
        Block {
            heads: heads.into_iter().flatten().map(|(qk, v)| [*qk, *v]).collect(),
            hidden: block.mlp.as_ref().map_or(0, |mlp| mlp.hidden),
        }
    }

    /// As `3 × 64`, or each width where heads differ.
    fn heads(&self) -> String {
        let width = |[qk, v]: &[usize; 2]| {
            if qk == v {
                qk.to_string()
            } else {
                format!("{qk}/{v}")
            }
        };
        match &self.heads[..] {
            [] => "none".to_owned(),
            [first, others @ ..] if others.iter().all(|other| other == first) => {
                format!("{} × {}", self.heads.len(), width(first))
            }
            heads => heads.iter().map(width).collect::<Vec<_>>().join(" "),
        }
    }
}

/// The blocks of a model in their order; none of another family, which is refused before anything is cut.
fn blocks(checkpoint: &Checkpoint) -> Vec<Block> {
    let Ok(body) = checkpoint.spec.transformer() else {
        return Vec::new();
    };
    let cores = (0..body.layers().len()).filter_map(|layer| body.block(layer));
    cores.map(Block::of).collect()
}

impl Report {
    pub(super) fn new(model: &Checkpoint, method: Method, quantity: Quantity) -> Report {
        Report {
            model: model.spec.architecture.clone(),
            step: "prune",
            method,
            budget: quantity.name(),
            quantity: quantity.words(),
            results: Vec::new(),
            remedies: Vec::new(),
            sensitivity: Vec::new(),
            dense: blocks(model),
        }
    }

    /// The folders that are there already.
    pub(super) fn written(&self) -> String {
        let folders = self.results.iter().map(|result| result.written.output());
        folders.collect::<Vec<_>>().join(", ")
    }

    /// All budgets side by side.
    pub(super) fn budgets(&self) -> Table {
        let mut table = Table::new([
            left("budget"),
            right("MACs"),
            right("parameters"),
            right("batch"),
            right("before (ms)"),
            right("after (ms)"),
            right("top-1 (%)"),
        ]);
        for result in &self.results {
            let plan = &result.transform.plan;
            for speed in &result.transform.speed {
                table.push([
                    format!("{} of the {}", result.share, self.quantity),
                    format::si(plan.after.macs as f64, ""),
                    format::si(plan.after.param_count as f64, ""),
                    speed.batch.to_string(),
                    format!("{:.2}", speed.before_latency_ms),
                    format!("{:.2}", speed.after_latency_ms),
                    match &result.accuracy {
                        Some(accuracy) => format!("{:.1}", accuracy.after_top1),
                        None => format::MISSING.to_owned(),
                    },
                ]);
            }
        }
        table
    }

    /// What each group's half of units is worth.
    pub(super) fn sensitivities(&self) -> Table {
        let mut table = Table::new([left("group"), right("kept"), right("top-1 (%)")]);
        for one in &self.sensitivity {
            table.push([
                one.group.clone(),
                format!("{} of {}", one.kept, one.units),
                format!("{:.1}", one.top1),
            ]);
        }
        table
    }

    /// Before and after, block by block.
    pub(super) fn widths(&self, result: &ResultOf) -> Table {
        let mut table = Table::new([
            left("block"),
            right("heads before"),
            right("after"),
            right("hidden before"),
            right("after"),
        ]);
        for (index, (before, after)) in self.dense.iter().zip(&result.blocks).enumerate() {
            table.push([
                index.to_string(),
                before.heads(),
                after.heads(),
                before.hidden.to_string(),
                after.hidden.to_string(),
            ]);
        }
        table
    }
}

impl ResultOf {
    /// What was asked for, and what was reached.
    fn budget(&self, quantity: &str) -> String {
        let Change { before, after, .. } = &self.transform.plan;
        let reached = match quantity {
            "MACs" => Some(after.macs as f64 / before.macs.max(1) as f64),
            "parameters" => Some(after.param_count as f64 / before.param_count.max(1) as f64),
            "bytes" => Some(after.weight_bytes as f64 / before.weight_bytes.max(1) as f64),
            _ => self.transform.speed.first().map(|speed| speed.ratio.median),
        };
        let mut text = format!("{} of the {quantity}", self.share);
        if let Some(reached) = reached {
            text += &format!(", {reached:.3} reached");
        }
        if self.missed.is_some() {
            text += ": it was missed by more than the noise; allow more, or let other units go as well";
        }
        text
    }

    pub(super) fn new(share: f64, pruned: Pruned, written: Written) -> ResultOf {
        ResultOf {
            share,
            written,
            missed: pruned.missed,
            units_gone: pruned.gone,
            accuracy: pruned.accuracy,
            blocks: blocks(&pruned.checkpoint),
            corrections: pruned.corrected,
            transform: pruned.transform,
            recovered: None,
        }
    }

    /// How far the stream is off, before and after the correction.
    fn corrected(&self) -> Option<String> {
        let count = self.corrections.len();
        let mean =
            |of: fn(&Correction) -> f64| 100.0 * self.corrections.iter().map(of).sum::<f64>() / count as f64;
        (count > 0).then(|| {
            format!(
                "the stream is off by {:.1} % of its mean square after the cut, {:.1} % after the correction (mean of {count} halves of blocks)",
                mean(|fit| fit.cut),
                mean(|fit| fit.corrected)
            )
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.sensitivity.is_empty() {
            writeln!(f, "{}", self.sensitivities())?;
        }
        for Remedy { units, correction } in &self.remedies {
            writeln!(
                f,
                "where units of kind `{units}` go, {}",
                correction.unwrap_or("nothing can make good for them")
            )?;
        }
        for (index, result) in self.results.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let mut rows = vec![
                ("model", self.model.clone()),
                ("budget", result.budget(self.quantity)),
                ("cut", format!("{:.1} % of the units", 100.0 * result.units_gone)),
            ];
            rows.extend(result.corrected().map(|text| ("correction", text)));
            rows.extend(transform::rows(&result.transform));
            if let Some(accuracy) = &result.accuracy {
                let text = format!(
                    "{:.2} % → {:.2} % without training, of {} validation images",
                    accuracy.before_top1, accuracy.after_top1, accuracy.images
                );
                rows.push(("top-1", text));
            }
            rows.push(result.written.row(&result.transform));
            f.write_str(&pairs(rows))?;
            if let Some(run) = &result.recovered {
                write!(f, "\nRecovery:\n{run}")?;
            }
            if result.written.dry_run {
                write!(f, "\n{}", self.widths(result))?;
            }
        }
        Ok(())
    }
}
