//! Why a verb did not do what was asked: one sentence, a stable code, a hint, an exit status.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
#[cfg(feature = "train")]
use vitesse::report;
use vitesse::{adapt, data, engine, measure, model};

use super::console;
use super::outcome;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    CheckNotMet = 3,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The code where another process could not go on.
const PEER: &str = "E_PEER";

/// What went wrong, for people and for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    exit: Exit,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Failure {
    /// Something could not be done.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Failure {
        Failure {
            exit: Exit::Failed,
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The command line asks for something that cannot be meant.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure {
            exit: Exit::Usage,
            ..Failure::new("E_USAGE", message)
        }
    }

    /// The system refused to `action` (a verb) a file.
    pub(crate) fn io(action: &str, path: &Path, error: impl Display) -> Failure {
        Failure::new("E_IO", format!("cannot {action} `{}`: {error}", path.display()))
    }

    /// Someone pressed Ctrl-C, or the system asked the program to end.
    pub(crate) fn interrupted() -> Failure {
        Failure::stopped("interrupted; nothing was written")
    }

    /// The same, where something was written.
    pub(crate) fn stopped(message: impl Into<String>) -> Failure {
        Failure {
            exit: Exit::Interrupted,
            ..Failure::new("E_INTERRUPTED", message)
        }
    }

    /// The same with a hint what to try.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Tells people, on standard error.
    pub(crate) fn tell(&self) {
        console::line("error", &self.message);
        if let Some(hint) = &self.hint {
            console::line("hint", hint);
        }
    }

    /// Tells people, and programs on standard output if that is where they look.
    pub(crate) fn print(&self, json: bool) -> Exit {
        self.tell();
        if json {
            self.print_document();
        }
        self.exit
    }

    /// Tells people that it is of the process `rank`, which does not lead. What all processes know, the first one tells.
    pub(crate) fn print_of(mut self, rank: usize) -> Exit {
        if self.exit != Exit::Interrupted && self.code != PEER {
            self.message = format!("process {rank}: {}", self.message);
            self.tell();
        }
        self.exit
    }

    /// The failure as the only document on standard output.
    pub(crate) fn print_document(&self) {
        // Whoever closed or filled standard output has been told on standard error already.
        let _ = outcome::write_json(&format!("{:#}", json!({ "error": self })));
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<model::Error> for Failure {
    fn from(error: model::Error) -> Failure {
        let failure = Failure::new(error.code(), error.to_string());
        match error {
            model::Error::UnknownArchitecture { .. } => {
                failure.hint("`vitesse inspect --list` shows the names")
            }
            _ => failure,
        }
    }
}

impl From<data::Error> for Failure {
    fn from(error: data::Error) -> Failure {
        Failure {
            hint: error.hint().map(str::to_owned),
            ..Failure::new(error.code(), error.to_string())
        }
    }
}

impl From<adapt::Error> for Failure {
    fn from(error: adapt::Error) -> Failure {
        let exit = match error {
            // A setting or a pattern of a method, as typed.
            adapt::Error::Method { .. }
            | adapt::Error::NoModule { .. }
            | adapt::Error::Pattern { .. }
            | adapt::Error::NamesPatches { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure {
            exit,
            ..Failure::new(error.code(), error.to_string())
        }
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Failure {
        match error {
            engine::Error::Isa(_) => Failure::usage(error.to_string()),
            error => Failure::new(error.code(), error.to_string()),
        }
    }
}

#[cfg(feature = "train")]
impl From<report::ReportError> for Failure {
    fn from(error: report::ReportError) -> Failure {
        Failure::new(error.code(), error.to_string())
    }
}

impl From<vitesse_train::Error> for Failure {
    fn from(error: vitesse_train::Error) -> Failure {
        use vitesse_train::Error as E;
        let (code, message) = (error.code(), error.to_string());
        let exit = match error {
            // What was typed, in a file or as a flag, cannot be meant.
            E::Recipe { .. } | E::RecipeKey { .. } | E::RecipeSyntax { .. } | E::TeacherMissing => {
                Exit::Usage
            }
            // So can a setting or a pattern of a method.
            E::Method {
                code: "E_METHOD" | "E_PATTERN",
                ..
            } => Exit::Usage,
            E::Interrupted => return Failure::interrupted(),
            E::Model(error) => return error.into(),
            E::Data(error) => return error.into(),
            _ => Exit::Failed,
        };
        Failure {
            exit,
            ..Failure::new(code, message)
        }
    }
}

impl From<measure::Error> for Failure {
    fn from(error: measure::Error) -> Failure {
        use measure::Error as E;
        match error {
            E::Model(error) => error.into(),
            E::Data(error) => error.into(),
            E::Engine(error) => error.into(),
            E::Train(error) => error.into(),
            E::Adapt(error) => error.into(),
            E::Interrupted => Failure::interrupted(),
            other => Failure {
                exit: match other {
                    E::Stopped => Exit::Interrupted,
                    E::NothingToCompare | E::NoValidation | E::JointSoftmax { .. } => Exit::Usage,
                    _ => Exit::Failed,
                },
                hint: other.hint().map(str::to_owned),
                ..Failure::new(other.code(), other.to_string())
            },
        }
    }
}
