//! PyTorch's `.pth` files, read without running them.
//!
//! What `torch.save` writes is a pickle, a program for a small stack machine that may call any Python function, plus the
//! bytes of the tensors. Loading such a file in Python runs whatever its author put there. Here it is read by a machine
//! that can only build tensors and plain containers (dict, list, tuple, str, int, float, bool, None). Training scripts put
//! other things beside the weights (their arguments, paths, dates, NumPy numbers, the optimiser); each of them becomes a
//! closed box with the name of its class on it, and nothing is ever imported, constructed or called.
//!
//! # Why a file can be trusted after [`open`]
//!
//! * `archive`: the file is mapped, and a tensor's bytes are a range of the map. Only stored (uncompressed) zip entries
//!   are read, so nothing expands.
//! * `unpickle`: the instructions of protocols 2 to 5 and some twenty names are known, and the number of objects is limited;
//!   `object`: they form a flat arena, so neither reading nor dropping them recurses, however deep they nest.
//! * `rebuild`: a tensor's offset, shape and strides must stay inside its storage. Only a tensor that is not contiguous is
//!   copied, and all copies together are at most as large as the file.
//!
//! # Which state dict is taken
//!
//! The one that is asked for. Else timm's choice: `state_dict_ema`, `model_ema`, `state_dict`, `model`, in this order, then
//! the top level. A file whose weights stand elsewhere is refused with the names that are there.

mod archive;
mod object;
mod rebuild;
mod recorded;
mod unpickle;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map as JsonMap, Value};

use self::archive::Archive;
use self::object::{Global, Id, Node, Pickle};
use self::rebuild::Rebuild;
use super::map::Map;
use crate::error::{Error, Result};
use crate::tensors::{DType, Source, Tensors};

/// Where timm looks for a state dict, in its order: moving averages first.
const TIMMS_KEYS: [&str; 4] = ["state_dict_ema", "model_ema", "state_dict", "model"];

/// How deep state dicts are looked for, how many dicts are looked into, and how long their names may be. One text can be the
/// name of many dicts in a pickle, and each dict that is listed has its own copy.
const MAX_DEPTH: usize = 4;
const MAX_DICTS: usize = 4096;
const MAX_NAME: usize = 256;

/// How much of what is left out is listed.
const MAX_LEFT: usize = 1000;

/// What [`open`] found in a file.
#[derive(Debug)]
pub struct Contents {
    /// The tensors of the state dict that was taken, under the names they have there.
    pub tensors: Tensors,
    /// Where it stands, with dots between the levels; `None` for the top level.
    pub key: Option<String>,
    /// What was not taken, for people: what stands beside the state dict, and in it without being a tensor.
    pub left: Vec<String>,
    /// Every state dict of the file, the one that was taken among them.
    pub state_dicts: Vec<StateDict>,
    /// What the training program wrote down of itself: `arch`, and its arguments under `args`.
    pub recorded: JsonMap<String, Value>,
}

/// A dict of tensors in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateDict {
    /// Where it stands, with dots between the levels; empty for the top level.
    pub key: String,
    /// How many tensors it has.
    pub tensors: usize,
}

/// Maps a file and takes the tensors that stand under `key`, with dots between the levels: those of a dict, or those whose
/// names begin so. Without a key timm's choice is taken.
///
/// # Errors
/// A file that cannot be read, a key that is not there, and no key where timm would not find the weights either.
pub fn open(path: &Path, key: Option<&str>) -> Result<Contents> {
    from_source(path, &(Arc::new(Map::open(path)?) as Source), key)
}

/// The tensors of a file that is not a whole network, such as an adapter, without the prefix of data-parallel training.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> Result<Tensors> {
    let tensors = open(path, None)?.tensors;
    Ok(tensors.strip_prefix("module.").unwrap_or(tensors))
}

/// Reads a file that is in memory already; `path` is its name in errors.
fn from_source(path: &Path, source: &Source, key: Option<&str>) -> Result<Contents> {
    let archive = Archive::open(path, (**source).as_ref())?;
    let pickle = &archive.pickle;
    let state_dicts = list_state_dicts(pickle);
    let place = match key {
        Some(key) => find_key(pickle, key).ok_or_else(|| Error::StateDictKey {
            path: path.to_owned(),
            key: key.to_owned(),
            found: names(&state_dicts),
        })?,
        None => find_as_timm(path, pickle, &state_dicts)?,
    };

    let mut left = BTreeSet::new();
    if place.dict != pickle.root {
        let taken = place.key.as_deref().unwrap_or_default();
        let leads_there = |key: Id| match pickle.node(key) {
            Node::Str(name) => taken
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
            _ => false,
        };
        let beside = pickle.dict(pickle.root).iter();
        left.extend(
            beside
                .filter(|&&(key, _)| !leads_there(key))
                .take(MAX_LEFT)
                .map(|&(key, value)| pickle.label(key, value)),
        );
    }
    let mut rebuild = Rebuild::new(path, source, &archive.storages);
    let mut tensors = Tensors::new();
    for &(key, value) in pickle.dict(place.dict) {
        match (pickle.node(key), pickle.node(value)) {
            (Node::Str(name), Node::Tensor(_)) if !name.starts_with(&place.names) => {
                left.insert(format!("the tensors outside `{}`", place.names));
            }
            (Node::Str(name), _) if !name.starts_with(&place.names) => {}
            (Node::Str(name), Node::Tensor(view)) => {
                let name = name.strip_prefix(&place.names).unwrap_or(name);
                if tensors.insert(name, rebuild.tensor(name, view)?).is_some() {
                    return Err(Error::PthTensor {
                        path: path.to_owned(),
                        name: name.to_owned(),
                        detail: "occurs twice".to_owned(),
                    });
                }
            }
            (Node::Str(name), Node::Opaque(class, _)) if class.is_tensor() => {
                return Err(Error::Unsupported {
                    what: format!("tensor `{name}` in `{}`", path.display()),
                    why: format!(
                        "it is made with Python's `{class}`; plain, dense tensors are read, of the types {}",
                        DType::ALL.map(DType::name).join(", ")
                    ),
                });
            }
            _ if left.len() < MAX_LEFT => drop(left.insert(pickle.label(key, value))),
            _ => {}
        }
    }
    Ok(Contents {
        tensors,
        key: place.key,
        left: left.into_iter().collect(),
        state_dicts,
        recorded: recorded::read(pickle),
    })
}

/// Where the tensors that are taken stand.
struct Place {
    key: Option<String>,
    dict: Id,
    /// What their names begin with, and lose.
    names: String,
}

/// What timm takes from a file.
fn find_as_timm(path: &Path, pickle: &Pickle<'_>, state_dicts: &[StateDict]) -> Result<Place> {
    for key in TIMMS_KEYS {
        if let Some(dict) = pickle.item(pickle.root, key)
            && pickle.count_tensors(dict) > 0
        {
            return Ok(Place {
                key: Some(key.to_owned()),
                dict,
                names: String::new(),
            });
        }
    }
    // A tensor or two beside a larger state dict, such as a best loss, are no state dict.
    let top = pickle.count_tensors(pickle.root);
    let largest = state_dicts.iter().map(|dict| dict.tensors).max();
    if top > 0 && largest.is_none_or(|largest| top >= largest) {
        return Ok(Place {
            key: None,
            dict: pickle.root,
            names: String::new(),
        });
    }
    if state_dicts.is_empty() {
        return Err(Error::PthNoTensors {
            path: path.to_owned(),
            found: describe(pickle),
        });
    }
    Err(Error::StateDictChoice {
        path: path.to_owned(),
        expected: format!("`{}`", TIMMS_KEYS.join("`, `")),
        found: names(state_dicts),
    })
}

/// The tensors under `key`: of the dict that stands there, or of one above it, by what their names begin with.
fn find_key(pickle: &Pickle<'_>, key: &str) -> Option<Place> {
    let (mut dict, mut rest) = (pickle.root, key);
    loop {
        // Names may have dots of their own: the longest that fits.
        let deeper = pickle
            .dicts(dict)
            .filter_map(|(name, value)| {
                let rest = rest.strip_prefix(name)?;
                Some((
                    value,
                    if rest.is_empty() {
                        rest
                    } else {
                        rest.strip_prefix('.')?
                    },
                ))
            })
            .min_by_key(|(_, rest)| rest.len());
        match deeper {
            Some((value, "")) if pickle.count_tensors(value) > 0 => {
                return Some(Place {
                    key: Some(key.to_owned()),
                    dict: value,
                    names: String::new(),
                });
            }
            Some((value, deeper)) if !deeper.is_empty() => (dict, rest) = (value, deeper),
            _ => break,
        }
    }
    let names = format!("{rest}.");
    let begins = |&(key, value): &(Id, Id)| match (pickle.node(key), pickle.node(value)) {
        (Node::Str(name), Node::Tensor(_)) => name.starts_with(&names),
        _ => false,
    };
    pickle.dict(dict).iter().any(begins).then(|| Place {
        key: Some(key.to_owned()),
        dict,
        names,
    })
}

/// Every dict with tensors that is reached through names. An optimiser's numbers its parameters.
fn list_state_dicts(pickle: &Pickle<'_>) -> Vec<StateDict> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([pickle.root.0]);
    let mut level = vec![(String::new(), pickle.root)];
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for (key, dict) in level {
            match pickle.count_tensors(dict) {
                0 => {}
                tensors => found.push(StateDict {
                    key: key.clone(),
                    tensors,
                }),
            }
            let inner = pickle.dicts(dict).filter(|(name, _)| name.len() <= MAX_NAME);
            for (name, inner) in inner {
                if seen.len() >= MAX_DICTS || !seen.insert(inner.0) {
                    continue;
                }
                let key = if key.is_empty() {
                    name.to_owned()
                } else {
                    format!("{key}.{name}")
                };
                next.push((key, inner));
            }
        }
        level = next;
    }
    found
}

/// State dicts for people, the largest first.
fn names(state_dicts: &[StateDict]) -> String {
    const SHOWN: usize = 12;
    let mut named: Vec<&StateDict> = state_dicts.iter().filter(|dict| !dict.key.is_empty()).collect();
    named.sort_by_key(|dict| std::cmp::Reverse(dict.tensors));
    let shown: Vec<String> = named
        .iter()
        .take(SHOWN)
        .map(|dict| {
            let key: String = dict.key.escape_default().take(100).collect();
            format!("`{key}` ({})", vitesse_words::counted(dict.tensors, "tensor"))
        })
        .collect();
    match named.len().saturating_sub(SHOWN) {
        _ if named.is_empty() => "tensors at the top level only".to_owned(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What a file without tensors holds instead.
fn describe(pickle: &Pickle<'_>) -> String {
    match pickle.node(pickle.root) {
        Node::Dict(items) if !items.is_empty() => {
            let shown: Vec<String> = items
                .iter()
                .take(20)
                .map(|&(key, value)| match pickle.node(value) {
                    // Arrays in the place of tensors, as some conversion scripts leave them.
                    Node::Dict(inner) => match inner.iter().find_map(|&(_, inner)| match pickle.node(inner) {
                        Node::Opaque(class, _) => Some(class),
                        _ => None,
                    }) {
                        Some(class) => format!("`{}` (with Python's `{class}` in it)", pickle.key(key)),
                        None => pickle.label(key, value),
                    },
                    _ => pickle.label(key, value),
                })
                .collect();
            shown.join(", ")
        }
        Node::Opaque(class, _) | Node::Global(Global::Foreign(class)) => {
            format!("a whole object of Python's class `{class}`")
        }
        _ => "no dict".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    /// A file that PyTorch wrote; see `tests/fixtures/make.py`.
    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name)
    }

    fn read_bytes(bytes: Vec<u8>) -> Result<Contents> {
        from_source(Path::new("x.pth"), &(Arc::new(bytes) as Source), None)
    }

    #[test]
    fn every_type_and_view_arrives() {
        let contents = open(&fixture("new.pth"), None).unwrap();
        assert_eq!(contents.key.as_deref(), Some("model"));
        assert_eq!(contents.left, ["`best`", "`epoch`"]);
        let tensors = contents.tensors;
        assert_eq!(tensors.len(), 18);
        let types = [
            ("float64", DType::F64),
            ("float32", DType::F32),
            ("float16", DType::F16),
            ("bfloat16", DType::BF16),
            ("int64", DType::I64),
            ("int32", DType::I32),
            ("int16", DType::I16),
            ("int8", DType::I8),
            ("uint8", DType::U8),
        ];
        for (name, dtype) in types {
            let tensor = tensors.get(name).unwrap();
            assert_eq!((tensor.dtype(), &*tensor.to_f32()), (dtype, &[0.0, 1.0, 2.0][..]));
        }
        assert_eq!(*tensors.get("bool").unwrap().to_f32(), [0.0, 1.0, 1.0]);
        let views: [(&str, &[usize], &[f32]); 8] = [
            (
                "whole",
                &[4, 3],
                &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.],
            ),
            ("rows", &[2, 3], &[3., 4., 5., 6., 7., 8.]),
            (
                "transposed",
                &[3, 4],
                &[0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.],
            ),
            ("corner", &[2, 2], &[1., 2., 7., 8.]),
            ("expanded", &[3, 2], &[0., 1., 0., 1., 0., 1.]),
            ("scalar", &[], &[7.]),
            ("empty", &[0, 5], &[]),
            ("parameter", &[2], &[0., 1.]),
        ];
        for (name, shape, values) in views {
            let tensor = tensors.get(name).unwrap();
            assert_eq!((tensor.shape(), &*tensor.to_f32()), (shape, values), "{name}");
        }
    }

    #[test]
    fn the_old_format_and_the_parallel_prefix_are_understood() {
        let contents = open(&fixture("old.pth"), None).unwrap();
        assert_eq!(contents.key.as_deref(), Some("state_dict"));
        assert!(contents.tensors.contains("module.bias"));
        let tensors = read(&fixture("old.pth")).unwrap();
        assert_eq!(
            *tensors.get_shaped("weight", &[2, 3]).unwrap().to_f32(),
            [0., 1., 2., 3., 4., 5.]
        );
        assert_eq!(*tensors.get_shaped("bias", &[2]).unwrap().to_f32(), [0., 1.]);
    }

    #[test]
    fn what_would_run_a_command_is_a_closed_box_and_runs_nothing() {
        let contents = open(&fixture("evil.pth"), None).unwrap();
        assert_eq!(contents.tensors.names().collect::<Vec<_>>(), ["weight"]);
        assert_eq!(contents.left, ["`payload` (Python's `posix.system`)"]);
        assert!(!Path::new("executed-by-evil-pth").exists());
    }

    #[test]
    fn other_files_are_told_what_they_are() {
        let text = |bytes: &[u8]| read_bytes(bytes.to_vec()).unwrap_err().to_string();
        assert!(text(b"").contains("begins neither like a zip archive nor"));
        assert!(text(b"PK\x03\x04 but then nothing").contains("zip directory is unreadable"));
        assert!(text(b"\x80\x02}q\0.").contains("save it again with `torch.save`"));
        // A whole zip file with nothing in it.
        assert!(text(&[&b"PK\x05\x06"[..], &[0; 18]].concat()).contains("without `data.pkl`"));
    }

    /// A zip archive as `torch.save` writes them, with this pickle, byte order and storage `0`.
    fn archive(pickle: &[u8], byteorder: &str, storage: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        let entries = [
            ("data.pkl", pickle),
            ("byteorder", byteorder.as_bytes()),
            ("data/0", storage),
            (".version", b"3"),
        ];
        for (name, bytes) in entries {
            zip.start_file(format!("archive/{name}"), stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// A pickle of `{'w': tensor}` over the storage `0` of `len` floats; sizes go as signed 32-bit integers.
    fn pickle(len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
        let int = |i: i32| [&b"J"[..], &i.to_le_bytes()].concat();
        let ints = |i: &[i32]| {
            [
                b"(".to_vec(),
                i.iter().flat_map(|&i| int(i)).collect(),
                b"t".to_vec(),
            ]
            .concat()
        };
        let text = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
        [
            b"\x80\x02}".to_vec(),
            text("w"),
            b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
            [
                text("storage"),
                b"ctorch\nFloatStorage\n".to_vec(),
                text("0"),
                text("cpu"),
                int(len),
            ]
            .concat(),
            b"tQ".to_vec(),
            [int(offset), ints(shape), ints(strides)].concat(),
            b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
        ]
        .concat()
    }

    #[test]
    fn views_that_leave_their_storage_are_refused() {
        let read = |len, offset, shape: &[i32], strides: &[i32]| {
            read_bytes(archive(&pickle(len, offset, shape, strides), "little", &[0; 24]))
                .map(|contents| contents.tensors)
        };
        assert_eq!(
            read(6, 0, &[2, 3], &[3, 1]).unwrap().get("w").unwrap().shape(),
            [2, 3]
        );
        assert!(read(6, 2, &[2, 2], &[2, 1]).is_ok());
        assert!(read(6, 6, &[0, 3], &[3, 1]).is_ok());
        let cases = [
            (
                7,
                0,
                vec![2],
                vec![1],
                "wants a storage of 7 × 4 bytes, but it has 24",
            ),
            (6, 3, vec![2, 2], vec![2, 1], "leaves its storage"),
            (6, 7, vec![0], vec![1], "leaves its storage"),
            (6, 0, vec![2, 2], vec![5, 1], "leaves its storage"),
            (6, 0, vec![i32::MAX; 3], vec![i32::MAX; 3], "leaves its storage"),
            (6, 0, vec![1 << 30, 1 << 30], vec![0, 0], "larger than the file"),
            (6, -1, vec![2], vec![1], "negative"),
            (6, 0, vec![2], vec![-1], "negative"),
            (-6, 0, vec![2], vec![1], "negative"),
            (6, 0, vec![2], vec![1, 1], "one stride for each"),
            (6, 0, vec![1; 9], vec![1; 9], "at most 8 dimensions"),
        ];
        for (len, offset, shape, strides, expected) in cases {
            let error = read(len, offset, &shape, &strides).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("`x.pth`"),
                "{error}\n{expected}"
            );
        }
    }

    #[test]
    fn archives_that_torch_does_not_write_are_refused() {
        let good = pickle(6, 0, &[6], &[1]);
        let text = |bytes: Vec<u8>| read_bytes(bytes).unwrap_err().to_string();
        assert!(text(archive(&good, "big", &[0; 24])).contains("big-endian"));
        let replace = |from: &str, to: &str| {
            let mut bytes = archive(&good, "little", &[0; 24]);
            // Names stand before each entry and again in the directory at the end.
            while let Some(at) = bytes.windows(from.len()).position(|w| w == from.as_bytes()) {
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            }
            bytes
        };
        assert!(
            text(replace("archive/data/0", "archive/data/1")).contains("storage that is not in the file")
        );
        assert!(text(replace("archive/data.pkl", "archive/code.pkl")).contains("without `data.pkl`"));
        assert!(text(replace("archive/.version", "archive/data.pkl")).contains("two of its zip entries"));
        assert!(text(archive(b"\x80\x02}.", "little", &[])).contains("found no dict"));
        assert!(text(archive(b"\x80\x02}X\x01\0\0\0aK\x01s.", "little", &[])).contains("found `a`"));
    }

    fn mutated(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let original = std::fs::read(fixture(name)).unwrap();
        let change = (any::<prop::sample::Index>(), any::<u8>());
        (
            prop::collection::vec(change, 1..6),
            prop::option::of(any::<prop::sample::Index>()),
        )
            .prop_map(move |(changes, cut)| {
                let mut bytes = original.clone();
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                bytes
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn damaged_files_are_survived(new in mutated("new.pth"), old in mutated("old.pth")) {
            let _ = read_bytes(new);
            let _ = read_bytes(old);
        }

        #[test]
        fn any_view_is_inside_its_storage_or_refused(
            len in -1..8i32,
            offset in -1..8i32,
            sides in prop::collection::vec((-1..4i32, -1..8i32), 0..4),
        ) {
            let (shape, strides): (Vec<i32>, Vec<i32>) = sides.into_iter().unzip();
            let numbers: Vec<f32> = (0..6).map(|i| i as f32).collect();
            let bytes = archive(&pickle(len, offset, &shape, &strides), "little", bytemuck::cast_slice(&numbers));
            if let Ok(contents) = read_bytes(bytes) {
                // Index by index, from the definition of a strided view.
                let tensor = contents.tensors.get("w").unwrap();
                for (flat, &value) in tensor.to_f32().iter().enumerate() {
                    let mut rest = flat as i32;
                    let mut at = offset;
                    for (&side, &stride) in shape.iter().zip(&strides).rev() {
                        at += rest % side * stride;
                        rest /= side;
                    }
                    prop_assert_eq!(value, at as f32);
                }
            }
        }
    }
}
