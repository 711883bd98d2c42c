//! Splits: what is asked for, what is stored, and how people spell them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which samples of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What is learned from; without the held-back part when no validation split is stored.
    Train,
    /// What choices are made on: the stored validation split, or a part of train that is held back.
    #[serde(alias = "val", alias = "valid")]
    Validation,
    /// Both together: what is learned from when the choices are made.
    #[serde(rename = "trainval")]
    TrainValidation,
    /// What is reported; nothing is ever chosen on it.
    Test,
    /// Everything there is.
    All,
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Split> {
        match text {
            "train" => Ok(Split::Train),
            "val" | "valid" | "validation" => Ok(Split::Validation),
            "trainval" => Ok(Split::TrainValidation),
            "test" => Ok(Split::Test),
            "all" => Ok(Split::All),
            _ => Err(Error::setting(
                "split",
                &format!("`{text}`"),
                "train, validation, trainval, test or all",
            )),
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::TrainValidation => "trainval",
            Split::Test => "test",
            Split::All => "all",
        })
    }
}

/// A stored part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Train,
    Validation,
    /// Both together, where they are stored so besides.
    TrainValidation,
    Test,
    /// Everything, where nothing is split.
    Whole,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::TrainValidation => "trainval",
            Part::Test => "test",
            Part::Whole => "all",
        }
    }

    /// The split that asks for this part.
    pub(super) fn split(self) -> Split {
        match self {
            Part::Train => Split::Train,
            Part::Validation => Split::Validation,
            Part::TrainValidation => Split::TrainValidation,
            Part::Test => Split::Test,
            Part::Whole => Split::All,
        }
    }

    /// The part that a folder or a word means, as people spell it: `train`, `Training`, `valid`, `dev`, `TEST`, `eval`,
    /// `test_set` and the like.
    pub(super) fn spelt(name: &str) -> Option<Part> {
        let lower = name.to_ascii_lowercase();
        let word = lower
            .strip_suffix("set")
            .map_or(lower.as_str(), |word| word.trim_end_matches(['_', '-', ' ']));
        match word {
            "train" | "training" => Some(Part::Train),
            "val" | "valid" | "validation" | "dev" => Some(Part::Validation),
            "test" | "testing" | "eval" | "evaluation" => Some(Part::Test),
            _ => None,
        }
    }
}
