//! The settings of a method: declared once with their defaults and their documentation.

use serde::Serialize;
use serde_json::Value;

use super::Table;

/// One setting, as it was declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its key.
    pub key: &'static str,
    /// What it is, from its documentation.
    pub about: &'static str,
}

/// What [`settings!`](crate::settings) declares.
pub trait Settings {
    /// The settings there are, in the order of their declaration.
    fn fields(&self) -> &'static [Field];
    /// Their values. One that is not set and has no default is left out.
    fn settings(&self) -> Table;
}

/// Declares the settings of a method: a struct of plain data whose every field has a documentation and a default.
///
/// It is read and written with serde, unknown keys are refused, and missing ones have their defaults. The crate that uses
/// this macro needs serde with `derive`.
///
/// ```
/// vitesse_train::settings! {
///     /// How the method is set up.
///     pub struct Config {
///         /// Width between the two projections.
///         pub hidden: usize = 8,
///         /// Projections by name.
///         #[serde(skip_serializing_if = "Option::is_none")]
///         pub targets: Option<String> = None,
///     }
/// }
/// use vitesse_train::method::Settings;
/// assert_eq!(Config::default().hidden, 8);
/// assert_eq!(Config::default().fields()[0].about, "Width between the two projections.");
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $vis:vis struct $Name:ident {
        $($(#[doc = $about:literal])+ $(#[serde($($serde:tt)*)])? $field_vis:vis $field:ident: $Type:ty = $default:expr),*
        $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $Name {
            $(
                $(#[doc = $about])+
                ///
                #[doc = ::std::concat!("Default: `", ::std::stringify!($default), "`.")]
                $(#[serde($($serde)*)])?
                $field_vis $field: $Type
            ),*
        }

        impl ::std::default::Default for $Name {
            fn default() -> Self {
                $Name { $($field: $default),* }
            }
        }

        impl $crate::method::Settings for $Name {
            fn fields(&self) -> &'static [$crate::method::Field] {
                const FIELDS: &[$crate::method::Field] = &[$($crate::method::Field {
                    key: ::std::stringify!($field),
                    about: ::std::concat!($($about),+).trim_ascii(),
                }),*];
                FIELDS
            }

            fn settings(&self) -> $crate::method::Table {
                $crate::method::values(self)
            }
        }
    };
}

/// What [`Settings::settings`] says of a struct.
pub fn values(settings: &impl Serialize) -> Table {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        _ => Table::new(),
    }
}

/// The settings as a table of the documentation, in Markdown: key, default, what it is. Without settings, a sentence.
pub fn table(defaults: &dyn Settings) -> String {
    if defaults.fields().is_empty() {
        return "There is nothing to set.\n".to_owned();
    }
    let values = defaults.settings();
    let mut out = String::from("| setting | default | |\n| --- | --- | --- |\n");
    for field in defaults.fields() {
        let default = match values.get(field.key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(Value::Array(list)) => {
                let entries = list
                    .iter()
                    .map(|entry| entry.as_str().map_or_else(|| entry.to_string(), str::to_owned));
                format!("`{}`", entries.collect::<Vec<_>>().join(","))
            }
            Some(Value::Number(number)) => number
                .as_f64()
                .map_or_else(|| format!("`{number}`"), |number| format!("`{number}`")),
            Some(value) => format!("`{value}`"),
        };
        out.push_str(&format!("| `{}` | {default} | {} |\n", field.key, field.about));
    }
    out
}
