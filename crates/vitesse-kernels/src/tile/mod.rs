//! The inner loops: a few rows times one panel of 32 columns, over the whole depth.
//!
//! Operands come in blocks. A block of the right operand has 32 columns and as many rows as the left operand's panel
//! has columns, and lies as the instructions want it:
//!
//! ```text
//! f32    32 rows:  [row][32 columns]                       multiply-add
//! bf16   16 pairs: [pair of rows][32 columns][2]           vdpbf16ps, tdpbf16ps
//! u8·i8  16 quads: [four rows][32 columns][4]              vpdpbusd, tdpbusd
//! ```
//!
//! Blocks follow one another down the depth. A row of the left operand's panel is as long as a block is deep, so one
//! step through a panel uses one block. The sum of each element runs over the depth in order, for every number of rows:
//! results do not depend on how rows are cut into tiles.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::ops::Range;

use crate::packed::Packed;
use crate::panels::{Bf16, Element, Panels};

/// Whether this process may use AMX on this machine.
#[cfg(target_arch = "x86_64")]
pub(crate) fn amx_permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        amx::permitted()
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}

/// Rows of the largest tile of any kind; scratch memory holds as many.
pub(crate) const MAX_ROWS: usize = 32;

/// The result of a tile.
pub(crate) type Scratch<N> = [[N; 32]; MAX_ROWS];

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 32;

/// What a tile multiplies.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a, T: Element> {
    /// The left operand, panel after panel.
    pub(crate) a: &'a [T::Row],
    /// Rows from one panel of `a` to the next.
    pub(crate) stride: usize,
    /// The first row in each panel.
    pub(crate) row: usize,
    /// The number of rows.
    pub(crate) rows: usize,
    /// Whether blocks of `a` lie as those of `b` do: of all 32 rows the first numbers, then the second ones. Only for `f32` and
    /// bf16, where [`Tile::TURNS`].
    pub(crate) turned: bool,
    /// How many columns of each panel of `a` count.
    pub(crate) depths: &'a [usize],
    /// The right operand's blocks, one for each panel of `a`.
    pub(crate) b: &'a [T],
    /// Whether only the first 16 columns are wanted.
    pub(crate) half: bool,
    /// What is read later, if that is known: for each block the processor is asked for so many cache lines of it, or past it.
    /// AMX asks for 8 whatever `lines` says; AVX2 and the plain loops ask for nothing.
    pub(crate) ahead: &'a [T],
    /// See `ahead`.
    pub(crate) lines: usize,
}

impl<'a, T: Element> Operands<'a, T> {
    /// Some rows of a matrix, its panels from `first` on, and one panel of `b` with all its depth. Nothing is read ahead.
    #[inline(always)]
    pub(crate) fn new(
        (a, first): (&'a Panels<T>, usize),
        rows: Range<usize>,
        b: &'a Packed<T>,
        panel: usize,
    ) -> Self {
        Operands {
            a: &a.all()[first * a.rows()..],
            stride: a.rows(),
            row: rows.start,
            rows: rows.len(),
            turned: false,
            depths: &b.depths,
            b: b.panel(panel),
            half: b.widths[panel] <= COLUMNS / 2,
            ahead: &[],
            lines: 0,
        }
    }

    /// That all reads and the rows of `out` will be inside the slices, so that the inner loops need not look, and that the left
    /// operand lies as the tile reads it.
    #[inline(always)]
    pub(crate) fn check(&self, most_rows: usize, turns: bool, out: usize) {
        let panels = self.depths.len();
        assert!(self.rows >= 1 && self.rows <= most_rows.min(out) && (turns || !self.turned));
        let read = if self.turned {
            assert!(self.row + self.rows <= COLUMNS);
            COLUMNS
        } else {
            self.row + self.rows
        };
        assert!(panels == 0 || (panels - 1) * self.stride + read <= self.a.len());
        assert!(self.b.len() >= panels * T::WIDTH * COLUMNS);
        debug_assert!(self.depths.iter().all(|&depth| depth <= T::WIDTH));
    }
}

/// The inner loops of one instruction set.
///
/// # Safety
/// The functions read what [`Operands::check`] has checked, and use the instructions of their type. Implementations may
/// read columns of `a` past a panel's depth, up to the next multiple of 2 (bf16) or 4 (8-bit); where they do, `b` holds
/// zeros.
pub trait Tile {
    /// Whether left operands may be [`Operands::turned`].
    const TURNS: bool;
    /// Whether tiles of all kinds ask for what is [`Operands::ahead`] as they are told.
    const ASKS: bool = false;
    /// The most rows of a tile of f32.
    const ROWS_F32: usize;
    /// The most rows of a tile of bf16.
    const ROWS_BF16: usize;
    /// The most rows of a tile of 8-bit integers.
    const ROWS_I8: usize;

    /// `out[r] = a[r] · b`
    fn tile_f32(of: Operands<'_, f32>, out: &mut [[f32; COLUMNS]]);
    /// `out[r] = a[r] · b`, summed in f32. Where a tile may have 16 rows or more, `out` has 32.
    fn tile_bf16(of: Operands<'_, Bf16>, out: &mut [[f32; COLUMNS]]);
    /// `out[r] = a[r] · b` with unsigned `a` and signed `b`, exact.
    fn tile_i8(of: Operands<'_, u8>, out: &mut Scratch<i32>);

    /// Like [`Tile::tile_bf16`] of whole blocks of 32 × 32, where three in a row stand for one of `f32` and the six
    /// products that count are summed: of the terms `i` and `j` with `i + j < 3`, from 0. `more` says whether more than the
    /// first 16 rows and columns are wanted; `ahead` is that of [`Operands`], with as much for each bf16. Only where there is
    /// AMX.
    fn tile_split(_a: &[Bf16], _b: &[Bf16], _more: [bool; 2], _ahead: &[Bf16], _out: &mut Scratch<f32>) {
        unreachable!("`f32` is split for AMX alone")
    }

    /// To be called before a run of tiles of bf16 or 8-bit integers, and [`Tile::end`] after it.
    #[inline(always)]
    fn begin() {}
    /// To be called between [`Tile::begin`] and [`Tile::end`] every few hundred nanoseconds of other work, where the
    /// processor's tile units fall asleep. Changes nothing.
    #[inline(always)]
    fn awake() {}
    /// See [`Tile::begin`].
    #[inline(always)]
    fn end() {}
}

/// Where the numbers (or groups) of a block of the left operand lie, of which a row has so many: the first one of row `row`,
/// and the steps to the next row and to the next depth.
#[inline(always)]
const fn starts<const TURNED: bool>(row: usize, width: usize) -> (usize, usize, usize) {
    if TURNED {
        (row, 1, 32)
    } else {
        (row * width, width, 1)
    }
}

/// Calls a function generic over the number of rows with the number at hand.
macro_rules! by_rows {
    ($rows:expr, $call:ident::<_ $(, $extra:tt)*> $args:tt, [$($n:literal)*]) => {
        by_rows!(@ $rows, $call, ($(, $extra)*), $args, [$($n)*])
    };
    (@ $rows:expr, $call:ident, $extra:tt, $args:tt, [$($n:literal)*]) => {
        match $rows {
            $($n => by_rows!(@@ $call, $n, $extra, $args),)*
            _ => unreachable!("checked before"),
        }
    };
    (@@ $call:ident, $n:literal, ($(, $extra:tt)*), $args:tt) => {
        $call::<$n $(, $extra)*> $args
    };
}
pub(crate) use by_rows;
