//! What the methods' tests share: ViT-B/16 without a head, whose counts are published, and a small model.
#![allow(clippy::unwrap_used)]

use vitesse_model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Tensors};
use vitesse_train::method::{Begun, MethodPlan};

use super::Method;

pub(crate) fn vit_base() -> ModelSpec {
    let mut spec = vitesse_model::zoo::get("vit_base_patch16_224").unwrap().spec;
    spec.num_classes = 100;
    spec
}

pub(crate) fn small() -> (ModelSpec, Tensors) {
    let spec = ModelSpec {
        architecture: "vit_micro_patch4_32".into(),
        num_classes: 5,
        network: NetworkSpec::Vit(VitSpec::plain(16, 4, 12, 3, 3, vec![PrefixToken::Class])),
        ops: Vec::new(),
    };
    let tensors = spec.init(1).unwrap();
    (spec, tensors)
}

/// What a method would change of ViT-B/16.
pub(crate) fn planned(name: &str, settings: &[(&str, &str)]) -> MethodPlan {
    Method::parse(name, &texts(settings))
        .unwrap()
        .plan(&vit_base())
        .unwrap()
}

/// On a small model.
pub(crate) fn begun(name: &str, settings: &[(&str, &str)]) -> Begun {
    let (spec, tensors) = small();
    let method = Method::parse(name, &texts(settings)).unwrap();
    method.begin(&spec, &tensors, 3).unwrap()
}

/// Why a method refuses its settings or a small model.
pub(crate) fn refusal(name: &str, settings: &[(&str, &str)]) -> String {
    let (spec, _) = small();
    match Method::parse(name, &texts(settings)).and_then(|method| method.plan(&spec)) {
        Ok(plan) => unreachable!("{plan}"),
        Err(error) => error.to_string(),
    }
}

fn texts<'a>(settings: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
    settings
        .iter()
        .map(|&(key, text)| (key, text.to_owned()))
        .collect()
}

#[test]
fn every_method_has_a_name_that_is_read_back() {
    for name in Method::NAMES {
        let method = Method::parse(name, &[]).unwrap();
        assert_eq!(method.name(), name);
        let text = serde_json::to_string(&method).unwrap();
        assert_eq!(serde_json::from_str::<Method>(&text).unwrap(), method);
    }
    let error = Method::parse("loras", &[]).unwrap_err().to_string();
    assert!(
        error.contains("`loras`") && error.contains("`repadapter`"),
        "{error}"
    );
    let error = refusal("lora", &[("ranks", "4")]);
    assert!(error.contains("ranks"), "{error}");
    assert!(refusal("vpt", &[("tokens", "many")]).contains("many"));
}

/// Whoever has nothing at the sites of a method says so by name; methods that need no site take every model.
#[test]
fn models_without_the_places_are_refused() {
    let spec = vitesse_model::zoo::get("regnety_nano_32").unwrap().spec;
    for (method, _) in Method::all() {
        match method.plan(&spec) {
            Ok(plan) => {
                assert!(["linear", "partial", "full"].contains(&method.name()), "{plan}");
                assert_eq!(plan.spec, spec);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("`regnety_nano_32` has no place for it"), "{text}");
                assert!(text.contains(" has `"), "{text}");
            }
        }
    }
}
