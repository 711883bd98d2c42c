//! One number for each channel of what a model takes.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A number a channel: one for models of grey pictures, three for models of colour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub enum PerChannel {
    /// Of the luminance.
    Grey([f32; 1]),
    /// Of red, green and blue.
    Colour([f32; 3]),
}

impl PerChannel {
    /// The numbers, a channel after the other.
    pub fn as_slice(&self) -> &[f32] {
        match self {
            PerChannel::Grey(values) => values,
            PerChannel::Colour(values) => values,
        }
    }

    /// The colour with these levels in [0, 1], in 8 bits.
    pub(crate) fn colour(&self) -> [u8; 3] {
        let level = |value: f32| (255.0 * f64::from(value)).round_ties_even() as u8;
        match *self {
            PerChannel::Grey([value]) => [level(value); 3],
            PerChannel::Colour(values) => values.map(level),
        }
    }

    /// Whether there are so many, and all are usable; `what` says how a message calls usable ones.
    pub(crate) fn check(
        &self,
        key: &'static str,
        channels: usize,
        what: &str,
        usable: fn(f32) -> bool,
    ) -> Result<()> {
        let values = self.as_slice();
        if values.len() == channels && values.iter().all(|&value| usable(value)) {
            return Ok(());
        }
        let expected = format!("{what}, one a channel of {channels}");
        Err(Error::setting(key, &format!("{values:?}"), expected))
    }
}

impl From<[f32; 1]> for PerChannel {
    fn from(values: [f32; 1]) -> Self {
        PerChannel::Grey(values)
    }
}

impl From<[f32; 3]> for PerChannel {
    fn from(values: [f32; 3]) -> Self {
        PerChannel::Colour(values)
    }
}

impl From<PerChannel> for Vec<f32> {
    fn from(values: PerChannel) -> Self {
        values.as_slice().to_vec()
    }
}

impl TryFrom<Vec<f32>> for PerChannel {
    type Error = Error;

    fn try_from(values: Vec<f32>) -> Result<Self> {
        match *values {
            [grey] => Ok(PerChannel::Grey([grey])),
            [red, green, blue] => Ok(PerChannel::Colour([red, green, blue])),
            _ => Err(Error::setting(
                "mean or std",
                &format!("{values:?}"),
                "one number for grey pictures, three for colour",
            )),
        }
    }
}
