//! The settings of a method: declared once with their defaults and their documentation.

use serde::Serialize;
use serde_json::Value;

use super::Table;
use crate::{Error, Result};

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
    /// Their values, as serde writes them. One that is not set and has no default is left out.
    ///
    /// # Errors
    /// Values that no table can hold. That is a defect of the method, which the test of its page finds ([`table`](super::table)).
    fn written(&self) -> Result<Table>;
    /// The same, where that is known to be none.
    fn settings(&self) -> Table {
        self.written().unwrap_or_default()
    }
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

            fn written(&self) -> $crate::Result<$crate::method::Table> {
                $crate::method::values(self)
            }
        }
    };
}

/// What [`Settings::written`] says of a struct.
///
/// # Errors
/// As there.
pub fn values(settings: &impl Serialize) -> Result<Table> {
    let refused = |reason: String| Error::Method {
        code: "E_METHOD",
        sentence: format!("settings cannot be written: {reason}"),
    };
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(refused(format!("they are {other}, which is no table"))),
        Err(error) => Err(refused(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    crate::settings! {
        /// A map that JSON has no keys for.
        struct Odd {
            /// By pairs.
            pairs: BTreeMap<(u8, u8), u8> = BTreeMap::from([((0, 1), 2)]),
        }
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let error = Odd::default().written().unwrap_err().to_string();
        assert!(
            error.contains("cannot be written: key must be a string"),
            "{error}"
        );
        assert!(super::super::table(&Odd::default()).is_err());
    }
}
