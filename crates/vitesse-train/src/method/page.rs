//! The page of a method: what of it follows from the code.

use serde_json::Value;

use super::{Method, Settings};
use crate::Result;

/// Ends what is generated.
const END: &str = "<!-- end -->";

/// `page` with the table of the settings of `method`, which has its defaults, between the line `<!-- settings: NAME -->` and the
/// next `<!-- end -->`; `None` for a page that has no such lines.
///
/// # Errors
/// As [`Settings::written`].
pub fn described(page: &str, method: &dyn Method) -> Result<Option<String>> {
    let marker = format!("<!-- settings: {} -->", method.name());
    Ok(between(page, &marker, &table(method)?))
}

/// `page` with `body` between the line `marker` and the next `<!-- end -->`; `None` for a page that has no such lines.
pub fn between(page: &str, marker: &str, body: &str) -> Option<String> {
    let (before, rest) = page.split_once(marker)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{marker}\n{body}{END}{after}"))
}

/// The settings as a table of the documentation, in Markdown: key, default, what it is. Without settings, a sentence.
///
/// # Errors
/// As [`Settings::written`].
pub fn table(defaults: &dyn Settings) -> Result<String> {
    if defaults.fields().is_empty() {
        return Ok("There is nothing to set.\n".to_owned());
    }
    let values = defaults.written()?;
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
    Ok(out)
}
