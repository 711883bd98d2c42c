//! What the methods' tests share: ViT-B/16 without a head, whose counts are published, and a small model.
#![allow(clippy::unwrap_used)]

use vitesse_model::spec::{NetworkSpec, PrefixToken, VitSpec};
use vitesse_model::{ModelSpec, Tensors};

use super::{Adapted, Method};

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

/// A method with settings, on ViT-B/16 whose tensors are not needed to count.
pub(crate) fn counted(name: &str, settings: &[(&str, &str)]) -> Adapted {
    Method::parse(name, &texts(settings))
        .unwrap()
        .apply(&vit_base(), &Tensors::new(), 0)
        .unwrap()
}

/// On a small model.
pub(crate) fn applied(name: &str, settings: &[(&str, &str)]) -> Adapted {
    let (spec, tensors) = small();
    let method = Method::parse(name, &texts(settings)).unwrap();
    let adapted = method.apply(&spec, &tensors, 3).unwrap();
    adapted.spec.check(&adapted.tensors, "test").unwrap();
    adapted
}

/// Why a method refuses its settings or a small model.
pub(crate) fn refusal(name: &str, settings: &[(&str, &str)]) -> String {
    let (spec, tensors) = small();
    match Method::parse(name, &texts(settings)).and_then(|method| method.apply(&spec, &tensors, 3)) {
        Ok(adapted) => unreachable!("{:?}", adapted.spec),
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

#[test]
fn convolutional_networks_are_refused() {
    let spec = vitesse_model::zoo::get("regnety_nano_32").unwrap().spec;
    let method = Method::parse("lora", &[]).unwrap();
    let error = method.apply(&spec, &Tensors::new(), 0).unwrap_err().to_string();
    assert!(error.contains("vision transformer"), "{error}");
}
