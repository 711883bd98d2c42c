//! What is told of a model whose tokens become fewer.

use std::fmt;

use serde::Serialize;
use vitesse::compress::tokens::Method;
use vitesse::measure::proof::FromBase;
use vitesse::measure::tokens::{Reduced, Tokens};
use vitesse::measure::transform::Transform;
use vitesse::report::{Table, left, right};

use crate::cli::outcome::pairs;
use crate::cli::transform::{self, Written};

/// What was done, and its proof; or what would be.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    written: Written,
    model: String,
    step: &'static str,
    /// The name.
    method: &'static str,
    /// With what the budget asked for found, if there was one.
    settings: Method,
    /// The share of the multiply-accumulates that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked: Option<f64>,
    tokens: Vec<Tokens>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_base: Option<FromBase>,
    #[serde(flatten)]
    transform: Transform,
}

impl Report {
    pub(super) fn new(reduced: Reduced, asked: Option<f64>, written: Written) -> Report {
        Report {
            written,
            model: reduced.checkpoint.spec.architecture,
            step: "tokens",
            method: reduced.method.name(),
            settings: reduced.method,
            asked,
            tokens: reduced.tokens,
            from_base: reduced.from_base,
            transform: reduced.transform,
        }
    }

    /// The share of the multiply-accumulates that is left.
    fn left(&self) -> f64 {
        let plan = &self.transform.plan;
        plan.after.macs as f64 / plan.before.macs.max(1) as f64
    }

    /// What was saved in multiply-accumulates, and what in time.
    fn speed(&self) -> Option<(&'static str, String)> {
        let speed = self.transform.speed.first()?;
        let text = format!(
            "of an image {:.1} % of the MACs and {:.1} % of the time are left on this machine",
            100.0 * self.left(),
            100.0 * speed.ratio.median
        );
        Some(("honest speed", text))
    }

    /// How many each block sees.
    fn blocks(&self) -> Table {
        let mut table = Table::new([
            left("block"),
            right("tokens before"),
            right("in attention"),
            right("in the perceptron"),
        ]);
        for tokens in &self.tokens {
            let counts = [tokens.layer, tokens.before, tokens.attention, tokens.perceptron];
            table.push(counts.map(|count| count.to_string()));
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![
            ("model", self.model.clone()),
            ("method", format!("{}: {}", self.method, self.settings)),
        ];
        if let Some(asked) = self.asked {
            rows.push((
                "budget",
                format!("{asked} of the MACs, {:.3} reached", self.left()),
            ));
        }
        if let (Some(first), Some(last)) = (self.tokens.first(), self.tokens.last()) {
            rows.push((
                "tokens",
                format!("{} → {} after the last block", first.before, last.perceptron),
            ));
        }
        rows.extend(transform::rows(&self.transform));
        rows.extend(self.speed());
        if let Some(FromBase { agreeing, images }) = self.from_base {
            let told = format!("names the same class on {agreeing} of {images} images, without any training");
            rows.push(("beside the base", told));
        }
        rows.push(self.written.row(&self.transform));
        f.write_str(&pairs(rows))?;
        write!(f, "\n{}", self.blocks())
    }
}
