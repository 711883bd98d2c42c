//! `train`: a model learns, as a recipe says.
//!
//! | file | what |
//! | --- | --- |
//! | `study` | what `--sweep` runs and shows |
//! | `page` | the same as an HTML page with a chart |

mod page;
mod study;

use std::path::PathBuf;

use super::Console;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::training::{RecipeArgs, RunArgs, Training};

/// Train or fine-tune a model as a recipe says
///
/// A value comes from, last first: a flag, the recipe file, the preset it names, the documented default, which is DeiT's. The
/// effective recipe is saved in the output folder. The best epoch is chosen on the validation split, where none is stored on
/// a tenth of the training images that is held back. A run that was interrupted or killed goes on with --resume and ends with
/// the same bits, with any number of threads. A recipe with a `[method]` is followed as `vitesse adapt` follows it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse train --preset small --model deit_micro_patch4_32 --data shapes -o runs/first
  vitesse train --model ./deit_tiny --data ./photos -o runs/tuned
  vitesse train --recipe recipes/finetune-clothing.toml --test -o runs/clothing
  vitesse train --recipe my.toml --lr 3e-4 --epochs 10 --dry-run -o runs/mine
  vitesse train --resume -o runs/first
  vitesse train --sweep recipes/studies/distillation.toml -o runs/distillation
  vitesse train --sweep recipes/studies/distillation.toml --dry-run -o runs/distillation")]
pub(super) struct Args {
    /// Run a study: every arm of this file with every seed, each tested once; go on with it if it was begun
    ///
    /// The output folder then holds study.html, study.csv and study.json. A list of values for a key that takes one makes an arm for
    /// each of them. With --dry-run, the runs are listed, and how far each of them is.
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["recipe", "resume", "force", "test"])]
    sweep: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.start_threads()?;
        if let Some(file) = &self.sweep {
            if console.team().size() > 1 {
                let sentence = "a study makes its runs one after the other in one process";
                return Err(Failure::usage(sentence).hint("start it without `mpirun`"));
            }
            if !self.recipe.table(None)?.1.is_empty() {
                let sentence = "a study says everything in its file, and no flag of a recipe changes it";
                return Err(
                    Failure::usage(sentence).hint("write the value into the file, or leave the flag out")
                );
            }
            return study::run(file, &self.run, console);
        }
        let recipe = self.recipe.resolve(&self.run, &[], console)?;
        Training::new("train", recipe, self.run, console)?.run()
    }
}
