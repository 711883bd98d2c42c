//! The one layout of matrices: panels of columns.
//!
//! A matrix of activations is cut into panels of 32 columns (64 for 8-bit integers), and a panel holds its rows one
//! after the other:
//!
//! ```text
//! panel 0: row 0 [32 columns], row 1 [32 columns], …   panel 1: row 0, row 1, …
//! ```
//!
//! So the distance from a row to the next is a constant, which is what keeps the inner loop of a product free of address
//! arithmetic for every width; the tile that a product writes is one piece of memory; and it is at once the next
//! product's operand. Columns past the last one hold zeros, or anything finite where the other operand has zeros.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// A number of 16 bits: the upper half of an `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: a transparent wrapper of `u16`, which is both.
unsafe impl Zeroable for Bf16 {}
// SAFETY: as above.
unsafe impl Pod for Bf16 {}

impl Bf16 {
    /// Rounded to nearest, ties to even; a NaN stays one.
    #[inline]
    pub fn from_f32(x: f32) -> Bf16 {
        let bits = x.to_bits();
        if x.is_nan() {
            return Bf16((bits >> 16) as u16 | 0x40);
        }
        Bf16(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }

    /// Exact.
    #[inline]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// The type of an operand's elements: `f32`, [`Bf16`], or `u8` for 8-bit integers stored as `q + 128`.
pub trait Element: Pod + std::fmt::Debug + Send + Sync {
    /// One row of a panel.
    type Row: Pod + std::fmt::Debug + AsRef<[Self]> + AsMut<[Self]>;
    /// Columns of a panel.
    const WIDTH: usize;
}

impl Element for f32 {
    type Row = [f32; 32];
    const WIDTH: usize = 32;
}

impl Element for Bf16 {
    type Row = [Bf16; 32];
    const WIDTH: usize = 32;
}

impl Element for u8 {
    type Row = [u8; 64];
    const WIDTH: usize = 64;
}

/// A cache line, so that vectors of them are aligned to one.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: plain bytes without padding: size and alignment are both 64.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Numbers in memory that begins at a cache line. Shrinking and growing within what was once reserved moves nothing.
#[derive(Debug, Clone)]
pub(crate) struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    _elements: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Buffer {
            lines: Vec::new(),
            len: 0,
            _elements: std::marker::PhantomData,
        };
        buffer.resize(len);
        buffer
    }

    /// Another length. Elements that were there before keep their values, more are zero.
    pub(crate) fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            // A fresh vector of zeros comes from the system already cleared.
            if self.lines.is_empty() {
                self.lines = vec![Line::zeroed(); lines];
            } else {
                self.lines.resize(lines, Line::zeroed());
            }
        }
        self.len = len;
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Rows after the last one, so that tiles can be read whole.
const SPARE_ROWS: usize = 15;

/// The elements of a matrix with its spare rows. That their number does not overflow is what lets the inner loops compute
/// addresses without looking.
fn elements<T: Element>(rows: usize, panels: usize) -> usize {
    let all = rows
        .max(1)
        .checked_mul(panels.max(1))
        .and_then(|rows| rows.checked_add(SPARE_ROWS));
    // Bytes, too: no buffer is larger than half of all addresses.
    let fits = all
        .and_then(|rows| rows.checked_mul(2 * size_of::<T::Row>()))
        .is_some();
    assert!(
        fits,
        "{rows} rows of {panels} panels are more than memory can hold"
    );
    (rows * panels + SPARE_ROWS) * T::WIDTH
}

/// A matrix in panels.
#[derive(Debug, Clone)]
pub struct Panels<T: Element> {
    rows: usize,
    panels: usize,
    data: Buffer<T>,
}

impl<T: Element> Panels<T> {
    /// Zeros for `rows` rows of `panels` panels.
    pub fn zeros(rows: usize, panels: usize) -> Self {
        Panels {
            rows,
            panels,
            data: Buffer::zeros(elements::<T>(rows, panels)),
        }
    }

    /// Panels that hold `columns` columns.
    pub fn needed(columns: usize) -> usize {
        columns.div_ceil(T::WIDTH)
    }

    /// Another shape, for what is written next; what was there has no meaning any more. Memory is kept.
    pub fn reshape(&mut self, rows: usize, panels: usize) {
        self.data.resize(elements::<T>(rows, panels));
        (self.rows, self.panels) = (rows, panels);
    }

    /// Becomes the same as `other`. Memory is kept.
    pub fn copy(&mut self, other: &Panels<T>) {
        self.reshape(other.rows, other.panels);
        for panel in 0..self.panels {
            self.panel_mut(panel).copy_from_slice(other.panel(panel));
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// The rows of a panel.
    #[inline]
    pub fn panel(&self, panel: usize) -> &[T::Row] {
        assert!(panel < self.panels);
        &bytemuck::cast_slice(self.data.as_slice())[panel * self.rows..(panel + 1) * self.rows]
    }

    /// The rows of a panel, to write.
    #[inline]
    pub fn panel_mut(&mut self, panel: usize) -> &mut [T::Row] {
        assert!(panel < self.panels);
        &mut bytemuck::cast_slice_mut(self.data.as_mut_slice())[panel * self.rows..(panel + 1) * self.rows]
    }

    /// All panels' rows, panel after panel, and the spare ones.
    #[inline]
    pub(crate) fn all(&self) -> &[T::Row] {
        bytemuck::cast_slice(self.data.as_slice())
    }

    /// One row of a run of panels, to read.
    #[inline(always)]
    pub(crate) fn row(&self, panels: Range<usize>, row: usize) -> Row<'_, T> {
        assert!(row < self.rows && panels.end <= self.panels);
        Row {
            rows: &self.all()[panels.start * self.rows + row..panels.end * self.rows],
            step: self.rows,
        }
    }

    /// The same, to write.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, panels: Range<usize>, row: usize) -> RowMut<'_, T> {
        assert!(row < self.rows && panels.end <= self.panels);
        let all = bytemuck::cast_slice_mut(self.data.as_mut_slice());
        RowMut {
            rows: &mut all[panels.start * self.rows + row..panels.end * self.rows],
            step: self.rows,
        }
    }

    /// One element.
    pub fn at(&self, row: usize, column: usize) -> T {
        self.panel(column / T::WIDTH)[row].as_ref()[column % T::WIDTH]
    }

    /// Sets one element.
    pub fn set(&mut self, row: usize, column: usize, value: T) {
        self.panel_mut(column / T::WIDTH)[row].as_mut()[column % T::WIDTH] = value;
    }
}

/// One row of a run of panels, where loops over rows are short and would compute addresses for most of their time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a, T: Element> {
    rows: &'a [T::Row],
    step: usize,
}

impl<'a, T: Element> Row<'a, T> {
    /// In a panel of the run.
    #[inline(always)]
    pub(crate) fn at(&self, panel: usize) -> &'a T::Row {
        &self.rows[panel * self.step]
    }
}

/// As [`Row`], to write.
#[derive(Debug)]
pub(crate) struct RowMut<'a, T: Element> {
    rows: &'a mut [T::Row],
    step: usize,
}

impl<T: Element> RowMut<'_, T> {
    /// In a panel of the run.
    #[inline(always)]
    pub(crate) fn at(&mut self, panel: usize) -> &mut T::Row {
        &mut self.rows[panel * self.step]
    }
}
