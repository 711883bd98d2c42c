//! The list of a crate's methods, from which everything follows that must know them all.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Settings;
use crate::{Error, Result};

/// Lists methods: one line for each, with what it changes and the module that has its `NAME` and its `Config`.
///
/// Makes the enum, which is read and written with serde as a table with the key `name`; `NAMES` and `all`; `new` and `parse`;
/// and a dereference to [`dyn Method`](crate::method::Method), which is the dispatch, with a conversion to a box of it for those
/// who keep a method of whatever list. The crate that uses this macro needs serde.
///
/// ```
/// mod halve {
///     use vitesse_model::ModelSpec;
///     use vitesse_train::method::{Method, MethodPlan};
///
///     pub const NAME: &str = "halve";
///
///     vitesse_train::settings! {
///         /// Half of everything.
///         pub struct Config {
///             /// Of how many.
///             pub of: usize = 2,
///         }
///     }
///
///     impl Method for Config {
///         fn name(&self) -> &'static str {
///             NAME
///         }
///         fn plan(&self, spec: &ModelSpec) -> vitesse_train::Result<MethodPlan> {
///             MethodPlan::new(NAME, spec, spec.clone(), |_| true)
///         }
///     }
/// }
///
/// vitesse_train::methods! {
///     /// The methods of this example.
///     pub enum Example {
///         /// Half of everything.
///         Halve(halve),
///     }
/// }
///
/// let method = Example::parse("halve", &[("of", "4".into())])?;
/// assert_eq!((method.name(), method.settings()["of"].as_u64()), ("halve", Some(4)));
/// assert!(Example::parse("half", &[]).is_err());
/// # Ok::<(), vitesse_train::Error>(())
/// ```
#[macro_export]
macro_rules! methods {
    ($(#[$meta:meta])* $vis:vis enum $Enum:ident {
        $(#[doc = $about:literal] $Variant:ident($module:ident)),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis enum $Enum {
            $(#[doc = $about] $Variant($module::Config)),*
        }

        impl $Enum {
            /// The names, in the order of the list.
            pub const NAMES: [&'static str; [$($module::NAME),*].len()] = [$($module::NAME),*];

            /// A method by name, with the settings that are not as their defaults.
            ///
            /// # Errors
            /// An unknown name or setting, or a value of the wrong type.
            pub fn new(
                name: &str,
                settings: $crate::method::Table,
            ) -> $crate::Result<Self> {
                match name {
                    $($module::NAME => $crate::method::read($module::NAME, settings).map($Enum::$Variant),)*
                    _ => Err($crate::method::unknown(name, &Self::NAMES)),
                }
            }

            /// As [`Self::new`], from the command line: a value is read as JSON where it can be, and as text otherwise.
            ///
            /// # Errors
            /// As [`Self::new`].
            pub fn parse(name: &str, settings: &[(&str, String)]) -> $crate::Result<Self> {
                Self::new(name, $crate::method::from_texts(settings))
            }

            /// All methods with their defaults, each with what the list says about it.
            pub fn all() -> Vec<(Self, &'static str)> {
                vec![$(($Enum::$Variant($module::Config::default()), $about.trim_ascii())),*]
            }
        }

        impl ::std::ops::Deref for $Enum {
            type Target = dyn $crate::method::Method;

            fn deref(&self) -> &Self::Target {
                match self {
                    $($Enum::$Variant(config) => config),*
                }
            }
        }

        impl ::std::convert::From<$Enum> for ::std::boxed::Box<dyn $crate::method::Method> {
            fn from(method: $Enum) -> Self {
                match method {
                    $($Enum::$Variant(config) => ::std::boxed::Box::new(config)),*
                }
            }
        }

        impl ::serde::Serialize for $Enum {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                ::serde::Serialize::serialize(&$crate::method::named(&**self), serializer)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $Enum {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                let table = ::serde::Deserialize::deserialize(deserializer)?;
                let (name, settings) = $crate::method::split(table).map_err(::serde::de::Error::custom)?;
                Self::new(&name, settings).map_err(::serde::de::Error::custom)
            }
        }
    };
}

/// Settings with their values, as they stand in files.
pub type Table = Map<String, Value>;

/// The key under which the name stands beside the settings.
const NAME_KEY: &str = "name";

/// The settings of a method that [`Settings::settings`] has written, or a part of them.
///
/// # Errors
/// An unknown key, a value of the wrong type.
pub fn read<T: DeserializeOwned + Default + Settings>(method: &str, settings: Table) -> Result<T> {
    let fields = T::default().fields();
    for (key, value) in &settings {
        if !fields.iter().any(|field| field.key == key) {
            let known: Vec<String> = fields.iter().map(|field| format!("`{}`", field.key)).collect();
            let known = if known.is_empty() {
                "it has no settings".to_owned()
            } else {
                format!("its settings are {}", known.join(", "))
            };
            return Err(refused(format!("{method} has no setting `{key}`; {known}")));
        }
        // Each by itself, for an error of serde says what it expected but not of which key.
        if let Some(expected) = expected::<T>(key, value) {
            return Err(refused(format!(
                "{method}: `{key}` is `{value}`, but must be {expected}"
            )));
        }
    }
    serde_json::from_value(Value::Object(settings)).map_err(|error| refused(format!("{method}: {error}")))
}

/// What the setting `key` must be, where it cannot be `value`.
fn expected<T: DeserializeOwned>(key: &str, value: &Value) -> Option<String> {
    let refusal = |value: &Value| {
        let table = Table::from_iter([(key.to_owned(), value.clone())]);
        let error = serde_json::from_value::<T>(Value::Object(table)).err()?;
        Some(error.to_string())
    };
    let found = refusal(value)?;
    // Of one of several names, serde names them only where it is given another name.
    let names = |text: &str| text.contains("unknown variant").then(|| text.to_owned());
    let named = refusal(&Value::String(String::new())).as_deref().and_then(names);
    let found = named.unwrap_or(found);
    let (_, expected) = found.rsplit_once(", expected ").unwrap_or_default();
    let plain = match expected {
        "usize" | "u64" | "u32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "a table",
        // Serde tells nothing of what may be written in several ways: a name, or a list of them.
        "" => "text or a list of texts",
        other => other,
    };
    Some(plain.to_owned())
}

/// Settings as typed: a value is JSON where it can be read so, and text otherwise.
pub fn from_texts(settings: &[(&str, String)]) -> Table {
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let pairs = settings
        .iter()
        .map(|(key, text)| ((*key).to_owned(), value(text)));
    pairs.collect()
}

/// The table of a method: its name, and its settings.
pub fn named(method: &dyn super::Method) -> Table {
    let name = (NAME_KEY.to_owned(), Value::String(method.name().to_owned()));
    std::iter::once(name).chain(method.settings()).collect()
}

/// The name and the settings of a method's table.
///
/// # Errors
/// A table without a name.
pub fn split(mut table: Table) -> Result<(String, Table)> {
    // Keeps the order of the others.
    match table.shift_remove(NAME_KEY) {
        Some(Value::String(name)) => Ok((name, table)),
        Some(other) => Err(refused(format!(
            "the `name` of a method must be text, but is {other}"
        ))),
        None => Err(refused("a method needs a `name`".to_owned())),
    }
}

/// The refusal of a name that is not on the list.
pub fn unknown(name: &str, known: &[&str]) -> Error {
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    refused(format!(
        "there is no method `{name}`; the methods are {}",
        known.join(", ")
    ))
}

fn refused(sentence: String) -> Error {
    Error::Method {
        code: "E_METHOD",
        sentence,
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Place {
        Before,
        After,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Several(Vec<String>),
    }

    crate::settings! {
        /// One of every type.
        struct Config {
            /// A whole number.
            width: usize = 8,
            /// Any number.
            scale: f64 = 1.0,
            /// A switch.
            deep: bool = false,
            /// A text.
            label: String = String::new(),
            /// A name.
            place: Place = Place::Before,
            /// Names.
            names: Names = Names::One(String::new()),
            /// A list.
            #[serde(skip_serializing_if = "Option::is_none")]
            parts: Option<Vec<Place>> = None,
        }
    }

    crate::settings! {
        /// None.
        struct Nothing {}
    }

    #[test]
    fn a_refusal_names_method_setting_and_what_is_expected() {
        for (key, value, says) in [
            (
                "width",
                json!(1.5),
                "`width` is `1.5`, but must be a whole number",
            ),
            ("width", json!(-1), "`width` is `-1`, but must be a whole number"),
            (
                "scale",
                json!("much"),
                "`scale` is `\"much\"`, but must be a number",
            ),
            ("deep", json!(3), "must be true or false"),
            ("label", json!(3), "must be text"),
            ("place", json!("inside"), "must be `before` or `after`"),
            ("place", json!(3), "must be `before` or `after`"),
            ("names", json!(3), "must be text or a list of texts"),
            ("parts", json!("after"), "must be a list"),
            (
                "widths",
                json!(1),
                "m has no setting `widths`; its settings are `width`, `scale`",
            ),
        ] {
            let settings = Table::from_iter([(key.to_owned(), value)]);
            let error = read::<Config>("m", settings).unwrap_err().to_string();
            assert!(error.starts_with('m') && error.contains(says), "{error}");
        }
        let settings = Table::from_iter([("width".to_owned(), json!(1))]);
        let error = read::<Nothing>("none", settings.clone()).unwrap_err().to_string();
        assert_eq!(error, "none has no setting `width`; it has no settings");
        assert_eq!(read::<Config>("m", settings).unwrap().width, 1);
    }
}
