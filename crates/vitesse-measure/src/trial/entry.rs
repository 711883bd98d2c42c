//! Who takes part in a comparison: a method and its settings, as typed.

use std::str::FromStr;

use toml::{Table, Value};
use vitesse_adapt::Method;
use vitesse_compress::Method as Trained;
use vitesse_train::method::{self, named};

use crate::{Error, Result};

/// `METHOD` or `METHOD:KEY=VALUE:KEY=VALUE`.
///
/// The methods are those of adaptation: they all leave the base as it is and learn one task by it, so they can be compared. A
/// method of another list is a [`Setup`](super::Setup) of its own.
///
/// A key with a table, such as `optim.lr`, is the recipe's; others are the method's. Several names in a value are joined by
/// `+`, since a comma ends an entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// As typed, which is its row in tables.
    pub label: String,
    method: String,
    settings: Vec<(String, String)>,
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Entry, String> {
        let mut parts = text.split(':');
        let method = parts.next().unwrap_or_default();
        if !Method::NAMES.contains(&method) {
            return Err(format!(
                "there is no method `{method}`; the methods are {}",
                Method::NAMES.join(", ")
            ));
        }
        let settings = parts.map(setting).collect::<std::result::Result<Vec<_>, _>>()?;
        let names = |(key, value): (String, String)| (key, value.replace('+', ","));
        let settings = settings.into_iter().map(names).collect();
        Ok(Entry {
            label: text.to_owned(),
            method: method.to_owned(),
            settings,
        })
    }
}

impl Entry {
    /// A method with settings of `--set`.
    pub fn new(method: &str, settings: &[(String, String)]) -> Entry {
        let settings = settings.to_vec();
        let label = settings.iter().fold(method.to_owned(), |label, (key, value)| {
            format!("{label}:{key}={value}")
        });
        Entry {
            label,
            method: method.to_owned(),
            settings,
        }
    }

    /// The method of a recipe's `[method]`.
    pub fn of(table: &Table) -> Entry {
        let method = table.get("name").and_then(Value::as_str).unwrap_or_default();
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => serde_json::json!(other).to_string(),
        };
        let settings = table.iter().filter(|(key, _)| *key != "name");
        let settings: Vec<_> = settings.map(|(key, value)| (key.clone(), text(value))).collect();
        Entry::new(method, &settings)
    }

    /// The same with another value of one setting.
    pub fn with(&self, key: &str, value: &str) -> Entry {
        let mut settings = self.settings.clone();
        settings.retain(|(known, _)| known != key);
        settings.push((key.to_owned(), value.to_owned()));
        Entry::new(&self.method, &settings)
    }

    /// Whether `key` can be set: it is the recipe's or the method's.
    pub fn knows(&self, key: &str) -> bool {
        let Ok(method) = of_any_list(&self.method, &[]) else {
            return false;
        };
        key.contains('.') || method.fields().iter().any(|field| field.key == key)
    }

    /// Whether it says what `key` is.
    pub fn sets(&self, key: &str) -> bool {
        self.settings.iter().any(|(known, _)| known == key)
    }

    /// The method with its settings.
    ///
    /// # Errors
    /// A setting that it does not have, or not so.
    pub fn method(&self) -> Result<Box<dyn method::Method>> {
        let own = self.settings.iter().filter(|(key, _)| !key.contains('.'));
        let own: Vec<(&str, String)> = own.map(|(key, value)| (key.as_str(), value.clone())).collect();
        of_any_list(&self.method, &own)
    }

    /// The keys of the recipe: those that were set, and `method`.
    ///
    /// # Errors
    /// As [`Entry::method`].
    pub fn overrides(&self) -> Result<Vec<(&str, Value)>> {
        let keys = self.settings.iter().filter(|(key, _)| key.contains('.'));
        let keys = keys.map(|(key, value)| (key.as_str(), toml_value(value)));
        Ok(keys.chain([("method", table(&*self.method()?)?)]).collect())
    }

    /// A folder's name.
    pub fn folder(&self) -> String {
        let plain = |c: char| {
            if c.is_alphanumeric() || "=.-_".contains(c) {
                c
            } else {
                '-'
            }
        };
        self.label.chars().map(plain).collect()
    }
}

/// The method of this name, of whatever list it is on.
fn of_any_list(name: &str, settings: &[(&str, String)]) -> Result<Box<dyn method::Method>> {
    if Method::NAMES.contains(&name) {
        return Ok(Method::parse(name, settings)?.into());
    }
    if Trained::NAMES.contains(&name) {
        return Ok(Trained::parse(name, settings)?.into());
    }
    let known: Vec<&str> = Method::NAMES.into_iter().chain(Trained::NAMES).collect();
    Err(method::unknown(name, &known).into())
}

/// Keys of the recipe that follow from the method where nothing else is said.
pub fn defaults(method: &dyn method::Method) -> Vec<(&'static str, Value)> {
    let mut defaults = Vec::new();
    if method.adapts() {
        defaults.push(("preset", Value::String("adapt".into())));
    }
    let own = method.recipe().iter();
    defaults.extend(own.map(|&(key, value)| (key, Value::Float(value))));
    defaults.push(("model.eval_mode", Value::Boolean(method.eval_mode())));
    defaults
}

/// A recipe's `[method]`, with every setting.
///
/// # Errors
/// Settings that TOML cannot hold.
pub fn table(method: &dyn method::Method) -> Result<Value> {
    Value::try_from(named(method)).map_err(|error| Error::Settings {
        method: method.name(),
        reason: error.to_string(),
    })
}

/// `KEY=VALUE,VALUE`: values that are tried on validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The setting, the method's or the recipe's.
    pub key: String,
    /// What is tried.
    pub values: Vec<String>,
}

impl FromStr for Search {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Search, String> {
        let (key, values) = setting(text)?;
        let values: Vec<String> = values.split(',').map(|value| value.replace('+', ",")).collect();
        if values.len() < 2 || values.iter().any(String::is_empty) {
            return Err(format!(
                "`{text}` leaves nothing to choose; expected several values, such as scale=0.1,1,10"
            ));
        }
        Ok(Search { key, values })
    }
}

/// `KEY=VALUE`.
///
/// # Errors
/// Text that is none, in a sentence.
pub fn setting(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!(
            "`{text}` is not a setting; expected a key and a value, such as rank=4"
        )),
    }
}

/// A number, a truth value, or text.
fn toml_value(text: &str) -> Value {
    let number = text.parse().map(Value::Integer);
    let number = number.or_else(|_| text.parse().map(Value::Float));
    number
        .or_else(|_| text.parse().map(Value::Boolean))
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_method_with_settings() {
        let entry: Entry = "lora:rank=4:targets=qkv+fc1:optim.lr=5e-3".parse().unwrap();
        assert_eq!(entry.method().unwrap().settings()["rank"], 4);
        let [("optim.lr", Value::Float(5e-3)), ("method", Value::Table(table))] =
            &entry.overrides().unwrap()[..]
        else {
            panic!("other keys")
        };
        assert_eq!(table["name"].as_str(), Some("lora"));
        let settings = |entry: &Entry| entry.method().unwrap().settings();
        assert_eq!(settings(&Entry::of(table)), settings(&entry));
        assert_eq!(entry.folder(), "lora-rank=4-targets=qkv-fc1-optim.lr=5e-3");
        assert_eq!(
            entry.with("rank", "8").label,
            "lora:targets=qkv,fc1:optim.lr=5e-3:rank=8"
        );
        assert!(
            entry.knows("rank")
                && entry.knows("parts")
                && entry.knows("train.epochs")
                && !entry.knows("scale")
        );
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| text.parse::<Entry>().unwrap_err();
        assert!(refused("lroa").contains("`lroa`") && refused("lroa").contains("lora"));
        assert!(refused("lora:rank").contains("`rank`"));
        let told = Entry::new("lroa", &[]).method().unwrap_err().to_string();
        assert!(told.contains("`lroa`") && told.contains("`minivit`"), "{told}");
        let unknown: Entry = "lora:scale=2".parse().unwrap();
        assert!(unknown.method().unwrap_err().to_string().contains("scale"));
        assert!(
            "scale=1"
                .parse::<Search>()
                .unwrap_err()
                .contains("nothing to choose")
        );
        assert_eq!("scale=0.1,5".parse::<Search>().unwrap().values, ["0.1", "5"]);
    }
}
