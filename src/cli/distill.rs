//! `distill`: a model learns from labels and from a teacher.

use std::path::Path;

use toml::Value;
use vitesse::measure::refuse_what_is_no_name;
use vitesse::model::checkpoint::weights_file;
use vitesse_train::Error;
use vitesse_train::loss::Kind;

use super::Console;
use super::args::model::is_path;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::training::{RecipeArgs, RunArgs, Training};

/// Train a model with a teacher
///
/// The student sees the labels and what the teacher says about the same, augmented and mixed, image. A model with a
/// distillation token learns the teacher's answer with that token's head, any other model with its one head. Teacher and
/// student must have the same classes; image size and normalisation may differ. Everything else is as in `vitesse train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse distill --preset small --model deit_micro_distilled_patch4_32 --data shapes --teacher runs/first/best -o runs/student
  vitesse distill --recipe recipes/distill-fashion.toml --teacher runs/fashion-teacher/best --test -o runs/fashion-student
  vitesse distill --recipe my.toml --teacher t --distillation-type soft --distillation-alpha 0.1 --distillation-tau 3 -o runs/soft")]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    teacher: TeacherArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What is learned from whom, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Distillation")]
struct TeacherArgs {
    /// The teacher: a checkpoint folder, or a `.safetensors` or `.pth` file, with the student's classes
    #[arg(long, alias = "teacher-path", value_name = "MODEL")]
    teacher: Option<String>,
    /// Which state dict of a teacher's file with several [default: timm's choice]
    #[arg(long, value_name = "NAME")]
    teacher_key: Option<String>,
    /// Learn the teacher's most likely class (hard), its probabilities (soft), or nothing (none) [default: hard]
    #[arg(long, value_name = "TYPE", value_parser = ["none", "soft", "hard"])]
    distillation_type: Option<String>,
    /// Weight of the teacher, from 0 to 1; the labels have the rest [default: 0.5]
    #[arg(long, value_name = "ALPHA")]
    distillation_alpha: Option<f64>,
    /// Temperature of soft distillation [default: 1]
    #[arg(long, value_name = "TAU")]
    distillation_tau: Option<f64>,
    /// What soft distillation is divided by: samples times classes (per-element, as the reference program does) or samples
    /// (per-sample, as the paper writes) [default: per-element]
    #[arg(long, value_name = "BY", value_parser = ["per-element", "per-sample"])]
    normaliser: Option<String>,
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.start_threads()?;
        let recipe = self
            .recipe
            .resolve(&self.run, &self.teacher.overrides()?, console)?;
        if !recipe.distill.distils() && recipe.distill.kind != Some(Kind::None) {
            return Err(Failure::from(Error::TeacherMissing).hint("name one with --teacher"));
        }
        Training::new("distill", recipe, self.run, console)?.run()
    }
}

impl TeacherArgs {
    fn overrides(&self) -> Result<Vec<(&'static str, Value)>> {
        if let Some(teacher) = &self.teacher
            && !is_path(teacher)
        {
            refuse_what_is_no_name(teacher)?;
            let sentence =
                format!("`{teacher}` names an architecture without weights, which has nothing to teach");
            return Err(Failure::usage(sentence).hint("train it first, or give the folder of a checkpoint"));
        }
        if let Some(teacher) = &self.teacher {
            let refuse = |reason| Error::Teacher {
                teacher: teacher.clone(),
                reason,
            };
            let file = weights_file(Path::new(teacher)).map_err(|error| refuse(error.to_string()))?;
            if !file.exists() {
                return Err(refuse("there is no such file or folder".to_owned()).into());
            }
        }
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let number = |value: Option<f64>| value.map(Value::Float);
        let keys = [
            ("distill.teacher", text(&self.teacher)),
            ("distill.key", text(&self.teacher_key)),
            ("distill.kind", text(&self.distillation_type)),
            ("distill.alpha", number(self.distillation_alpha)),
            ("distill.tau", number(self.distillation_tau)),
            ("distill.normaliser", text(&self.normaliser)),
        ];
        Ok(keys
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect())
    }
}
