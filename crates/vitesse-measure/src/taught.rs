//! One run of a recipe, told in numbers: trained, its best checkpoint loaded again, tested.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse_data::DataSet;
use vitesse_engine::Options;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::evaluate::{EvalOptions, EvalProgress, Evaluated, Evaluation, evaluate};
use vitesse_train::events::{Events as Training, Plan};
use vitesse_train::parallel::Team;
use vitesse_train::run::{BEST, EpochRecord, Existing, RunFolder, StepRecord};
use vitesse_train::state::{Best, State};
use vitesse_train::teacher::Teacher;
use vitesse_train::tokens::{TokenSimilarity, token_similarity};
use vitesse_train::trainer::{Start, train};
use vitesse_train::{Error, Recipe};

use crate::accuracy::{Exam, Report};
use crate::classify::{Runner, network};
use crate::events::evaluating;
use crate::{Events, Result, TrainEvents};

/// What a run came to.
#[derive(Debug)]
pub struct Taught {
    /// The best checkpoint.
    pub checkpoint: PathBuf,
    /// Its parameters.
    pub param_count: usize,
    /// Its multiply-accumulates for one image.
    pub macs: u64,
    /// Every epoch.
    pub curve: Vec<EpochRecord>,
    /// The best of them.
    pub best: Best,
    /// Of the best checkpoint, on the test images.
    pub test: Evaluation,
}

/// Trains `recipe` in the folder `path`, and tests its best checkpoint on `test`. A `teacher` is given apart from the recipe, which
/// may name it where it will be found later.
///
/// # Errors
/// As [`train`]; a run without validation images.
pub fn teach(
    recipe: &Recipe,
    path: &Path,
    teacher: Option<&Path>,
    (test, options): (&DataSet, EvalOptions),
    stop: &AtomicBool,
    events: &mut dyn TrainEvents,
) -> Result<Taught> {
    let device = Device::flex();
    let (learn, validation) = recipe.data.open()?;
    let student = recipe.model.checkpoint(&learn, recipe.train.seed)?;
    let prepared = student.preprocess()?;
    let teacher = teacher.map(|teacher| {
        Teacher::load(
            (teacher, recipe.distill.key.as_deref()),
            &student.spec,
            &prepared,
            &device,
        )
    });
    let start = Start {
        state: State::new(&student, &recipe.optim, false, &|_| true)?,
        train: learn,
        validation,
        objective: Box::new(recipe.distill.distillation()),
        hooks: Vec::new(),
        teacher: teacher.transpose()?,
        device,
    };
    let mut watch = Watch {
        events: events.training(),
        curve: Vec::new(),
    };
    let outcome = train(recipe, start, path, Existing::Refuse, stop, &mut watch)?;
    let curve = watch.curve;
    let best = outcome.best.ok_or(Error::Empty {
        what: "the validation set",
    })?;

    let best_path = path.join(BEST);
    let checkpoint = Checkpoint::load(&best_path, &LoadOptions::default())?;
    let cost = checkpoint.spec.costs()?;
    let (network, device) = network(&checkpoint)?;
    let mut model = Evaluated {
        network: &network,
        device: &device,
    };
    let options = EvalOptions {
        fusion: recipe.distill.joint,
        ..options
    };
    let mut progress = evaluating("testing", test.len(), stop, events.as_events());
    let found = evaluate(&mut model, test, &prepared, options, &mut progress)?;
    Ok(Taught {
        checkpoint: best_path,
        param_count: cost.parameters(),
        macs: cost.macs(),
        curve,
        best,
        test: found,
    })
}

/// Evaluates `checkpoint`, of the run of `recipe` in the folder `run`, by all processes of `team` on the test images `data`,
/// after which nothing is chosen any more. What is found is kept in the folder.
///
/// # Errors
/// As [`Exam::run`]; a checkpoint that cannot be loaded, a folder that cannot be written.
pub fn test(
    recipe: &Recipe,
    (run, checkpoint): (&Path, &Path),
    data: &DataSet,
    team: &Team,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<Report> {
    let checkpoint = Checkpoint::load(checkpoint, &LoadOptions::default())?;
    let exam = Exam {
        preprocess: checkpoint.preprocess()?,
        checkpoint,
        data: data.clone(),
        data_name: recipe.data.path.clone(),
        labels_by: recipe.data.labels_by,
        options: EvalOptions {
            workers: recipe.train.workers,
            fusion: recipe.distill.joint,
            ..EvalOptions::default()
        },
    };
    let mut runner = Runner::new(&exam.checkpoint, None, Options::default(), events)?;
    let found = exam.run(&mut runner, team, stop, events)?;
    if team.leads() {
        RunFolder::save_test(run, &found)?;
    }
    Ok(found)
}

/// How alike the class and the distillation token of `checkpoint` are on `data`.
///
/// # Errors
/// A model without a distillation token; [`Error::Interrupted`] once `stop` was set.
pub fn tokens(
    checkpoint: &Checkpoint,
    data: &DataSet,
    preprocess: &vitesse_data::Preprocess,
    options: EvalOptions,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<TokenSimilarity> {
    let (network, device) = network(checkpoint)?;
    let mut progress = evaluating("", data.len(), stop, events);
    Ok(token_similarity(
        &network,
        &device,
        data,
        preprocess,
        options,
        &mut progress,
    )?)
}

/// As [`tokens`], of the checkpoint in `path`, on images prepared as it says.
///
/// # Errors
/// As [`tokens`]; a checkpoint that cannot be loaded.
pub fn tokens_of(
    path: &Path,
    data: &DataSet,
    options: EvalOptions,
    stop: &AtomicBool,
    events: &mut dyn Events,
) -> Result<TokenSimilarity> {
    let checkpoint = Checkpoint::load(path, &LoadOptions::default())?;
    let prepared = checkpoint.preprocess()?;
    tokens(&checkpoint, data, &prepared, options, stop, events)
}

/// Keeps the epochs of a run that is told to somebody else.
struct Watch<'a> {
    events: &'a mut dyn Training,
    curve: Vec<EpochRecord>,
}

impl Training for Watch<'_> {
    fn begin(&mut self, plan: &Plan) {
        self.events.begin(plan);
    }

    fn step(&mut self, record: &StepRecord) {
        self.events.step(record);
    }

    fn caching(&mut self, at: EvalProgress) {
        self.events.caching(at);
    }

    fn evaluating(&mut self, at: EvalProgress) {
        self.events.evaluating(at);
    }

    fn epoch(&mut self, record: &EpochRecord, best: bool) {
        self.events.epoch(record, best);
        self.curve.push(record.clone());
    }

    fn warning(&mut self, text: &str) {
        self.events.warning(text);
    }
}
