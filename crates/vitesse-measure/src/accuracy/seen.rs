//! Whether a model is tested on pictures that it learned from.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vitesse_data::{OpenOptions, Split, splits};
use vitesse_model::config::HistoryStep;

/// What to know of an evaluation on this part of `data` by a model of this history, in a sentence: nothing where it did not learn from
/// it, or does not say so.
pub(crate) fn note(history: &[HistoryStep], data: &str, split: Split) -> Option<String> {
    let stored = splits(data).unwrap_or_default();
    let of_data = |step: &HistoryStep| {
        let learned = step.config.get("data")?;
        let part = learned.get("split").and_then(|part| part.as_str()?.parse().ok());
        same(learned.get("path")?.as_str()?, data).then(|| match part.unwrap_or(Split::Train) {
            // What an evaluation holds back was learned from.
            Split::Train if !stored.contains(&Split::Validation) && !held_as_usual(learned) => {
                Split::TrainValidation
            }
            part => part,
        })
    };
    let learned: Vec<Split> = history.iter().filter_map(of_data).collect();
    let seen = |part| learned.iter().any(|&learned| overlap(learned, part));
    if !seen(split) {
        return None;
    }
    let is_stored = |part: &Split| stored.contains(part);
    let unseen = [Split::Test, Split::Validation]
        .into_iter()
        .find(|part| (is_stored(part) || *part == Split::Validation) && !seen(*part));
    let tip = match unseen {
        Some(part) if is_stored(&part) => format!("; `--split {part}` takes others"),
        Some(part) => format!("; `--split {part}` takes those that were held back"),
        None => String::new(),
    };
    Some(format!(
        "the model learned from pictures of `{data}`, {split}, so this says how well it knows them and not how well it sees new ones{tip}"
    ))
}

/// Whether training held back what an evaluation holds back: the same share by the same seed.
fn held_as_usual(learned: &Value) -> bool {
    let usual = OpenOptions::default();
    let share = learned.get("val_fraction").and_then(Value::as_f64);
    let seed = learned.get("seed").and_then(Value::as_u64);
    share.is_none_or(|share| share == usual.val_fraction) && seed.is_none_or(|seed| seed == usual.seed)
}

/// Whether two parts of a data set have pictures in common.
fn overlap(one: Split, other: Split) -> bool {
    match (one, other) {
        (Split::All, _) | (_, Split::All) => true,
        (Split::TrainValidation, part) | (part, Split::TrainValidation) => part != Split::Test,
        _ => one == other,
    }
}

/// Whether two names mean one data set.
fn same(a: &str, b: &str) -> bool {
    let place = |name: &str| fs::canonicalize(Path::new(name)).ok();
    a == b || place(a).is_some_and(|a| Some(a) == place(b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn learned(config: &Value) -> HistoryStep {
        HistoryStep {
            step: "train".into(),
            config: config.as_object().cloned().unwrap_or_default(),
            ..HistoryStep::default()
        }
    }

    #[test]
    fn pictures_that_were_learned_from_are_known() {
        let history = [learned(&json!({"data": {"path": "shapes", "split": "train"}}))];
        for split in [Split::Train, Split::All, Split::TrainValidation] {
            assert!(note(&history, "shapes", split).is_some_and(|note| note.contains("--split test")));
        }
        assert_eq!(note(&history, "shapes", Split::Test), None);
        assert_eq!(note(&history, "shapes", Split::Validation), None);
        assert_eq!(note(&history, "shapes:count", Split::All), None);
        assert_eq!(note(&[learned(&json!({}))], "shapes", Split::All), None);
        let all = [learned(&json!({"data": {"path": "shapes", "split": "trainval"}}))];
        assert!(note(&all, "shapes", Split::Validation).is_some());
    }

    #[test]
    fn a_tip_names_only_what_was_not_learned_from() {
        let place = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            std::fs::create_dir(place.path().join(class)).unwrap();
            std::fs::write(place.path().join(class).join("x.png"), "").unwrap();
        }
        let path = place.path().display().to_string();
        let by = |more: Value| {
            let mut data = json!({"path": path, "split": "train"});
            let fields = data.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            [learned(&json!({"data": data}))]
        };
        let usual = note(&by(json!({})), &path, Split::All).unwrap();
        assert!(
            usual.ends_with("`--split validation` takes those that were held back"),
            "{usual}"
        );
        let nothing_held = by(json!({"val_fraction": 0.0}));
        for split in [Split::All, Split::Validation] {
            let said = note(&nothing_held, &path, split).unwrap();
            assert!(!said.contains("--split"), "{said}");
        }
    }
}
