//! The rule of `src/cli`: a verb parses, calls a library and prints. What two verbs need is in a library, or in one of the
//! modules that this file names; no verb knows another.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules beside the verbs that all of them may use, and what each is to several: none has `Args` that a verb's name runs.
const SHARED: [(&str, &str); 10] = [
    ("args", "what is typed in the same way"),
    ("console", "lines and bars on standard error"),
    ("failure", "errors, hints and exit statuses"),
    ("habits", "flags of other programs"),
    ("outcome", "documents on standard output"),
    (
        "recovery",
        "the run with a teacher that follows `prune` and `share`",
    ),
    ("shell", "commands to paste"),
    ("show", "what a library tells while it works"),
    (
        "training",
        "flags and reports of runs, which `train`, `distill` and `adapt` make",
    ),
    (
        "transform",
        "where the results of `merge`, `prune` and `to-dense` go, and their reports",
    ),
];

/// Every Rust file below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The modules of `cli` that a source text names, in one that is `depth` modules below `cli`.
fn named(text: &str, depth: usize) -> BTreeSet<String> {
    let above = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for prefix in ["crate::cli::", &above] {
        for (at, _) in text.match_indices(prefix) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &text[at + prefix.len()..];
            let first = |path: &str| -> String {
                path.trim_start()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect()
            };
            match rest.strip_prefix('{') {
                // Of a group, the first name of each path.
                Some(group) => {
                    let mut open = 0;
                    let mut start = 0;
                    for (i, c) in group.char_indices() {
                        match c {
                            '{' => open += 1,
                            '}' if open > 0 => open -= 1,
                            ',' | '}' if open == 0 => {
                                found.insert(first(&group[start..i]));
                                start = i + 1;
                                if c == '}' {
                                    break;
                                }
                            }
                            _ => {}
                        }
                    }
                }
                None => {
                    found.insert(first(rest));
                }
            }
        }
    }
    found
}

#[test]
fn no_verb_knows_another() {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli");
    let module = |path: &Path| {
        let inside = path.strip_prefix(&cli).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs").to_owned()
    };
    let files: Vec<PathBuf> = sources(&cli)
        .into_iter()
        .filter(|path| *path != cli.join("mod.rs"))
        .collect();
    let modules: BTreeSet<String> = files.iter().map(|path| module(path)).collect();
    let shared = SHARED.map(|(name, _)| name);
    for name in shared {
        assert!(modules.contains(name), "there is no module `{name}`");
        let text = sources(&cli)
            .into_iter()
            .filter(|path| module(path) == name)
            .map(|path| fs::read_to_string(path).unwrap());
        assert!(
            !text.into_iter().any(|text| text.contains("struct Args")),
            "`{name}` is a verb"
        );
    }
    let verbs: BTreeSet<&str> = modules
        .iter()
        .map(String::as_str)
        .filter(|name| !shared.contains(name))
        .collect();
    assert!(verbs.contains("train") && verbs.contains("merge") && verbs.len() > 10);
    let mut wrong = Vec::new();
    for path in &files {
        let own = module(path);
        let inside = path.strip_prefix(&cli).unwrap();
        let depth = inside.components().count() - usize::from(path.ends_with("mod.rs"));
        for name in named(&fs::read_to_string(path).unwrap(), depth) {
            if name != own && verbs.contains(name.as_str()) {
                wrong.push(format!("{} uses the verb `{name}`", inside.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "what two verbs need belongs into a library or a shared module:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn a_verb_that_is_used_is_seen() {
    let names = |text: &str, depth| named(text, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::cli::eval::Plan;", 2), ["eval"]);
    assert_eq!(names("use super::eval;", 1), ["eval"]);
    assert_eq!(names("let x = super::super::merge::compare();", 2), ["merge"]);
    assert_eq!(
        names("use super::{Console, args::{positive, share}, predict};", 1),
        ["Console", "args", "predict"]
    );
    // The verb's own.
    assert!(names("use super::report::Report;", 2).is_empty());
    assert!(names("use vitesse::measure::merge;", 1).is_empty());
}
