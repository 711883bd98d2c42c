//! The tables of `docs/methods` are what the methods' list and their `Config`s say.
//!
//! A page holds `<!-- settings: NAME -->` for every method it describes, and `docs/methods/README.md` holds
//! `<!-- methods -->`; what stands between such a line and `<!-- end -->` is generated:
//!
//! ```sh
//! UPDATE_DOCS=1 cargo test -p vitesse-adapt --test docs
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use vitesse_adapt::Method;
use vitesse_model::Checkpoint;
use vitesse_train::method::{between, described};

const INDEX: &str = "README.md";
const HEADING: &str = "\
| `--method` | what learns besides the head | parameters (ViT-B/16) | after training | the recipe's own values |
| --- | --- | --- | --- | --- |
";

#[test]
fn the_tables_are_those_of_the_code() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/methods");
    let mut pages = read(&folder);
    let mut index = String::from(HEADING);
    for (method, about) in Method::all() {
        let found = pages
            .iter()
            .find_map(|(page, text)| Some((page.clone(), described(text, &*method).unwrap()?)));
        let (page, text) = found.unwrap_or_else(|| {
            let name = method.name();
            panic!(
                "no page of docs/methods describes `{name}`; give one the lines `<!-- settings: {name} -->` and `<!-- end -->`"
            )
        });
        index.push_str(&row(&method, about, &page));
        pages.insert(page, text);
    }
    let text = between(&pages[INDEX], "<!-- methods -->", &index);
    pages.insert(
        INDEX.to_owned(),
        text.expect("the index has a line `<!-- methods -->` and an end"),
    );
    for (page, text) in pages {
        let path = folder.join(&page);
        if std::fs::read_to_string(&path).unwrap() == text {
            continue;
        }
        assert!(
            update,
            "docs/methods/{page} is not what the code says; run `UPDATE_DOCS=1 cargo test -p vitesse-adapt --test docs`"
        );
        std::fs::write(&path, text).unwrap();
    }
}

/// The pages by name.
fn read(folder: &Path) -> BTreeMap<String, String> {
    let paths = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths
        .map(|path| (name(&path), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

/// A method in the index: what it adds is counted on ViT-B/16, and how it ends is tried on a small model.
fn row(method: &Method, about: &str, page: &str) -> String {
    let mut base = vitesse_model::zoo::get("vit_base_patch16_224").unwrap().spec;
    base.num_classes = 100;
    let parameters = method.plan(&base).unwrap().trainable.method_param_count;
    let small = Checkpoint::fresh("deit_micro_patch4_32", Some(5), None, 0).unwrap();
    let begun = method.begin(&small.spec, &small.tensors, 0).unwrap();
    let finished = method.finish(&begun.spec, &begun.tensors).unwrap();
    let end = match (finished.report.folded.len(), finished.report.kept.first()) {
        (0, None) => "nothing to fold".to_owned(),
        (_, None) => "folds into the weights".to_owned(),
        (_, Some(kept)) => format!("stays: {}", kept.reason),
    };
    let mut recipe = String::new();
    for (key, value) in method.recipe() {
        write!(recipe, "`{key}={value}` ").unwrap();
    }
    if method.eval_mode() {
        recipe.push_str("`model.eval_mode=true`");
    }
    let name = method.name();
    format!(
        "| [`{name}`]({page}) | {} | {} | {end} | {} |\n",
        about.trim_end_matches('.'),
        grouped(parameters),
        recipe.trim()
    )
}

/// 239808 as 239,808.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
