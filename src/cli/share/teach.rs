//! What the shared model learns afterwards: flags → recipe → run → accuracy before and after.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};
use vitesse::compress::Method;
use vitesse::compress::share::minivit;
use vitesse::data::{DataSet, Split};
use vitesse::measure::accuracy::open_test;
use vitesse::measure::judge::{Judge, Scored};
use vitesse::measure::share::Lesson;
use vitesse::measure::trial::setting;
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec};
use vitesse::report::format;
use vitesse_kernels::train::keep_memory;
use vitesse_train::run::RunFolder;
use vitesse_train::{Error, Recipe};

use crate::cli::Console;
use crate::cli::args::model::ReadArgs;
use crate::cli::args::{LabelsBy, positive};
use crate::cli::failure::{Failure, Result};
use crate::cli::recovery::Recovery;
use crate::cli::show::Show;
use crate::cli::training::{Report, RunArgs};

/// The folder of the run, inside that of the shared model.
const FOLDER: &str = "distilled";
/// The most validation images on which models are tested.
const SCORED: usize = 1000;

/// How the shared model is trained, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Distillation")]
#[group(skip)]
pub(super) struct TeachArgs {
    /// Train the shared model for so many epochs by weight distillation, in the folder `distilled` inside -o
    #[arg(long, value_name = "EPOCHS", value_parser = positive, requires = "data")]
    epochs: Option<NonZeroUsize>,
    /// Who teaches [default: the model that is shared]
    #[arg(long, value_name = "MODEL", requires = "epochs")]
    teacher: Option<PathBuf>,
    /// Which state dict of the teacher's file with several [default: timm's choice]
    #[arg(long, value_name = "NAME", requires = "teacher")]
    teacher_key: Option<String>,
    /// A setting of the loss, such as attn_weight=0.5, hidden=softmax-ce or student_layers=[3,7]; repeat for more
    ///
    /// docs/methods/minivit.md lists them. A teacher that is no transformer teaches by its predictions alone, and takes none.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, requires = "epochs")]
    settings: Vec<(String, String)>,
    /// Recipe file for what is not as in the preset `recover`; flags override its keys
    #[arg(long, value_name = "FILE", requires = "epochs")]
    recipe: Option<PathBuf>,
    /// Images an optimiser step
    #[arg(short, long, value_name = "N", value_parser = positive, requires = "epochs")]
    batch_size: Option<NonZeroUsize>,
    /// Peak learning rate
    #[arg(long, value_name = "LR", requires = "epochs")]
    lr: Option<f64>,
    /// How the classes of data and models find each other
    #[arg(long, value_enum, default_value_t, requires = "epochs")]
    labels_by: LabelsBy,
    /// At the very end, test before and after on the test split, all of it, instead of on validation images
    #[arg(long, requires = "epochs")]
    test: bool,
    /// Go on with the training in the output folder that this command has begun
    #[arg(long, requires = "epochs", conflicts_with_all = ["force", "dry_run"])]
    resume: bool,
}

/// What is meant: nothing is computed yet.
pub(super) struct Teaching<'a> {
    recipe: Recipe,
    lesson: Lesson,
    recovery: Recovery<'a>,
    args: &'a TeachArgs,
}

/// Accuracies in percent, by the engine: in bf16, where the processor has it.
#[derive(Debug, Serialize)]
pub(super) struct Accuracies {
    data: String,
    split: Split,
    images: usize,
    /// Of the model that is shared.
    base_top1: f64,
    /// Of the shared one before any training.
    shared_top1: f64,
    /// Of the shared one afterwards.
    distilled_top1: f64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Taught {
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<Accuracies>,
    run: Report,
}

impl TeachArgs {
    /// Whether a run that is there is gone on with.
    pub(super) fn resumes(&self) -> bool {
        self.resume
    }

    /// Checks what can be checked before anything is computed; `None` where nothing is to be trained. `base` is the model that is shared, `output`
    /// where the result goes, `shared` what it will be.
    pub(super) fn meant<'a>(
        &'a self,
        (base, read): (&'a Path, &'a ReadArgs),
        (output, shared): (&'a Path, &ModelSpec),
        data: Option<&'a Path>,
        console: &Console,
    ) -> Result<Option<Teaching<'a>>> {
        let Some(epochs) = self.epochs else {
            return Ok(None);
        };
        keep_memory();
        let recovery = Recovery {
            flag: "--epochs",
            student: output,
            folder: FOLDER,
            teacher: self.teacher.as_deref().unwrap_or(base),
            key: match self.teacher {
                Some(_) => self.teacher_key.as_deref(),
                None => read.key(),
            },
            data,
            labels_by: self.labels_by,
        };
        recovery.check(self.teacher.is_none().then_some(read))?;
        let mut more = vec![("train.epochs", whole(epochs))];
        more.extend(self.batch_size.map(|size| ("train.batch_size", whole(size))));
        more.extend(self.lr.map(|lr| ("optim.lr", Value::Float(lr))));
        let (name, file) = self.file()?;
        let mut recipe = recovery.recipe(file, more, &name, console)?;
        let config = self.config(&recipe)?;
        let lesson = Lesson::plan(&mut recipe, &config, shared)?;
        if self.teacher.is_none() {
            console.note("the teacher is the model that is shared; --teacher names another");
        }
        console.note(&lesson_in_words(&lesson));
        Ok(Some(Teaching {
            recipe,
            lesson,
            recovery,
            args: self,
        }))
    }

    /// The settings of the recipe's method, under those that were typed.
    fn config(&self, recipe: &Recipe) -> Result<minivit::Config> {
        let mut settings = match &recipe.method {
            Some(_) if recipe.method_name() != Some(minivit::NAME) => {
                let sentence = format!("the method of the recipe is not `{}`", minivit::NAME);
                return Err(Failure::usage(sentence).hint("leave [method] out, or name that one"));
            }
            Some(table) => table.clone(),
            None => Table::new(),
        };
        settings.remove("name");
        let typed: Vec<(&str, String)> = self
            .settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        let mut table = serde_json::json!(settings);
        if let serde_json::Value::Object(table) = &mut table {
            table.extend(vitesse_train::method::from_texts(&typed));
        }
        let serde_json::Value::Object(table) = table else {
            return Ok(minivit::Config::default());
        };
        let Method::Minivit(config) = Method::new(minivit::NAME, table)?;
        Ok(config)
    }

    /// The recipe file and its name.
    fn file(&self) -> Result<(String, Table)> {
        let Some(path) = &self.recipe else {
            return Ok(("the preset `recover`".to_owned(), Table::new()));
        };
        let text = fs::read_to_string(path).map_err(|error| Failure::io("read", path, error))?;
        let name = path.display().to_string();
        match text.parse() {
            Ok(table) => Ok((name, table)),
            Err(error) => Err(Error::RecipeSyntax {
                name,
                detail: toml::de::Error::to_string(&error),
            }
            .into()),
        }
    }
}

fn whole(number: NonZeroUsize) -> Value {
    Value::Integer(number.get() as i64)
}

/// What is learned, in a sentence.
fn lesson_in_words(lesson: &Lesson) -> String {
    let teacher = &lesson.teacher;
    match (&lesson.method, &lesson.student_layers[..]) {
        (None, _) => format!(
            "the teacher `{teacher}` is no transformer: only its predictions are learned, as DeiT does"
        ),
        (Some(_), []) => format!("only predictions of the teacher `{teacher}` are learned, and no relations"),
        (Some(_), layers) => format!(
            "layers {} learn the relations of the teacher `{teacher}` at layers {}",
            listed(layers),
            listed(&lesson.teacher_layers)
        ),
    }
}

fn listed(layers: &[usize]) -> String {
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    layers.join(", ")
}

impl Teaching<'_> {
    /// What is learned from whom.
    pub(super) fn lesson(&self) -> &Lesson {
        &self.lesson
    }

    /// Refuses a run that may not be written, before anything is computed.
    pub(super) fn check(&self) -> Result<()> {
        let run = self.recovery.run();
        if self.args.resume && run.exists() {
            RunFolder::check(&run, &self.recipe, vitesse_train::run::Existing::Resume)?;
        }
        self.images()?;
        Ok(())
    }

    /// On what the models are tested: as the recipe opens its data, so that nothing is among it that is learned from.
    fn images(&self) -> Result<Option<(Split, DataSet)>> {
        let data = &self.recipe.data;
        if self.args.test {
            return Ok(Some((Split::Test, open_test(&data.path, &data.decode())?)));
        }
        let (_, validation) = data.open()?;
        Ok(validation.map(|data| (Split::Validation, data.limit(SCORED, 0))))
    }

    /// Trains the shared model, which lies in the output folder, and tests what was shared, before and after.
    pub(super) fn run(&self, base: &Checkpoint, console: &Console) -> Result<Taught> {
        let run = RunArgs::after(self.recovery.run(), self.args.resume);
        let report = self.recovery.learn(self.recipe.clone(), run, console)?;
        let accuracy = match self.images()? {
            Some(images) => self.accuracies(base, images, console)?,
            None => None,
        };
        Ok(Taught {
            accuracy,
            run: report,
        })
    }

    /// Of the base, what was shared, and what that has learned.
    fn accuracies(
        &self,
        base: &Checkpoint,
        (split, data): (Split, DataSet),
        console: &Console,
    ) -> Result<Option<Accuracies>> {
        let scored = Scored {
            name: self.recipe.data.path.clone(),
            data,
            labels_by: self.recipe.data.labels_by,
        };
        let (stop, mut show) = (console.stop(), Show::new(console));
        let load = |path: &Path| Checkpoint::load(path, &LoadOptions::default());
        Ok(match Judge::open(scored, base, stop, &mut show)? {
            None => None,
            Some(judge) => {
                let shared = judge.accuracy(&load(self.recovery.student)?, stop, &mut show)?;
                let learned = RunFolder::checkpoint_in(&self.recovery.run());
                let distilled = judge.accuracy(&load(&learned)?, stop, &mut show)?;
                Some(Accuracies {
                    data: shared.data,
                    split,
                    images: shared.images,
                    base_top1: shared.before_top1,
                    shared_top1: shared.after_top1,
                    distilled_top1: distilled.after_top1,
                })
            }
        })
    }
}

impl Taught {
    /// The line of the report about accuracy.
    pub(super) fn row(&self) -> Option<(&'static str, String)> {
        let found = self.accuracy.as_ref()?;
        let share = |top1| format::share(top1, found.images);
        let text = format!(
            "top-1 {} → {} shared → {} distilled ({} images of the {} split of {})",
            share(found.base_top1),
            share(found.shared_top1),
            share(found.distilled_top1),
            found.images,
            found.split,
            found.data
        );
        Some(("accuracy", text))
    }

    /// The run, as `distill` reports it.
    pub(super) fn run(&self) -> &Report {
        &self.run
    }
}
