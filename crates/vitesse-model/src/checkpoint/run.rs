//! What training leaves in folders, as far as readers of models know it.

use std::fs;
use std::path::{Path, PathBuf};

/// The recipe, by which the folder of a run is known.
pub const RECIPE: &str = "recipe.toml";
/// The checkpoint with the best validation accuracy.
pub const BEST: &str = "best";
/// The checkpoint after the last step.
pub const FINAL: &str = "final";
/// What was learned by a method, where the run had one.
pub const ADAPTER: &str = "adapter";

/// What a folder is, where training made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// A run.
    Run {
        /// Whether it learns by a method, which leaves an adapter.
        by_method: bool,
    },
    /// Several runs, of a comparison or a study: where the first of them is.
    Runs(PathBuf),
}

/// Folders below that of VTAB-1k's tasks: the task, the entry, the seed.
const DEEPEST: usize = 3;

/// What training left in `folder`; nothing where it was not there.
pub fn left_in(folder: &Path) -> Option<Left> {
    if let Ok(recipe) = fs::read_to_string(folder.join(RECIPE)) {
        let by_method = recipe.lines().any(|line| line.trim() == "[method]");
        return Some(Left::Run { by_method });
    }
    first_run(folder, DEEPEST).map(Left::Runs)
}

/// The first folder of a run, so deep below `folder` at most.
fn first_run(folder: &Path, deep: usize) -> Option<PathBuf> {
    if deep == 0 {
        return None;
    }
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    let here = folders.iter().find(|path| path.join(RECIPE).is_file());
    here.cloned()
        .or_else(|| folders.iter().find_map(|path| first_run(path, deep - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_and_a_folder_of_runs_are_known() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path();
        assert_eq!(left_in(out), None);
        let first = out.join("lora/seed0");
        for run in [&first, &out.join("lora/seed1")] {
            fs::create_dir_all(run).unwrap();
            fs::write(
                run.join(RECIPE),
                "[data]\npath = \"shapes\"\n\n[method]\nname = \"lora\"\n",
            )
            .unwrap();
        }
        assert_eq!(left_in(out), Some(Left::Runs(first.clone())));
        assert_eq!(left_in(&first), Some(Left::Run { by_method: true }));
        fs::write(first.join(RECIPE), "[data]\n").unwrap();
        assert_eq!(left_in(&first), Some(Left::Run { by_method: false }));
    }
}
