//! Whether a run may go on: by the method that began it, with the recipe it was begun with.

use std::path::Path;

use toml::Table;

use crate::recipe::Recipe;
use crate::{Error, Result};

/// Refuses to go on with the run in `path`, begun with the recipe `begun`, by another recipe, but for what does not change
/// the result.
pub(crate) fn may_resume(path: &Path, begun: &Recipe, asked: &Recipe) -> Result<()> {
    let reason = match other_method(begun.method.as_ref(), asked.method.as_ref()) {
        Some(_) if begun.method.is_none() => without_method(begun),
        Some(reason) => reason,
        None if begun.decisive()? == asked.decisive()? => return Ok(()),
        None => other_recipe(begun, asked)?,
    };
    Err(Error::Resume {
        path: path.to_owned(),
        reason,
    })
}

/// Refuses to go on with the run in `path` on other weights than it was begun with: what learned on the ones would be kept as
/// learned on the others. Both are the SHA-256 of a file, or none for weights that were drawn.
///
/// # Errors
/// [`Error::Resume`].
pub fn same_base(path: &Path, begun: Option<&str>, now: Option<&str>) -> Result<()> {
    if begun == now {
        return Ok(());
    }
    let sha256 = |sum: Option<&str>| match sum {
        Some(sum) => format!("weights with SHA-256 {sum}"),
        None => "fresh weights".to_owned(),
    };
    Err(Error::Resume {
        path: path.to_owned(),
        reason: format!(
            "the base that it was begun with had {}, and the one that is there now has {}; restore the base, or start a \
             new run in another folder",
            sha256(begun),
            sha256(now)
        ),
    })
}

/// Why no method goes on with a run that has none, in a sentence.
pub(crate) fn without_method(begun: &Recipe) -> String {
    let verb = if begun.distill.distils() {
        "distill"
    } else {
        "train"
    };
    format!(
        "it was begun without a method; `vitesse {verb} --resume` goes on with it, and a method needs a folder of its own"
    )
}

/// What differs between two methods, in a sentence.
fn other_method(begun: Option<&Table>, asked: Option<&Table>) -> Option<String> {
    if begun == asked {
        return None;
    }
    let name = |table: &Table| {
        let name = table.get("name").and_then(|name| name.as_str());
        format!("the method `{}`", name.unwrap_or_default())
    };
    let differing = match (begun, asked) {
        (Some(begun), Some(asked)) if begun.get("name") == asked.get("name") => {
            let mut keys = begun.keys().chain(asked.keys());
            let key = keys.find(|key| begun.get(*key) != asked.get(*key))?;
            let setting = |table: &Table| match table.get(key) {
                Some(value) => format!("with `{key} = {value}`"),
                None => format!("without `{key}`"),
            };
            format!("by {} {}, not {}", name(begun), setting(begun), setting(asked))
        }
        (begun, asked) => {
            let by = |table: Option<&Table>| {
                table.map_or("without a method".into(), |table| format!("by {}", name(table)))
            };
            format!("{}, not {}", by(begun), by(asked))
        }
    };
    Some(format!(
        "it was begun {differing}; `--resume` that names neither method nor settings goes on as it was begun, and anything \
         else needs a folder of its own"
    ))
}

/// What else differs between two recipes, in a sentence.
fn other_recipe(begun: &Recipe, asked: &Recipe) -> Result<String> {
    let (begun, asked) = (begun.to_toml()?, asked.to_toml()?);
    let differing = asked
        .lines()
        .find(|line| !begun.lines().any(|other| other == *line));
    Ok(format!(
        "its recipe is another one (`{}` is new); resume with the recipe it was started with, or start a new run",
        differing.unwrap_or("a value")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn the_sentence_names_both() {
        let [linear, four, eight] = [
            "name = \"linear\"",
            "name = \"lora\"\nrank = 4",
            "name = \"lora\"\nrank = 8",
        ]
        .map(table);
        let says =
            |begun: Option<&Table>, asked: Option<&Table>| other_method(begun, asked).unwrap_or_default();
        assert_eq!(says(Some(&four), Some(&four)), "");
        assert_eq!(says(None, None), "");
        for (begun, asked, sentence) in [
            (
                Some(&four),
                Some(&linear),
                "by the method `lora`, not by the method `linear`;",
            ),
            (
                Some(&four),
                Some(&eight),
                "by the method `lora` with `rank = 4`, not with `rank = 8`;",
            ),
            (Some(&four), None, "by the method `lora`, not without a method;"),
            (
                None,
                Some(&linear),
                "without a method, not by the method `linear`;",
            ),
        ] {
            let found = says(begun, asked);
            assert!(found.contains(sentence), "{found}");
        }
        let plain = |more: &str| {
            let text = format!("[model]\nname = \"deit_nano_patch8_32\"\n[data]\npath = \"shapes\"\n{more}");
            without_method(&Recipe::parse(&text, "test.toml", &[]).unwrap())
        };
        assert!(plain("").contains("`vitesse train --resume`"));
        let distils = "[distill]\nteacher = \"t\"\n";
        assert!(plain(distils).contains("`vitesse distill --resume`"));
        let fewer = table("name = \"lora\"");
        assert!(says(Some(&four), Some(&fewer)).contains("with `rank = 4`, not without `rank`;"));
    }
}
