//! Which file of a folder holds the weights, and what is in it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use vitesse_words::counted;

use super::WEIGHTS_FILE;
use super::run::{BEST, FINAL, Left, RECIPE, left_in};
use crate::import::{pruned, wrappers};
use crate::storage::pth::StateDict;
use crate::storage::shards::{Index, is_index, is_shard};
use crate::storage::{pth, safetensors};
use crate::tensors::Tensors;
use crate::{Error, Result};

/// Names that are taken before all others: transformers' and timm's in their order, then what timm's training leaves.
const PREFERRED: [&str; 8] = [
    WEIGHTS_FILE,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
    "model_best.pth.tar",
    "last.pth.tar",
];

/// How the names of weights files end, best first.
const ENDINGS: [&str; 7] = [
    ".index.json",
    ".safetensors",
    ".pth",
    ".pth.tar",
    ".bin",
    ".pt",
    ".ckpt",
];

/// How the names of files begin that training keeps beside the weights.
const TRAINING: [&str; 6] = [
    "training_args.",
    "optimizer.",
    "scheduler.",
    "scaler.",
    "rng_state",
    "random_states",
];

/// What PEFT calls the weights of an adapter.
const ADAPTER: &str = "adapter_model.";

/// How names begin that timm and transformers fetch from the Hugging Face hub.
const HUB: [&str; 3] = ["hf_hub:", "hf-hub:", "hf://"];

/// How files begin that are no weights but stand where weights should, and what to do about it.
const STRANGERS: [(&[u8], &str); 9] = [
    (
        b"version https://git-lfs",
        "it is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    ),
    (b"<!DOCTYPE", PAGE),
    (b"<!doctype", PAGE),
    (b"<html", PAGE),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"BZh", "it is compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz; unpack it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is compressed with Zstandard; unpack it first",
    ),
    (
        b"\x89HDF",
        "it is an HDF5 file, as Keras writes them, which is not read; convert it to safetensors under timm's names",
    ),
];
const PAGE: &str = "it is a web page: the download was answered with one; fetch the file again";

/// What a weights file held.
pub(super) struct Weights {
    pub(super) tensors: Tensors,
    /// What was taken, left and changed, a sentence each.
    pub(super) notes: Vec<String>,
    pub(super) state_dicts: Vec<StateDict>,
    /// As [`pth::Contents::recorded`].
    pub(super) recorded: Map<String, Value>,
    /// Of a file that describes its model itself, the description.
    pub(super) description: Option<Map<String, Value>>,
}

/// Without timm's prefix for a folder.
pub(super) fn local(path: &Path) -> &Path {
    path.to_str()
        .and_then(|text| text.strip_prefix("local-dir:"))
        .map_or(path, Path::new)
}

/// The weights file that [`Checkpoint::load`](super::Checkpoint::load) reads: that of a folder, or the file itself. For
/// weights in several files it is their index.
///
/// # Errors
/// A folder without one, or with several of which none comes first.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    Ok(choose(path)?.0)
}

/// The same, and what to say where there was a choice.
pub(super) fn choose(path: &Path) -> Result<(PathBuf, Option<String>)> {
    let path = local(path);
    if let Some(repository) = hub_repository(path) {
        return Err(Error::Hub {
            name: path.to_owned(),
            folder: repository.rsplit('/').next().unwrap_or_default().to_owned(),
            repository,
        });
    }
    if !path.is_dir() {
        return Ok((path.to_owned(), None));
    }
    if path.join(RECIPE).is_file() {
        for (folder, which) in [(BEST, "best"), (FINAL, "last")] {
            if path.join(folder).is_dir() {
                let note = format!(
                    "`{}` is the folder of a run: took the checkpoint of its {which} epoch, `{folder}`",
                    path.display()
                );
                return Ok((choose(&path.join(folder))?.0, Some(note)));
            }
        }
    }
    let entries = fs::read_dir(path)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(Error::io("read", path))?;
    let mut names: Vec<String> = entries
        .iter()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let of_training = |name: &str| TRAINING.iter().any(|start| name.starts_with(start));
    let candidates: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)) || is_index(Path::new(name)))
        .filter(|name| !is_shard(Path::new(name)) && !of_training(name) && !name.starts_with(ADAPTER))
        .collect();
    let preferred = PREFERRED.iter().copied().find(|name| candidates.contains(name));
    let chosen = match preferred.or_else(|| latest(&candidates)) {
        Some(name) => name,
        None => only(path, &names, &candidates)?,
    };
    let others: Vec<&str> = candidates
        .iter()
        .copied()
        .filter(|name| *name != chosen)
        .collect();
    let note = (!others.is_empty()).then(|| {
        format!(
            "took `{chosen}`; beside it stand {}: give the path of one to take it instead",
            shown(&others)
        )
    });
    Ok((path.join(chosen), note))
}

/// The repository on the Hugging Face hub that `path`, where there is nothing, names: after a prefix, or as `OWNER/NAME` with
/// an owner that is no folder here.
fn hub_repository(path: &Path) -> Option<String> {
    let text = path.to_str().filter(|_| !path.exists())?;
    if let Some(name) = HUB.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        return Some(name.to_owned());
    }
    let (owner, name) = text.split_once('/')?;
    let is_file = ENDINGS.iter().any(|ending| name.ends_with(ending));
    let is_owner = !owner.is_empty() && !owner.starts_with('.') && !Path::new(owner).exists();
    (is_owner && !is_file && !name.is_empty() && !name.contains('/')).then(|| text.to_owned())
}

/// timm's last numbered checkpoint.
fn latest<'a>(names: &[&'a str]) -> Option<&'a str> {
    let number = |name: &str| -> Option<u64> {
        name.strip_prefix("checkpoint-")?
            .strip_suffix(".pth.tar")?
            .parse()
            .ok()
    };
    let numbered = names.iter().filter_map(|name| Some((number(name)?, *name)));
    numbered.max().map(|(_, name)| name)
}

/// The only candidate of the best ending.
fn only<'a>(dir: &Path, names: &[String], candidates: &[&'a str]) -> Result<&'a str> {
    let refuse = |detail: String| Error::Weights {
        path: dir.to_owned(),
        detail,
    };
    let of_ending = |ending: &&str| -> Vec<&'a str> {
        let ends =
            |name: &&&str| name.ends_with(*ending) || (*ending == ".index.json" && is_index(Path::new(name)));
        candidates.iter().filter(ends).copied().collect()
    };
    match ENDINGS.iter().map(of_ending).find(|found| !found.is_empty()).as_deref() {
        Some([name]) => Ok(name),
        Some(several) => Err(refuse(format!(
            "it holds several weights files, {}, and none has a name that comes first; give the path of one",
            shown(several)
        ))),
        None if names.iter().any(|name| is_shard(Path::new(name))) => Err(refuse(
            "it holds weights in several files without their index; fetch the file that ends in `.index.json` too".to_owned(),
        )),
        None if names.iter().any(|name| name.starts_with(ADAPTER)) => Err(refuse(
            "it holds an adapter and not a model; give `eval`, `predict`, `run`, `bench` or `compare` the model it was trained on, and this \
             folder with `--adapter`; `vitesse merge` makes one model of both"
                .to_owned(),
        )),
        None if dir.join(RECIPE).is_file() => Err(refuse(format!(
            "it is the folder of a run that has neither `{BEST}` nor `{FINAL}` yet; go on with the run, with `--resume`, until it has"
        ))),
        None => Err(refuse(match left_in(dir) {
            Some(Left::Runs(first)) => format!(
                "it holds several runs, of a comparison or a study, and not one model; give the folder of one, such as `{}`",
                first.display()
            ),
            _ => format!(
                "it holds no weights: no {WEIGHTS_FILE} and no file that ends in {}",
                ENDINGS.join(", ")
            ),
        })),
    }
}

fn shown(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let list: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => list.join(", "),
        more => format!("{} and {more} more", list.join(", ")),
    }
}

/// What `file` holds: of several state dicts the one under `key`, or timm's choice.
pub(super) fn read(file: &Path, key: Option<&str>) -> Result<Weights> {
    let (mut weights, place) = read_as_stored(file, key)?;
    let (tensors, note) = wrappers::unwrap(file, place.as_deref(), weights.tensors)?;
    weights.tensors = tensors;
    weights.notes.extend(note);
    Ok(weights)
}

/// The tensors under the names they have, and where they stand in the file.
fn read_as_stored(file: &Path, key: Option<&str>) -> Result<(Weights, Option<String>)> {
    let flat = |tensors: Tensors| -> Result<(Weights, Option<String>)> {
        let (tensors, note) = match key {
            Some(key) => {
                let taken = wrappers::under(file, key, &tensors)?;
                let note = format!(
                    "took {} of {} tensors, those under `{key}`",
                    taken.len(),
                    tensors.len()
                );
                (taken, Some(note))
            }
            None => (tensors, None),
        };
        let weights = Weights {
            tensors,
            notes: note.into_iter().collect(),
            state_dicts: Vec::new(),
            recorded: Map::new(),
            description: None,
        };
        Ok((weights, key.map(str::to_owned)))
    };
    if is_index(file) {
        let index = Index::read(file)?;
        let tensors = index.tensors(|shard| match kind(shard)? {
            Kind::Safetensors => Ok(safetensors::read(shard)?.0),
            Kind::Pickle => Ok(pth::open(shard, None)?.tensors),
        })?;
        let shards = index.shards().len();
        let (mut weights, key) = flat(tensors)?;
        weights.notes.insert(
            0,
            format!(
                "the weights stand in {}, which the index names",
                counted(shards, "file")
            ),
        );
        return Ok((weights, key));
    }
    if is_shard(file) {
        return Err(Error::Weights {
            path: file.to_owned(),
            detail: "it is one of several files with the weights of one model; give their folder, or the file beside it that \
                     ends in `.index.json`"
                .to_owned(),
        });
    }
    match kind(file)? {
        Kind::Safetensors => {
            let (tensors, metadata) = safetensors::read(file)?;
            let (mut weights, key) = flat(tensors)?;
            weights.description = metadata.get(pruned::KEY).and_then(|text| pruned::described(text));
            Ok((weights, key))
        }
        Kind::Pickle => {
            let contents = pth::open(file, key)?;
            let weights = Weights {
                notes: vec![taken(&contents, key.is_some())],
                tensors: contents.tensors,
                state_dicts: contents.state_dicts,
                recorded: contents.recorded,
                description: None,
            };
            Ok((weights, contents.key))
        }
    }
}

/// What was taken of a `.pth` file, and what was left.
fn taken(contents: &pth::Contents, asked: bool) -> String {
    let mut note = format!("took {}", counted(contents.tensors.len(), "tensor"));
    if let Some(key) = &contents.key {
        note += &format!(" under `{key}`");
        if !asked && key.ends_with("_ema") {
            note += ", the moving average, as timm does";
        }
    }
    const SHOWN: usize = 10;
    let (first, more) = contents.left.split_at(contents.left.len().min(SHOWN));
    if !first.is_empty() {
        note += &format!(", left out {}", first.join(", "));
    }
    if !more.is_empty() {
        note += &format!(" and {} more", more.len());
    }
    let largest = contents.tensors.len();
    let other = contents.state_dicts.iter().find(|dict| {
        !dict.key.is_empty() && Some(&dict.key) != contents.key.as_ref() && 2 * dict.tensors > largest
    });
    if let Some(other) = other.filter(|_| !asked) {
        note += &format!(
            " (`--key {}` takes the tensors there instead)",
            other.key.escape_debug()
        );
    }
    note
}

/// The two kinds of weights files.
enum Kind {
    Safetensors,
    Pickle,
}

/// Which of them a file is, by how it begins, whatever its name ends in.
fn kind(file: &Path) -> Result<Kind> {
    // A tar archive shows its mark at byte 257.
    let mut start = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(512).read_to_end(&mut start))
        .map_err(Error::io("read", file))?;
    let stranger = STRANGERS.iter().find(|(begins, _)| start.starts_with(begins));
    let tar = start.get(257..262) == Some(b"ustar");
    let detail = match stranger {
        Some((_, what)) => Some(*what),
        None if tar => Some(
            "it is a tar archive; if PyTorch wrote it, before version 0.2, load it there and save it again with `torch.save`, \
             else unpack it and give the file in it",
        ),
        None => None,
    };
    if let Some(detail) = detail {
        return Err(Error::Weights {
            path: file.to_owned(),
            detail: detail.to_owned(),
        });
    }
    // The header of a safetensors file stands behind eight bytes of any value; no other kind has a brace there.
    let header = start.get(8) == Some(&b'{');
    // What is too short for a header may begin as anything.
    let pickled = start.len() > 8 && (start.starts_with(b"PK") || start.starts_with(b"\x80"));
    let named = file.extension().is_some_and(|ending| ending == "safetensors");
    Ok(if header || named && !pickled {
        Kind::Safetensors
    } else {
        Kind::Pickle
    })
}

/// SHA-256, in hexadecimal, of a weights file: what is trained from weights is known by it. Weights in several files have
/// that of the text that `sha256sum` prints for the files, sorted by name: their index may be written in many ways. A state
/// dict that was asked for by `key` is not the one that is taken without: it has the SHA-256 of the line `SHA256  KEY`.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_sha256(path: &Path, key: Option<&str>) -> Result<String> {
    let of_lines = |lines: &str| hex(&Sha256::digest(lines));
    let of_files = if is_index(path) {
        let mut lines = String::new();
        for shard in Index::read(path)?.shards() {
            let name = shard.file_name().unwrap_or_default().to_string_lossy();
            lines += &format!("{}  {name}\n", file_sha256(&shard)?);
        }
        of_lines(&lines)
    } else {
        file_sha256(path)?
    };
    Ok(match key {
        Some(key) => of_lines(&format!("{of_files}  {key}\n")),
        None => of_files,
    })
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// A file that cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    let digest = || -> io::Result<_> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut hash = Sha256::new();
        loop {
            let bytes = file.fill_buf()?;
            let read = bytes.len();
            if read == 0 {
                return Ok(hash.finalize());
            }
            hash.update(bytes);
            file.consume(read);
        }
    };
    Ok(hex(&digest().map_err(Error::io("read", path))?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
