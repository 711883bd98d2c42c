//! What happens to the token stream when tokens leave or merge: the value itself, and all that the stream knows of its tokens.
//!
//! Indices are chosen on the host; what they move is differentiable.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use super::layers::constant;
use super::stream::Stream;

/// Where the tokens are now that were there before any left: the map from the patches' cells to tokens, ToMe's source matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `[batch, original tokens]`
    of: Vec<Option<usize>>,
    tokens: usize,
}

impl Places {
    /// Where each of `tokens` tokens of each image is itself.
    fn identity(batch: usize, tokens: usize) -> Places {
        Places {
            of: (0..batch).flat_map(|_| (0..tokens).map(Some)).collect(),
            tokens,
        }
    }

    /// How many tokens of an image there were.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// For each token of an image that was there, the token in which it is now; `None` where it left.
    pub fn of_image(&self, image: usize) -> &[Option<usize>] {
        let from = image * self.tokens;
        self.of.get(from..from + self.tokens).unwrap_or_default()
    }

    /// After tokens moved once more: `moved[image][token]` says where a token is then.
    fn then(&mut self, moved: &[Vec<Option<usize>>]) {
        for (of, moved) in self.of.chunks_mut(self.tokens.max(1)).zip(moved) {
            for place in of {
                *place = place.and_then(|token| moved.get(token).copied().flatten());
            }
        }
    }
}

/// Rows `[batch][count]` of each image of `x` `[batch, tokens, dim]`: `[batch, count, dim]`.
pub(crate) fn rows_of(x: Tensor<3>, rows: &[Vec<usize>]) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let count = rows.first().map_or(0, Vec::len);
    let images = rows.iter().enumerate();
    let indices: Vec<i64> = images
        .flat_map(|(image, rows)| rows.iter().map(move |row| (image * tokens + row) as i64))
        .collect();
    let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &x.device());
    let rows: Tensor<2> = x.reshape([batch * tokens, dim]).select(0, indices);
    rows.reshape([batch, count, dim])
}

/// Sums of the rows of `x` `[batch, tokens, dim]` that `places[image][token]` puts into the same place: `[batch, count, dim]`.
fn summed(x: Tensor<3>, places: &[Vec<usize>], count: usize) -> Tensor<3> {
    let [batch, tokens, dim] = x.dims();
    let images = places.iter().enumerate();
    let indices: Vec<i64> = images
        .flat_map(|(image, places)| places.iter().map(move |place| (image * count + place) as i64))
        .collect();
    let device = x.device();
    let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &device);
    let rows = x.reshape([batch * tokens, dim]);
    Tensor::<2>::zeros([batch * count, dim], &device)
        .select_assign(0, indices, rows, IndexingUpdateOp::Add)
        .reshape([batch, count, dim])
}

impl Stream {
    /// Of the tokens of `x` `[batch, tokens, dim]` those before the patches stay, then these of the patches, in this order and
    /// numbered from the first patch, then the tail. Where images keep different numbers, rows that stand for nothing fill the
    /// shorter ones up, and the policy is 0 there.
    pub(crate) fn keep(&mut self, x: Tensor<3>, kept: &[Vec<usize>]) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let (prefix, tail) = (self.prefix, self.tail);
        let most = kept.iter().map(Vec::len).max().unwrap_or(0);
        let filled = kept.iter().any(|kept| kept.len() < most);
        let count = prefix + most + tail;
        let (mut rows, mut moved, mut there) = (Vec::new(), Vec::new(), Vec::new());
        for kept in kept {
            let filling = most - kept.len();
            let of_patches = kept.iter().map(|patch| prefix + patch);
            let row: Vec<usize> = (0..prefix)
                .chain(of_patches)
                .chain(std::iter::repeat_n(prefix, filling))
                .chain(tokens - tail..tokens)
                .collect();
            let nothing = prefix + kept.len()..prefix + most;
            let mut places = vec![None; tokens];
            for (place, token) in row.iter().enumerate() {
                if !nothing.contains(&place) {
                    places[*token] = Some(place);
                }
            }
            there.extend((0..count).map(|place| f32::from(u8::from(!nothing.contains(&place)))));
            rows.push(row);
            moved.push(places);
        }
        self.policy = filled.then(|| constant(there, [batch, count], &x));
        self.sizes = self.sizes.take().map(|sizes| {
            let sizes = rows_of(sizes.reshape([batch, tokens, 1]), &rows);
            sizes.reshape([batch, count])
        });
        self.moved(tokens, &moved);
        rows_of(x, &rows)
    }

    /// Tokens of `x` `[batch, tokens, dim]` that `places[image][token]` puts into the same place become their mean, weighted by the
    /// patches that each stands for if `by_size` is set. How many that are is known afterwards in either case.
    pub(crate) fn merge(&mut self, x: Tensor<3>, places: &[Vec<usize>], by_size: bool) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let count = places.iter().flatten().max().map_or(0, |last| last + 1);
        let ones = || constant(vec![1.0; batch * tokens], [batch, tokens], &x);
        let sizes = self.sizes.take().unwrap_or_else(ones);
        let weights = if by_size { sizes.clone() } else { ones() };
        let weights = weights.reshape([batch, tokens, 1]);
        let sizes = summed(sizes.reshape([batch, tokens, 1]), places, count);
        self.sizes = Some(sizes.reshape([batch, count]));
        let sum = summed(x * weights.clone(), places, count);
        let weights = summed(weights, places, count);
        let moved: Vec<Vec<Option<usize>>> = places
            .iter()
            .map(|places| places.iter().copied().map(Some).collect())
            .collect();
        self.moved(tokens, &moved);
        sum / weights
    }

    /// With `token` `[batch, 1, dim]` after all others, which stands for some that left.
    pub(crate) fn append(&mut self, x: Tensor<3>, token: Tensor<3>) -> Tensor<3> {
        let batch = x.dims()[0];
        let with_one = |beside: Tensor<2>| {
            let one = constant(vec![1.0; batch], [batch, 1], &x);
            Tensor::cat(vec![beside, one], 1)
        };
        self.policy = self.policy.take().map(with_one);
        self.sizes = self.sizes.take().map(with_one);
        self.tail += 1;
        Tensor::cat(vec![x, token], 1)
    }

    /// 1 for each token of `x` `[batch, tokens, dim]` behind the prefix that is there, 0 for one that left.
    pub(crate) fn policy_behind_prefix(&self, x: &Tensor<3>) -> Tensor<2> {
        let [batch, tokens, _] = x.dims();
        let others = tokens - self.prefix;
        match self.policy.clone() {
            Some(policy) => policy.narrow(1, self.prefix, others),
            None => constant(vec![1.0; batch * others], [batch, others], x),
        }
    }

    /// The patches of `x` `[batch, tokens, dim]` stay as `stays` `[batch, patches]` says, and all other tokens.
    pub(crate) fn set_policy(&mut self, x: &Tensor<3>, stays: Tensor<2>) {
        let batch = x.dims()[0];
        let ones = |count| constant(vec![1.0; batch * count], [batch, count], x);
        let mut parts = vec![ones(self.prefix), stays, ones(self.tail)];
        parts.retain(|part| part.dims()[1] > 0);
        self.policy = Some(Tensor::cat(parts, 1));
    }

    /// What `x` `[batch, tokens, dim]` says of each token that was there before any left or merged, `[batch, original tokens, dim]`:
    /// of one that merged what it merged into says. `None` where one left.
    pub fn expand(&self, x: Tensor<3>) -> Option<Tensor<3>> {
        let Some(places) = &self.places else {
            return Some(x);
        };
        let images = 0..x.dims()[0];
        let rows: Option<Vec<Vec<usize>>> = images
            .map(|image| places.of_image(image).iter().copied().collect())
            .collect();
        Some(rows_of(x, &rows?))
    }

    fn moved(&mut self, tokens: usize, moved: &[Vec<Option<usize>>]) {
        let places = self
            .places
            .get_or_insert_with(|| Places::identity(moved.len(), tokens));
        places.then(moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// Two images with a prefix token, four patches and a tail, of one channel.
    fn begin() -> (Stream, Tensor<3>) {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let x = Tensor::<1>::from_data(values.as_slice(), &Device::flex()).reshape([2, 6, 1]);
        let stream = Stream {
            prefix: 1,
            tail: 1,
            grid: [2, 2],
            ..Stream::default()
        };
        (stream, x)
    }

    fn numbers<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
        x.to_data().iter().collect()
    }

    #[test]
    fn rows_that_fill_up_are_told_from_those_that_stay() {
        let (mut stream, x) = begin();
        let x = stream.keep(x, &[vec![2, 0], vec![3]]);
        assert_eq!(numbers(&x), [0.0, 3.0, 1.0, 5.0, 6.0, 10.0, 7.0, 11.0]);
        let policy = numbers(stream.policy.as_ref().unwrap());
        assert_eq!(policy, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
        let places = stream.places.clone().unwrap();
        assert_eq!(
            places.of_image(0),
            [Some(0), Some(2), None, Some(1), None, Some(3)]
        );
        assert_eq!(places.of_image(1), [Some(0), None, None, None, Some(1), Some(3)]);
        // A second choice counts from what is there; what is left of the filling is gone.
        let x = stream.keep(x, &[vec![1], vec![0]]);
        assert_eq!(numbers(&x), [0.0, 1.0, 5.0, 6.0, 10.0, 11.0]);
        assert!(stream.policy.is_none());
        assert_eq!(stream.places.as_ref().unwrap().of_image(0)[1], Some(1));
        assert!(stream.expand(x).is_none());
    }

    #[test]
    fn merged_tokens_are_means_by_size_and_expand_to_all_of_them() {
        let (mut stream, x) = begin();
        let first = vec![0, 1, 1, 2, 3, 4];
        let x = stream.merge(x, &[first.clone(), first], true);
        assert_eq!(numbers(&x)[..5], [0.0, 1.5, 3.0, 4.0, 5.0]);
        let second = vec![0, 1, 1, 2, 3];
        let x = stream.merge(x, &[second.clone(), second], true);
        assert_eq!(numbers(&x)[..4], [0.0, 2.0, 4.0, 5.0]);
        assert_eq!(numbers(stream.sizes.as_ref().unwrap())[..4], [1.0, 3.0, 1.0, 1.0]);
        // Means of two go on counting what they stand for.
        let (mut other, x_again) = begin();
        let merged = other.merge(x_again, &[vec![0, 1, 1, 2, 3, 4], vec![0, 1, 1, 2, 3, 4]], false);
        let merged = other.merge(merged, &[vec![0, 1, 1, 2, 3], vec![0, 1, 1, 2, 3]], false);
        assert_eq!(numbers(&merged)[..4], [0.0, 2.25, 4.0, 5.0]);
        assert_eq!(numbers(other.sizes.as_ref().unwrap())[..4], [1.0, 3.0, 1.0, 1.0]);
        let back = numbers(&stream.expand(x).unwrap());
        assert_eq!(back[..6], [0.0, 2.0, 2.0, 2.0, 4.0, 5.0]);
    }
}
