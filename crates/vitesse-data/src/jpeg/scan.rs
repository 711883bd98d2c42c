//! The way through a scan: units of blocks, restarts between them (ITU-T T.81, annex A.2 and E.2.4).

use super::Fallible;
use super::huffman::Bits;
use super::markers::{Channel, Frame, Scan};

impl Scan {
    /// Rows of minimum coded units. A scan of one component has units of one block and no padding.
    pub(super) fn rows(&self, frame: &Frame) -> usize {
        match self.channels[..] {
            [Channel { component, .. }] => frame.components[component].blocks.1,
            _ => frame.units.1,
        }
    }

    /// Rows of blocks in a row of units, for each channel.
    pub(super) fn block_rows(&self, frame: &Frame) -> Vec<usize> {
        match self.channels[..] {
            [_] => vec![1],
            _ => self
                .channels
                .iter()
                .map(|channel| frame.components[channel.component].sampling.1)
                .collect(),
        }
    }
}

/// The state of reading one scan.
pub(super) struct Cursor<'a> {
    pub(super) bits: Bits<'a>,
    /// The last block's first coefficient, for each channel.
    pub(super) predictions: [i32; 4],
    /// Blocks that have nothing more in a progressive scan's band.
    pub(super) empty_blocks: i32,
    /// Units between restarts, 0 for none, and how many are left until the next.
    interval: usize,
    left: usize,
    /// The number the next restart must have.
    restart: u8,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(data: &'a [u8], interval: usize) -> Self {
        Cursor {
            bits: Bits::new(data),
            predictions: [0; 4],
            empty_blocks: 0,
            interval,
            left: interval,
            restart: 0,
        }
    }

    /// Goes through one row of minimum coded units; `visit` is given each block's channel, column and row.
    #[inline(always)]
    pub(super) fn row(
        &mut self,
        frame: &Frame,
        scan: &Scan,
        row: usize,
        mut visit: impl FnMut(&mut Self, usize, usize, usize) -> Fallible<()>,
    ) -> Fallible<()> {
        if let [Channel { component, .. }] = scan.channels[..] {
            for x in 0..frame.components[component].blocks.0 {
                self.start_unit()?;
                visit(self, 0, x, row)?;
            }
        } else {
            for unit in 0..frame.units.0 {
                self.start_unit()?;
                for (slot, channel) in scan.channels.iter().enumerate() {
                    let (across, down) = frame.components[channel.component].sampling;
                    for y in 0..down {
                        for x in 0..across {
                            visit(self, slot, unit * across + x, row * down + y)?;
                        }
                    }
                }
            }
        }
        self.check()
    }

    fn check(&self) -> Fallible<()> {
        if self.bits.overrun() {
            return Err("the JPEG data of a scan ends early, the file is truncated or damaged".into());
        }
        Ok(())
    }

    #[inline(always)]
    fn start_unit(&mut self) -> Fallible<()> {
        if self.interval == 0 {
            return Ok(());
        }
        if self.left == 0 {
            self.check()?;
            if self.bits.restart() != Some(self.restart) {
                return Err("the JPEG data is damaged: a restart marker is missing".into());
            }
            self.restart = (self.restart + 1) % 8;
            self.left = self.interval;
            self.predictions = [0; 4];
            self.empty_blocks = 0;
        }
        self.left -= 1;
        Ok(())
    }
}
