//! `train --sweep`: a study, every arm with every seed, from one file.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vitesse::measure::Error;
use vitesse::measure::sweep::{Finished, Planned, Progress, Study, Sweep};
use vitesse::measure::trial::keep;
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};
use vitesse_train::Error as TrainError;
use vitesse_train::tokens::TokenSimilarity;

use super::page;
use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::outcome::Outcome;
use crate::cli::show::ShowRuns;
use crate::cli::training::RunArgs;

/// Runs the study in `file`, or goes on with it: what is finished in the output folder is kept.
pub(super) fn run(file: &Path, args: &RunArgs, console: &Console) -> Result<Outcome> {
    let sweep = Sweep::read(file)?;
    if args.dry_run {
        let (runs, seconds) = sweep.plan(&args.output)?;
        return Outcome::new(&Plan {
            name: sweep.name,
            budget_hours: sweep.budget_hours,
            seconds,
            runs,
        });
    }
    let study = sweep
        .run(&args.output, console.stop(), &mut ShowRuns::new(console))
        .map_err(|error| match error {
            Error::Train(TrainError::Interrupted) => {
                Failure::stopped("interrupted; every run's state is saved".to_owned())
                    .hint("continue with the same command".to_owned())
            }
            other => other.into(),
        })?;
    let report = Report {
        page: args.output.join(PAGE).display().to_string(),
        name: sweep.name.clone(),
        first: sweep.first.keys().cloned().collect(),
        arms: sweep.arm.iter().map(|arm| arm.name.clone()).collect(),
        study,
    };
    let (table, page) = (report.runs().to_csv(), page::page(&report));
    keep(
        &args.output,
        (DOCUMENT, &report),
        &[(TABLE, &table), (PAGE, &page)],
    )?;
    Outcome::new(&report)
}

/// What stands in the folder of a study, besides its runs.
const DOCUMENT: &str = "study.json";
const TABLE: &str = "study.csv";
const PAGE: &str = "study.html";

/// What would be done.
#[derive(Debug, Serialize)]
struct Plan {
    name: String,
    budget_hours: f64,
    /// Of the finished runs.
    seconds: f64,
    runs: Vec<Planned>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([left("arm"), right("seed"), left("state")]);
        for run in &self.runs {
            let state = match run.state {
                Progress::Finished => "finished",
                Progress::Begun => "goes on",
                Progress::New => "new",
            };
            table.push([run.arm.as_str(), &run.seed.to_string(), state]);
        }
        let finished = self
            .runs
            .iter()
            .filter(|run| run.state == Progress::Finished)
            .count();
        writeln!(
            f,
            "{}\n\n{table}\n{}, {finished} finished in {}; no run is begun once they took {} together",
            self.name,
            counted(self.runs.len(), "run"),
            format::duration(self.seconds),
            format::duration(3600.0 * self.budget_hours)
        )
    }
}

/// A table of the arms, and one of their tokens.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) name: String,
    /// What was trained once, before the arms.
    first: Vec<String>,
    arms: Vec<String>,
    #[serde(flatten)]
    pub(super) study: Study,
    page: String,
}

impl Report {
    /// What was trained, in the order of the tables.
    pub(super) fn rows(&self) -> impl Iterator<Item = &String> {
        self.first.iter().chain(&self.arms)
    }

    /// What the numbers are, in a sentence.
    pub(super) fn about(&self) -> String {
        let missing = match &self.study.missing[..] {
            [] => String::new(),
            runs => format!(" The budget did not last for {}.", runs.join("; ")),
        };
        format!("On the test split; mean ± standard deviation over the seeds.{missing}")
    }

    /// Every run, a row each, for programs.
    pub(super) fn runs(&self) -> Table {
        let mut table = Table::new([
            left("arm"),
            right("seed"),
            right("param_count"),
            right("weight_bytes"),
            right("top1"),
            right("class_top1"),
            right("distillation_top1"),
            right("epochs"),
            right("seconds"),
        ]);
        let cell = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let whole = |value: Option<usize>| value.map(|value| value.to_string()).unwrap_or_default();
        for run in &self.study.runs {
            table.push([
                run.arm.clone(),
                run.seed.to_string(),
                whole(run.param_count),
                whole(run.weight_bytes),
                run.top1.to_string(),
                cell(run.class_top1),
                cell(run.distillation_top1),
                run.epochs.to_string(),
                run.seconds.to_string(),
            ]);
        }
        table
    }

    /// Whether a run has two heads, whose accuracies are told apart.
    fn has_heads(&self) -> bool {
        self.study.runs.iter().any(|run| run.class_top1.is_some())
    }

    /// The same for people.
    pub(super) fn every_run(&self) -> Table {
        let mut columns = vec![left("arm"), right("seed"), right("top-1 %")];
        if self.has_heads() {
            columns.extend([right("class head %"), right("distillation head %")]);
        }
        columns.extend([right("epochs"), right("time")]);
        let mut table = Table::new(columns);
        let percent = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
        for run in &self.study.runs {
            let mut cells = vec![run.arm.clone(), run.seed.to_string(), percent(Some(run.top1))];
            if self.has_heads() {
                cells.extend([run.class_top1, run.distillation_top1].map(percent));
            }
            cells.extend([run.epochs.to_string(), format::duration(run.seconds)]);
            table.push(cells);
        }
        table
    }

    /// Mean and spread over the seeds of one number of a row; `None` where no run has it.
    fn cell(&self, row: &str, digits: usize, number: impl Fn(&Finished) -> Option<f64>) -> Option<String> {
        let runs = self.study.runs.iter().filter(|run| run.arm == row);
        let values: Vec<f64> = runs.filter_map(number).collect();
        (!values.is_empty()).then(|| format::mean_spread(&values, digits))
    }

    pub(super) fn accuracies(&self) -> Table {
        let mut columns = vec![left("arm"), right("parameters"), right("seeds"), right("top-1 %")];
        let heads = self.has_heads();
        if heads {
            columns.extend([right("class head %"), right("distillation head %")]);
        }
        let mut table = Table::new(columns);
        for row in self.rows() {
            let cell =
                |number: &dyn Fn(&Finished) -> Option<f64>| self.cell(row, 2, number).unwrap_or_default();
            let runs: Vec<&Finished> = self.study.runs.iter().filter(|run| run.arm == *row).collect();
            let parameters = runs.iter().find_map(|run| run.param_count);
            let parameters = parameters.map(|n| format::si(n as f64, "")).unwrap_or_default();
            let mut cells = vec![row.clone(), parameters, runs.len().to_string()];
            cells.push(cell(&|run| Some(run.top1)));
            if heads {
                cells.extend([cell(&|run| run.class_top1), cell(&|run| run.distillation_top1)]);
            }
            table.push(cells);
        }
        table
    }

    /// A column for each arm with a distillation token; `None` if there is none.
    pub(super) fn tokens(&self) -> Option<Table> {
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
        writeln!(f, "{}\n{}\n\n{}", self.name, self.about(), self.accuracies())?;
        if let Some(tokens) = self.tokens() {
            writeln!(f, "{tokens}")?;
        }
        writeln!(f, "`{}` shows it with a chart", self.page)
    }
}
