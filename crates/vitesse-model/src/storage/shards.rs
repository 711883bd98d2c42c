//! Checkpoints in several files: an index says which tensor lies in which.
//!
//! ```text
//! {"metadata": {"total_size": …}, "weight_map": {"norm.weight": "model-00002-of-00002.safetensors", …}}
//! ```
//!
//! The index is checked before a shard is opened: every shard is a plain name of a file beside it, and no tensor stands
//! twice. Then index and shards must name the same tensors in the same files, no more and no fewer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::safetensors::Pairs;
use crate::error::{Error, Result};
use crate::tensors::Tensors;

/// The longest index, in bytes; a million tensors take some hundred each.
const MAX_INDEX: u64 = 100_000_000;

/// How many names a sentence shows.
const SHOWN: usize = 5;

/// Which tensor lies in which file.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    /// The shard of each tensor.
    weight_map: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Raw {
    weight_map: Pairs<String>,
}

/// Whether a file of this name is an index.
pub fn is_index(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(".json") && name.contains(".index."))
}

/// Whether a file of this name is one of several: `…-00001-of-00003.…`.
pub fn is_shard(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    name.match_indices("-of-").any(|(at, of)| {
        let before = name
            .get(at.saturating_sub(6)..at)
            .and_then(|text| text.strip_prefix('-'));
        let after = name.get(at + of.len()..at + of.len() + 5);
        before.is_some_and(is_number) && after.is_some_and(is_number)
    })
}

impl Index {
    /// Reads an index and checks it by itself.
    ///
    /// # Errors
    /// A file that is no index, a shard outside the folder, a tensor that stands twice, shards that are not there.
    pub fn read(path: &Path) -> Result<Index> {
        let wrong = |detail: String| Error::Shards {
            path: path.to_owned(),
            detail,
        };
        let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_INDEX {
            return Err(wrong(format!(
                "it has {length} bytes, and an index at most {MAX_INDEX}"
            )));
        }
        let text = fs::read(path).map_err(Error::io("read", path))?;
        let raw: Raw = serde_json::from_slice(&text).map_err(|error| {
            wrong(format!(
                "it should be an object whose `weight_map` gives each tensor its file ({error})"
            ))
        })?;
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in raw.weight_map.0 {
            let mut parts = Path::new(&shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == shard.as_str())
            {
                return Err(wrong(format!(
                    "the file `{shard}` of tensor `{tensor}` should be a plain name: only files beside the index are read"
                )));
            }
            if weight_map.insert(tensor.clone(), shard).is_some() {
                return Err(wrong(format!("tensor `{tensor}` stands in it twice")));
            }
        }
        let index = Index {
            path: path.to_owned(),
            weight_map,
        };
        if index.weight_map.is_empty() {
            return Err(wrong("its `weight_map` names no tensor".to_owned()));
        }
        let missing: Vec<&str> = index
            .names()
            .into_iter()
            .filter(|name| !index.file(name).is_file())
            .collect();
        if missing.is_empty() {
            Ok(index)
        } else {
            Err(wrong(format!(
                "of its {}, {} cannot be found: {}; fetch what is missing into this folder",
                vitesse_words::counted(index.names().len(), "file"),
                missing.len(),
                some(&missing)
            )))
        }
    }

    /// The shards, by name.
    pub fn shards(&self) -> Vec<PathBuf> {
        self.names().into_iter().map(|name| self.file(name)).collect()
    }

    /// The tensors of all shards, each of which `read` reads.
    ///
    /// # Errors
    /// Those of `read`, and shards that hold other tensors than the index says.
    pub fn tensors(&self, read: impl Fn(&Path) -> Result<Tensors>) -> Result<Tensors> {
        let wrong = |detail: String| Error::Shards {
            path: self.path.clone(),
            detail,
        };
        let mut all = Tensors::new();
        for shard in self.names() {
            for (name, tensor) in read(&self.file(shard))? {
                match self.weight_map.get(&name) {
                    Some(expected) if expected == shard => {}
                    Some(expected) => {
                        return Err(wrong(format!(
                            "it says that tensor `{name}` lies in `{expected}`, but `{shard}` holds it too; fetch index and \
                             files anew, of one version"
                        )));
                    }
                    None => {
                        return Err(wrong(format!(
                            "`{shard}` holds tensor `{name}`, which it does not name; fetch index and files anew, of one \
                             version"
                        )));
                    }
                }
                all.insert(name, tensor);
            }
        }
        let missing: Vec<&str> = self
            .weight_map
            .keys()
            .map(String::as_str)
            .filter(|name| !all.contains(name))
            .collect();
        if missing.is_empty() {
            Ok(all)
        } else {
            Err(wrong(format!(
                "not in the files that it names: {}, {}; fetch index and files anew, of one version",
                vitesse_words::counted(missing.len(), "tensor"),
                some(&missing)
            )))
        }
    }

    fn names(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    fn file(&self, shard: &str) -> PathBuf {
        self.path.with_file_name(shard)
    }
}

/// The first few of `names`, for people.
fn some(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for name in [
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ] {
            assert!(is_index(Path::new(name)) && !is_shard(Path::new(name)));
        }
        for name in [
            "model-00001-of-00002.safetensors",
            "pytorch_model-00010-of-00012.bin",
            "model.fp16-00001-of-00002.safetensors",
            "model-00001-of-00002.fp16.safetensors",
        ] {
            assert!(is_shard(Path::new(name)) && !is_index(Path::new(name)));
        }
        for name in [
            "model.safetensors",
            "config.json",
            "best-of-00002.pth",
            "-of-.bin",
            "é-of-00001",
        ] {
            assert!(!is_shard(Path::new(name)) && !is_index(Path::new(name)), "{name}");
        }
    }
}
