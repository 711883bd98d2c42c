//! What a verb hands back: one document, written as text or as JSON.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

use super::console::printable;
use super::failure::{Exit, Failure, Result};

/// A verb's result.
#[derive(Debug)]
pub(crate) struct Outcome {
    text: String,
    json: String,
    exit: Exit,
}

impl Outcome {
    /// A report that is text through `Display` and a document through `Serialize`.
    pub(crate) fn new(report: &(impl Display + Serialize)) -> Result<Outcome> {
        Outcome::of(report, report)
    }

    /// A document, and the text that says it to people.
    pub(crate) fn of(report: &impl Serialize, text: &impl Display) -> Result<Outcome> {
        let json = serde_json::to_string_pretty(report).map_err(|error| {
            Failure::new(
                "E_INTERNAL",
                format!("the result cannot be written as JSON: {error}"),
            )
        })?;
        Ok(Outcome {
            text: text.to_string(),
            json,
            exit: Exit::Done,
        })
    }

    /// The same with another exit status, where a report is worth having although not all went well.
    pub(crate) fn with_exit(self, exit: Exit) -> Outcome {
        Outcome { exit, ..self }
    }

    /// Writes the document to standard output, if this process `speaks`.
    pub(crate) fn print(&self, json: bool, speaks: bool) -> Result<Exit> {
        let written = match json {
            _ if !speaks => Ok(()),
            true => write_json(&self.json),
            // Into a file or a pipe goes what there is.
            false if io::stdout().is_terminal() => write(printable(&self.text).as_bytes()),
            false => write(self.text.as_bytes()),
        };
        match written {
            Ok(()) => Ok(self.exit),
            // The reader has seen enough, as in `vitesse inspect --list | head`.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(self.exit),
            Err(error) => Err(Failure::new(
                "E_IO",
                format!("cannot write to standard output: {error}"),
            )),
        }
    }
}

/// Writes a JSON document to standard output.
pub(super) fn write_json(document: &str) -> io::Result<()> {
    write(format!("{document}\n").as_bytes())
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Lines of `key  value`, the values aligned.
pub(super) fn pairs<K: AsRef<str>, V: Display>(pairs: impl IntoIterator<Item = (K, V)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs
        .iter()
        .map(|(key, _)| key.as_ref().chars().count())
        .max()
        .unwrap_or(0);
    pairs
        .iter()
        .map(|(key, value)| format!("{:width$}  {value}\n", key.as_ref()))
        .collect()
}
