//! What a run writes while it goes: its logs, its state, its checkpoints. Of several processes the first writes, and
//! for the others every method does nothing.

use std::path::{Path, PathBuf};

use vitesse_model::Checkpoint;
use vitesse_model::config::HistoryStep;

use crate::Result;
use crate::parallel::Team;
use crate::recipe::Recipe;
use crate::run::{EpochRecord, Existing, Logs, RunFolder, StepRecord};
use crate::state::State;

/// The folder of a run, with its logs open; nothing in a process that does not write.
pub(crate) struct Output(Option<(RunFolder, Logs)>);

impl Output {
    /// Opens the folder of a run that is at `state`.
    ///
    /// # Errors
    /// As [`RunFolder::open`] and [`RunFolder::logs`].
    pub(crate) fn open(
        team: &Team,
        path: &Path,
        recipe: &Recipe,
        existing: Existing,
        state: &State,
    ) -> Result<Output> {
        if !team.leads() {
            return Ok(Output(None));
        }
        let folder = RunFolder::open(path, recipe, existing)?;
        let logs = folder.logs(state.progress.step, state.progress.epochs)?;
        Ok(Output(Some((folder, logs))))
    }

    /// Appends a step to its log.
    pub(crate) fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), |(_, logs)| logs.step(record))
    }

    /// Appends an epoch to its log.
    pub(crate) fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), |(_, logs)| logs.epoch(record))
    }

    /// Writes the state, after the log lines that belong to it.
    pub(crate) fn state(&self, state: &State) -> Result<()> {
        let Some((folder, logs)) = &self.0 else {
            return Ok(());
        };
        logs.sync()?;
        state.save(&folder.state())
    }

    /// Removes the checkpoints of all epochs but these.
    pub(crate) fn keep_epochs(&self, kept: &[usize]) -> Result<()> {
        self.0
            .as_ref()
            .map_or(Ok(()), |(folder, _)| folder.keep_epochs(kept))
    }

    /// Writes the model as it is now as the checkpoint folder at `place`, which says how it came about. `names` are the
    /// classes of the data.
    pub(crate) fn checkpoint(
        &self,
        place: impl FnOnce(&RunFolder) -> PathBuf,
        state: &State,
        recipe: &Recipe,
        names: &[String],
    ) -> Result<()> {
        let Some((folder, _)) = &self.0 else {
            return Ok(());
        };
        let mut config = state.config.clone();
        config.remove_tag(state.spec.num_classes);
        config.problem_type = None;
        if names.len() == state.spec.num_classes {
            config.label_names = names.iter().cloned().enumerate().collect();
            config.label_descriptions.retain(|name, _| names.contains(name));
        }
        let distils = recipe.distill.distils();
        config.history.push(HistoryStep {
            step: if distils { "distill" } else { "train" }.to_owned(),
            method: recipe
                .method_name()
                .or(distils.then_some("deit"))
                .map(str::to_owned),
            config: recipe.decisive()?,
            parent_sha256: state.parent_sha256.clone(),
            metrics: state.progress.metrics.clone(),
        });
        let checkpoint = Checkpoint {
            spec: state.spec.clone(),
            tensors: state.tensors(recipe.train.use_ema)?,
            config,
            source: Default::default(),
        };
        Ok(checkpoint.save(&place(folder), true)?)
    }
}
