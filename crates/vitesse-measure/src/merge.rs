//! Merging an adapter into the model it was trained on, or taking it out again: planned, proved, measured.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};
use vitesse_adapt::merge::{self, Options, Report as Folds};
use vitesse_adapt::peft::{Adapter, CONFIG_FILE, official};
use vitesse_model::checkpoint::WEIGHTS_FILE;
use vitesse_model::checkpoint::file_sha256;
use vitesse_model::checkpoint::run::{ADAPTER, Left, left_in};
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, LoadOptions};
use vitesse_train::method::{Check, Method};

use crate::images::Images;
use crate::transform::{At, Transform};
use crate::{Error, Events, Result};

/// A model and the adapter that is folded into it, or taken out.
#[derive(Debug)]
pub struct Merge {
    /// Where the model was read from.
    path: PathBuf,
    model: Checkpoint,
    /// Where the adapter was read from.
    adapter_path: PathBuf,
    adapter: Adapter,
    adapter_sha256: String,
}

/// How it is merged, and what it is proved on.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The adapter is taken out of a model into which it was merged; the head stays the adapter's.
    pub unmerge: bool,
    /// What cannot be folded is kept as ops.
    pub keep_unfoldable: bool,
    /// The data set whose images are compared, if not the one the adapter learned from.
    pub data: Option<PathBuf>,
    /// How many images.
    pub images: usize,
}

/// What a merge came to.
#[derive(Debug)]
pub struct Merged {
    /// The model.
    pub checkpoint: Checkpoint,
    /// What was folded and what was kept.
    pub folds: Folds,
    /// Of an adapter that was taken out: the largest condition number of its maps.
    pub condition: Option<f64>,
    /// Sizes, proof and speed.
    pub transform: Transform,
}

impl Merge {
    /// Reads a model, as `options` say, and an adapter: a folder of ours or PEFT's, or a file of the RepAdapter program, which does not hold its
    /// `scale` and alone needs it.
    ///
    /// # Errors
    /// Files that cannot be read; a scale for a folder, which holds its own.
    pub fn open(
        model: &Path,
        options: &LoadOptions,
        adapter: &Path,
        scale: Option<f64>,
        events: &mut dyn Events,
    ) -> Result<Merge> {
        let checkpoint = Checkpoint::load(model, options)?;
        for note in &checkpoint.source.notes {
            events.say("note", note);
        }
        let (found, adapter_sha256) = if adapter.is_dir() {
            if let Some(scale) = scale {
                return Err(Error::Adapt(vitesse_adapt::Error::Adapter {
                    path: adapter.to_owned(),
                    sentence: format!(
                        "it is a folder, which holds its scale, but {scale} was given as well; give a scale only with a file \
                         of the RepAdapter program"
                    ),
                }));
            }
            let found = read_adapter(adapter, events)?;
            let sha256 = found.sha256()?;
            (found, sha256)
        } else {
            (official::read(adapter, scale)?, file_sha256(adapter)?)
        };
        Ok(Merge {
            path: model.to_owned(),
            model: checkpoint,
            adapter_path: adapter.to_owned(),
            adapter: found,
            adapter_sha256,
        })
    }

    /// What would be done: nothing is proved, measured or entered in the history. What cannot be folded is listed as kept,
    /// whether it may be or not.
    ///
    /// # Errors
    /// As [`Merge::run`].
    pub fn plan(&self, settings: &Settings, events: &mut dyn Events) -> Result<Merged> {
        if settings.unmerge {
            return self.taken_out();
        }
        let attached = attach(&self.model, &self.adapter, Sizes::Learned, events)?;
        self.folded(&attached, true)
    }

    /// Folds the adapter into its base or takes it out again, proves the result and, where the proof is met, measures it.
    ///
    /// # Errors
    /// An adapter of another base; ops that cannot be folded and may not be kept; an adapter that is not in the model, or whose
    /// maps have no inverse; [`Error::Interrupted`] once `stop` was set.
    pub fn run(&self, settings: &Settings, stop: &AtomicBool, events: &mut dyn Events) -> Result<Merged> {
        if settings.unmerge {
            return self.take_out(settings, stop, events);
        }
        let attached = attach(&self.model, &self.adapter, Sizes::Learned, events)?;
        let mut merged = self.folded(&attached, settings.keep_unfoldable)?;
        let images = self.find_images(settings, &attached, events)?;
        if merged
            .transform
            .prove(&merged.checkpoint, &attached, images, self.check())?
        {
            merged
                .transform
                .time((&attached, &merged.checkpoint), At::one(), &[], stop, events)?;
        }
        let learned = learned(&self.adapter);
        let mut config = learned.config;
        config.insert("adapter_sha256".into(), json!(self.adapter_sha256));
        config.insert("created_bias".into(), json!(merged.folds.created_bias));
        config.insert("method".into(), json!(self.adapter.record.method));
        let step = HistoryStep {
            step: "merge".into(),
            method: learned.method,
            config,
            parent_sha256: self.model.source_sha256()?,
            metrics: merged.transform.metrics(),
        };
        merged.checkpoint.config.history.push(step);
        let classes = merged.checkpoint.spec.num_classes;
        merged.checkpoint.config.remove_tag(classes);
        Ok(merged)
    }

    /// The base with its adapter, `attached`, folded.
    fn folded(&self, attached: &Checkpoint, keep_unfoldable: bool) -> Result<Merged> {
        let mut checkpoint = attached.clone();
        // Methods without ops only have other values for the base's tensors.
        let folds = if attached.spec.ops.is_empty() {
            Folds::default()
        } else {
            // An adapter may name no method. `merge` is what all of them end with.
            let options = Options { keep_unfoldable };
            let merged = merge::merge(&attached.spec, &attached.tensors, options)?;
            (checkpoint.spec, checkpoint.tensors) = (merged.spec, merged.tensors);
            merged.report
        };
        Ok(Merged {
            transform: Transform::planned(attached, &checkpoint)?,
            checkpoint,
            folds,
            condition: None,
        })
    }

    fn take_out(&self, settings: &Settings, stop: &AtomicBool, events: &mut dyn Events) -> Result<Merged> {
        let mut out = self.taken_out()?;
        events.say(
            "note",
            "the head stays the adapter's; the base's own is in the base, which is exact where this is rounded",
        );
        // With the adapter again, it is what was merged.
        let images = self.find_images(settings, &self.model, events)?;
        let again = self.adapter.attach_again(&out.checkpoint)?;
        if out.transform.prove(&again, &self.model, images, self.check())? {
            out.transform
                .time((&self.model, &out.checkpoint), At::one(), &[], stop, events)?;
        }
        Ok(out)
    }

    /// The merged model without its adapter.
    fn taken_out(&self) -> Result<Merged> {
        let mut checkpoint = self.model.clone();
        let history = &mut checkpoint.config.history;
        let last = history.iter().rposition(|step| {
            step.step == "merge" && step.config.get("adapter_sha256") == Some(&json!(self.adapter_sha256))
        });
        let Some(last) = last else {
            return Err(Error::NotMerged {
                adapter: self.adapter_path.clone(),
                model: self.path.clone(),
            });
        };
        let step = history.remove(last);
        let created = step.config.get("created_bias").and_then(Value::as_bool);
        let attached = self.adapter.attach_again(&self.model)?;
        let out = merge::unmerge(&attached.spec, &attached.tensors, created.unwrap_or(false))?;
        (checkpoint.spec, checkpoint.tensors) = (out.spec, out.tensors);
        Ok(Merged {
            transform: Transform::planned(&self.model, &checkpoint)?,
            checkpoint,
            folds: Folds::default(),
            condition: Some(out.condition),
        })
    }

    fn find_images(
        &self,
        settings: &Settings,
        model: &Checkpoint,
        events: &mut dyn Events,
    ) -> Result<Images> {
        let learned = self.adapter.record.data.as_deref();
        Images::find(settings.data.as_deref(), learned, settings.images, model, events)
    }

    /// What the adapter's method asks of the proof, where it is one of ours.
    fn check(&self) -> Check {
        let method = self.adapter.record.known_method();
        method.map_or_else(Check::default, |method| method.check())
    }
}

/// Reads the adapter in the folder `dir`, or the one that was learned by the run whose folder it is.
///
/// # Errors
/// As [`Adapter::read`]; for other folders of training what they are.
pub fn read_adapter(dir: &Path, events: &mut dyn Events) -> Result<Adapter> {
    let learned = dir.join(ADAPTER);
    if dir.join(CONFIG_FILE).is_file() {
        return Ok(Adapter::read(dir)?);
    }
    if learned.join(CONFIG_FILE).is_file() {
        let note = format!(
            "`{}` is the folder of a run: took what it learned, `{ADAPTER}`",
            dir.display()
        );
        events.say("note", &note);
        return Ok(Adapter::read(&learned)?);
    }
    match what_else(dir) {
        Some(sentence) => Err(Error::Adapt(vitesse_adapt::Error::Adapter {
            path: dir.to_owned(),
            sentence,
        })),
        // It says what an adapter is.
        None => Ok(Adapter::read(dir)?),
    }
}

/// The step of a history by which an adapter came about, with the data that it learned from as training enters them.
pub fn learned(adapter: &Adapter) -> HistoryStep {
    let mut config = Map::new();
    if let Some(path) = &adapter.record.data {
        config.insert("data".into(), json!({ "path": path }));
    }
    HistoryStep {
        step: "train".into(),
        method: adapter.record.method_name().map(str::to_owned),
        config,
        ..HistoryStep::default()
    }
}

/// What a folder is that is no adapter, and what to type instead.
fn what_else(dir: &Path) -> Option<String> {
    let shown = dir.display();
    Some(match left_in(dir) {
        Some(Left::Run { by_method: true }) => {
            format!(
                "it is the folder of a run that has learned none yet; `vitesse adapt --resume -o {shown}` goes on until it has"
            )
        }
        Some(Left::Run { by_method: false }) => format!(
            "it is the folder of a run that changed the whole model and needs no merging; its model is used as it is: `--model {shown}`"
        ),
        Some(Left::Runs(first)) => format!(
            "it holds several runs, of a comparison or a study; give the folder of one, such as `{}`",
            first.display()
        ),
        None if dir.join(WEIGHTS_FILE).is_file() => {
            format!("it holds a model and no adapter; it is used as it is: `--model {shown}`")
        }
        None => return None,
    })
}

/// For which images and windows a model with an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// Those that the adapter learned from, where it says so.
    Learned,
    /// Those of the base.
    Base,
}

/// The base with the ops and the head of an adapter that was trained on it. What is resized is said.
///
/// # Errors
/// An adapter of another base.
pub fn attach(
    base: &Checkpoint,
    adapter: &Adapter,
    sizes: Sizes,
    events: &mut dyn Events,
) -> Result<Checkpoint> {
    if !adapter.check_base(base)? {
        events.say(
            "note",
            "the adapter does not say on which weights it was trained; only shapes are checked",
        );
    }
    let mut base = base.clone();
    if sizes == Sizes::Learned {
        resize(&mut base, adapter, events)?;
    }
    Ok(adapter.attach(&base)?)
}

/// Gives a base the sizes of images and windows that an adapter learned from, and says so.
fn resize(base: &mut Checkpoint, adapter: &Adapter, events: &mut dyn Events) -> Result<()> {
    let sizes = |base: &Checkpoint| (base.spec.input_size(), base.spec.window_size());
    let (before, known) = (sizes(base), base.source.notes.len());
    // Windows of a base that has none are for the adapter to complain about.
    let windows = adapter.record.window_size.filter(|_| before.1.is_some());
    base.set_sizes(adapter.record.img_size, windows, None)?;
    let after = sizes(base);
    if after == before {
        return Ok(());
    }
    let ([_, height, width], windows) = after;
    let windows = windows
        .filter(|windows| before.1 != Some(*windows))
        .map_or_else(String::new, |[rows, columns]| {
            format!(" in windows of {rows}x{columns}")
        });
    let text =
        format!("the adapter learned from images of {height}x{width}{windows}: the model is made for those");
    events.say("note", &text);
    let notes = base.source.notes.iter().skip(known);
    notes.for_each(|note| events.say("note", note));
    Ok(())
}

/// What folding all ops of a model comes to.
#[derive(Debug)]
pub enum Folded {
    /// There are no ops.
    Plain,
    /// The model without them.
    Whole(Box<Checkpoint>),
    /// Why the first of those that stay cannot be folded.
    Refused(String),
}

/// Ends `method` on `trained`: whole if all its ops can be folded.
///
/// # Errors
/// Tensors that are not the model's.
pub fn fold(method: &dyn Method, trained: &Checkpoint) -> Result<Folded> {
    let finished = method.finish(&trained.spec, &trained.tensors)?;
    if let Some(kept) = finished.report.kept.first() {
        return Ok(Folded::Refused(kept.reason.clone()));
    }
    if finished.report.folded.is_empty() {
        return Ok(Folded::Plain);
    }
    let mut model = trained.clone();
    (model.spec, model.tensors) = (finished.spec, finished.tensors);
    Ok(Folded::Whole(Box::new(model)))
}
