//! What a comparison on the tasks of VTAB-1k found, for people.

use std::fmt;

use vitesse::measure::trial::vtab::{Scored, Whole};
use vitesse::report::{Table, left, right};

/// The text.
pub(super) struct Text<'a>(pub(super) &'a Whole);

impl Text<'_> {
    /// A row for each task, a column for each method.
    pub(super) fn accuracies(&self) -> Table {
        let labels = || self.0.scores.iter().map(|scored| scored.method.as_str());
        let mut table = Table::new(std::iter::once(left("task")).chain(labels().map(right)));
        for found in &self.0.tasks {
            let cells = labels().map(|label| format!("{:.2}", found.top1(label)));
            table.push(std::iter::once(found.task.to_owned()).chain(cells));
        }
        table
    }
}

impl fmt::Display for Text<'_> {
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
        for Scored { method, score } in &self.0.scores {
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
        match self.0.scores.first().map(|scored| &scored.score.missing[..]) {
            Some(missing @ [_, ..]) => writeln!(f, "Not there: {}.", missing.join(", ")),
            _ => Ok(()),
        }
    }
}
