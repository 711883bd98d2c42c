//! Whether a model is tested on pictures that it learned from.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vitesse_data::{Split, splits};
use vitesse_model::config::HistoryStep;

/// What to know of an evaluation on this part of `data` by a model of this history, in a sentence: nothing where it did not learn from
/// it, or does not say so.
pub(crate) fn note(history: &[HistoryStep], data: &str, split: Split) -> Option<String> {
    history
        .iter()
        .filter_map(|step| step.config.get("data"))
        .find(|learned| {
            let path = learned.get("path").and_then(Value::as_str);
            let part = learned.get("split").and_then(|part| part.as_str()?.parse().ok());
            path.is_some_and(|path| same(path, data)) && overlap(part.unwrap_or(Split::Train), split)
        })?;
    let stored = splits(data).unwrap_or_default();
    let unseen = match [Split::Test, Split::Validation]
        .iter()
        .find(|part| stored.contains(part))
    {
        Some(part) => format!("`--split {part}` takes others"),
        None => "`--split validation` takes those that were held back".to_owned(),
    };
    Some(format!(
        "the model learned from pictures of `{data}`, {split}, so this says how well it knows them and not how well it sees new ones; {unseen}"
    ))
}

/// Whether what is learned from one part of a data set and what another holds have pictures in common.
fn overlap(learned: Split, tested: Split) -> bool {
    match tested {
        Split::All | Split::Train | Split::TrainValidation => true,
        Split::Validation => matches!(learned, Split::All | Split::TrainValidation | Split::Validation),
        Split::Test => matches!(learned, Split::All | Split::Test),
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
}
