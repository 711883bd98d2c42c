//! PyTorch's `.pth` files, read without running them.
//!
//! What `torch.save` writes is a pickle, a program for a small stack machine that may call any Python function, plus the
//! bytes of the tensors. Loading such a file in Python runs whatever its author put there. Here it is read by a machine
//! that can only build tensors and plain containers (dict, list, tuple, str, int, float, bool, None); a file that asks
//! for anything else is refused by name, and nothing is ever called.
//!
//! # Why a file can be trusted after [`read`]
//!
//! * `archive`: the file is mapped, and a tensor's bytes are a range of the map. Only stored (uncompressed) zip entries
//!   are read, so nothing expands.
//! * `unpickle`: 31 instructions and 13 names are known, and the number of objects is limited; `object`: they form a flat
//!   arena, so neither reading nor dropping them recurses, however deep they nest.
//! * `rebuild`: a tensor's offset, shape and strides must stay inside its storage. Only a tensor that is not contiguous is
//!   copied, and all copies together are at most as large as the file.
//!
//! A state dict is looked for under `model`, `state_dict`, `model_ema` and `state_dict_ema`, in this order, then at the
//! top level. The prefix `module.` of data-parallel training is removed when all names have it.

mod archive;
mod object;
mod rebuild;
mod unpickle;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use self::archive::Archive;
use self::object::{Id, Node, Pickle};
use self::rebuild::Rebuild;
use super::map::Map;
use crate::error::{Error, Result};
use crate::tensors::{Source, Tensors};

/// Where a state dict may stand, best first: the trained weights before their moving average.
const WRAPPERS: [&str; 4] = ["model", "state_dict", "model_ema", "state_dict_ema"];

/// The prefix that data-parallel training puts before every name.
const PARALLEL: &str = "module.";

/// What [`read`] took from a file and what it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The number of tensors.
    pub tensors: usize,
    /// The key the state dict stood under; `None` for the top level.
    pub wrapper: Option<&'static str>,
    /// Whether the prefix `module.` was removed from the names.
    pub unwrapped_module: bool,
    /// Keys that were not taken: those beside the state dict, and those in it that hold no tensor.
    pub left: Vec<String>,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "took {} tensors", self.tensors)?;
        if let Some(wrapper) = self.wrapper {
            write!(f, " under `{wrapper}`")?;
        }
        if self.unwrapped_module {
            write!(f, ", removed the prefix `{PARALLEL}`")?;
        }
        let (shown, more) = self.left.split_at(self.left.len().min(10));
        if !shown.is_empty() {
            write!(f, ", left out `{}`", shown.join("`, `"))?;
        }
        if !more.is_empty() {
            write!(f, " and {} more", more.len())?;
        }
        Ok(())
    }
}

/// Maps a file, finds its state dict, and says what it took.
pub fn read(path: &Path) -> Result<(Tensors, Taken)> {
    from_source(path, &(Arc::new(Map::open(path)?) as Source))
}

/// Reads a file that is in memory already; `path` is its name in errors.
fn from_source(path: &Path, source: &Source) -> Result<(Tensors, Taken)> {
    let bytes = (**source).as_ref();
    let archive = Archive::open(path, bytes)?;
    let pickle = &archive.pickle;
    let (wrapper, state_dict) = find_state_dict(path, pickle)?;

    let mut left = BTreeSet::new();
    if wrapper.is_some() {
        let beside = pickle.dict(pickle.root).iter().map(|&(key, _)| pickle.key(key));
        left.extend(beside.filter(|key| Some(key.as_str()) != wrapper));
    }
    let mut named = Vec::new();
    for &(key, value) in pickle.dict(state_dict) {
        match (pickle.node(key), pickle.node(value)) {
            (Node::Str(name), Node::Tensor(view)) => named.push((*name, view)),
            _ => {
                left.insert(pickle.key(key));
            }
        }
    }
    let unwrapped_module = named.iter().all(|(name, _)| name.starts_with(PARALLEL));
    let mut rebuild = Rebuild::new(path, source, &archive.storages);
    let mut tensors = Tensors::new();
    for (name, view) in named {
        let name = name
            .strip_prefix(PARALLEL)
            .filter(|_| unwrapped_module)
            .unwrap_or(name);
        if tensors.insert(name, rebuild.tensor(name, view)?).is_some() {
            return Err(Error::PthTensor {
                path: path.to_owned(),
                name: name.to_owned(),
                detail: "occurs twice".to_owned(),
            });
        }
    }
    let taken = Taken {
        tensors: tensors.len(),
        wrapper,
        unwrapped_module,
        left: left.into_iter().collect(),
    };
    Ok((tensors, taken))
}

/// The dict that holds tensors, and the key it stands under.
fn find_state_dict(path: &Path, pickle: &Pickle<'_>) -> Result<(Option<&'static str>, Id)> {
    let top = pickle.dict(pickle.root);
    let is_named_tensor = |&(key, value): &(Id, Id)| {
        matches!(
            (pickle.node(key), pickle.node(value)),
            (Node::Str(_), Node::Tensor(_))
        )
    };
    let holds_tensors = |id: Id| pickle.dict(id).iter().any(is_named_tensor);
    for wrapper in WRAPPERS {
        let named = |&&(key, _): &&(Id, Id)| matches!(pickle.node(key), Node::Str(s) if *s == wrapper);
        // The last of equal keys wins, as in Python.
        if let Some(&(_, value)) = top.iter().rev().find(named)
            && holds_tensors(value)
        {
            return Ok((Some(wrapper), value));
        }
    }
    if holds_tensors(pickle.root) {
        return Ok((None, pickle.root));
    }
    let keys: Vec<String> = top
        .iter()
        .take(20)
        .map(|&(key, _)| format!("`{}`", pickle.key(key)))
        .collect();
    Err(Error::PthNoTensors {
        path: path.to_owned(),
        expected: format!("`{}`", WRAPPERS.join("`, `")),
        found: if keys.is_empty() {
            "no dict".to_owned()
        } else {
            keys.join(", ")
        },
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::tensors::DType;

    /// A file that PyTorch wrote; see `tests/fixtures/make.py`.
    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name)
    }

    fn read_bytes(bytes: Vec<u8>) -> Result<(Tensors, Taken)> {
        from_source(Path::new("x.pth"), &(Arc::new(bytes) as Source))
    }

    #[test]
    fn every_type_and_view_arrives() {
        let (tensors, taken) = read(&fixture("new.pth")).unwrap();
        assert_eq!(
            taken.to_string(),
            "took 18 tensors under `model`, left out `best`, `epoch`"
        );
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
        let (tensors, taken) = read(&fixture("old.pth")).unwrap();
        assert_eq!(
            taken.to_string(),
            "took 2 tensors under `state_dict`, removed the prefix `module.`"
        );
        assert_eq!(
            *tensors.get_shaped("weight", &[2, 3]).unwrap().to_f32(),
            [0., 1., 2., 3., 4., 5.]
        );
        assert_eq!(*tensors.get_shaped("bias", &[2]).unwrap().to_f32(), [0., 1.]);
    }

    #[test]
    fn a_file_that_would_run_a_command_is_refused_and_runs_nothing() {
        let error = read(&fixture("evil.pth")).unwrap_err();
        assert_eq!(error.code(), "E_PTH_REFUSED");
        let text = error.to_string();
        assert!(
            text.contains("asks for the Python object `posix.system`") && text.contains("evil.pth"),
            "{text}"
        );
        assert!(
            text.contains("nothing in the file has been executed") && text.contains("torch.save("),
            "{text}"
        );
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
                .map(|(tensors, _)| tensors)
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
            if let Ok((tensors, _)) = read_bytes(bytes) {
                // Index by index, from the definition of a strided view.
                let tensor = tensors.get("w").unwrap();
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
