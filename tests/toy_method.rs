//! A method needs its file, its line and its page: here are the first two of one that no crate ships, and its whole life,
//! `plan → begin → train → finish → check`, with the program's own means.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use vitesse::engine::{Engine, Options};
use vitesse::measure::proof::Difference;
use vitesse::model::{Checkpoint, LoadOptions, ModelSpec, Sites, Tensors};
use vitesse::rng::Key;
use vitesse::train::Recipe;
use vitesse::train::method::{Begun, Table};
use vitesse::train::objective::Objective;
use vitesse::train::run::Existing;
use vitesse::train::state::State;
use vitesse::train::trainer::{Start, train};

/// The file: GAIN scales what every perceptron adds to the stream, channel by channel. Gains are capped after each step.
mod gain {
    use vitesse::adapt::merge::{self, Options};
    use vitesse::model::ops::{OpKind, OpSpec, ScaleShift};
    use vitesse::model::{ModelSpec, Site, Sites, Tensors};
    use vitesse::train::adamw::Slot;
    use vitesse::train::hooks::Hooks;
    use vitesse::train::learner::Taken;
    use vitesse::train::method::{Begun, Finished, Method, MethodPlan};
    use vitesse::train::objective::At;
    use vitesse::train::{Result, settings};

    pub(crate) const NAME: &str = "gain";

    settings! {
        /// How the gains are set up.
        pub(crate) struct Config {
            /// What they start as.
            pub(crate) start: f64 = 1.0,
            /// What they may not exceed.
            pub(crate) cap: f64 = 2.0,
        }
    }

    /// No gain grows beyond this.
    #[derive(Debug)]
    struct Cap(f32);

    impl Hooks for Cap {
        fn updated(&self, _: At, slots: &mut [Slot], _: &Taken, _: &mut Tensors) -> Result<()> {
            for slot in slots.iter_mut().filter(|slot| slot.name.ends_with(".scale")) {
                slot.weight.iter_mut().for_each(|gain| *gain = gain.min(self.0));
            }
            Ok(())
        }
    }

    impl Method for Config {
        fn name(&self) -> &'static str {
            NAME
        }

        fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
            let mut after = spec.clone();
            after.ops.extend((0..spec.depth()).map(|layer| OpSpec {
                site: Site::MlpOut,
                layer: Some(layer),
                kind: OpKind::ScaleShift(ScaleShift { shift: false }),
            }));
            MethodPlan::new(NAME, spec, after, |tensor| tensor.name.ends_with(".scale"))
        }

        fn begin(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Begun> {
            let mut begun = self.plan(spec)?.begin(tensors, seed)?;
            for name in &begun.trained.method {
                let shape = begun.tensors.get(name)?.shape().to_vec();
                let values = vec![self.start as f32; shape.iter().product()];
                begun.tensors.insert_f32(name, &shape, values)?;
            }
            begun.hooks.push(Box::new(Cap(self.cap as f32)));
            Ok(begun)
        }

        fn finish(&self, spec: &ModelSpec, tensors: &Tensors) -> Result<Finished> {
            let merged = merge::merge(spec, tensors, Options::default())?;
            Ok(Finished {
                spec: merged.spec,
                tensors: merged.tensors,
                folded: merged.report.folded,
                kept: merged.report.kept,
            })
        }
    }
}

// The line.
vitesse::train::methods! {
    /// A list of one.
    enum Toy {
        /// What perceptrons say, louder or softer.
        Gain(gain),
    }
}

fn logits(spec: &ModelSpec, tensors: &Tensors, images: &[f32]) -> Vec<f32> {
    let engine = Engine::new(spec, tensors, "test", Options::default()).unwrap();
    let size: usize = spec.input_size().iter().product();
    engine.run(images, images.len() / size).unwrap().class
}

#[test]
fn the_list_makes_names_parsing_and_files() {
    assert_eq!(Toy::NAMES, ["gain"]);
    let method = Toy::parse("gain", &[("start", "0.5".into())]).unwrap();
    let text = serde_json::to_string(&method).unwrap();
    assert_eq!(text, r#"{"name":"gain","start":0.5,"cap":2.0}"#);
    assert_eq!(serde_json::from_str::<Toy>(&text).unwrap(), method);
    assert_eq!(
        serde_json::from_str::<Toy>(r#"{"name":"gain"}"#).unwrap(),
        Toy::all()[0].0
    );
    assert_eq!(Toy::all()[0].1, "What perceptrons say, louder or softer.");
    for (text, says) in [
        (r#"{"start":1}"#, "needs a `name`"),
        (r#"{"name":"gian"}"#, "no method `gian`; the methods are `gain`"),
        (r#"{"name":"gain","begin":1}"#, "`begin`"),
        (r#"{"name":"gain","start":"loud"}"#, "loud"),
    ] {
        let error = serde_json::from_str::<Toy>(text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(Toy::new("gain", Table::new()).is_ok());
}

/// Of `shapes`.
const CLASSES: usize = 8;

/// A short run in `folder` on pictures that the program draws.
fn trained(begun: Begun, base: &Checkpoint, folder: &Path) -> Checkpoint {
    let text = "[model]\nname = \"deit_nano_patch8_32\"\n[data]\npath = \"shapes\"\nlimit = 64\n[train]\nepochs = 2\n\
                batch_size = 16\nworkers = 1\n[schedule]\nwarmup_epochs = 0\n[optim]\nlr = 0.1\n";
    let recipe = Recipe::parse(text, "toy.toml", &[]).unwrap();
    let model = Checkpoint {
        spec: begun.spec,
        tensors: begun.tensors,
        ..base.clone()
    };
    let (train_set, validation) = recipe.data.open().unwrap();
    let mut objective: Vec<Box<dyn Objective>> = vec![Box::new(recipe.distill.distillation())];
    objective.extend(begun.objective);
    let start = Start {
        state: State::new(&model, &recipe.optim, false, &|name| begun.trained.contains(name)).unwrap(),
        train: train_set,
        validation,
        objective: Box::new(objective),
        hooks: begun.hooks,
        teacher: None,
        device: Device::flex(),
    };
    let stop = AtomicBool::new(false);
    train(&recipe, start, folder, Existing::Refuse, &stop, &mut ()).unwrap();
    Checkpoint::load(folder.join("best"), &LoadOptions::default()).unwrap()
}

#[test]
fn a_method_goes_through_its_life() {
    let base = Checkpoint::fresh("deit_nano_patch8_32", Some(CLASSES), None, 1).unwrap();
    let method = Toy::parse("gain", &[("start", "1.95".into())]).unwrap();

    let (width, depth) = (base.spec.num_features(), base.spec.depth());
    let plan = method.plan(&base.spec).unwrap();
    let (before, after) = (plan.change.before, plan.change.after);
    assert_eq!(plan.trainable.method_parameters, width * depth);
    assert_eq!(plan.change.counts(), [0, depth, 0]);
    assert_eq!(after.parameters, before.parameters + width * depth);
    assert_eq!(after.bytes, before.bytes + 4 * width * depth);
    assert!(after.macs > before.macs);
    assert!(
        plan.to_string()
            .contains(&format!("tensors: {depth} added, 0 removed")),
        "{plan}"
    );

    let begun = method.begin(&base.spec, &base.tensors, 3).unwrap();
    assert_eq!(begun.spec, plan.spec);
    assert_eq!(begun.trained, plan.trainable);
    let names = begun.trained.method.clone();

    let place = tempfile::tempdir().unwrap();
    let trained = trained(begun, &base, &place.path().join("run"));
    assert_eq!(trained.spec, plan.spec);
    let gains: Vec<f32> = names
        .iter()
        .flat_map(|name| trained.tensors.get(name).unwrap().to_f32().into_owned())
        .collect();
    assert!(gains.contains(&2.0), "no gain met its cap");
    assert!(gains.iter().all(|&gain| gain <= 2.0) && gains.iter().any(|&gain| gain < 1.95));
    let frozen = "blocks.0.mlp.fc1.weight";
    assert_eq!(
        trained.tensors.get(frozen).unwrap(),
        base.tensors.get(frozen).unwrap()
    );

    let finished = method.finish(&trained.spec, &trained.tensors).unwrap();
    assert_eq!((finished.folded.len(), finished.kept.len()), (depth, 0));
    assert_eq!(finished.spec, base.spec);

    let mut rng = Key::new(3).rng();
    let size: usize = base.spec.input_size().iter().product();
    let images: Vec<f32> = (0..2 * size).map(|_| rng.normal() as f32).collect();
    let expected = logits(&trained.spec, &trained.tensors, &images);
    let found = logits(&finished.spec, &finished.tensors, &images);
    let check = Difference::of(&found, &expected, 2, method.check());
    assert!(check.is_met(), "{check}");
    let without = Difference::of(
        &logits(&base.spec, &base.tensors, &images),
        &expected,
        2,
        method.check(),
    );
    assert!(!without.is_met(), "the gains change nothing");
}
