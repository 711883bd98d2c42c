//! Several models side by side: engines that take turns, so that whatever happens to the machine happens to all of them.

mod found;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use vitesse_data::DataSet;
use vitesse_engine::{Engine, Options, Precision};
use vitesse_model::checkpoint::run::{BEST, FINAL};
use vitesse_model::config::HistoryStep;
use vitesse_model::{Checkpoint, Fusion, PretrainedCfg};
use vitesse_train::evaluate::{EvalOptions, evaluate};

use vitesse_train::classes::{ClassNames, LabelsBy, Matched};
use vitesse_words::{counted, listed};

use crate::accuracy::seen;
use crate::classify::Recorder;
use crate::error::{check, go_on};
use crate::finite::{Checked, Finite, own};
use crate::timing::{Budget, measure, median, noise, times};
use crate::{Error, Events, Progress, Result, Weights, origin};
pub use found::{Accuracy, Batch, Model, Ratio, TOO_FEW, Time};

/// One model in one precision.
#[derive(Debug)]
pub struct Contestant {
    /// What it is called.
    model: String,
    engine: Engine,
    preparation: PretrainedCfg,
    names: ClassNames,
    history: Vec<HistoryStep>,
    weights: Weights,
    weight_bytes: usize,
    tensors: Finite,
    param_count: usize,
    macs: u64,
    compile_ms: f64,
}

impl Contestant {
    /// Everyone who takes part, a model and its precision each, compiled, in their order. A model that takes part more than
    /// once is loaded once. `load` is told its name and the classes of `data`, on which all will be compared.
    ///
    /// # Errors
    /// As `load` and [`Contestant::new`]; [`Error::ClassesOf`] for a model that has fewer classes than `data`;
    /// [`Error::Interrupted`] once `stop` was set.
    pub fn all<E: From<Error>>(
        entries: &[(String, Precision)],
        data: Option<&DataSet>,
        threads: usize,
        stop: &AtomicBool,
        mut load: impl FnMut(&str, Option<usize>) -> std::result::Result<Checkpoint, E>,
    ) -> std::result::Result<Vec<Contestant>, E> {
        let classes = data
            .map(|data| data.class_names().len())
            .filter(|&classes| classes > 0);
        let mut contestants: Vec<Option<Contestant>> = entries.iter().map(|_| None).collect();
        for (i, (model, _)) in entries.iter().enumerate() {
            if contestants.get(i).is_some_and(Option::is_some) {
                continue;
            }
            check(stop)?;
            let checkpoint = load(model, classes)?;
            let (asked, known) = (classes.unwrap_or(0), checkpoint.spec.num_classes);
            if asked > known {
                let model = model.clone();
                return Err(Error::ClassesOf { model, asked, known }.into());
            }
            for (place, (name, precision)) in contestants.iter_mut().zip(entries) {
                if name == model {
                    *place = Some(Contestant::new(name, *precision, threads, &checkpoint)?);
                }
            }
        }
        Ok(contestants.into_iter().flatten().collect())
    }

    /// Compiles `from`, which is called `model`.
    ///
    /// # Errors
    /// A model that the engine does not run.
    pub fn new(model: &str, precision: Precision, threads: usize, from: &Checkpoint) -> Result<Contestant> {
        let options = Options {
            threads,
            precision,
            isa: None,
        };
        let begun = Instant::now();
        let engine = Engine::new(&from.spec, &from.tensors, &origin(from), options)?;
        let compile_ms = 1e3 * begun.elapsed().as_secs_f64();
        let costs = from.spec.costs()?;
        Ok(Contestant {
            model: model.to_owned(),
            engine,
            preparation: from.config.pretrained_cfg.clone(),
            names: ClassNames::of(&from.config, from.spec.num_classes),
            history: from.config.history.clone(),
            weights: Weights::of(from),
            weight_bytes: from.tensors.total_bytes(),
            tensors: Finite::of(from),
            param_count: costs.parameters(),
            macs: costs.macs(),
            compile_ms,
        })
    }

    /// The steps of its plan.
    pub fn outline(&self) -> &[String] {
        self.engine.outline()
    }
}

/// All that take part, and how.
#[derive(Debug)]
pub struct Contest {
    contestants: Vec<Contestant>,
    labels: Vec<String>,
    batches: Vec<usize>,
    budget: Budget,
    /// Threads that compute.
    pub threads: usize,
}

impl Contest {
    /// Lets all of them compute `batches` of images, for `budget` in each turn; the first is what the others are compared with.
    pub fn new(contestants: Vec<Contestant>, batches: Vec<usize>, budget: Budget, threads: usize) -> Contest {
        let models: Vec<&str> = contestants.iter().map(|one| one.model.as_str()).collect();
        let precisions = contestants.iter().map(|one| one.engine.precision());
        let names: Vec<String> = short(&models)
            .iter()
            .zip(precisions)
            .map(|(model, precision)| format!("{model}@{precision}"))
            .collect();
        let labels = labels(&names);
        // An engine may have taken fewer than it was offered.
        let threads = contestants.first().map_or(threads, |one| one.engine.threads());
        Contest {
            contestants,
            labels,
            batches,
            budget,
            threads,
        }
    }

    /// Everyone's latency with each batch size. The first to run is another one in every round.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once `stop` was set.
    pub fn turns(&self, rounds: usize, stop: &AtomicBool, events: &mut dyn Events) -> Result<Vec<Batch>> {
        let most = self.batches.iter().copied().max().unwrap_or(1);
        let mut images: Vec<([usize; 3], Vec<f32>)> = Vec::new();
        for one in &self.contestants {
            let size = one.engine.spec().input_size();
            if images.iter().all(|(known, _)| *known != size) {
                images.push((size, noise(size, most)));
            }
        }
        let images = |engine: &Engine| {
            let size = engine.spec().input_size();
            let found = images.iter().find(|(known, _)| *known == size);
            found.map_or(&[][..], |(_, images)| images)
        };
        let count = self.contestants.len();
        events.say(
            "step",
            &format!(
                "{} in turns, batches of {}: {}",
                counted(count, "model"),
                listed(&self.batches),
                counted(rounds, "round")
            ),
        );
        for one in &self.contestants {
            measure(&one.engine, images(&one.engine), 1, self.budget, stop)?;
        }
        // By batch size and contestant, a median for each round.
        let mut medians = vec![vec![Vec::new(); count]; self.batches.len()];
        let once = Budget {
            time: std::time::Duration::ZERO,
            runs: 1,
        };
        let at = |done| Progress {
            about: "",
            unit: "rounds",
            done,
            total: rounds,
        };
        events.progress(at(0));
        for round in 0..rounds {
            for (&batch, medians) in self.batches.iter().zip(&mut medians) {
                for turn in 0..count {
                    let i = (round + turn) % count;
                    let (Some(one), Some(medians)) = (self.contestants.get(i), medians.get_mut(i)) else {
                        continue;
                    };
                    let images = images(&one.engine);
                    // The caches hold what the one before has left.
                    times(&one.engine, images, batch, once, stop)?;
                    let seconds = times(&one.engine, images, batch, self.budget, stop)?;
                    medians.push(1e3 * median(seconds));
                }
            }
            events.progress(at(round + 1));
            check(stop)?;
        }
        let batches = self.batches.iter().zip(medians);
        Ok(batches
            .map(|(&batch, medians)| self.batch(batch, &medians))
            .collect())
    }

    /// What the rounds say about a batch size.
    fn batch(&self, batch: usize, medians: &[Vec<f64>]) -> Batch {
        let first = medians.first().map_or(&[][..], |first| first);
        let results = self.labels.iter().zip(medians).map(|(label, own)| {
            let latency_ms = median(own.iter().copied());
            let ratios: Vec<f64> = own.iter().zip(first).map(|(own, first)| own / first).collect();
            Time {
                label: label.clone(),
                latency_ms,
                images_per_s: 1e3 * batch as f64 / latency_ms,
                ratio: Ratio::of(&ratios),
                rounds_ms: own.clone(),
            }
        });
        Batch {
            batch,
            results: results.collect(),
        }
    }

    /// What the models are.
    pub fn models(&self) -> Vec<Model> {
        let model = |(label, one): (&String, &Contestant)| {
            let spec = one.engine.spec();
            let [_, height, width] = spec.input_size();
            Model {
                label: label.clone(),
                model: one.model.clone(),
                architecture: spec.architecture.clone(),
                weights: one.weights,
                precision: one.engine.precision(),
                isa: one.engine.isa().name(),
                img_size: [height, width],
                param_count: one.param_count,
                weight_bytes: one.weight_bytes,
                packed_bytes: one.engine.packed_bytes(),
                macs: one.macs,
                macs_executed: one.engine.macs(),
                compile_ms: one.compile_ms,
            }
        };
        self.labels.iter().zip(&self.contestants).map(model).collect()
    }

    /// `data`, called `name`, with the labels of each model, whose classes are found `by` name or position: the first thing to look
    /// at, since some may have others. Who learned from these pictures is told.
    ///
    /// # Errors
    /// [`Error::ClassNamesOf`] for a model with other classes.
    pub fn matched(
        &self,
        (data, name): (&DataSet, &str),
        by: LabelsBy,
        events: &mut dyn Events,
    ) -> Result<Vec<Matched>> {
        let mut all = Vec::new();
        for (label, one) in self.labels.iter().zip(&self.contestants) {
            let matched = one.names.matched(data, one.engine.spec().num_classes, by);
            let matched = matched.map_err(|reason| Error::ClassNamesOf {
                model: label.clone(),
                reason: Box::new(reason),
            })?;
            let seen = seen::note(&one.history, name, data.split());
            for note in matched.note.iter().chain(&seen) {
                events.say("note", &format!("{label}: {note}"));
            }
            all.push(matched);
        }
        Ok(all)
    }

    /// Everyone's accuracy on `data`, as it was [`matched`](Contest::matched), and how often it answers as the first does.
    ///
    /// # Errors
    /// A model without classes, or with fewer than the labels; [`Error::Interrupted`] once `stop` was set.
    pub fn evaluate(
        &self,
        data: &[Matched],
        batch_size: usize,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Vec<Accuracy>> {
        let options = EvalOptions {
            batch_size,
            workers: self.threads,
            fusion: Fusion::default(),
        };
        let images = data.first().map_or(0, |matched| matched.data.len());
        let total = images * self.contestants.len();
        events.say(
            "step",
            &format!("each model predicts {}", counted(images, "image")),
        );
        let begun = Progress::of_images(total);
        events.progress(begun);
        let (mut found, mut first): (Vec<Accuracy>, Option<Answers>) = (Vec::new(), None);
        let all = self.labels.iter().zip(&self.contestants).zip(data);
        for (i, ((label, one), matched)) in all.enumerate() {
            let classes = one.engine.spec().num_classes;
            let mut recorder = Recorder::new(&one.engine, options.fusion);
            let preparation = one.preparation.preprocess(one.engine.spec())?;
            let mut checked = Checked {
                model: &mut recorder,
                weights: &one.tensors,
            };
            let evaluation = evaluate(&mut checked, &matched.data, &preparation, options, &mut |at| {
                let done = i * images + at.done;
                events.progress(Progress { done, ..begun });
                go_on(stop)
            });
            let evaluation = evaluation.map_err(own)?;
            let answers = Answers::new(matched, classes, &recorder.predictions);
            let same = first.as_ref().unwrap_or(&answers).agreement(&answers);
            first.get_or_insert(answers);
            found.push(Accuracy {
                label: label.clone(),
                top1: evaluation.joint.top1,
                top5: evaluation.joint.top5,
                agreement: same,
                images: evaluation.joint.samples,
                unreadable: evaluation.failures.len(),
            });
        }
        Ok(found)
    }
}

/// What a model answered to each image.
struct Answers {
    /// The classes among which it chose, where these are others than the data's and have no names: how many.
    among: Option<usize>,
    /// By name where there is one, by number otherwise.
    classes: Vec<String>,
}

impl Answers {
    fn new(matched: &Matched, classes: usize, predictions: &[usize]) -> Answers {
        let names = matched.data.class_names();
        let known = !matched.places.is_empty() || names.len() == classes;
        let name = |&class: &usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
        Answers {
            among: (!known).then_some(classes),
            classes: predictions.iter().map(name).collect(),
        }
    }

    /// How often `other` says the same, in percent; nothing where the classes are not comparable.
    fn agreement(&self, other: &Answers) -> Option<f64> {
        let pairs = self.classes.iter().zip(&other.classes);
        let same = pairs.filter(|(first, other)| first == other).count();
        (self.among == other.among).then(|| 100.0 * same as f64 / self.classes.len() as f64)
    }
}

/// What each model is called: of a path its last part, with as many before it as tell it from the other models.
pub fn short(models: &[&str]) -> Vec<String> {
    let tail = |model: &str, parts: usize| -> String {
        let all: Vec<&str> = model.split('/').filter(|part| !part.is_empty()).collect();
        let skipped = all.len().saturating_sub(parts);
        all.into_iter().skip(skipped).collect::<Vec<_>>().join("/")
    };
    let name = |model: &&str| {
        // All runs call their checkpoints so.
        let least = if [BEST, FINAL].contains(&tail(model, 1).as_str()) {
            2
        } else {
            1
        };
        let mut tails = (least..=model.split('/').count()).map(|parts| (parts, tail(model, parts)));
        let alone = tails.find(|(parts, name)| {
            let mut others = models.iter().filter(|other| *other != model);
            others.all(|other| tail(other, *parts) != *name)
        });
        alone.map_or_else(|| (*model).to_owned(), |(_, name)| name)
    };
    models.iter().map(name).collect()
}

/// Names that tell all apart: without the precision where it is everyone's, with a number where one takes part twice.
fn labels(names: &[String]) -> Vec<String> {
    let precision = |name: &String| name.rsplit_once('@').map(|(_, precision)| precision.to_owned());
    let first = names.first().and_then(precision);
    let one = names.iter().all(|name| precision(name) == first);
    let mut labels: Vec<String> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let earlier = names.iter().take(i).filter(|other| *other == name).count();
        let short = if one {
            name.rsplit_once('@').map_or(&**name, |(model, _)| model)
        } else {
            name
        };
        labels.push(match earlier {
            0 => short.to_owned(),
            _ => format!("{short} ({})", earlier + 1),
        });
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_tell_apart() {
        let of = |names: &[&str]| labels(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["a@f32", "b@f32"]), ["a", "b"]);
        assert_eq!(of(&["a@f32", "a@int8"]), ["a@f32", "a@int8"]);
        assert_eq!(of(&["a@f32", "a@f32", "b@f32"]), ["a", "a (2)", "b"]);
    }

    #[test]
    fn models_are_called_by_the_ends_of_their_paths() {
        let models = [
            "/data/a/tiny",
            "/data/b/tiny/",
            "runs/x/best",
            "deit_tiny",
            "deit_tiny",
        ];
        assert_eq!(
            short(&models),
            ["a/tiny", "b/tiny", "x/best", "deit_tiny", "deit_tiny"]
        );
        assert_eq!(
            short(&["/data/a/tiny", "./tiny", "best"]),
            ["a/tiny", "./tiny", "best"]
        );
    }

    #[test]
    fn agreement_is_a_percentage_of_answers_that_can_be_compared() {
        let answers = |among, classes: &[&str]| Answers {
            among,
            classes: classes.iter().map(|&class| class.to_owned()).collect(),
        };
        let first = answers(None, &["cat", "dog", "eel", "cat"]);
        assert_eq!(
            first.agreement(&answers(None, &["cat", "dog", "cat", "cat"])),
            Some(75.0)
        );
        assert_eq!(first.agreement(&answers(Some(9), &["1", "2", "3", "4"])), None);
    }
}
