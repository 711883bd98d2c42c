//! Where the pickle and the storages lie in a `.pth` file.
//!
//! Since PyTorch 1.6 the file is a zip archive of uncompressed entries: `NAME/data.pkl` is the pickle, `NAME/data/KEY`
//! the storage it calls KEY, `NAME/byteorder` says `little` or `big`. Before, and where `torch.save` is told so (many
//! published weights are), it is five pickles in a row (a magic number, a version, the machine's byte order, the
//! object, the list of storage keys), then for each key a 64-bit length and the numbers.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::object::{Node, Pickle};
use super::unpickle;
use crate::error::{Error, Result};
use crate::tensors::DType;

/// What the pickle that begins the old format ends with: the magic number 0x1950a86a20f9469cfc6c, stop. The protocol
/// stands before it, and from the fourth on a frame.
const OLD_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Where it may stand: behind PROTO, or behind PROTO and FRAME.
const OLD_MAGIC_AT: [usize; 2] = [2, 11];

/// An opened file: the object it holds, and where the storages lie in it.
pub(super) struct Archive<'a> {
    pub(super) pickle: Pickle<'a>,
    pub(super) storages: HashMap<String, Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Finds pickle and storages in `file`; `path` is its name in errors.
    pub(super) fn open(path: &Path, file: &'a [u8]) -> Result<Archive<'a>> {
        if file.starts_with(b"PK") {
            open_zip(path, file)
        } else if let Some(at) = old_magic_end(file) {
            open_old(path, file, at)
        } else {
            Err(format(
                path,
                "it begins neither like a zip archive nor like the older format of `torch.save`; if PyTorch can load \
                 it, save it again with `torch.save`",
            ))
        }
    }
}

/// Where the first pickle of the old format ends, if it is one.
fn old_magic_end(file: &[u8]) -> Option<usize> {
    let begins = |at: &usize| file.get(*at..).is_some_and(|rest| rest.starts_with(OLD_MAGIC));
    let at = OLD_MAGIC_AT.into_iter().find(begins)?;
    file.starts_with(b"\x80").then_some(at + OLD_MAGIC.len())
}

fn format(path: &Path, detail: impl Into<String>) -> Error {
    Error::PthFormat {
        path: path.to_owned(),
        detail: detail.into(),
    }
}

fn open_zip<'a>(path: &Path, file: &'a [u8]) -> Result<Archive<'a>> {
    let bad = |error: zip::result::ZipError| {
        format(
            path,
            format!("its zip directory is unreadable ({error}); fetch or save it again"),
        )
    };
    let mut zip = ZipArchive::new(Cursor::new(file)).map_err(bad)?;
    if zip.has_duplicate_names() {
        return Err(format(
            path,
            "two of its zip entries have one name, which `torch.save` never writes",
        ));
    }
    // Where TorchScript keeps its program; some of these entries are compressed, none is of `torch.save`.
    if zip
        .file_names()
        .flatten()
        .any(|name| name.ends_with("/constants.pkl"))
    {
        return Err(format(
            path,
            "it is a TorchScript archive, which holds a program; save the weights in it alone: \
             `torch.save(torch.jit.load(FILE, map_location=\"cpu\").state_dict(), \"weights.pth\")`",
        ));
    }
    let mut entries = HashMap::new();
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format(
                path,
                format!("its entry `{name}` is compressed, which `torch.save` never does (TorchScript does)"),
            ));
        }
        // A file's length bounds what can be sliced from it, whatever the directory claims.
        let range = entry.data_start().and_then(|begin| {
            let end = begin.checked_add(entry.size())?;
            let range = usize::try_from(begin).ok()?..usize::try_from(end).ok()?;
            (range.end <= file.len()).then_some(range)
        });
        let range = range.ok_or_else(|| format(path, format!("its entry `{name}` reaches past the end")))?;
        entries.insert(name, range);
    }

    let prefix = entries
        .keys()
        .find_map(|name| {
            name.strip_suffix("/data.pkl")
                .filter(|folder| !folder.contains('/'))
        })
        .ok_or_else(|| {
            let numpy = entries.keys().any(|name| name.ends_with(".npy"));
            format(
                path,
                if numpy {
                    "it is an archive of NumPy arrays (`.npz`, as JAX weights are published), which is not read; load it \
                     with timm and save it with `timm.models.save_for_hf`"
                } else {
                    "it is a zip archive without `data.pkl`, so `torch.save` did not write it"
                },
            )
        })?
        .to_owned();
    let bytes = |name: &str| {
        let range = entries.get(&format!("{prefix}/{name}"))?;
        file.get(range.clone())
    };
    if bytes("byteorder").is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(format(
            path,
            "it was written on a big-endian machine; save it again on a little-endian one",
        ));
    }
    let pickle = unpickle::load(path, bytes("data.pkl").unwrap_or_default())?;
    let folder = format!("{prefix}/data/");
    let storages = entries
        .into_iter()
        .filter_map(|(name, range)| Some((name.strip_prefix(&folder)?.to_owned(), range)))
        .collect();
    Ok(Archive { pickle, storages })
}

fn open_old<'a>(path: &Path, file: &'a [u8], mut at: usize) -> Result<Archive<'a>> {
    let mut next = || -> Result<Pickle<'a>> {
        let pickle = unpickle::load(path, file.get(at..).unwrap_or_default())?;
        at += pickle.len;
        Ok(pickle)
    };
    let _version = next()?;
    let machine = next()?;
    let pickle = next()?;
    let keys = next()?;
    let little = machine.dict(machine.root).iter().any(|&(key, value)| {
        matches!(machine.node(key), Node::Str("little_endian"))
            && matches!(machine.node(value), Node::Bool(true))
    });
    if !little {
        return Err(format(
            path,
            "it was written on a big-endian machine; save it again on a little-endian one",
        ));
    }

    let types: HashMap<&str, DType> = pickle
        .storages()
        .map(|storage| (storage.key, storage.dtype))
        .collect();
    let mut storages = HashMap::new();
    for key in keys.strings(keys.root) {
        let range = types.get(key).and_then(|dtype| {
            let (length, rest) = file.get(at..)?.split_first_chunk::<8>()?;
            let bytes = usize::try_from(u64::from_le_bytes(*length))
                .ok()?
                .checked_mul(dtype.size())?;
            let begin = file.len() - rest.len();
            (bytes <= rest.len()).then(|| begin..begin + bytes)
        });
        let range = range.ok_or_else(|| {
            let key: String = key.escape_default().take(100).collect();
            format(
                path,
                format!("its storage `{key}` is unknown or cut off; fetch or save the file again"),
            )
        })?;
        at = range.end;
        storages.insert(key.to_owned(), range);
    }
    Ok(Archive { pickle, storages })
}
