//! The four kinds of scan of a progressive frame, each for one block (ITU-T T.81, annex G): the first bits of the first
//! coefficient, one bit more of it, the first bits of a band of the others, one bit more of those.

use super::Fallible;
use super::huffman::{Bits, Huffman};
use super::markers::{Scan, Tables, ZIGZAG};
use super::scan::Cursor;

/// What a progressive scan does with a block.
pub(super) struct Progressive<'a> {
    scan: &'a Scan,
    /// The code of each channel; none for the bits that are stored as they are.
    codes: Vec<Option<&'a Huffman>>,
}

impl<'a> Progressive<'a> {
    pub(super) fn new(scan: &'a Scan, tables: &'a Tables) -> Fallible<Self> {
        let code = |channel| match (scan.first, scan.refines) {
            (0, true) => Ok(None),
            (0, false) => tables.dc(channel).map(Some),
            _ => tables.ac(channel).map(Some),
        };
        Ok(Progressive {
            scan,
            codes: scan.channels.iter().map(code).collect::<Fallible<_>>()?,
        })
    }

    pub(super) fn block(&self, cursor: &mut Cursor, slot: usize, block: &mut [i16; 64]) -> Fallible<()> {
        let Cursor {
            bits,
            predictions,
            empty_blocks,
            ..
        } = cursor;
        match self.codes[slot] {
            None => {
                dc_refine(bits, self.scan, block);
                Ok(())
            }
            Some(code) if self.scan.first == 0 => {
                dc_first(bits, code, self.scan, &mut predictions[slot], block)
            }
            Some(code) if self.scan.refines => ac_refine(bits, code, self.scan, empty_blocks, block),
            Some(code) => ac_first(bits, code, self.scan, empty_blocks, block),
        }
    }
}

/// First bits of the first coefficient.
fn dc_first(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    prediction: &mut i32,
    block: &mut [i16; 64],
) -> Fallible<()> {
    *prediction = prediction.wrapping_add(table.difference(bits)?);
    block[0] = (*prediction << scan.low_bit) as i16;
    Ok(())
}

/// One bit more of the first coefficient.
fn dc_refine(bits: &mut Bits, scan: &Scan, block: &mut [i16; 64]) {
    block[0] |= (bits.take(1) << scan.low_bit) as i16;
}

/// First bits of a band. `empty_blocks` counts how many blocks from this one on have nothing more in the band.
fn ac_first(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    empty_blocks: &mut i32,
    block: &mut [i16; 64],
) -> Fallible<()> {
    if *empty_blocks > 0 {
        *empty_blocks -= 1;
        return Ok(());
    }
    let mut k = scan.first;
    while k <= scan.last {
        match table.run(bits)? {
            (zeros, Some(number)) => {
                k += zeros;
                let place = ZIGZAG
                    .get(k)
                    .ok_or("the JPEG data is damaged: a block of more than 64 coefficients")?;
                block[usize::from(place & 63)] = (number << scan.low_bit) as i16;
                k += 1;
            }
            (15, None) => k += 16,
            (size, None) => {
                *empty_blocks = (1 << size) + bits.take(size as u32) - 1;
                break;
            }
        }
    }
    Ok(())
}

/// One bit more of a band: a correction for each coefficient that is not zero, and new ones of ±1 between them.
fn ac_refine(
    bits: &mut Bits,
    table: &Huffman,
    scan: &Scan,
    empty_blocks: &mut i32,
    block: &mut [i16; 64],
) -> Fallible<()> {
    let one = 1 << scan.low_bit;
    let mut k = scan.first;
    while *empty_blocks == 0 && k <= scan.last {
        let symbol = table.symbol(bits)?;
        let (mut zeros, size) = (usize::from(symbol >> 4), symbol & 15);
        let mut new = 0;
        if size != 0 {
            new = if bits.take(1) == 1 { one } else { -one };
        } else if zeros < 15 {
            *empty_blocks = (1 << zeros) + bits.take(zeros as u32);
            break;
        }
        // On to the place of the new coefficient: `zeros` further zeros are passed over, everything else is corrected.
        while k <= scan.last {
            let coefficient = &mut block[usize::from(ZIGZAG[k & 63] & 63)];
            if *coefficient != 0 {
                correct(coefficient, one, bits);
            } else if zeros == 0 {
                *coefficient = new;
                break;
            } else {
                zeros -= 1;
            }
            k += 1;
        }
        k += 1;
    }
    if *empty_blocks > 0 {
        for &place in ZIGZAG.get(k..=scan.last).unwrap_or_default() {
            let coefficient = &mut block[usize::from(place & 63)];
            if *coefficient != 0 {
                correct(coefficient, one, bits);
            }
        }
        *empty_blocks -= 1;
    }
    Ok(())
}

/// Moves a coefficient one step away from zero where the next bit says so.
fn correct(coefficient: &mut i16, one: i16, bits: &mut Bits) {
    if bits.take(1) == 1 && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient > 0 { one } else { -one });
    }
}
