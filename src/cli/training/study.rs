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

use super::{RunArgs, Watch};
use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::outcome::Outcome;

/// Runs the study in `file`, or goes on with it: what is finished in the output folder is kept.
pub(in crate::cli) fn run(file: &Path, args: &RunArgs, console: &Console) -> Result<Outcome> {
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

/// A table of the arms.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    arms: Vec<String>,
    #[serde(flatten)]
    study: Study,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [
            left("arm"),
            right("seeds"),
            right("top-1 %"),
            right("class head %"),
            right("distillation head %"),
        ];
        let mut table = Table::new(columns);
        for arm in &self.arms {
            let of = |number: &dyn Fn(&Finished) -> Option<f64>| {
                let values: Vec<f64> = self
                    .study
                    .runs
                    .iter()
                    .filter(|run| run.arm == *arm)
                    .filter_map(number)
                    .collect();
                format::mean_spread(&values, 2)
            };
            let seeds = self.study.runs.iter().filter(|run| run.arm == *arm).count();
            table.push([
                arm.clone(),
                seeds.to_string(),
                of(&|run| Some(run.top1)),
                of(&|run| run.class_top1),
                of(&|run| run.distillation_top1),
            ]);
        }
        writeln!(
            f,
            "{} (test split; mean ± standard deviation over seeds)\n\n{table}",
            self.name
        )?;
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
