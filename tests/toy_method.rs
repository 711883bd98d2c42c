//! A method needs its file, its line and its page: here they are of one that no crate ships, and its whole life,
//! `plan → begin → train → finish → check`, with the program's own means.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::AtomicBool;

use vitesse::adapt::peft::Adapter;
use vitesse::data::{OpenOptions, Split, open};
use vitesse::measure::trial::{Merged, Setup, defaults, table};
use vitesse::model::Sites;
use vitesse::train::Recipe;
use vitesse::train::method::{Table, described};

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
            Ok(merge::merge(spec, tensors, Options::default())?)
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

/// The page, as it stands in the documentation.
const PAGE: &str = "\
# GAIN

<!-- settings: gain -->
| setting | default | |
| --- | --- | --- |
| `start` | `1` | What they start as. |
| `cap` | `2` | What they may not exceed. |
<!-- end -->

More about it.
";

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

#[test]
fn the_table_of_the_page_is_generated() {
    let (method, _) = Toy::all().remove(0);
    assert_eq!(described(PAGE, &*method).unwrap().as_deref(), Some(PAGE));
    let stale = PAGE.replace("What they start as.", "Once upon a time.");
    assert_eq!(described(&stale, &*method).unwrap().as_deref(), Some(PAGE));
    assert_eq!(described("Nothing of the kind.", &*method).unwrap(), None);
}

/// A short run on pictures that the program draws.
const RECIPE: &str = "[model]\nname = \"deit_nano_patch8_32\"\n[data]\npath = \"shapes\"\nlimit = 64\n\
                      validation_limit = 64\n[train]\nepochs = 2\nbatch_size = 16\nworkers = 1\nseed = 3\n\
                      [schedule]\nwarmup_epochs = 0\n[optim]\nlr = 0.1\n";

#[test]
fn a_method_goes_through_its_life() {
    let method = Toy::parse("gain", &[("start", "1.95".into())]).unwrap();
    let named = [("method", table(&*method).unwrap())];
    let place = tempfile::tempdir().unwrap();
    let setup = Setup {
        label: "gain".to_owned(),
        recipe: Recipe::layered(&defaults(&*method), RECIPE.parse().unwrap(), &named, "toy.toml").unwrap(),
        method: method.clone().into(),
        folder: place.path().join("run"),
        base: None,
        memory: false,
    };
    let base = setup.plain(&mut ()).unwrap();

    let (width, depth) = (base.spec.num_features(), base.spec.depth());
    let plan = method.plan(&base.spec).unwrap();
    let (before, after) = (plan.change.before, plan.change.after);
    assert_eq!(plan.trainable.method_param_count, width * depth);
    assert_eq!(plan.change.counts(), [0, depth, 0]);
    assert_eq!(after.param_count, before.param_count + width * depth);
    assert_eq!(after.weight_bytes, before.weight_bytes + 4 * width * depth);
    assert!(after.macs > before.macs);
    assert!(
        plan.to_string()
            .contains(&format!("tensors: {depth} added, 0 removed")),
        "{plan}"
    );

    let begun = method.begin(&base.spec, &base.tensors, 3).unwrap();
    assert_eq!(begun.spec, plan.spec);
    assert_eq!(begun.trained, plan.trainable);

    let stop = AtomicBool::new(false);
    let trial = setup.train(&stop, &mut ()).unwrap();
    assert_eq!((trial.epochs, trial.method_param_count), (2, width * depth));
    assert_eq!(
        (&trial.method["name"], &trial.method["start"]),
        (&"gain".into(), &1.95.into())
    );
    let trained = setup.trained().unwrap();
    assert_eq!(trained.spec, plan.spec);
    let gains: Vec<f32> = begun
        .trained
        .method
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
    // An adapter of a method that this program does not list, with what it learned.
    let adapter = Adapter::read(&setup.adapter()).unwrap();
    assert_eq!(adapter.record.method_name(), Some("gain"));
    assert!(adapter.record.known_method().is_none());
    assert_eq!(adapter.attach(&base).unwrap().tensors, trained.tensors);

    let finished = method.finish(&trained.spec, &trained.tensors).unwrap();
    let report = &finished.report;
    assert_eq!((report.folded.len(), report.kept.len()), (depth, 0));
    assert!(!report.created_bias);
    assert_eq!(finished.spec, base.spec);

    // The finished model is compared with the trained one, as closely as the method's check says, and tested.
    let options = OpenOptions {
        split: Some(Split::Test),
        ..OpenOptions::default()
    };
    let pictures = open("shapes", &options).unwrap().limit(32, 0);
    let trial = setup.test(trial, &pictures, &stop, &mut ()).unwrap();
    let Some(Merged::Folded {
        largest_difference,
        images,
    }) = trial.test.unwrap().merged
    else {
        panic!("the gains are not folded");
    };
    assert!(images > 0 && largest_difference <= method.check().tolerance);
    // What is finished is found again.
    assert!(setup.found().unwrap().is_some_and(|trial| trial.test.is_some()));
}
