//! Every recipe in `recipes/` can be followed as it stands: its keys, its model's name, its method, its layers.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use vitesse::compress::Method;
use vitesse::measure::sweep::Sweep;
use vitesse::measure::trial::Entry;
use vitesse::model::zoo;
use vitesse_train::Recipe;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    found.sort();
    found
}

#[test]
fn every_recipe_is_one() {
    let mut methods = 0;
    for path in files("recipes") {
        let recipe = Recipe::read(&path, &[]).unwrap();
        if let Some(name) = &recipe.model.name {
            let spec = zoo::get(name).unwrap().spec;
            if let Some(table) = &recipe.method {
                let method = Entry::of(table).method().unwrap();
                method.plan(&spec).unwrap();
                methods += 1;
            }
        }
    }
    assert!(methods >= 5, "{methods}");
}

#[test]
fn every_study_is_one() {
    let mut studies = 0;
    for path in files("recipes/studies") {
        // Those without arms are recipes of comparisons.
        if fs::read_to_string(&path).unwrap().contains("[[arm]]") {
            Sweep::read(&path).unwrap();
            studies += 1;
        } else {
            Recipe::read(&path, &[]).unwrap();
        }
    }
    assert!(studies >= 4, "{studies}");
}

/// The published pairs of layers are what the rule finds, and they fit the published teachers.
#[test]
fn published_recipes_of_mini_swins_fit_their_teachers() {
    let teacher = zoo::get("swin_base_patch4_window7_224").unwrap().spec;
    for size in ["tiny", "small", "base"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recipes/mini_swin_{size}.toml"));
        let recipe = Recipe::read(&path, &[]).unwrap();
        let student = zoo::get(recipe.model.name.as_deref().unwrap()).unwrap().spec;
        let method: Method = recipe.method.unwrap().try_into().unwrap();
        assert!(method.objective(&student, &teacher).unwrap().is_some());
        let Method::Minivit(listed) = method;
        let mut ruled = listed.clone();
        (ruled.student_layers, ruled.teacher_layers) = (None, None);
        assert_eq!(
            ruled.pairs(&student, &teacher).unwrap(),
            listed.pairs(&student, &teacher).unwrap()
        );
    }
}
