//! What is added to logits, and the sums of its gradients.
//!
//! With the letters of the module above, the gradient of biases in plain attention is `p ∘ (g·vᵀ − d)`, summed over all samples: in fixed
//! parts, which are added in order.

use crate::simd::Simd;
use crate::train::blocks::SIDE;

/// What is added to logits: biases that all samples have in common, and masks of windows, of which each image has several
/// as samples of their own.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// `[heads, tokens, tokens]`: a row for each query.
    pub bias: &'a [f32],
    /// `[windows, tokens, tokens]`, for the samples in turn; none if empty. For [`Attention`](super::Attention) they have to be
    /// symmetric, two tokens seeing each other both or neither: its backward pass has a row for each key, and reads masks as they are.
    pub mask: &'a [f32],
}

/// What is added to logits in rows of whole blocks, so that all of it is added by vectors.
#[derive(Debug)]
pub(super) struct Padded {
    /// `[heads, tokens, stride]`, a row for each query, or, in the backward pass of plain attention, for each key.
    bias: Vec<f32>,
    /// `[windows, tokens, stride]`; nothing where a window hides nothing.
    masks: Vec<Option<Vec<f32>>>,
    tokens: usize,
    stride: usize,
}

impl Padded {
    /// A row for each query.
    pub(super) fn by_query(of: &Terms<'_>, tokens: usize) -> Self {
        Padded::new(of.bias, of.mask, tokens)
    }

    /// A row for each key.
    pub(super) fn by_key(of: &Terms<'_>, tokens: usize) -> Self {
        Padded::new(&transposed(of.bias, tokens), of.mask, tokens)
    }

    fn new(bias: &[f32], mask: &[f32], tokens: usize) -> Self {
        let stride = tokens.next_multiple_of(SIDE);
        let padded = |map: &[f32]| {
            let mut rows = vec![0.0; map.len() / tokens * stride];
            for (to, from) in rows.chunks_exact_mut(stride).zip(map.chunks_exact(tokens)) {
                to[..tokens].copy_from_slice(from);
            }
            rows
        };
        let of_window = |map: &[f32]| map.iter().any(|&x| x != 0.0).then(|| padded(map));
        Padded {
            bias: padded(bias),
            masks: mask.chunks_exact(tokens * tokens).map(of_window).collect(),
            tokens,
            stride,
        }
    }

    /// What is added to the logits of one head of one sample.
    pub(super) fn of(&self, sample: usize, head: usize) -> Added<'_> {
        let map = self.tokens * self.stride;
        Added {
            bias: Some(&self.bias[head * map..][..map]),
            mask: self
                .masks
                .get(sample % self.masks.len().max(1))
                .and_then(Option::as_deref),
            stride: self.stride,
        }
    }

    /// Room for the gradients of the biases, in rows as long as theirs.
    pub(super) fn no_sums(&self) -> Vec<f32> {
        vec![0.0; self.bias.len()]
    }

    /// One head's part of such room.
    pub(super) fn sums_of<'a>(&self, sums: &'a mut [f32], head: usize) -> &'a mut [f32] {
        let map = self.tokens * self.stride;
        &mut sums[head * map..][..map]
    }

    /// The gradient of the biases, a row for each query, from the sums of all parts, which have a row for each key.
    pub(super) fn turned_total(&self, parts: &[Vec<f32>]) -> Vec<f32> {
        transposed(&self.total(parts), self.tokens)
    }

    /// The sums of all parts, `[heads, tokens, tokens]`.
    pub(super) fn total(&self, parts: &[Vec<f32>]) -> Vec<f32> {
        let mut total = self.no_sums();
        for part in parts {
            total.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        let rows = total.chunks_exact(self.stride);
        rows.flat_map(|row| &row[..self.tokens]).copied().collect()
    }
}

/// Each map with rows and columns exchanged.
fn transposed(maps: &[f32], tokens: usize) -> Vec<f32> {
    let map = |map: &[f32]| -> Vec<f32> {
        let at = |i: usize| map[i % tokens * tokens + i / tokens];
        (0..tokens * tokens).map(at).collect()
    };
    maps.chunks_exact(tokens * tokens).flat_map(map).collect()
}

/// The rows of a [`Padded`] for one head of one sample, `[tokens, stride]` each.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Added<'a> {
    bias: Option<&'a [f32]>,
    mask: Option<&'a [f32]>,
    stride: usize,
}

impl Added<'_> {
    /// The biases alone, and the mask alone.
    pub(super) fn apart(self) -> [Self; 2] {
        [Added { mask: None, ..self }, Added { bias: None, ..self }]
    }

    /// Where the number at `row` and `column` stands, here and in [`Padded::sums_of`] a head.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, column: usize) -> usize {
        row * self.stride + column
    }

    /// Adds to a vector of logits, the first of which is at `row` and `column`.
    #[inline(always)]
    pub(super) fn to<S: Simd>(&self, row: usize, column: usize, logits: S::F) -> S::F {
        let at = self.at(row, column);
        let mut sum = logits;
        for added in [self.bias, self.mask].into_iter().flatten() {
            sum = S::add(sum, S::load(&added[at..]));
        }
        sum
    }
}
