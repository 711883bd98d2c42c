//! Coefficients to samples: libjpeg's accurate integer transform (`JDCT_ISLOW`), the default of every program that uses it.
//!
//! The algorithm is Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications", ICASSP
//! 1989, with constants of 13 bits: first the columns, which keep two bits more than samples have, then the rows. Where the
//! coefficients are larger than any encoder makes them, sums wrap and results saturate at 16 bits, as in the vector code of
//! libjpeg-turbo; so nothing overflows on any input.

use std::num::Wrapping;

/// Bits of the constants.
const CONST_BITS: u32 = 13;
/// Additional bits between the passes.
const PASS1_BITS: u32 = 2;

type Rows<T> = [[T; 8]; 8];

/// The samples of one block, row by row. `factors` is the component's quantisation table.
#[inline(always)]
pub(super) fn inverse(block: &[i16; 64], factors: &[u16; 64]) -> Rows<u8> {
    let first = block[0].wrapping_mul(factors[0] as i16);
    if block[1..].iter().fold(0, |any, coefficient| any | coefficient) == 0 {
        // Both passes on a lone first coefficient, which sets every sample.
        let level = (i32::from(first << PASS1_BITS) + (1 << (PASS1_BITS + 2))) >> (PASS1_BITS + 3);
        return [[sample(level); 8]; 8];
    }
    let mut coefficients = [[0; 8]; 8];
    for ((row, block), factors) in coefficients
        .iter_mut()
        .zip(block.as_chunks::<8>().0)
        .zip(factors.as_chunks::<8>().0)
    {
        for ((coefficient, &level), &factor) in row.iter_mut().zip(block).zip(factors) {
            *coefficient = level.wrapping_mul(factor as i16);
        }
    }
    // Columns of one coefficient each are common, and the same without arithmetic.
    let columns = if block[8..].iter().fold(0, |any, level| any | level) == 0 {
        [coefficients[0].map(|level| level << PASS1_BITS); 8]
    } else {
        transform::<{ CONST_BITS - PASS1_BITS }>(&coefficients)
    };
    let rows = transform::<{ CONST_BITS + PASS1_BITS + 3 }>(&transposed(&columns));
    let mut samples = [[0; 8]; 8];
    for (samples, row) in samples.iter_mut().zip(transposed(&rows)) {
        for (out, level) in samples.iter_mut().zip(row) {
            *out = sample(i32::from(level));
        }
    }
    samples
}

/// Levels are centred on zero, samples on 128.
#[inline(always)]
fn sample(level: i32) -> u8 {
    (level.clamp(-128, 127) + 128) as u8
}

#[inline(always)]
fn transposed(from: &Rows<i16>) -> Rows<i16> {
    std::array::from_fn(|row| std::array::from_fn(|column| from[column][row]))
}

/// The 1-D transform of each column, rounded to drop `SHIFT` bits. One column does not see another, so the loop becomes
/// vector code.
#[inline(always)]
fn transform<const SHIFT: u32>(from: &Rows<i16>) -> Rows<i16> {
    let mut to = [[0; 8]; 8];
    for column in 0..8 {
        let level = |row: usize| Wrapping(i32::from(from[row][column]));
        let times = |level: Wrapping<i32>, constant: i32| level * Wrapping(constant);
        let wrapped = |sum: Wrapping<i32>| Wrapping(i32::from(sum.0 as i16));

        // Even part: a rotation of coefficients 2 and 6, a butterfly of 0 and 4.
        let (two, six) = (level(2), level(6));
        let middle = times(two + six, 4433);
        let low = middle - times(six, 15137);
        let high = middle + times(two, 6270);
        let sum = wrapped(level(0) + level(4)) << CONST_BITS as usize;
        let difference = wrapped(level(0) - level(4)) << CONST_BITS as usize;
        let even = [sum + high, difference + low, difference - low, sum - high];

        // Odd part.
        let (one, three, five, seven) = (level(1), level(3), level(5), level(7));
        let outer = times(seven + one, -7373);
        let inner = times(five + three, -20995);
        let z3 = wrapped(seven + three);
        let z4 = wrapped(five + one);
        let z5 = times(z3 + z4, 9633);
        let z3 = times(z3, -16069) + z5;
        let z4 = times(z4, -3196) + z5;
        let odd = [
            times(one, 12299) + outer + z4,
            times(three, 25172) + inner + z3,
            times(five, 16819) + inner + z4,
            times(seven, 2446) + outer + z3,
        ];

        for row in 0..4 {
            to[row][column] = descale::<SHIFT>(even[row] + odd[row]);
            to[7 - row][column] = descale::<SHIFT>(even[row] - odd[row]);
        }
    }
    to
}

#[inline(always)]
fn descale<const SHIFT: u32>(value: Wrapping<i32>) -> i16 {
    let rounded = (value + Wrapping(1 << (SHIFT - 1))).0 >> SHIFT;
    rounded.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The inverse transform as defined (ITU-T T.81, A.3.3).
    fn exact(block: &[i16; 64]) -> Rows<f64> {
        let basis = |frequency: usize, at: usize| {
            let scale = if frequency == 0 { 0.125f64.sqrt() } else { 0.5 };
            scale * ((2 * at + 1) as f64 * frequency as f64 * std::f64::consts::PI / 16.0).cos()
        };
        std::array::from_fn(|y| {
            std::array::from_fn(|x| {
                let terms = block.iter().enumerate();
                let terms = terms.map(|(k, &level)| f64::from(level) * basis(k / 8, y) * basis(k % 8, x));
                terms.sum::<f64>() + 128.0
            })
        })
    }

    proptest! {
        #[test]
        fn samples_are_within_a_level_of_the_definition(
            levels in prop::collection::vec((0usize..64, -300i16..300), 1..20),
        ) {
            let mut block = [0; 64];
            for (place, level) in levels {
                block[place] = level;
            }
            let samples = inverse(&block, &[1; 64]);
            for (sample, exact) in samples.as_flattened().iter().zip(exact(&block).as_flattened()) {
                prop_assert!((f64::from(*sample) - exact.clamp(0.0, 255.0)).abs() < 1.0);
            }
        }

        #[test]
        fn shortcuts_change_nothing(row in prop::array::uniform8(-1024i16..1024), lone in any::<bool>()) {
            let mut block = [0; 64];
            block[..if lone { 1 } else { 8 }].copy_from_slice(&row[..if lone { 1 } else { 8 }]);
            let mut rows = [[0; 8]; 8];
            rows.as_flattened_mut().copy_from_slice(&block);
            let columns = transform::<{ CONST_BITS - PASS1_BITS }>(&rows);
            let levels = transposed(&transform::<{ CONST_BITS + PASS1_BITS + 3 }>(&transposed(&columns)));
            prop_assert_eq!(inverse(&block, &[1; 64]), levels.map(|row| row.map(|level| sample(level.into()))));
        }

        #[test]
        fn no_coefficients_overflow(
            block in prop::collection::vec(any::<i16>(), 64),
            factors in prop::collection::vec(any::<u16>(), 64),
        ) {
            inverse(&block.try_into().unwrap(), &factors.try_into().unwrap());
        }
    }
}
