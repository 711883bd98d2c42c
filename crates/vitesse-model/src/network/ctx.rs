//! The context of one forward pass: what ops need beside the value at their site, and what comes out beside the logits.

use burn::tensor::Tensor;
use vitesse_rng::Key;

use super::fused::Compute;
use super::layers::times;
use super::trace::Trace;
use crate::site::Site;

/// Carried through one forward pass.
#[derive(Debug, Default)]
pub struct Ctx {
    /// Evaluation or training.
    pub mode: Mode,
    /// Which sites to record, and what was recorded.
    pub trace: Trace,
    /// The state of the token stream.
    pub stream: Stream,
    /// The block that runs now; `None` outside blocks.
    pub layer: Option<usize>,
    /// How it computes.
    pub compute: Compute,
    /// What the attention of the running block computed, for the ops after it; only where one of them reads it, or
    /// something stands at the maps.
    pub attention: Option<Attention>,
    /// Values of the running block that a later op reads, by the site they passed.
    pub(super) held: Vec<(Site, Tensor<3>)>,
    /// New values of buffers (running means and variances), by tensor name: the trainer stores them after the step.
    pub buffers: Vec<(String, Tensor<1>)>,
}

/// Evaluation, or training with its randomness.
#[derive(Debug, Clone, Copy, Default)]
pub enum Mode {
    /// No randomness; batch norms use their running statistics.
    #[default]
    Eval,
    /// Drop path on, batch norms use the batch.
    Train(DropPath),
}

/// Stochastic depth (Huang et al., 2016): each residual branch of each sample is dropped with a probability that grows
/// linearly from 0 at the first block to `rate` at the last, and scaled up when kept.
#[derive(Debug, Clone, Copy)]
pub struct DropPath {
    /// Probability at the last block.
    pub rate: f64,
    /// The key of this step's draws.
    pub key: Key,
    /// Index, in the global batch, of the first sample of this forward pass: draws depend on the sample and not on
    /// how a batch is cut into pieces.
    pub first_sample: usize,
}

/// The token stream at the current site.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stream {
    /// Tokens before the patches.
    pub prefix: usize,
    /// Of which prompts, the last ones.
    pub prompts: usize,
    /// Rows and columns of the patch grid.
    pub grid: [usize; 2],
}

/// What the attention of a block computed.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, keys and values as they left `attn.qkv`: `[batch, tokens, Σ(2·qk + v)]`.
    pub qkv: Tensor<3>,
    /// The maps as they left `attn.probs`: `[batch, heads, tokens, tokens]`.
    pub probs: Tensor<4>,
}

impl Ctx {
    /// For evaluation, recording nothing.
    pub fn eval() -> Self {
        Ctx::default()
    }

    /// For evaluation, recording what `trace` asks for.
    pub fn tracing(trace: Trace) -> Self {
        Ctx {
            trace,
            ..Ctx::default()
        }
    }

    /// For training.
    pub fn train(drop_path: DropPath) -> Self {
        Ctx {
            mode: Mode::Train(drop_path),
            ..Ctx::default()
        }
    }

    /// Records a token stream if the trace wants it, and hands it on.
    pub(super) fn record(&mut self, site: Site, x: Tensor<3>) -> Tensor<3> {
        self.trace.record_tokens(site, self.layer, x)
    }

    /// Records attention maps if the trace wants them, and hands them on.
    pub(super) fn record_map(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        self.trace.record_map(site, self.layer, x)
    }

    /// The value that passed `site` of the running block, if an op asked for it.
    pub(crate) fn held(&self, site: Site) -> Option<Tensor<3>> {
        let (_, value) = self.held.iter().find(|(other, _)| *other == site)?;
        Some(value.clone())
    }

    /// In training, zeroes each element of `x` `[batch, tokens, width]` with this probability and scales up the others. The
    /// draws depend on the step, on `name` and on the sample's place in the whole batch.
    pub(crate) fn dropout(&self, x: Tensor<3>, probability: f64, name: &str) -> Tensor<3> {
        let Mode::Train(drop) = &self.mode else { return x };
        if probability == 0.0 {
            return x;
        }
        let [batch, tokens, width] = x.dims();
        let kept = (1.0 / (1.0 - probability)) as f32;
        let key = drop.key.with("dropout").with(name);
        let factors: Vec<f32> = (0..batch)
            .flat_map(|i| {
                let mut rng = key.at((drop.first_sample + i) as u64).rng();
                let mut draw = move || if rng.bernoulli(probability) { 0.0 } else { kept };
                (0..tokens * width).map(move |_| draw())
            })
            .collect();
        times(x, factors, [batch, tokens, width])
    }

    /// What the residual branch of each sample is multiplied by, `None` where it is as it is; `branch` is 0 for
    /// attention, 1 for the MLP.
    pub(super) fn drop_path(&self, batch: usize, depth: usize, branch: u64) -> Option<Vec<f32>> {
        let (Mode::Train(drop), Some(layer)) = (&self.mode, self.layer) else {
            return None;
        };
        let probability = drop.probability(layer, depth);
        (probability > 0.0).then(|| drop.factors(layer, branch, probability, batch))
    }
}

impl DropPath {
    /// The probability that a branch of `layer` is dropped; a model of one block is never dropped.
    pub fn probability(&self, layer: usize, depth: usize) -> f64 {
        if depth < 2 {
            0.0
        } else {
            self.rate * layer as f64 / (depth - 1) as f64
        }
    }

    /// What each sample's branch is multiplied by: 0, or `1 / (1 - probability)`.
    fn factors(&self, layer: usize, branch: u64, probability: f64, batch: usize) -> Vec<f32> {
        let key = self.key.with("drop-path").at(layer as u64).at(branch);
        (0..batch)
            .map(|i| {
                let kept = !key
                    .at((self.first_sample + i) as u64)
                    .rng()
                    .bernoulli(probability);
                if kept {
                    (1.0 / (1.0 - probability)) as f32
                } else {
                    0.0
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_path_keeps_the_mean_and_depends_on_the_sample_alone() {
        let drop = |first_sample| DropPath {
            rate: 0.4,
            key: Key::new(5),
            first_sample,
        };
        assert_eq!(drop(0).probability(0, 12), 0.0);
        assert_eq!(drop(0).probability(11, 12), 0.4);
        assert_eq!(drop(0).probability(0, 1), 0.0);
        let whole = drop(0).factors(3, 1, 0.25, 4000);
        let mean = whole.iter().sum::<f32>() / 4000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert_eq!(whole[1000..1010], drop(1000).factors(3, 1, 0.25, 10));
    }
}
