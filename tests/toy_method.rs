//! A method needs its file, its line and its page: here are the first two of one that no crate ships, and its whole life,
//! `plan → begin → train → finish → check`, with the program's own means.
#![allow(clippy::unwrap_used, clippy::panic)]

use vitesse::adapt::merge::Difference;
use vitesse::engine::{Engine, Options};
use vitesse::model::{Checkpoint, ModelSpec, Sites, Tensors};
use vitesse::rng::Key;
use vitesse::train::method::Table;

/// The file: GAIN scales what every perceptron adds to the stream, channel by channel.
mod gain {
    use vitesse::adapt::merge::{self, Options};
    use vitesse::model::ops::{OpKind, OpSpec, ScaleShift};
    use vitesse::model::{ModelSpec, Site, Sites, Tensors};
    use vitesse::train::method::{Begun, Finished, Method, MethodPlan};
    use vitesse::train::{Result, settings};

    pub(crate) const NAME: &str = "gain";

    settings! {
        /// How the gains are set up.
        pub(crate) struct Config {
            /// What they start as.
            pub(crate) start: f64 = 1.0,
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
    assert_eq!(text, r#"{"name":"gain","start":0.5}"#);
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
fn a_method_goes_through_its_life() {
    let base = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 1).unwrap();
    let method = Toy::parse("gain", &[("start", "2".into())]).unwrap();

    let (width, depth) = (base.spec.num_features(), base.spec.depth());
    let plan = method.plan(&base.spec).unwrap();
    assert_eq!(plan.trainable.method_parameters, width * depth);
    assert_eq!(plan.change.counts(), [0, depth, 0]);
    assert_eq!(
        plan.change.after.parameters,
        plan.change.before.parameters + width * depth
    );
    assert_eq!(
        plan.change.after.bytes,
        plan.change.before.bytes + 4 * width * depth
    );
    assert!(plan.change.after.macs > plan.change.before.macs);
    assert!(
        plan.to_string()
            .contains(&format!("tensors: {depth} added, 0 removed")),
        "{plan}"
    );

    let begun = method.begin(&base.spec, &base.tensors, 3).unwrap();
    assert_eq!(begun.spec, plan.spec);
    assert_eq!(begun.trained, plan.trainable);

    let finished = method.finish(&begun.spec, &begun.tensors).unwrap();
    assert_eq!((finished.folded.len(), finished.kept.len()), (depth, 0));
    assert_eq!(finished.spec, base.spec);

    let mut rng = Key::new(3).rng();
    let size: usize = base.spec.input_size().iter().product();
    let images: Vec<f32> = (0..2 * size).map(|_| rng.normal() as f32).collect();
    let trained = logits(&begun.spec, &begun.tensors, &images);
    let check = Difference::of(&logits(&finished.spec, &finished.tensors, &images), &trained, 2);
    assert!(check.largest <= method.check().tolerance, "{check}");
    let before = Difference::of(&logits(&base.spec, &base.tensors, &images), &trained, 2);
    assert!(
        before.largest > method.check().tolerance,
        "the gains change nothing"
    );
}
