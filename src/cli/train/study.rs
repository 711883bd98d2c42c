//! `train --sweep`: a study, every arm with every seed, from one file.

use std::fmt;
use std::path::Path;

use burn::tensor::Device;
use serde::Serialize;
use vitesse::report::{Table, format, left, right};
use vitesse_train::Error;
use vitesse_train::evaluate::EvalProgress;
use vitesse_train::events::{Events, Plan};
use vitesse_train::run::{EpochRecord, StepRecord};
use vitesse_train::sweep::{Finished, Study, Sweep, SweepEvents};
use vitesse_train::tokens::TokenSimilarity;

use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::outcome::Outcome;
use crate::cli::training::{RunArgs, Watch};

/// Runs the study in `file`, or goes on with it: what is finished in the output folder is kept.
pub(super) fn run(file: &Path, args: &RunArgs, console: &Console) -> Result<Outcome> {
    let sweep = Sweep::read(file)?;
    let mut show = Show {
        console,
        watch: Watch::new(console),
    };
    let study = sweep
        .run(&args.output, &Device::flex(), console.stop(), &mut show)
        .map_err(|error| match error {
            Error::Interrupted => Failure::stopped("interrupted; every run's state is saved".to_owned())
                .hint("continue with the same command".to_owned()),
            other => other.into(),
        })?;
    Outcome::new(&Report {
        name: sweep.name.clone(),
        first: sweep.first.keys().cloned().collect(),
        arms: sweep.arm.iter().map(|arm| arm.name.clone()).collect(),
        study,
    })
}

/// Shows one run after another.
struct Show<'a> {
    console: &'a Console,
    watch: Watch<'a>,
}

impl Events for Show<'_> {
    fn begin(&mut self, plan: &Plan) {
        self.watch.begin(plan);
    }

    fn step(&mut self, record: &StepRecord) {
        self.watch.step(record);
    }

    fn evaluating(&mut self, at: EvalProgress) {
        self.watch.evaluating(at);
    }

    fn epoch(&mut self, record: &EpochRecord, best: bool) {
        self.watch.epoch(record, best);
    }

    fn warning(&mut self, text: &str) {
        self.watch.warning(text);
    }
}

impl SweepEvents for Show<'_> {
    fn as_events(&mut self) -> &mut dyn Events {
        self
    }

    fn run(&mut self, arm: &str, seed: u64, index: usize, of: usize) {
        self.watch = Watch::new(self.console);
        self.console
            .say("run", &format!("{} of {of}: {arm}, seed {seed}", index + 1));
    }

    fn finished(&mut self, run: &Finished) {
        let time = format::duration(run.seconds);
        self.console.say(
            "tested",
            &format!("{}, seed {}: top-1 {:.2} %, {time}", run.arm, run.seed, run.top1),
        );
    }
}

/// A table of the arms, and one of their tokens.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    /// What was trained once, before the arms.
    first: Vec<String>,
    arms: Vec<String>,
    #[serde(flatten)]
    study: Study,
}

impl Report {
    /// Mean and spread over the seeds of one number of a row; `None` where no run has it.
    fn cell(&self, row: &str, digits: usize, number: impl Fn(&Finished) -> Option<f64>) -> Option<String> {
        let runs = self.study.runs.iter().filter(|run| run.arm == row);
        let values: Vec<f64> = runs.filter_map(number).collect();
        (!values.is_empty()).then(|| format::mean_spread(&values, digits))
    }

    fn accuracies(&self) -> Table {
        let columns = [
            left("arm"),
            right("seeds"),
            right("top-1 %"),
            right("class head %"),
            right("distillation head %"),
        ];
        let mut table = Table::new(columns);
        for row in self.first.iter().chain(&self.arms) {
            let cell =
                |number: &dyn Fn(&Finished) -> Option<f64>| self.cell(row, 2, number).unwrap_or_default();
            let seeds = self.study.runs.iter().filter(|run| run.arm == *row).count();
            table.push([
                row.clone(),
                seeds.to_string(),
                cell(&|run| Some(run.top1)),
                cell(&|run| run.class_top1),
                cell(&|run| run.distillation_top1),
            ]);
        }
        table
    }

    /// A column for each arm with a distillation token; `None` if there is none.
    fn tokens(&self) -> Option<Table> {
        let of = |arm: &&String| {
            self.study
                .runs
                .iter()
                .find(|run| run.arm == **arm)?
                .tokens
                .as_ref()
        };
        let arms: Vec<&String> = self.arms.iter().filter(|arm| of(arm).is_some()).collect();
        let depth = arms
            .iter()
            .filter_map(of)
            .map(|tokens| tokens.blocks.len())
            .max()?;
        let columns = arms.iter().map(|arm| right(arm.as_str()));
        let mut table = Table::new(std::iter::once(left("cosine of the two tokens")).chain(columns));
        let mut row = |place: String, number: &dyn Fn(&TokenSimilarity) -> Option<f64>| {
            let cells = arms.iter().map(|arm| {
                self.cell(arm, 3, |run| number(run.tokens.as_ref()?))
                    .unwrap_or_default()
            });
            table.push(std::iter::once(place).chain(cells));
        };
        row("as learned".to_owned(), &|tokens| Some(tokens.learned));
        row("input of the first block".to_owned(), &|tokens| {
            Some(tokens.input)
        });
        for block in 0..depth {
            row(format!("after block {block}"), &|tokens| {
                tokens.blocks.get(block).copied()
            });
        }
        row("after the final norm".to_owned(), &|tokens| Some(tokens.norm));
        Some(table)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} (test split; mean ± standard deviation over seeds)\n\n{}",
            self.name,
            self.accuracies()
        )?;
        if let Some(tokens) = self.tokens() {
            writeln!(f, "{tokens}")?;
        }
        if !self.study.missing.is_empty() {
            writeln!(
                f,
                "The budget did not last for: {}",
                self.study.missing.join("; ")
            )?;
        }
        Ok(())
    }
}
