//! The folder of a run.
//!
//! ```text
//! recipe.toml                 the effective recipe
//! summary.csv                 a row an epoch: timm's columns, then ours
//! metrics.jsonl               a line a step
//! last/state.safetensors      where the run is, to resume from
//! best/                       checkpoint with the best validation accuracy
//! epochs/0012/                the best few, where `train.keep` asks for more than one
//! final/                      checkpoint after the last step
//! test.json                   the one evaluation on the test split, where it was asked for
//! adapter/, result.json       what `adapt` makes of the run
//! ```
//!
//! The state is written after the lines that belong to it, and resuming drops lines that are ahead of the state. So
//! whenever a run is killed, its logs continue without a gap and without a repetition.

mod log;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
pub use vitesse_model::checkpoint::run::{ADAPTER, BEST, FINAL};
use vitesse_model::checkpoint::run::{Left, RECIPE, left_in};
use vitesse_model::storage::atomic_write;

use crate::recipe::Recipe;
use crate::resume::{may_resume, without_method};
use crate::{Error, Result};
pub use log::{EpochRecord, Logs, StepRecord};
use log::{METRICS, SUMMARY};

/// What may be done about a folder that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: it is an error, unless it is empty.
    Refuse,
    /// The run in it is deleted.
    Replace,
    /// The run in it is continued.
    Resume,
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

const TEST: &str = "test.json";
/// What the run came to, where it is one of a comparison.
pub const RESULT: &str = "result.json";

impl RunFolder {
    /// Refuses what [`RunFolder::open`] would refuse, and touches nothing.
    ///
    /// # Errors
    /// A folder that exists and is neither replaced nor resumed, or holds no run to replace or resume, or one of
    /// another recipe.
    pub fn check(path: &Path, recipe: &Recipe, existing: Existing) -> Result<()> {
        let occupied = path.is_file() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        match existing {
            Existing::Resume => may_resume(path, &RunFolder::recipe(path)?, recipe),
            Existing::Refuse if occupied => Err(Error::RunExists {
                path: path.to_owned(),
            }),
            Existing::Replace if occupied && !path.join(RECIPE).is_file() => Err(Error::NotARun {
                path: path.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Opens the folder of a new run, with its recipe, or of one that is resumed, whose recipe must be the same but
    /// for what does not change the result.
    ///
    /// # Errors
    /// As [`RunFolder::check`], and whatever the file system says.
    pub fn open(path: &Path, recipe: &Recipe, existing: Existing) -> Result<RunFolder> {
        RunFolder::check(path, recipe, existing)?;
        let run = RunFolder {
            path: path.to_owned(),
        };
        if existing == Existing::Replace {
            run.delete()?;
        }
        // Also of a run that is resumed: one that was killed at once may have no folder for its state.
        fs::create_dir_all(path.join("last")).map_err(Error::io("create", path))?;
        if existing == Existing::Resume {
            return Ok(run);
        }
        let text = recipe.to_toml()?;
        atomic_write(&path.join(RECIPE), |file| file.write_all(text.as_bytes()))?;
        Ok(run)
    }

    /// The effective recipe of the run in `path`.
    ///
    /// # Errors
    /// A folder without a run, or a recipe that cannot be read.
    pub fn recipe(path: &Path) -> Result<Recipe> {
        let file = path.join(RECIPE);
        if !file.is_file() {
            let reason = match left_in(path) {
                Some(Left::Runs(first)) => format!(
                    "it holds several runs, of a comparison or a study; type the whole command that began them, `--compare` and all, or \
                     go on with one of them alone: `-o {}`",
                    first.display()
                ),
                _ => format!("it holds no {RECIPE}, so there is no run in it; start one without `--resume`"),
            };
            return Err(Error::Resume {
                path: path.to_owned(),
                reason,
            });
        }
        Recipe::read(&file, &[])
    }

    /// Refuses to go on with the run in `path` by a method where it has none.
    ///
    /// # Errors
    /// A run that was begun without a method; as [`RunFolder::recipe`].
    pub fn check_method(path: &Path) -> Result<()> {
        let begun = RunFolder::recipe(path)?;
        if begun.method.is_some() {
            return Ok(());
        }
        Err(Error::Resume {
            path: path.to_owned(),
            reason: without_method(&begun),
        })
    }

    /// Removes what a run writes, and nothing else.
    fn delete(&self) -> Result<()> {
        for folder in ["last", BEST, "epochs", FINAL, ADAPTER] {
            let folder = self.path.join(folder);
            if folder.is_dir() {
                fs::remove_dir_all(&folder).map_err(Error::io("delete", &folder))?;
            }
        }
        for file in [RESULT, TEST, SUMMARY, METRICS, RECIPE] {
            let file = self.path.join(file);
            if file.is_file() {
                fs::remove_file(&file).map_err(Error::io("delete", &file))?;
            }
        }
        Ok(())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the state to resume from.
    pub fn state(&self) -> PathBuf {
        RunFolder::state_in(&self.path)
    }

    /// The file of the state of the run in `path`, if it has saved one.
    pub fn state_in(path: &Path) -> PathBuf {
        path.join("last").join("state.safetensors")
    }

    /// The file of the state from which a run in `path` goes on; `None` for one that begins: a new one, and one that was killed
    /// before its first state was saved, which is where it was left. Of such a run an epoch may be finished, but no more.
    ///
    /// # Errors
    /// A run that must have had a state, and has none.
    pub(crate) fn saved_state(path: &Path, existing: Existing) -> Result<Option<PathBuf>> {
        if existing != Existing::Resume {
            return Ok(None);
        }
        let saved = RunFolder::state_in(path);
        if saved.is_file() {
            return Ok(Some(saved));
        }
        // Also a row that is half written.
        let rows = fs::read_to_string(path.join(SUMMARY)).map_or(0, |text| text.lines().skip(1).count());
        if rows < 2 && !path.join(FINAL).is_dir() && !path.join(ADAPTER).is_dir() {
            return Ok(None);
        }
        Err(Error::Resume {
            path: path.to_owned(),
            reason: format!(
                "it has results (`{SUMMARY}`, `{BEST}`), but `last/state.safetensors`, from which it would go on, is missing; put that file \
                 back, or begin anew with `--force` instead of `--resume`, which deletes the results"
            ),
        })
    }

    /// The checkpoint that the finished run in `path` is known by: of the best epoch, or of the last where none was evaluated.
    pub fn checkpoint_in(path: &Path) -> PathBuf {
        let best = path.join(BEST);
        if best.is_dir() { best } else { path.join(FINAL) }
    }

    /// The checkpoint with the best validation accuracy.
    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// The checkpoint after the last step.
    pub fn last_checkpoint(&self) -> PathBuf {
        self.path.join(FINAL)
    }

    /// The checkpoint of one of the best epochs.
    pub fn epoch(&self, epoch: usize) -> PathBuf {
        self.path.join("epochs").join(format!("{epoch:04}"))
    }

    /// Removes the checkpoints of all epochs but these.
    pub(crate) fn keep_epochs(&self, kept: &[usize]) -> Result<()> {
        let folder = self.path.join("epochs");
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let epoch = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<usize>().ok());
            if epoch.is_some_and(|epoch| !kept.contains(&epoch)) {
                fs::remove_dir_all(entry.path()).map_err(Error::io("delete", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Opens the logs, having dropped what is ahead of a state after `steps` steps and `epochs` finished epochs.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn logs(&self, steps: usize, epochs: usize) -> Result<Logs> {
        Logs::open(&self.path, steps, epochs)
    }

    /// Keeps what the evaluation on the test split found, for the run in `path`.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save_test(path: &Path, found: &impl Serialize) -> Result<()> {
        let path = path.join(TEST);
        let text = serde_json::to_string_pretty(found)
            .map_err(|error| Error::Backend(format!("writing a test result: {error}")))?;
        Ok(atomic_write(&path, |file| file.write_all(text.as_bytes()))?)
    }

    /// The rows of the `summary.csv` of the run in `path`.
    ///
    /// # Errors
    /// A file that is not there or holds something else.
    pub fn summary(path: &Path) -> Result<Vec<EpochRecord>> {
        let path = path.join(SUMMARY);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let broken = || Error::Resume {
            path: path.clone(),
            reason: "a row of it cannot be read".into(),
        };
        text.lines()
            .skip(1)
            .map(|line| EpochRecord::parse(line).ok_or_else(broken))
            .collect()
    }

    /// Seconds of all finished epochs of the run in `path`, evaluation included.
    ///
    /// # Errors
    /// As [`RunFolder::summary`].
    pub fn earlier_seconds(path: &Path) -> Result<f64> {
        Ok(RunFolder::summary(path)?.iter().map(|row| row.seconds).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::log::COLUMNS;
    use super::*;

    fn recipe() -> Recipe {
        let text = "[model]\nname = \"vit_nano_patch4_32\"\n[data]\npath = \"shapes\"\n";
        Recipe::parse(text, "test.toml", &[]).unwrap()
    }

    #[test]
    fn logs_go_on_behind_the_state() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let folder = RunFolder::open(&path, &recipe(), Existing::Refuse).unwrap();
        let mut logs = folder.logs(0, 0).unwrap();
        for epoch in 0..4 {
            logs.epoch(&EpochRecord {
                epoch,
                seconds: 2.0,
                ..EpochRecord::default()
            })
            .unwrap();
        }
        logs.sync().unwrap();
        assert_eq!(RunFolder::earlier_seconds(&path).unwrap(), 8.0);
        // The last row was being written when the process died.
        let file = path.join(SUMMARY);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, &text[..text.len() - 4]).unwrap();
        drop(folder.logs(0, 9).unwrap());
        assert_eq!(RunFolder::summary(&path).unwrap().len(), 3);
        drop(folder.logs(0, 1).unwrap());
        assert_eq!(RunFolder::summary(&path).unwrap().len(), 1);
        assert!(fs::read_to_string(file).unwrap().starts_with(COLUMNS));
    }

    #[test]
    fn a_run_with_results_does_not_begin_again_where_its_state_is_lost() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let folder = RunFolder::open(&path, &recipe(), Existing::Refuse).unwrap();
        let state = || RunFolder::saved_state(&path, Existing::Resume);
        let mut logs = folder.logs(0, 0).unwrap();
        assert_eq!(state().unwrap(), None);
        // It may have been killed between the row of an epoch and the state after it.
        logs.epoch(&EpochRecord::default()).unwrap();
        assert_eq!(state().unwrap(), None);
        logs.epoch(&EpochRecord::default()).unwrap();
        let refused = state().unwrap_err().to_string();
        assert!(
            refused.contains("`last/state.safetensors`") && refused.contains("--force"),
            "{refused}"
        );
        assert_eq!(RunFolder::saved_state(&path, Existing::Replace).unwrap(), None);
        fs::write(folder.state(), "a state").unwrap();
        assert_eq!(state().unwrap(), Some(folder.state()));
        // A finished run of one epoch.
        fs::remove_file(folder.state()).unwrap();
        drop(folder.logs(0, 0).unwrap());
        fs::create_dir(path.join(FINAL)).unwrap();
        assert!(state().is_err());
    }

    #[test]
    fn only_a_run_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        // An empty folder is as good as none.
        fs::create_dir(&path).unwrap();
        RunFolder::open(&path, &recipe(), Existing::Refuse).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        fs::create_dir(path.join(ADAPTER)).unwrap();
        fs::write(path.join(RESULT), "{}").unwrap();
        assert!(matches!(
            RunFolder::open(&path, &recipe(), Existing::Refuse),
            Err(Error::RunExists { .. })
        ));
        RunFolder::open(&path, &recipe(), Existing::Replace).unwrap();
        assert!(path.join("notes.txt").exists(), "what no run wrote is left alone");
        assert!(!path.join(ADAPTER).exists() && !path.join(RESULT).exists());
        fs::remove_dir(path.join("last")).unwrap();
        RunFolder::open(&path, &recipe(), Existing::Resume).unwrap();
        assert!(path.join("last").is_dir(), "a state can be written again");
        fs::remove_file(path.join(RECIPE)).unwrap();
        assert!(matches!(
            RunFolder::open(&path, &recipe(), Existing::Replace),
            Err(Error::NotARun { .. })
        ));
        assert!(matches!(
            RunFolder::open(&path, &recipe(), Existing::Resume),
            Err(Error::Resume { .. })
        ));
    }
}
