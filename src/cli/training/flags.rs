//! What `train` and `distill` are given: a recipe, flags that stand for its keys, and where the run goes.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use vitesse::data::Split;
use vitesse::measure::machine::start_threads;
use vitesse::measure::refuse_what_is_no_name;
use vitesse::measure::trial::{Entry, defaults};
use vitesse_kernels::train::keep_memory;
use vitesse_train::recipe::set;
use vitesse_train::run::{Existing, RunFolder};
use vitesse_train::{Error, Recipe};

use crate::cli::Console;
use crate::cli::args;
use crate::cli::args::LabelsBy;
use crate::cli::args::model::{HeadsArgs, is_path};
use crate::cli::failure::{Failure, Result};

/// What is trained, on what, and how, as typed. Each flag stands for the recipe's key in its help; timm's spelling.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RecipeArgs {
    /// Recipe file; flags override its keys
    #[arg(long, value_name = "FILE", help_heading = "Recipe")]
    recipe: Option<PathBuf>,
    /// Values to begin with: deit (ImageNet from scratch), small (small images), finetune, highres (a checkpoint at a higher
    /// resolution), adapt, recover (a pruned model with its old self as teacher) [default: finetune for a checkpoint, else deit]
    #[arg(long, value_name = "NAME", help_heading = "Recipe", value_parser = Recipe::presets().collect::<Vec<_>>())]
    preset: Option<String>,

    /// A checkpoint (folder, `.safetensors` or `.pth` file), or the name of an architecture to train from scratch
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,
    /// Which state dict of a checkpoint file with several, such as model or teacher.backbone [default: timm's choice]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    key: Option<String>,
    #[command(flatten)]
    heads: HeadsArgs,
    /// Number of classes [default: the data set's]
    #[arg(long, value_name = "N", help_heading = "Model", value_parser = whole)]
    num_classes: Option<i64>,
    /// Image side in pixels; a checkpoint's position embedding is resized to it [default: the model's]
    #[arg(long, value_name = "PIXELS", help_heading = "Model", value_parser = whole)]
    img_size: Option<i64>,
    /// Side of a Swin's windows in tokens; a checkpoint's tables of relative positions are resized [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", value_parser = whole)]
    window_size: Option<i64>,
    /// Probability of dropping a residual branch in the last block (stochastic depth)
    #[arg(long, value_name = "P", help_heading = "Model")]
    drop_path: Option<f64>,

    /// Data set: a folder, a `.csv` list, or `shapes[:TASK]`, the built-in set
    #[arg(long, alias = "data-dir", value_name = "DATA", help_heading = "Data")]
    data: Option<String>,
    /// Part to learn from: train, trainval or all; nothing is evaluated, and the last epoch is the result, where train and
    /// validation are learned from together [default: train]
    #[arg(long, value_name = "SPLIT", help_heading = "Data", value_parser = args::split)]
    split: Option<Split>,
    /// Learn from this many images only, drawn with the classes in the proportions they have
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole)]
    limit: Option<i64>,
    /// Learn from this many images of each class only, drawn by the recipe's data.seed
    #[arg(long, value_name = "K", help_heading = "Data", value_parser = whole, conflicts_with = "limit")]
    shots: Option<i64>,
    /// Refuse pictures of more pixels than this [default: 67108864]
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole)]
    max_pixels: Option<i64>,
    /// Turn pictures as their EXIF rotation flag says
    #[arg(long, help_heading = "Data")]
    exif: bool,
    /// How classes of the data find those that the checkpoint and the teacher know [default: name]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Data")]
    labels_by: Option<LabelsBy>,
    /// Threads that read images; 0 for one a core. Does not change the result
    #[arg(long, short = 'j', value_name = "N", help_heading = "Data", value_parser = whole)]
    workers: Option<i64>,

    /// Times that all images are gone through
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole)]
    epochs: Option<i64>,
    /// Images an optimiser step
    #[arg(long, short, value_name = "N", help_heading = "Training", value_parser = whole)]
    batch_size: Option<i64>,
    /// Parts that a batch is computed in, for less memory
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole)]
    grad_accum_steps: Option<i64>,
    /// Mixed precision: bf16, which `--amp` alone means too. Weights and optimiser stay in f32
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "bf16", value_parser = ["bf16"], help_heading = "Training")]
    amp: Option<String>,
    /// Compute blocks again in the backward pass instead of keeping them: less memory, more time, the same result
    #[arg(long, help_heading = "Training")]
    grad_checkpointing: bool,
    /// Decides fresh weights, order, augmentation and drop path
    #[arg(long, value_name = "SEED", help_heading = "Training", value_parser = whole)]
    seed: Option<i64>,
    /// Label smoothing
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    smoothing: Option<f64>,
    /// Keep a moving average of the weights, with this decay a step
    #[arg(
        long,
        alias = "model-ema-decay",
        value_name = "DECAY",
        help_heading = "Training"
    )]
    ema_decay: Option<f64>,

    /// Peak learning rate
    #[arg(long, value_name = "LR", help_heading = "Optimiser")]
    lr: Option<f64>,
    /// Batch size that --lr is meant for; the rate is scaled to the one used [default: the rate is used as it is]
    #[arg(long, value_name = "N", help_heading = "Optimiser", value_parser = whole)]
    lr_base_size: Option<i64>,
    /// Weight decay, decoupled from the gradient
    #[arg(long, value_name = "DECAY", help_heading = "Optimiser")]
    weight_decay: Option<f64>,
    /// Largest global norm of the gradients
    #[arg(long, value_name = "NORM", help_heading = "Optimiser")]
    clip_grad: Option<f64>,
    /// Factor of the learning rate from one layer to the one before it
    #[arg(long, value_name = "FACTOR", help_heading = "Optimiser")]
    layer_decay: Option<f64>,
    /// Epochs in which the learning rate grows
    #[arg(long, value_name = "EPOCHS", help_heading = "Optimiser")]
    warmup_epochs: Option<f64>,
    /// Learning rate with which the warm-up begins
    #[arg(long, value_name = "LR", help_heading = "Optimiser")]
    warmup_lr: Option<f64>,
    /// Learning rate with which the run ends
    #[arg(long, value_name = "LR", help_heading = "Optimiser")]
    min_lr: Option<f64>,

    /// RandAugment, such as rand-m9-mstd0.5-inc1, or none
    #[arg(long, value_name = "POLICY", help_heading = "Augmentation")]
    aa: Option<String>,
    /// Strength of the colour jitter where RandAugment is off
    #[arg(long, value_name = "STRENGTH", help_heading = "Augmentation")]
    color_jitter: Option<f64>,
    /// Probability of a horizontal flip
    #[arg(long, value_name = "P", help_heading = "Augmentation")]
    hflip: Option<f64>,
    /// Probability of random erasing
    #[arg(long, value_name = "P", help_heading = "Augmentation")]
    reprob: Option<f64>,
    /// Parameter of mixup's Beta distribution; 0 switches it off
    #[arg(long, value_name = "ALPHA", help_heading = "Augmentation")]
    mixup: Option<f64>,
    /// Parameter of CutMix's Beta distribution; 0 switches it off
    #[arg(long, value_name = "ALPHA", help_heading = "Augmentation")]
    cutmix: Option<f64>,
    /// Times each image is taken in succession; 1 switches repeated augmentation off
    #[arg(long, value_name = "N", help_heading = "Augmentation", value_parser = whole)]
    aug_repeats: Option<i64>,
}

/// Where a run goes and how it is made, as typed. None of it changes what is computed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Run")]
pub(in crate::cli) struct RunArgs {
    /// Folder of the run
    #[arg(short, long, value_name = "DIR")]
    pub(in crate::cli) output: PathBuf,
    /// Continue the run in the output folder; where no recipe file is given, with its own recipe
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace the run in the output folder
    #[arg(long)]
    force: bool,
    /// Show the effective recipe and what would be done, and write nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// At the very end, evaluate the best checkpoint once on the test split
    #[arg(long)]
    pub(super) test: bool,
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", value_parser = args::thread_count)]
    threads: Option<NonZeroUsize>,
}

impl RunArgs {
    /// A run that follows something else, in a folder of its own: gone on with where it is there and `resume` is meant. What it follows tests it.
    pub(in crate::cli) fn after(output: PathBuf, resume: bool) -> RunArgs {
        let resume = resume && output.exists();
        RunArgs {
            output,
            resume,
            force: !resume,
            dry_run: false,
            test: false,
            threads: None,
        }
    }

    /// Starts the computing threads; before anything else.
    pub(in crate::cli) fn start_threads(&self) -> Result<()> {
        keep_memory();
        Ok(start_threads(self.threads)?)
    }

    /// The folder of the run that is continued.
    pub(in crate::cli) fn resumed(&self) -> Option<&Path> {
        self.resume.then_some(self.output.as_path())
    }

    /// What may be done about a run that is there.
    pub(in crate::cli) fn existing(&self) -> Existing {
        match (self.resume, self.force) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Replace,
            _ => Existing::Refuse,
        }
    }
}

impl RecipeArgs {
    /// The effective recipe: that of the file, or of the run that is resumed, or none, under the flags and `more`. Where it has a
    /// method, with what follows from that.
    pub(in crate::cli) fn resolve(
        &self,
        run: &RunArgs,
        more: &[(&str, Value)],
        console: &Console,
    ) -> Result<Recipe> {
        let resumed = run.resumed();
        let mut recipe = match self.method(resumed)? {
            Some(entry) => self.resolve_by(resumed, &entry, more)?,
            None => {
                let (name, table) = self.table(resumed)?;
                let preset = self.tuned(&table, resumed);
                Recipe::layered(&Vec::from_iter(preset), table, more, &name)?
            }
        };
        self.fit(&mut recipe, resumed, console)?;
        Ok(recipe)
    }

    /// Fits a batch whose size nobody has said to the data, and says so; returns whether it did.
    pub(in crate::cli) fn fit(
        &self,
        recipe: &mut Recipe,
        resumed: Option<&Path>,
        console: &Console,
    ) -> Result<bool> {
        let (_, table) = self.table(resumed)?;
        if table
            .get("train")
            .is_some_and(|train| train.get("batch_size").is_some())
        {
            return Ok(false);
        }
        let note = recipe.fit_batch()?;
        note.iter().for_each(|note| console.note(note));
        Ok(note.is_some())
    }

    /// The preset of a run that begins with a checkpoint, where nobody says another.
    fn tuned(&self, table: &Table, resumed: Option<&Path>) -> Option<(&'static str, Value)> {
        let model = table.get("model");
        let tuned = model.is_some_and(|model| model.get("checkpoint").is_some());
        (tuned && !self.is_whole(resumed)).then(|| ("preset", Value::from("finetune")))
    }

    /// Whether the recipe is that of a run that is resumed, which has every value already.
    fn is_whole(&self, resumed: Option<&Path>) -> bool {
        resumed.is_some() && self.recipe.is_none()
    }

    /// The recipe by the method `entry` for the run in the folder `resumed`, or for a new one, under the flags and `more`.
    pub(in crate::cli) fn resolve_by(
        &self,
        resumed: Option<&Path>,
        entry: &Entry,
        more: &[(&str, Value)],
    ) -> Result<Recipe> {
        let (name, table) = self.table(resumed)?;
        let whole = self.is_whole(resumed);
        let method = entry.method()?;
        let preset = self.tuned(&table, resumed).filter(|_| !method.adapts());
        let defaults: Vec<_> = defaults(&*method)
            .into_iter()
            .chain(preset)
            .filter(|(key, _)| !whole || key.contains('.'))
            .collect();
        let mut keys = entry.overrides()?;
        keys.extend(more.iter().cloned());
        Ok(Recipe::layered(&defaults, table, &keys, &name)?)
    }

    /// The method of the file, or of the run that is resumed, if it has one.
    pub(in crate::cli) fn method(&self, resumed: Option<&Path>) -> Result<Option<Entry>> {
        let (name, recipe) = self.file(resumed)?;
        match recipe.get("method") {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Entry::of(table))),
            Some(_) => {
                let detail = "`method` should be a table, [method]".into();
                Err(Error::RecipeSyntax { name, detail }.into())
            }
        }
    }

    /// What the recipe is made from, under the flags, and its name.
    pub(in crate::cli) fn table(&self, resumed: Option<&Path>) -> Result<(String, Table)> {
        if let (Some(preset), true) = (&self.preset, self.is_whole(resumed)) {
            let sentence =
                format!("`--preset {preset}` is for a new run; one that is resumed has every value already");
            return Err(Failure::usage(sentence).hint("leave it out, or begin a run in another folder"));
        }
        let (name, mut table) = self.file(resumed)?;
        for (key, value) in self.overrides()? {
            set(&mut table, key, value);
        }
        Ok((name, table))
    }

    /// What the recipe is made from, without flags, and its name: the file, the run that is resumed, or nothing.
    fn file(&self, resumed: Option<&Path>) -> Result<(String, Table)> {
        let (name, text) = match (&self.recipe, resumed) {
            (Some(path), _) => {
                let text = fs::read_to_string(path).map_err(|error| Failure::io("read", path, error))?;
                (path.display().to_string(), text)
            }
            (None, Some(run)) => (run.display().to_string(), RunFolder::recipe(run)?.to_toml()?),
            (None, None) => ("the command line".to_owned(), String::new()),
        };
        let table = text
            .parse()
            .map_err(|error: toml::de::Error| Error::RecipeSyntax {
                name: name.clone(),
                detail: error.to_string(),
            })?;
        Ok((name, table))
    }

    /// The flags that were typed, as keys of a recipe.
    fn overrides(&self) -> Result<Vec<(&'static str, Value)>> {
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let number = |value: Option<f64>| value.map(Value::Float);
        let whole = |value: Option<i64>| value.map(Value::Integer);
        let model = match &self.model {
            Some(model) if is_path(model) => ("model.checkpoint", text(&self.model)),
            Some(model) => {
                refuse_what_is_no_name(model)?;
                ("model.name", text(&self.model))
            }
            None => ("model.name", None),
        };
        let heads = self.heads.heads();
        let counts = heads.as_ref().map(|heads| {
            heads
                .counts
                .iter()
                .map(|count| Value::Integer(*count as i64))
                .collect()
        });
        let head_dim = heads.and_then(|heads| heads.scale_dim).map(|width| width as i64);
        let keys = [
            ("preset", text(&self.preset)),
            model,
            ("model.key", text(&self.key)),
            ("model.num_heads", counts.map(Value::Array)),
            ("model.head_dim", whole(head_dim)),
            ("model.num_classes", whole(self.num_classes)),
            ("model.img_size", whole(self.img_size)),
            ("model.window_size", whole(self.window_size)),
            ("model.drop_path", number(self.drop_path)),
            ("data.path", text(&self.data)),
            ("data.split", text(&self.split.map(|split| split.to_string()))),
            ("data.limit", whole(self.limit)),
            ("data.shots", whole(self.shots)),
            ("data.max_pixels", whole(self.max_pixels)),
            ("data.exif", self.exif.then_some(Value::Boolean(true))),
            ("data.labels_by", self.labels_by.map(labels_by)),
            ("train.workers", whole(self.workers)),
            ("train.epochs", whole(self.epochs)),
            ("train.batch_size", whole(self.batch_size)),
            ("train.accumulate", whole(self.grad_accum_steps)),
            ("train.amp", text(&self.amp)),
            (
                "train.grad_checkpointing",
                self.grad_checkpointing.then_some(Value::Boolean(true)),
            ),
            ("train.seed", whole(self.seed)),
            ("train.smoothing", number(self.smoothing)),
            ("train.ema_decay", number(self.ema_decay)),
            ("optim.lr", number(self.lr)),
            ("optim.lr_base_size", whole(self.lr_base_size)),
            ("optim.weight_decay", number(self.weight_decay)),
            ("optim.clip_grad", number(self.clip_grad)),
            ("optim.layer_decay", number(self.layer_decay)),
            ("schedule.warmup_epochs", number(self.warmup_epochs)),
            ("schedule.warmup_lr", number(self.warmup_lr)),
            ("schedule.min_lr", number(self.min_lr)),
            ("augment.aa", text(&self.aa)),
            ("augment.color_jitter", number(self.color_jitter)),
            ("augment.hflip", number(self.hflip)),
            ("augment.reprob", number(self.reprob)),
            ("augment.mixup", number(self.mixup)),
            ("augment.cutmix", number(self.cutmix)),
            ("augment.aug_repeats", whole(self.aug_repeats)),
        ];
        Ok(keys
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect())
    }
}

/// The recipe's word for it.
fn labels_by(by: LabelsBy) -> Value {
    let word = match by {
        LabelsBy::Name => "name",
        LabelsBy::Index => "index",
    };
    Value::String(word.to_owned())
}

/// A whole number from 0; what is too small for its key is refused with the recipe.
fn whole(text: &str) -> std::result::Result<i64, String> {
    match text.parse() {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err("expected a whole number".to_owned()),
    }
}
