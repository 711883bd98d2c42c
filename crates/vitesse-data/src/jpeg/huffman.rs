//! Bits out of bytes, symbols out of bits, coefficients of a sequential block out of symbols (ITU-T T.81, annexes C and F).

use super::Fallible;
use super::markers::{ZIGZAG, find_marker};

/// Codes up to this length are found with one look into a table.
const LOOKAHEAD: u32 = 9;

/// The bits of one scan.
///
/// Within the data a byte 0xFF is followed by 0x00. Any other pair is a marker, which the bits never cross: zeros are given
/// instead, and [`overrun`](Self::overrun) tells.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to take.
    at: usize,
    /// The next bits, the first one highest. What lies below the first `count` is zero or the truth.
    buffer: u64,
    count: u32,
    /// How many of the bits ever put into the buffer were made up.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Bits {
            data,
            at: 0,
            buffer: 0,
            count: 0,
            made_up: 0,
        }
    }

    /// Makes at least 32 bits available, enough for a code (16) and the number behind it (15).
    #[inline]
    fn fill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(next) = self.data.get(self.at..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_be_bytes(*next);
            let (ones, tops) = (0x0101_0101_0101_0101, 0x8080_8080_8080_8080);
            let has_0xff = (!word).wrapping_sub(ones) & word & tops != 0;
            if !has_0xff {
                let taken = (64 - self.count) / 8;
                self.buffer |= word >> self.count;
                self.at += taken as usize;
                self.count += 8 * taken;
                return;
            }
        }
        self.fill_bytewise();
    }

    #[cold]
    #[inline(never)]
    fn fill_bytewise(&mut self) {
        while self.count <= 56 {
            let byte = match self.data.get(self.at..).unwrap_or_default() {
                [0xff, tail @ ..] => {
                    let repeated = tail.iter().take_while(|&&byte| byte == 0xff).count();
                    if tail.get(repeated) == Some(&0) {
                        self.at += repeated + 2;
                        Some(0xff)
                    } else {
                        None
                    }
                }
                [byte, ..] => {
                    self.at += 1;
                    Some(*byte)
                }
                [] => None,
            };
            if byte.is_none() {
                // Saturating, as a damaged scan may ask for any number.
                self.made_up = self.made_up.saturating_add(8);
            }
            self.buffer |= u64::from(byte.unwrap_or(0)) << (56 - self.count);
            self.count += 8;
        }
    }

    /// The next `count` bits, 1 to 16, without taking them. [`fill`](Self::fill) must have been called.
    #[inline]
    fn peek(&self, count: u32) -> usize {
        (self.buffer >> (64 - count)) as usize
    }

    #[inline]
    fn discard(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
    }

    /// The next `count` bits, 0 to 15, as a number.
    #[inline]
    pub(super) fn take(&mut self, count: u32) -> i32 {
        self.fill();
        self.take_filled(count)
    }

    #[inline]
    fn take_filled(&mut self, count: u32) -> i32 {
        // Two shifts, as one by 64 bits would be none.
        let value = ((self.buffer >> 1) >> (63 - count)) as i32;
        self.discard(count);
        value
    }

    /// The next `size` bits, 0 to 15, as a signed number: those that start with a 0 are negative (F.2.2.1, EXTEND).
    #[inline]
    fn signed(&mut self, size: u32) -> i32 {
        let value = self.take_filled(size);
        if value < (1 << size) >> 1 {
            value - (1 << size) + 1
        } else {
            value
        }
    }

    /// Whether bits beyond the end of the data were taken.
    #[inline]
    pub(super) fn overrun(&self) -> bool {
        self.count < self.made_up
    }

    /// Goes past the restart marker that follows; its number, 0 to 7, or nothing when another marker or none follows.
    pub(super) fn restart(&mut self) -> Option<u8> {
        let at = self.at + find_marker(self.data.get(self.at..)?)?;
        let marker = *self.data.get(at)?;
        *self = Bits {
            at: at + 1,
            ..Bits::new(self.data)
        };
        marker.checked_sub(0xd0).filter(|number| *number < 8)
    }

    /// How many bytes are behind the bits taken. The rest up to the next marker is padding.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}

/// A Huffman code, prepared for reading.
pub(super) struct Huffman {
    /// For each run of [`LOOKAHEAD`] bits the code it begins with: symbol · 256 + length, or 0 when that is longer.
    short: [u16; 1 << LOOKAHEAD],
    /// For each run of bits that begins with a code and its whole number: number · 256 + zeros before it · 16 + length of
    /// both, or 0 when those are longer.
    numbers: [i16; 1 << LOOKAHEAD],
    /// For each length, the first 16 bits that are beyond its codes.
    end: [u32; 17],
    /// For each length, what to add to a code to get its symbol's index.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Huffman {
    /// The code with `counts[n]` words of length `n + 1`, in order of their symbols.
    pub(super) fn new(counts: &[u8; 16], listed: &[u8]) -> Fallible<Huffman> {
        let mut table = Huffman {
            short: [0; 1 << LOOKAHEAD],
            numbers: [0; 1 << LOOKAHEAD],
            end: [0; 17],
            offset: [0; 17],
            symbols: [0; 256],
        };
        let invalid = "a JPEG Huffman table is not a valid prefix code";
        table
            .symbols
            .get_mut(..listed.len())
            .ok_or(invalid)?
            .copy_from_slice(listed);
        let (mut code, mut index) = (0u32, 0usize);
        for (length, &count) in (1..=16).zip(counts) {
            let count = u32::from(count);
            if code + count > 1 << length {
                return Err(invalid.into());
            }
            table.offset[length as usize] = index as i32 - code as i32;
            for symbol in listed
                .get(index..)
                .unwrap_or_default()
                .iter()
                .take(count as usize)
            {
                if length <= LOOKAHEAD {
                    let free = LOOKAHEAD - length;
                    let entry = u16::from(*symbol) << 8 | length as u16;
                    table.short[(code << free) as usize..((code + 1) << free) as usize].fill(entry);
                }
                code += 1;
            }
            index += count as usize;
            table.end[length as usize] = code << (16 - length);
            code <<= 1;
        }
        for bits in 0..table.short.len() {
            table.numbers[bits] = with_number(bits as u32, table.short[bits]).unwrap_or(0);
        }
        Ok(table)
    }

    /// The next symbol. Leaves at least 16 bits available for what it announces.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits) -> Fallible<u8> {
        bits.fill();
        let entry = self.short[bits.peek(LOOKAHEAD)];
        if entry != 0 {
            bits.discard(u32::from(entry & 255));
            return Ok((entry >> 8) as u8);
        }
        self.long_symbol(bits)
    }

    #[cold]
    fn long_symbol(&self, bits: &mut Bits) -> Fallible<u8> {
        let next = bits.peek(16) as u32;
        for length in LOOKAHEAD + 1..=16 {
            if next < self.end[length as usize] {
                bits.discard(length);
                let index = (next >> (16 - length)) as i32 + self.offset[length as usize];
                return Ok(self.symbols[index as usize & 255]);
            }
        }
        Err("the JPEG data is damaged: a code that its Huffman table does not have".into())
    }

    /// The next number as the first coefficient of a block codes it: its size, then its bits.
    #[inline]
    pub(super) fn difference(&self, bits: &mut Bits) -> Fallible<i32> {
        let size = self.symbol(bits)?;
        if size > 15 {
            return Err("the JPEG data is damaged: a first coefficient of more than 15 bits".into());
        }
        Ok(bits.signed(u32::from(size)))
    }

    /// The next symbol as the other coefficients code it: how many zeros to pass over, then a number; no number where its
    /// size is 0.
    // A result of this size goes through memory unless it is inlined, and there is one for every coefficient.
    #[inline(always)]
    pub(super) fn run(&self, bits: &mut Bits) -> Fallible<(usize, Option<i32>)> {
        bits.fill();
        let entry = self.numbers[bits.peek(LOOKAHEAD)];
        if entry != 0 {
            bits.discard(u32::from(entry as u16 & 15));
            return Ok((usize::from(entry as u16 >> 4 & 15), Some(i32::from(entry >> 8))));
        }
        let symbol = self.symbol(bits)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        Ok((zeros, (size > 0).then(|| bits.signed(size))))
    }
}

/// The entry of [`Huffman::numbers`] for `bits`, which begin with the code `entry`.
fn with_number(bits: u32, entry: u16) -> Option<i16> {
    let (length, zeros, size) = (u32::from(entry & 255), entry >> 12, u32::from(entry >> 8 & 15));
    if size == 0 || length + size > LOOKAHEAD {
        return None;
    }
    let mut rest = Bits {
        buffer: u64::from(bits) << (64 - LOOKAHEAD + length),
        count: 64,
        ..Bits::new(&[])
    };
    let number = i8::try_from(rest.signed(size)).ok()?;
    Some(i16::from(number) << 8 | (zeros << 4) as i16 | (length + size) as i16)
}

/// One block of a sequential scan; `block` must be zero. Coefficients are not yet multiplied by their factors.
#[inline]
pub(super) fn sequential(
    bits: &mut Bits,
    (dc, ac): (&Huffman, &Huffman),
    prediction: &mut i32,
    block: &mut [i16; 64],
) -> Fallible<()> {
    *prediction = prediction.wrapping_add(dc.difference(bits)?);
    block[0] = *prediction as i16;
    let mut k = 1;
    while k < 64 {
        match ac.run(bits)? {
            (zeros, Some(number)) => {
                k += zeros;
                let place = ZIGZAG
                    .get(k)
                    .ok_or("the JPEG data is damaged: a block of more than 64 coefficients")?;
                block[usize::from(place & 63)] = number as i16;
                k += 1;
            }
            (15, None) => k += 16,
            (_, None) => break,
        }
    }
    Ok(())
}
