//! The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! # Why a file can be trusted after [`read`]
//!
//! The file is mapped; the header is checked before anything is made from it, in this order:
//!
//! 1. its length fits the file and is at most 100 MB;
//! 2. it is one JSON object of `{dtype, shape, data_offsets}` objects and a `__metadata__` of strings, no key twice;
//! 3. every element type is known, and shape × type neither overflows nor differs from the span of the offsets;
//! 4. sorted by offset, the tensors follow one another from the first byte to the last: no overlap, no hole, nothing
//!    behind the end.
//!
//! Then each tensor is a range of the map. A file can therefore not cause memory to be taken in excess of its own
//! header, name bytes twice, or hide bytes. It *can* hold NaN, infinity or wrong weights: that is the model's business.
//!
//! The `safetensors` crate checks 1 and most of 3 and 4, but lets a key stand twice (the last wins), and its errors
//! name neither file nor tensor. So the checks are written out here and the crate serves as the tests' oracle: what is
//! read here it reads to the same tensors, and what [`write()`] writes is what it would write, byte by byte.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::atomic::atomic_write;
use super::map::Map;
use crate::error::{Error, Result};
use crate::tensors::{DType, Source, Tensor, Tensors, byte_len};

/// Text that travels in the header beside the tensors.
pub type Metadata = BTreeMap<String, String>;

/// The longest header, in bytes, that any implementation accepts.
const MAX_HEADER: u64 = 100_000_000;

const METADATA: &str = "__metadata__";

/// What the header of a file says.
#[derive(Debug, Clone)]
pub struct Header {
    /// Text beside the tensors.
    pub metadata: Metadata,
    /// The tensors, in the order of their bytes.
    pub entries: Vec<Entry>,
}

/// One tensor of a [`Header`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub range: Range<usize>,
}

/// Maps a file and checks it; the tensors stay in the map until they are used.
pub fn read(path: &Path) -> Result<(Tensors, Metadata)> {
    let map: Source = Arc::new(Map::open(path)?);
    from_source(path, &map)
}

/// The checked header of a file.
pub fn read_header(path: &Path) -> Result<Header> {
    parse(path, Map::open(path)?.as_ref())
}

/// Writes a file as a whole (see [`atomic_write`]), with the same bytes for the same tensors and metadata.
///
/// `format: pt` is added to metadata without a `format`: Python loaders ask for it.
pub fn write(path: &Path, tensors: &Tensors, metadata: &Metadata) -> Result<()> {
    // Wide types first, so that each tensor is aligned to its elements.
    let mut order: Vec<(&str, &Tensor)> = tensors.iter().collect();
    order.sort_by(|(a, x), (b, y)| y.dtype().cmp(&x.dtype()).then(a.cmp(b)));
    let listed = order
        .iter()
        .map(|(name, tensor)| (*name, tensor.dtype(), tensor.shape()));
    let header = header(path, &listed.collect::<Vec<_>>(), metadata)?;
    atomic_write(path, |writer: &mut dyn Write| -> io::Result<()> {
        writer.write_all(&header)?;
        order
            .iter()
            .try_for_each(|(_, tensor)| writer.write_all(tensor.bytes()))
    })
}

/// A tensor in a header: its name, its element type, its shape.
pub(super) type Listed<'a> = (&'a str, DType, &'a [usize]);

/// What stands before the tensors of a file, which follow one another in this order; `path` is its name in errors.
pub(super) fn header(path: &Path, order: &[Listed<'_>], metadata: &Metadata) -> Result<Vec<u8>> {
    let mut metadata = metadata.clone();
    metadata
        .entry("format".to_owned())
        .or_insert_with(|| "pt".to_owned());
    if order.iter().any(|(name, ..)| *name == METADATA) {
        return Err(Error::Unsupported {
            what: format!("a tensor named `{METADATA}`"),
            why: "safetensors files keep their metadata under this name; rename the tensor".to_owned(),
        });
    }
    let layout = Layout {
        metadata: &metadata,
        order,
    };
    let mut json = serde_json::to_vec(&layout).map_err(|error| Error::io("write", path)(error.into()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = json.len() as u64;
    if length > MAX_HEADER {
        return Err(Error::HeaderRoom {
            path: path.to_owned(),
            found: length,
            limit: MAX_HEADER,
        });
    }
    Ok([&length.to_le_bytes(), json.as_slice()].concat())
}

/// Checks a file that is in memory already; `path` is its name in errors.
fn from_source(path: &Path, source: &Source) -> Result<(Tensors, Metadata)> {
    let header = parse(path, (**source).as_ref())?;
    let tensor = |entry: Entry| {
        Tensor::from_source(entry.dtype, &entry.shape, Arc::clone(source), entry.range)
            .map(|tensor| (entry.name, tensor))
    };
    Ok((
        header.entries.into_iter().map(tensor).collect::<Result<_>>()?,
        header.metadata,
    ))
}

/// Checks the header of `file` against the file, as the module's text says.
fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let syntax = |detail: String| Error::HeaderSyntax {
        path: path.to_owned(),
        detail,
    };
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or_else(|| Error::HeaderMissing {
            path: path.to_owned(),
            found: file.len(),
        })?;
    let found = u64::from_le_bytes(*length);
    let limit = MAX_HEADER.min(rest.len() as u64);
    let split = usize::try_from(found)
        .ok()
        .filter(|_| found <= limit)
        .and_then(|n| rest.split_at_checked(n));
    let Some((json, data)) = split else {
        return Err(Error::HeaderLength {
            path: path.to_owned(),
            found,
            limit,
        });
    };
    let RawHeader { metadata, entries } =
        serde_json::from_slice(json).map_err(|error| syntax(error.to_string()))?;

    let data_start = file.len() - data.len();
    let mut header = Header {
        metadata: Metadata::new(),
        entries: Vec::with_capacity(entries.len()),
    };
    for (key, value) in metadata.into_iter().flat_map(|Pairs(pairs)| pairs) {
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(Error::HeaderDuplicate {
                path: path.to_owned(),
                name: key,
            });
        }
    }
    for (name, raw) in entries {
        header
            .entries
            .push(check_entry(path, name, raw, data.len(), data_start)?);
    }
    let mut seen = HashSet::new();
    if let Some(entry) = header
        .entries
        .iter()
        .find(|entry| !seen.insert(entry.name.as_str()))
    {
        return Err(Error::HeaderDuplicate {
            path: path.to_owned(),
            name: entry.name.clone(),
        });
    }
    header
        .entries
        .sort_by_key(|entry| (entry.range.start, entry.range.end));
    check_cover(path, &header.entries, data_start..file.len())?;
    Ok(header)
}

/// One entry by itself: a known type, offsets inside the data, a span of just the size.
fn check_entry(path: &Path, name: String, raw: RawEntry, length: usize, data_start: usize) -> Result<Entry> {
    let (begin, end) = raw.data_offsets;
    let Some(dtype) = DType::from_name(&raw.dtype) else {
        return Err(Error::HeaderType {
            path: path.to_owned(),
            name,
            found: raw.dtype,
        });
    };
    if begin > end || end > length {
        return Err(Error::HeaderOffsets {
            path: path.to_owned(),
            name,
            begin,
            end,
            length,
        });
    }
    let expected = byte_len(dtype, &raw.shape);
    if expected != Some(end - begin) {
        return Err(Error::HeaderSize {
            path: path.to_owned(),
            name,
            dtype,
            shape: raw.shape,
            expected: expected.map_or_else(|| "more bytes than fit in memory".to_owned(), |n| n.to_string()),
            found: end - begin,
        });
    }
    // Both are at most the file's length.
    Ok(Entry {
        name,
        dtype,
        shape: raw.shape,
        range: data_start + begin..data_start + end,
    })
}

/// All entries together, sorted by offset: they cover `data` without overlap or hole.
fn check_cover(path: &Path, entries: &[Entry], data: Range<usize>) -> Result<()> {
    let hole = |begin: usize, end: usize| Error::HeaderHole {
        path: path.to_owned(),
        begin: begin - data.start,
        end: end - data.start,
    };
    let mut covered = data.start;
    let mut previous: Option<&Entry> = None;
    for entry in entries {
        if let (true, Some(first)) = (entry.range.start < covered, previous) {
            return Err(Error::HeaderOverlap {
                path: path.to_owned(),
                first: first.name.clone(),
                second: entry.name.clone(),
            });
        }
        if entry.range.start > covered {
            return Err(hole(covered, entry.range.start));
        }
        covered = entry.range.end;
        previous = Some(entry);
    }
    if covered < data.end {
        return Err(hole(covered, data.end));
    }
    Ok(())
}

/// A JSON object with its keys in order, twins included: maps would drop one of them silently.
pub(super) struct Pairs<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Collect<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// The header as it stands in the file.
struct RawHeader {
    metadata: Option<Pairs<String>>,
    entries: Vec<(String, RawEntry)>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut header = RawHeader {
                    metadata: None,
                    entries: Vec::new(),
                };
                while let Some(key) = map.next_key::<String>()? {
                    if key != METADATA {
                        header.entries.push((key, map.next_value()?));
                    } else if header.metadata.replace(map.next_value()?).is_some() {
                        return Err(serde::de::Error::custom("`__metadata__` occurs twice"));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The header to be written: metadata, then the tensors in the order of their bytes.
struct Layout<'a> {
    metadata: &'a Metadata,
    order: &'a [Listed<'a>],
}

impl Serialize for Layout<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Info<'a> {
            dtype: &'static str,
            shape: &'a [usize],
            data_offsets: (usize, usize),
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(METADATA, self.metadata)?;
        let mut begin = 0;
        for (name, dtype, shape) in self.order {
            let end = byte_len(*dtype, shape).and_then(|bytes| bytes.checked_add(begin));
            let end = end.ok_or_else(|| {
                serde::ser::Error::custom(format!(
                    "tensor `{name}` of shape {shape:?} takes more bytes than a file has"
                ))
            })?;
            let info = Info {
                dtype: dtype.name(),
                shape,
                data_offsets: (begin, end),
            };
            map.serialize_entry(name, &info)?;
            begin = end;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};

    use super::*;

    /// A file of this header and this many zero bytes, checked.
    fn check(header: &str, data: usize) -> Result<(Tensors, Metadata)> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 0);
        let file: Source = Arc::new(file);
        from_source(Path::new("x.safetensors"), &file)
    }

    #[test]
    fn each_violation_has_its_error() {
        let f32s = |name: &str, n: usize, begin: usize, end: usize| {
            format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
        };
        let (a, b) = (f32s("a", 2, 0, 8), f32s("b", 1, 8, 12));
        check(&format!("{{{a},{b}}}"), 12).unwrap();
        check(&format!("{{{b},{a}}}"), 12).unwrap();
        check("{}", 0).unwrap();

        let cases = [
            (
                format!("{{{a},{b}}}"),
                11,
                "tensor `b` lies at bytes 8 to 12 of a data section of 11",
            ),
            (
                format!("{{{a},{b}}}"),
                13,
                "bytes 12 to 13 of the data section belong to no tensor",
            ),
            ("{}".to_owned(), 1, "bytes 0 to 1"),
            (format!("{{{b}}}"), 12, "bytes 0 to 8"),
            (
                format!("{{{a},{}}}", f32s("b", 1, 4, 8)),
                8,
                "tensors `a` and `b` overlap",
            ),
            (
                format!("{{{a},{}}}", f32s("c", 2, 0, 8)),
                8,
                "tensors `a` and `c` overlap",
            ),
            (format!("{{{a},{a}}}"), 8, "the key `a` twice"),
            (f32s("a", 2, 0, 8), 8, "cannot be read"),
            (format!("{{{a}"), 8, "cannot be read"),
            (
                format!("{{{}}}", f32s("a", 3, 0, 8)),
                8,
                "takes 12 bytes, but its offsets span 8",
            ),
            (format!("{{{}}}", f32s("a", 2, 8, 0)), 8, "lies at bytes 8 to 0"),
            (
                format!("{{{}}}", f32s("a", usize::MAX, 0, 8)),
                8,
                "takes more bytes than fit in memory",
            ),
            (
                format!("{{{}}}", f32s("a", 1 << 62, 0, 0)),
                0,
                "takes more bytes than fit in memory",
            ),
            (
                format!("{{{}}}", a.replace("F32", "F8_E4M3")),
                8,
                "has type `F8_E4M3`; the types read are BOOL, U8",
            ),
            (format!("{{{}}}", a.replace("[2]", "[-2]")), 8, "cannot be read"),
            (
                format!("{{{}}}", a.replace("[2]", "[2],\"strides\":[1]")),
                8,
                "unknown field `strides`",
            ),
            (
                r#"{"__metadata__":{"epoch":3}}"#.to_owned(),
                0,
                "expected a string",
            ),
            (
                r#"{"__metadata__":{"k":"1","k":"2"}}"#.to_owned(),
                0,
                "the key `k` twice",
            ),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), 0, "twice"),
            ("[".repeat(100_000), 0, "cannot be read"),
        ];
        for (header, data, expected) in cases {
            let error = check(&header, data).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("`x.safetensors`"),
                "{error}\n{expected}"
            );
        }
    }

    #[test]
    fn lengths_are_checked_before_the_header_is_touched() {
        let parse = |bytes: &[u8]| parse(Path::new("x"), bytes).unwrap_err().to_string();
        assert!(parse(b"").contains("0 bytes long"));
        assert!(parse(b"1234567").contains("7 bytes long"));
        assert!(parse(&u64::MAX.to_le_bytes()).contains("18446744073709551615 bytes where at most 0"));
        assert!(parse(b"\x03\0\0\0\0\0\0\0{}").contains("3 bytes where at most 2"));
        assert!(parse(b"PK\x03\x04 surely a zip file").contains("not a safetensors file"));
    }

    #[test]
    fn files_that_are_none_are_named() {
        let place = tempfile::tempdir().unwrap();
        let empty = place.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        assert_eq!(read(&empty).unwrap_err().code(), "E_SAFETENSORS_HEADER");
        assert!(
            read(place.path())
                .unwrap_err()
                .to_string()
                .contains("not a regular file")
        );
        assert!(
            read(&place.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none`")
        );
    }

    #[test]
    fn a_reserved_name_is_refused_on_the_way_out() {
        let mut tensors = Tensors::new();
        tensors.insert_f32(METADATA, &[1], vec![0.0]).unwrap();
        assert_eq!(
            write(Path::new("/nowhere"), &tensors, &Metadata::new())
                .unwrap_err()
                .code(),
            "E_UNSUPPORTED"
        );
    }

    #[test]
    fn a_file_can_be_replaced_by_what_is_mapped_from_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.safetensors");
        let mut tensors = Tensors::new();
        tensors
            .insert_f32("a", &[1000], (0..1000).map(|i| i as f32).collect())
            .unwrap();
        write(&path, &tensors, &Metadata::new()).unwrap();
        let (mut mapped, _) = read(&path).unwrap();
        mapped.rename("a", "b").unwrap();
        write(&path, &mapped, &Metadata::new()).unwrap();
        assert_eq!(
            read(&path).unwrap().0.get("b").unwrap(),
            tensors.get("a").unwrap()
        );
        assert_eq!(mapped.get("b").unwrap(), tensors.get("a").unwrap());
    }

    /// The crate's view of our tensors.
    fn views(tensors: &Tensors) -> Vec<(&str, TensorView<'_>)> {
        let dtype = |d: DType| match d {
            DType::Bool => Dtype::BOOL,
            DType::U8 => Dtype::U8,
            DType::I8 => Dtype::I8,
            DType::I16 => Dtype::I16,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::I64 => Dtype::I64,
        };
        let mut views = Vec::new();
        for (name, t) in tensors.iter() {
            views.push((
                name,
                TensorView::new(dtype(t.dtype()), t.shape().to_vec(), t.bytes()).unwrap(),
            ));
        }
        views
    }

    fn any_tensor() -> impl Strategy<Value = Tensor> {
        let shape = prop::collection::vec(0..5usize, 0..4);
        (prop::sample::select(DType::ALL.to_vec()), shape).prop_flat_map(|(dtype, shape)| {
            prop::collection::vec(any::<u8>(), byte_len(dtype, &shape).unwrap())
                .prop_map(move |bytes| Tensor::from_bytes(dtype, &shape, bytes).unwrap())
        })
    }

    fn any_tensors() -> impl Strategy<Value = Tensors> {
        prop::collection::btree_map(".{0,12}", any_tensor(), 0..6).prop_map(Tensors::from_iter)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn saved_and_loaded_is_the_same_and_what_the_crate_writes(tensors in any_tensors()) {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("x.safetensors");
            write(&path, &tensors, &Metadata::new()).unwrap();
            let (loaded, metadata) = read(&path).unwrap();
            prop_assert_eq!(&loaded, &tensors);
            prop_assert_eq!(&metadata, &Metadata::from([("format".into(), "pt".into())]));
            for entry in read_header(&path).unwrap().entries {
                prop_assert_eq!(entry.range.start % entry.dtype.size(), 0, "aligned");
            }

            let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            let theirs = safetensors::serialize(views(&tensors), Some(format)).unwrap();
            prop_assert_eq!(std::fs::read(&path).unwrap(), theirs);
        }

        #[test]
        fn a_damaged_file_is_refused_or_read_as_the_crate_reads_it(
            tensors in any_tensors(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut file = safetensors::serialize(views(&tensors), None).unwrap();
            for (at, byte) in damage {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len()));
            }
            let source: Source = Arc::new(file.clone());
            if let Ok((ours, _)) = from_source(Path::new("x"), &source) {
                let theirs = SafeTensors::deserialize(&file).unwrap();
                prop_assert_eq!(theirs.len(), ours.len());
                for (name, tensor) in ours.iter() {
                    let view = theirs.tensor(name).unwrap();
                    prop_assert_eq!(view.shape(), tensor.shape());
                    prop_assert_eq!(view.data(), tensor.bytes());
                }
            }
        }

        #[test]
        fn any_json_like_header_is_survived(
            header in r#"\{("(a|b|__metadata__)":\{("(dtype|shape|data_offsets)":("F32"|"I8"|\[[0-9,]{0,6}\]|[0-9]{1,20}),?){0,3}\},?){0,3}\}"#,
            data in 0..16usize,
        ) {
            let _ = check(&header, data);
        }
    }
}
