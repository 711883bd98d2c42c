//! A JSON object of a configuration file, read key by key, with errors that say which key of which file is wrong.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The keys of one object that have not been read yet.
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// Where the object stands: empty at the top, else such as `pretrained_cfg` or `vitesse.share`.
    place: String,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object that `text`, the content of `file`, consists of.
    pub(crate) fn parse(file: &'a Path, text: &str) -> Result<Self> {
        // Some editors put a byte order mark before the text.
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(map) => Ok(Fields {
                file,
                place: String::new(),
                map,
            }),
            Err(error) => Err(Error::ConfigSyntax {
                path: file.to_owned(),
                detail: error.to_string(),
            }),
        }
    }

    /// The object that stands under `key`; empty when there is none.
    pub(crate) fn object(&mut self, key: &'static str) -> Result<Fields<'a>> {
        let map = self.take(key, "a JSON object")?.unwrap_or_default();
        Ok(Fields {
            file: self.file,
            place: self.place_of(key),
            map,
        })
    }

    /// What has not been read.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether the key is there and not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_null())
    }

    /// The keys that have not been read.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.map.keys()
    }

    /// What stands under a key that has not been read.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// Takes a key out; `None` when it is absent or null. `expected` completes "should be …".
    pub(crate) fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<Option<T>> {
        match self.map.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            // serde's own message would name neither file nor key.
            Some(value) => match T::deserialize(&value) {
                Ok(read) => Ok(Some(read)),
                Err(_) => Err(self.wrong(key, expected, Some(&value))),
            },
        }
    }

    /// Takes out a key that must be there.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<T> {
        self.take(key, expected)?
            .ok_or_else(|| self.wrong(key, expected, None))
    }

    /// Takes out a whole number within bounds.
    pub(crate) fn size(&mut self, key: &str, within: RangeInclusive<usize>) -> Result<Option<usize>> {
        let expected = format!("a whole number from {} to {}", within.start(), within.end());
        let found = self.take(key, &expected)?;
        match found {
            Some(size) if !within.contains(&size) => Err(self.wrong(key, &expected, Some(&size.into()))),
            _ => Ok(found),
        }
    }

    /// Takes out one whole number for height and width, or two.
    pub(crate) fn sides(&mut self, key: &str, within: RangeInclusive<usize>) -> Result<Option<[usize; 2]>> {
        let expected = format!(
            "one or two whole numbers from {} to {}",
            within.start(),
            within.end()
        );
        let Some(value) = self.take::<Value>(key, &expected)? else {
            return Ok(None);
        };
        let sides = match &value {
            Value::Number(_) => usize::deserialize(&value).map(|side| [side; 2]),
            _ => <[usize; 2]>::deserialize(&value),
        };
        match sides {
            Ok(sides) if sides.iter().all(|side| within.contains(side)) => Ok(Some(sides)),
            _ => Err(self.wrong(key, &expected, Some(&value))),
        }
    }

    /// Takes out `count` finite numbers, all above zero if `positive`.
    pub(crate) fn numbers(&mut self, key: &str, count: usize, positive: bool) -> Result<Option<Vec<f64>>> {
        let expected = format!(
            "a list of {count} {}numbers, one a channel",
            if positive { "positive " } else { "" }
        );
        let found: Option<Vec<f64>> = self.take(key, &expected)?;
        let fits = |number: &f64| number.is_finite() && (*number > 0.0 || !positive);
        match &found {
            Some(numbers) if numbers.len() != count || !numbers.iter().all(fits) => {
                Err(self.wrong(key, &expected, Some(&numbers.clone().into())))
            }
            _ => Ok(found),
        }
    }

    /// The error that `key` holds `found`, or is missing.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: Option<&Value>) -> Error {
        Error::Config {
            path: self.file.to_owned(),
            key: self.place_of(key),
            expected: expected.to_owned(),
            found: found.map_or_else(|| "missing".to_owned(), brief),
        }
    }

    /// Where `key` stands in the file.
    fn place_of(&self, key: &str) -> String {
        match self.place.as_str() {
            "" => key.to_owned(),
            place => format!("{place}.{key}"),
        }
    }
}

/// A value as it stands in the file, cut off where it gets long.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
