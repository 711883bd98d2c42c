//! AMX: tiles of 16 rows by 64 bytes, multiplied as wholes.
//!
//! Two tiles of the left operand times two of the right fill four of sums: 32 rows by 32 columns, all eight registers.
//! A panel's rows are 64 bytes and follow one another, so a tile of the left operand is one piece of memory; a block of
//! the right operand holds its two tiles side by side. The compiler knows no tile registers: a whole tile's computation
//! is one piece of assembly.
//!
//! The unit that multiplies tiles and the one that stores them each fall asleep after some 0.6 µs without work, and take
//! 0.25 µs to wake up (on the Xeon of docs/results/training.md, a tenth of the time of training's perceptrons). So long
//! products store something on their way, and between products that vectors keep apart for as long there is [`awake`].

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::MaybeUninit;

use super::{Operands, Scratch};
use crate::panels::{Bf16, Element};

/// Whether the processor has tiles of bf16 and of bytes and the system lets this process use them.
pub(super) fn permitted() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let wanted = BF16 | TILE | INT8;
    if __cpuid_count(7, 0).edx & wanted != wanted {
        return false;
    }
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a request for permission, which changes nothing where it is refused.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// All eight tiles have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// # Safety
/// [`permitted`] said yes.
#[inline]
pub(super) unsafe fn begin() {
    // SAFETY: loads a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) }
}

/// # Safety
/// [`permitted`] said yes.
#[inline]
pub(super) unsafe fn end() {
    // SAFETY: leaves the tile registers unused.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// # Safety
/// The tiles are configured.
#[inline]
pub(super) unsafe fn awake() {
    #[repr(C, align(64))]
    struct Tile(MaybeUninit<[u8; 1024]>);
    let mut nowhere = Tile(MaybeUninit::uninit());
    // SAFETY: sixteen rows of 64 bytes are written; products begin with sums of zero.
    unsafe {
        asm!(
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tilestored [{to} + {row}*1], tmm1",
            to = in(reg) nowhere.0.as_mut_ptr(), row = in(reg) 64usize,
            out("tmm0") _,
            options(nostack),
        );
    }
}

/// Stores something into the result now and then: where the steps that are left are a multiple of `$mask + 1`.
macro_rules! awake {
    ($mask:literal) => {
        concat!(
            "test {n}, ",
            $mask,
            "\njnz 3f\ntilestored [{out} + {row}*2], tmm4\n3:\n"
        )
    };
}

/// Asks for 128 bytes of what is needed later, `$at` bytes into the step's share.
macro_rules! ahead {
    ($at:literal) => {
        concat!(
            "prefetcht1 [{ahead} + ",
            $at,
            "]\nprefetcht1 [{ahead} + 64 + ",
            $at,
            "]\n"
        )
    };
}

/// The loop over the depth, with up to 2 × 2 tiles.
macro_rules! product {
    ($instruction:literal, $of:ident, $out:ident) => {{
        // Tiles are always loaded whole. What comes of rows past the last one is not used.
        let tall = $of.rows > 16;
        let (a, stride) = ($of.a.as_ptr().wrapping_add($of.row), $of.stride * 64);
        let second = if tall { 16 * 64 } else { 0usize };
        let ahead = if $of.ahead.is_empty() { $of.b } else { $of.ahead }.as_ptr();
        if $of.half {
            asm!(
                "tilezero tmm0", "tilezero tmm2",
                "2:",
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {row}*2]",
                concat!($instruction, " tmm0, tmm4, tmm6"),
                ahead!(0), ahead!(128),
                "tileloadd tmm5, [{a2} + {row}*1]",
                concat!($instruction, " tmm2, tmm5, tmm6"),
                ahead!(256), ahead!(384),
                awake!(15),
                "add {a}, {stride}", "add {a2}, {stride}", "add {b}, 2048", "add {ahead}, 512",
                "dec {n}", "jnz 2b",
                "tilestored [{out} + {row}*2], tmm0",
                "tilestored [{out} + {row}*2 + 2048], tmm2",
                a = inout(reg) a => _, a2 = inout(reg) a.wrapping_byte_add(second) => _,
                b = inout(reg) $of.b.as_ptr() => _, ahead = inout(reg) ahead => _, n = inout(reg) $of.depths.len() => _,
                stride = in(reg) stride, row = in(reg) 64usize, out = in(reg) $out.as_mut_ptr(),
                out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack),
            );
        } else if tall {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm6, [{b} + {row}*2]",
                "tileloadd tmm4, [{a} + {row}*1]",
                concat!($instruction, " tmm0, tmm4, tmm6"),
                ahead!(0),
                "tileloadd tmm7, [{b} + {row}*2 + 64]",
                concat!($instruction, " tmm1, tmm4, tmm7"),
                ahead!(128),
                "tileloadd tmm5, [{a} + {row}*1 + 1024]",
                concat!($instruction, " tmm2, tmm5, tmm6"),
                ahead!(256),
                concat!($instruction, " tmm3, tmm5, tmm7"),
                ahead!(384),
                awake!(15),
                "add {a}, {stride}", "add {b}, 2048", "add {ahead}, 512",
                "dec {n}", "jnz 2b",
                "tilestored [{out} + {row}*2], tmm0",
                "tilestored [{out} + {row}*2 + 64], tmm1",
                "tilestored [{out} + {row}*2 + 2048], tmm2",
                "tilestored [{out} + {row}*2 + 2112], tmm3",
                a = inout(reg) a => _, b = inout(reg) $of.b.as_ptr() => _, ahead = inout(reg) ahead => _, n = inout(reg) $of.depths.len() => _,
                stride = in(reg) stride, row = in(reg) 64usize, out = in(reg) $out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {row}*2]",
                concat!($instruction, " tmm0, tmm4, tmm6"),
                ahead!(0), ahead!(128),
                "tileloadd tmm7, [{b} + {row}*2 + 64]",
                concat!($instruction, " tmm1, tmm4, tmm7"),
                ahead!(256), ahead!(384),
                awake!(15),
                "add {a}, {stride}", "add {b}, 2048", "add {ahead}, 512",
                "dec {n}", "jnz 2b",
                "tilestored [{out} + {row}*2], tmm0",
                "tilestored [{out} + {row}*2 + 64], tmm1",
                a = inout(reg) a => _, b = inout(reg) $of.b.as_ptr() => _, ahead = inout(reg) ahead => _, n = inout(reg) $of.depths.len() => _,
                stride = in(reg) stride, row = in(reg) 64usize, out = in(reg) $out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }};
}

/// # Safety
/// `of` was checked, the tiles are configured.
pub(super) unsafe fn bf16(of: Operands<'_, Bf16>, out: &mut Scratch<f32>) {
    whole_tiles(of, out, |of, out| {
        // SAFETY: `whole_tiles` made sure that whole tiles can be read; at most 32 rows of 128 bytes are written.
        unsafe { product!("tdpbf16ps", of, out) }
    });
}

/// One tile of the left operand, or two, from the byte `$at` of the step on.
macro_rules! left {
    (one, $at:literal) => {
        concat!("tileloadd tmm4, [{a} + {row}*1 + ", $at, "]\n")
    };
    (two, $at:literal) => {
        concat!(
            left!(one, $at),
            "tileloadd tmm5, [{a} + {row}*1 + 1024 + ",
            $at,
            "]\n"
        )
    };
}

/// The same of the right one.
macro_rules! right {
    (one, $at:literal) => {
        concat!("tileloadd tmm6, [{b} + {row}*2 + ", $at, "]\n")
    };
    (two, $at:literal) => {
        concat!(
            right!(one, $at),
            "tileloadd tmm7, [{b} + {row}*2 + 64 + ",
            $at,
            "]\n"
        )
    };
}

/// All products of the tiles at hand.
macro_rules! products {
    (one, one) => {
        concat!("tdpbf16ps tmm0, tmm4, tmm6\n", ahead!(0), ahead!(128))
    };
    (one, two) => {
        concat!(products!(one, one), "tdpbf16ps tmm1, tmm4, tmm7\n")
    };
    (two, one) => {
        concat!(products!(one, one), "tdpbf16ps tmm2, tmm5, tmm6\n")
    };
    (two, two) => {
        concat!(
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            ahead!(0),
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            ahead!(128),
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            "add {ahead}, 256\n"
        )
    };
}

/// The loop over the depth for numbers that are sums of three. One step brings each term of the left operand once, and of
/// the right one its first twice: 14 loads for 24 products. The store in between is there to keep its unit awake.
macro_rules! split_product {
    ($tall:ident, $wide:ident, $a:ident, $b:ident, $depth:ident, $ahead:ident, $out:ident) => {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            left!($tall, 0), right!($wide, 0), products!($tall, $wide),
            right!($wide, 4096), products!($tall, $wide),
            right!($wide, 2048), products!($tall, $wide),
            left!($tall, 2048), products!($tall, $wide),
            right!($wide, 0), products!($tall, $wide),
            left!($tall, 4096), awake!(3), products!($tall, $wide),
            "add {a}, 6144", "add {b}, 6144",
            "dec {n}", "jnz 2b",
            "tilestored [{out} + {row}*2], tmm0",
            "tilestored [{out} + {row}*2 + 64], tmm1",
            "tilestored [{out} + {row}*2 + 2048], tmm2",
            "tilestored [{out} + {row}*2 + 2112], tmm3",
            a = inout(reg) $a => _, b = inout(reg) $b => _, n = inout(reg) $depth => _, ahead = inout(reg) $ahead => _,
            row = in(reg) 64usize, out = in(reg) $out.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// # Safety
/// There are `depth` times three blocks of each operand, and at least one; the tiles are configured.
pub(super) unsafe fn split(
    a: *const Bf16,
    b: *const Bf16,
    depth: usize,
    tall: bool,
    wide: bool,
    ahead: &[Bf16],
    out: &mut Scratch<f32>,
) {
    let ahead = if ahead.is_empty() { b } else { ahead.as_ptr() };
    // SAFETY: reads stay inside the blocks, writes inside 32 rows of 128 bytes.
    unsafe {
        match (tall, wide) {
            (true, true) => split_product!(two, two, a, b, depth, ahead, out),
            (true, false) => split_product!(two, one, a, b, depth, ahead, out),
            (false, true) => split_product!(one, two, a, b, depth, ahead, out),
            (false, false) => split_product!(one, one, a, b, depth, ahead, out),
        }
    }
}

/// # Safety
/// `of` was checked, the tiles are configured.
pub(super) unsafe fn i8(of: Operands<'_, u8>, out: &mut Scratch<i32>) {
    whole_tiles(of, out, |of, out| {
        // SAFETY: as above. `tdpbusd`: unsigned times signed.
        unsafe { product!("tdpbusd", of, out) }
    });
}

/// Calls `run` once it is sure that whole tiles of 16 rows can be read: what follows the last row may be anything, but it
/// must be there, which is why [`Panels`](crate::Panels) end with spare rows.
#[inline(always)]
fn whole_tiles<T: Element, N: Copy + Default>(
    of: Operands<'_, T>,
    out: &mut Scratch<N>,
    run: impl FnOnce(Operands<'_, T>, &mut Scratch<N>),
) {
    if of.depths.is_empty() {
        // The loop over the depth looks only after its first turn.
        out[..of.rows].fill([N::default(); 32]);
        return;
    }
    let read = of.rows.next_multiple_of(16);
    assert!((of.depths.len() - 1) * of.stride + of.row + read <= of.a.len());
    run(of, out);
}
