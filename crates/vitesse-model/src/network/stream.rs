//! The token stream: what its tokens are, and how much each of them still counts.

use burn::tensor::Tensor;

use super::tokens::Places;

/// The token stream at the current site: prefix tokens, patches, tail. An op that changes which tokens there are, or what
/// they stand for, says so here; attention and the heads' pooling go by it, and blocks that are computed again
/// hand it on.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    /// Tokens before the patches.
    pub prefix: usize,
    /// Of which prompts, the last ones.
    pub prompts: usize,
    /// `[dim, width + 1]`: what makes tokens of prompts narrower than the stream, weight and bias side by side. Those of
    /// the first block bring it, and later ones use it. Differentiable.
    pub prompt_map: Option<Tensor<2>>,
    /// Rows and columns of the patch grid; where patches left, or merged with others than their neighbours, of the grid they come from.
    pub grid: [usize; 2],
    /// Tokens after the patches, which stand for several of them that left (packages, fused tokens). No mean over the
    /// patches counts them.
    pub tail: usize,
    /// `[batch, tokens]`: 1 where a token is still there, 0 where it left and only keeps its place. Attention then
    /// looks away from tokens that left. Differentiable.
    pub policy: Option<Tensor<2>>,
    /// `[batch, tokens]`: how many patches a token stands for, where tokens were merged.
    pub sizes: Option<Tensor<2>>,
    /// Whether attention counts a token as often as it stands for patches.
    pub counts_by_size: bool,
    /// Where the tokens are that were there before the first left or merged.
    pub places: Option<Places>,
}

/// Below this sum of weights an image has no patch left, and its mean is zero.
const NOTHING_LEFT: f64 = 1e-6;

impl Stream {
    /// The mean of the patches of `x` `[batch, tokens, dim]`, weighted by policy and sizes where there are any:
    /// `[batch, dim]`.
    pub(super) fn mean(&self, x: Tensor<3>) -> Tensor<2> {
        let [batch, tokens, dim] = x.dims();
        let patches = tokens - self.prefix - self.tail;
        let x = x.narrow(1, self.prefix, patches);
        let weights = match (self.policy.clone(), self.sizes.clone()) {
            (Some(policy), Some(sizes)) => policy * sizes,
            (Some(weights), None) | (None, Some(weights)) => weights,
            (None, None) => return x.mean_dim(1).reshape([batch, dim]),
        };
        let weights = weights
            .narrow(1, self.prefix, patches)
            .reshape([batch, patches, 1]);
        let sum = weights.clone().sum_dim(1).clamp_min(NOTHING_LEFT);
        ((x * weights).sum_dim(1) / sum).reshape([batch, dim])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// One image with a prefix token, patches 1, 2, 3 and a tail, each of one channel.
    fn mean(stream: Stream) -> f32 {
        let x = Tensor::<3>::from_data([[[50.0], [1.0], [2.0], [3.0], [70.0]]], &Device::flex());
        let stream = Stream {
            prefix: 1,
            tail: 1,
            ..stream
        };
        stream.mean(x).into_scalar()
    }

    fn weights(values: [f32; 5]) -> Option<Tensor<2>> {
        Some(Tensor::from_data([values], &Device::flex()))
    }

    #[test]
    fn the_mean_counts_patches_by_policy_and_size_and_no_other_token() {
        assert_eq!(mean(Stream::default()), 2.0);
        let policy = weights([1.0, 1.0, 0.0, 1.0, 1.0]);
        let sizes = weights([1.0, 3.0, 1.0, 1.0, 9.0]);
        let with = |policy: &Option<Tensor<2>>, sizes: &Option<Tensor<2>>| {
            mean(Stream {
                policy: policy.clone(),
                sizes: sizes.clone(),
                ..Stream::default()
            })
        };
        assert_eq!(with(&policy, &None), 2.0);
        assert_eq!(with(&None, &sizes), (3.0 + 2.0 + 3.0) / 5.0);
        assert_eq!(with(&policy, &sizes), (3.0 + 3.0) / 4.0);
        assert_eq!(with(&weights([1.0, 0.0, 0.0, 0.0, 1.0]), &None), 0.0);
    }
}
