//! Named tensors: the weights of a model as plain data.
//!
//! [`Tensors`] maps names to [`Tensor`]s: an element type, a shape and little-endian bytes in row-major order. The
//! bytes are shared, either a range of a memory-mapped file or a buffer of their own, so that cloning, renaming and
//! regrouping copy nothing, and a tensor that is loaded and saved keeps every bit.
//!
//! ```
//! use vitesse_model::{DType, Tensors};
//!
//! let mut tensors = Tensors::new();
//! tensors.insert_f32("norm.weight", &[3], vec![1.0, 2.0, 3.0])?;
//! let weight = tensors.get("norm.weight")?;
//! assert_eq!((weight.dtype(), weight.shape()), (DType::F32, &[3][..]));
//! assert_eq!(*weight.to_f32(), [1.0, 2.0, 3.0]);
//! # Ok::<(), vitesse_model::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result, nearest};

#[cfg(target_endian = "big")]
compile_error!("checkpoint bytes are little-endian and are read in place");

/// The type of a tensor's elements.
///
/// The order is the one in which files are laid out: wider types come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
}

impl DType {
    /// Every element type, in layout order.
    pub const ALL: [DType; 10] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::I16,
        DType::F16,
        DType::BF16,
        DType::I32,
        DType::F32,
        DType::F64,
        DType::I64,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::I16 | DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// The name in safetensors files: `F32`, `BF16`, `BOOL`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "BOOL",
            DType::U8 => "U8",
            DType::I8 => "I8",
            DType::I16 => "I16",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I32 => "I32",
            DType::F32 => "F32",
            DType::F64 => "F64",
            DType::I64 => "I64",
        }
    }

    /// The type of this name in safetensors files.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Whether the elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The number of bytes of a shape, or `None` where the product overflows.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |bytes, &side| bytes.checked_mul(side))
}

/// What bytes live in: a memory map, a `Vec<u8>`, or a `Vec<f32>` seen as bytes.
pub(crate) type Source = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Keeps a vector of `f32` where it is, and so aligned, while it serves as bytes.
struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// One tensor: element type, shape, and shared little-endian bytes in row-major order. Cloning copies no elements.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    source: Source,
    range: Range<usize>,
}

impl Tensor {
    /// A tensor of `f32` values in row-major order, as many as `shape` holds.
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Result<Tensor> {
        let range = 0..values.len().saturating_mul(size_of::<f32>());
        Tensor::from_source(DType::F32, shape, Arc::new(Floats(values)), range)
    }

    /// From values that are rounded to a type of floating-point numbers of 16 bits; of any other type they stay `f32`.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn rounded(dtype: DType, shape: &[usize], values: Vec<f32>) -> Result<Tensor> {
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values
                .iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            DType::BF16 => values
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            _ => return Tensor::from_f32(shape, values),
        };
        Tensor::from_bytes(dtype, shape, bytes)
    }

    /// A tensor of little-endian bytes in row-major order, as many as `shape` and `dtype` take.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Tensor> {
        let range = 0..bytes.len();
        Tensor::from_source(dtype, shape, Arc::new(bytes), range)
    }

    /// A tensor that is a range of something shared, such as a memory map.
    pub(crate) fn from_source(
        dtype: DType,
        shape: &[usize],
        source: Source,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let found = (*source).as_ref().get(range.clone()).map_or(0, <[u8]>::len);
        let expected = byte_len(dtype, shape);
        if expected != Some(found) {
            return Err(Error::TensorBytes {
                dtype,
                shape: shape.to_vec(),
                expected: expected.map_or_else(|| "more than fit in memory".to_owned(), |n| n.to_string()),
                found,
            });
        }
        Ok(Tensor {
            dtype,
            shape: shape.to_vec(),
            source,
            range,
        })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.range.len() / self.dtype.size()
    }

    /// The elements as little-endian bytes in row-major order.
    pub fn bytes(&self) -> &[u8] {
        // The constructor has checked the range.
        (*self.source)
            .as_ref()
            .get(self.range.clone())
            .unwrap_or_default()
    }

    /// Whether it holds neither NaN nor infinity. Integers always are finite.
    pub fn is_finite(&self) -> bool {
        !self.dtype.is_float() || self.to_f32().iter().copied().all(f32::is_finite)
    }

    /// The elements as `f32`, each rounded to nearest. Borrowed where the bytes are aligned `f32` already.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Cow<'_, [f32]> {
            Cow::Owned(bytes.as_chunks::<N>().0.iter().map(|&chunk| f(chunk)).collect())
        }
        let bytes = self.bytes();
        match self.dtype {
            DType::F32 => match bytemuck::try_cast_slice(bytes) {
                Ok(values) => Cow::Borrowed(values),
                Err(_) => each(bytes, f32::from_le_bytes),
            },
            DType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            DType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            DType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            DType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            DType::I8 => each(bytes, |b| f32::from(i8::from_le_bytes(b))),
            DType::U8 => each(bytes, |[b]| f32::from(b)),
            DType::Bool => each(bytes, |[b]| f32::from(b != 0)),
        }
    }

    /// These of its rows, the slices along the first axis.
    ///
    /// # Errors
    /// Rows that it does not have.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let (&count, inner) = self.shape.split_first().unwrap_or((&1, &[]));
        if rows.start > rows.end || rows.end > count {
            return Err(Error::TensorRows {
                shape: self.shape.clone(),
                rows,
            });
        }
        let bytes = self.range.len() / count.max(1);
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(inner.iter().copied()).collect();
        let start = self.range.start;
        let range = start + rows.start * bytes..start + rows.end * bytes;
        Tensor::from_source(self.dtype, &shape, Arc::clone(&self.source), range)
    }

    /// The same elements in another shape with as many.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_source(self.dtype, shape, Arc::clone(&self.source), self.range.clone())
    }
}

/// Equal when type, shape and every byte are.
impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Tensors by name, in the order of their names. Cloning copies no elements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tensors {
    map: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// No tensors yet.
    pub fn new() -> Tensors {
        Tensors::default()
    }

    /// Adds a tensor and returns the one that had this name before.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.map.insert(name.into(), tensor)
    }

    /// Adds a tensor of `f32` values in row-major order, as many as `shape` holds.
    pub fn insert_f32(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) -> Result<()> {
        self.insert(name, Tensor::from_f32(shape, values)?);
        Ok(())
    }

    /// The tensor of this name; the error suggests the names closest to it.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.map.get(name).ok_or_else(|| self.missing(name))
    }

    /// The tensor of this name, which must have this shape.
    pub fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.get(name)?;
        if tensor.shape != shape {
            return Err(Error::TensorShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        Ok(tensor)
    }

    /// Takes the tensor of this name out.
    pub fn remove(&mut self, name: &str) -> Result<Tensor> {
        self.map.remove(name).ok_or_else(|| self.missing(name))
    }

    /// Gives a tensor another name, which must be free.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        if from != to && self.contains(to) {
            return Err(Error::TensorDuplicate { name: to.to_owned() });
        }
        let tensor = self.remove(from)?;
        self.insert(to, tensor);
        Ok(())
    }

    /// The tensors without this prefix of their names; `None` unless all have it.
    pub fn strip_prefix(&self, prefix: &str) -> Option<Tensors> {
        let without = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.map.iter().map(without).collect()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.map.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The number of elements in all tensors.
    pub fn parameters(&self) -> usize {
        self.map.values().map(Tensor::numel).sum()
    }

    /// The number of bytes in all tensors.
    pub fn total_bytes(&self) -> usize {
        self.map.values().map(|tensor| tensor.bytes().len()).sum()
    }

    fn missing(&self, name: &str) -> Error {
        Error::TensorMissing {
            name: name.to_owned(),
            similar: nearest(name, self.names()),
        }
    }
}

impl FromIterator<(String, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Tensors {
        Tensors {
            map: iter.into_iter().collect(),
        }
    }
}

impl IntoIterator for Tensors {
    type Item = (String, Tensor);
    type IntoIter = btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_converts_to_f32() {
        let cases: [(DType, Vec<u8>); 10] = [
            (DType::Bool, vec![0, 1, 1]),
            (DType::U8, vec![0, 1, 255]),
            (DType::I8, vec![0, 1, 0x80]),
            (DType::I16, [0i16, 1, -300].map(i16::to_le_bytes).concat()),
            (
                DType::F16,
                [0.0, 1.0, -0.5].map(|v| f16::from_f32(v).to_le_bytes()).concat(),
            ),
            (
                DType::BF16,
                [0.0, 1.0, -0.5].map(|v| bf16::from_f32(v).to_le_bytes()).concat(),
            ),
            (DType::I32, [0i32, 1, -70_000].map(i32::to_le_bytes).concat()),
            (DType::F32, [0f32, 1.0, -0.25].map(f32::to_le_bytes).concat()),
            (DType::F64, [0f64, 1.0, 0.1].map(f64::to_le_bytes).concat()),
            (DType::I64, [0i64, 1, -5].map(i64::to_le_bytes).concat()),
        ];
        let third = [
            1.0, 255.0, -128.0, -300.0, -0.5, -0.5, -70_000.0, -0.25, 0.1, -5.0,
        ];
        for ((dtype, bytes), third) in cases.into_iter().zip(third) {
            let tensor = Tensor::from_bytes(dtype, &[3], bytes).unwrap();
            assert_eq!(*tensor.to_f32(), [0.0, 1.0, third], "{dtype}");
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
    }

    #[test]
    fn f32_is_borrowed_when_aligned_and_right_when_not() {
        let values = vec![1.5f32, -2.0, 3.25];
        let owned = Tensor::from_f32(&[3], values.clone()).unwrap();
        assert!(matches!(owned.to_f32(), Cow::Borrowed(_)));
        // Four offsets into one buffer: at most one of them is aligned.
        for offset in 0..4 {
            let mut bytes = vec![0; offset];
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let range = offset..bytes.len();
            let tensor = Tensor::from_source(DType::F32, &[3], Arc::new(bytes), range).unwrap();
            assert_eq!(*tensor.to_f32(), *values);
        }
    }

    #[test]
    fn rows_are_slices_of_the_same_bytes() {
        let tensor = Tensor::from_f32(&[3, 2], (0..6).map(|i| i as f32).collect()).unwrap();
        let rows = tensor.rows(1..3).unwrap();
        assert_eq!(
            (rows.shape(), &*rows.to_f32()),
            (&[2, 2][..], &[2.0, 3.0, 4.0, 5.0][..])
        );
        assert_eq!(*rows.rows(1..2).unwrap().to_f32(), [4.0, 5.0]);
        assert_eq!(tensor.rows(3..3).unwrap().shape(), [0, 2]);
        let error = tensor.rows(2..4).unwrap_err().to_string();
        assert_eq!(error, "a tensor of shape [3, 2] has no rows 2..4, counted from 0");
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert_eq!(
            Tensor::from_f32(&[2, 2], vec![0.0; 3]).unwrap_err().code(),
            "E_TENSOR_BYTES"
        );
        let error = Tensor::from_bytes(DType::U8, &[usize::MAX, 2], vec![]).unwrap_err();
        assert!(error.to_string().contains("more than fit in memory"), "{error}");
        assert!(
            Tensor::from_f32(&[], vec![1.0]).is_ok(),
            "a scalar has one element"
        );
        assert!(Tensor::from_f32(&[0, 4], vec![]).is_ok());
    }

    #[test]
    fn a_map_of_tensors_names_what_is_wrong() {
        let mut t = Tensors::new();
        t.insert_f32("blocks.0.norm1.weight", &[2], vec![1.0; 2]).unwrap();
        t.insert_f32("head.bias", &[4], vec![0.0; 4]).unwrap();
        assert_eq!((t.len(), t.parameters(), t.total_bytes()), (2, 6, 24));

        let error = t.get("blocks.0.norm.weight").unwrap_err().to_string();
        assert!(error.contains("did you mean `blocks.0.norm1.weight`?"), "{error}");
        let error = t.get_shaped("head.bias", &[10]).unwrap_err().to_string();
        assert_eq!(error, "tensor `head.bias` should have shape [10], but has [4]");

        assert_eq!(
            t.rename("head.bias", "blocks.0.norm1.weight").unwrap_err().code(),
            "E_TENSOR_DUPLICATE"
        );
        t.rename("head.bias", "fc.bias").unwrap();
        t.rename("fc.bias", "fc.bias").unwrap();
        assert_eq!(
            t.names().collect::<Vec<_>>(),
            ["blocks.0.norm1.weight", "fc.bias"]
        );
        assert!(t.remove("head.bias").is_err());
    }
}
