//! The context of one forward pass: what ops need beside the value at their site, and what comes out beside the logits.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use vitesse_rng::{Key, Rng};

use super::attention::AttentionState;
use super::fused::Compute;
use super::layers::{constant, times};
use super::stream::Stream;
use super::trace::Trace;
use crate::site::Site;

/// Carried through one forward pass.
#[derive(Debug, Clone)]
pub struct Ctx {
    /// Evaluation or training.
    pub mode: Mode,
    /// Where random numbers come from, in every mode.
    pub draws: Draws,
    /// The share of the training run that is done, from 0 to 1: schedules of ops go by it. After training, 1.
    pub progress: f64,
    /// What the images show, as probabilities `[batch, classes]`, for ops that depend on it. A constant: no gradient flows
    /// into it.
    pub labels: Option<Tensor<2>>,
    /// Which sites to record, and what was recorded.
    pub trace: Trace,
    /// The state of the token stream.
    pub stream: Stream,
    /// What becomes of tokens that leave by a score.
    pub leaving: Leaving,
    /// The block that runs now; `None` outside blocks.
    pub layer: Option<usize>,
    /// How it computes.
    pub compute: Compute,
    /// What the attention of the running block computes, from the moment at which queries, keys and values are there; only
    /// where an op reads it, or the maps are needed.
    pub attention: Option<AttentionState>,
    /// Values of the running block that a later op reads, by the site they passed.
    pub(super) held: Vec<(Site, Tensor<3>)>,
    /// What ops say beside the value at their site, `[batch, ..]` by a name that begins with the op's prefix, such as the
    /// decisions of a token op; an objective can take them into the loss.
    pub outputs: BTreeMap<String, Tensor<2>>,
    /// New values of buffers (running means and variances), by tensor name: the trainer stores them after the step.
    pub buffers: Vec<(String, Tensor<1>)>,
    /// The prefix of the first op that was to choose tokens by scores which are no numbers.
    pub(crate) spoiled: Option<String>,
}

/// What becomes of tokens that an op with scores lets leave (`token-predictor`, `token-selector`).
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Leaving {
    /// They are removed: the blocks that follow have less to do. No gradient flows into the decision.
    #[default]
    Removed,
    /// They keep their place, attention looks away from them, and decisions are differentiable: training. Nothing becomes faster.
    Masked {
        /// What is added to scores before they decide.
        noise: Noise,
        /// What the softmax by policy adds to every row, spread over its keys.
        eps: f64,
    },
}

/// Noise on scores, Gumbel-distributed.
#[derive(Debug, Clone, PartialEq)]
pub enum Noise {
    /// None: the more probable decision is taken.
    Nothing,
    /// Drawn from the pass's keys.
    Drawn,
    /// Given, `[batch, tokens, 2]` by the op's prefix. Ops that are not named, or are given another number of values, have none.
    Given(BTreeMap<String, Vec<f32>>),
}

/// What training's softmax by policy adds to every row, so that a row is never without weight.
const POLICY_EPS: f64 = 1e-6;

impl Leaving {
    /// As in training.
    pub fn in_training() -> Self {
        Leaving::Masked {
            noise: Noise::Drawn,
            eps: POLICY_EPS,
        }
    }
}

/// Evaluation or training.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Mode {
    /// No drop path and no dropout; batch norms use their running statistics.
    #[default]
    Eval,
    /// Drop path and dropout on, batch norms use the batch.
    Train {
        /// Stochastic depth's probability at the last block.
        drop_path: f64,
    },
}

/// Where the random numbers of one forward pass come from: pure functions of a key and of the sample's place in the
/// global batch, and not of how a batch is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// The key of this step. In evaluation the same for every pass, unless the caller sets another.
    pub key: Key,
    /// Index, in the global batch, of the first sample of this forward pass.
    pub first_sample: usize,
}

impl Default for Draws {
    fn default() -> Self {
        Draws {
            key: Key::new(0),
            first_sample: 0,
        }
    }
}

impl Draws {
    /// The numbers of sample `i` of this pass, by the key of their purpose, which comes from [`Draws::key`].
    pub fn of_sample(&self, purpose: Key, i: usize) -> Rng {
        purpose.at((self.first_sample + i) as u64).rng()
    }
}

/// What a training pass is told. Stochastic depth (Huang et al., 2016): each residual branch of each sample is dropped
/// with a probability that grows linearly from 0 at the first block to `rate` at the last, and scaled up when kept.
#[derive(Debug, Clone, Copy)]
pub struct DropPath {
    /// Probability at the last block.
    pub rate: f64,
    /// The key of this step's draws.
    pub key: Key,
    /// Index, in the global batch, of the first sample of this forward pass.
    pub first_sample: usize,
}

impl Default for Ctx {
    fn default() -> Self {
        Ctx {
            mode: Mode::Eval,
            draws: Draws::default(),
            progress: 1.0,
            labels: None,
            trace: Trace::default(),
            stream: Stream::default(),
            leaving: Leaving::default(),
            layer: None,
            compute: Compute::default(),
            attention: None,
            held: Vec::new(),
            outputs: BTreeMap::new(),
            buffers: Vec::new(),
            spoiled: None,
        }
    }
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
        let DropPath {
            rate,
            key,
            first_sample,
        } = drop_path;
        Ctx {
            mode: Mode::Train { drop_path: rate },
            draws: Draws { key, first_sample },
            leaving: Leaving::in_training(),
            ..Ctx::default()
        }
    }

    /// The context of a block that is computed again: everything of this one that is no tensor in the graph of gradients.
    /// The stream and the trace stay behind.
    pub(super) fn of_block(&self) -> Ctx {
        Ctx {
            mode: self.mode,
            draws: self.draws,
            progress: self.progress,
            labels: self.labels.clone().map(Tensor::inner),
            leaving: self.leaving.clone(),
            layer: self.layer,
            compute: self.compute,
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
        if self.mode == Mode::Eval || probability == 0.0 {
            return x;
        }
        let [batch, tokens, width] = x.dims();
        let kept = (1.0 / (1.0 - probability)) as f32;
        let key = self.draws.key.with("dropout").with(name);
        let factors: Vec<f32> = (0..batch)
            .flat_map(|i| {
                let mut rng = self.draws.of_sample(key, i);
                let mut draw = move || if rng.bernoulli(probability) { 0.0 } else { kept };
                (0..tokens * width).map(move |_| draw())
            })
            .collect();
        times(x, factors, [batch, tokens, width])
    }

    /// Whether tokens that leave keep their place.
    pub(crate) fn keeps_places(&self) -> bool {
        self.leaving != Leaving::Removed
    }

    /// What the softmax by policy adds to every row.
    pub(super) fn policy_eps(&self) -> f64 {
        match self.leaving {
            Leaving::Removed => 0.0,
            Leaving::Masked { eps, .. } => eps,
        }
    }

    /// Noise for `scores` `[batch, tokens, 2]` of the op with this prefix: `-ln(-ln u)`, which depends on the step, on the op and on
    /// the sample's place in the whole batch.
    pub(crate) fn gumbel(&self, scores: &Tensor<3>, prefix: &str) -> Option<Tensor<3>> {
        let Leaving::Masked { noise, .. } = &self.leaving else {
            return None;
        };
        let [batch, tokens, two] = scores.dims();
        let values: Vec<f32> = match noise {
            Noise::Nothing => return None,
            Noise::Given(given) => given
                .get(prefix)
                .filter(|given| given.len() == batch * tokens * two)?
                .clone(),
            Noise::Drawn => {
                let key = self.draws.key.with("gumbel").with(prefix);
                let of_sample = |i| {
                    let mut rng = self.draws.of_sample(key, i);
                    // Away from 0 and 1, whose logarithms are no numbers.
                    let mut draw = move || rng.uniform().clamp(1e-12, 1.0 - 1e-12);
                    (0..tokens * two).map(move |_| -(-draw().ln()).ln() as f32)
                };
                (0..batch).flat_map(of_sample).collect()
            }
        };
        Some(constant(values, [batch, tokens, two], scores))
    }

    /// Leaves an output of the op with this prefix.
    pub(crate) fn note(&mut self, prefix: &str, name: &str, value: Tensor<2>) {
        self.outputs.insert(format!("{prefix}.{name}"), value);
    }

    /// Leaves the logarithms by which tokens stay and leave, `[batch, tokens, 2]`, as `keep` and `drop`.
    pub(crate) fn note_scores(&mut self, prefix: &str, scores: &Tensor<3>) {
        let [batch, tokens, _] = scores.dims();
        for (i, name) in ["keep", "drop"].into_iter().enumerate() {
            let column = scores.clone().narrow(2, i, 1).reshape([batch, tokens]);
            self.note(prefix, name, column);
        }
    }

    /// Leaves the numbers of the tokens of `x` that stay, counted behind the prefix tokens, as `kept`, `[batch, most]`; -1 where an image
    /// keeps fewer than another.
    pub(crate) fn note_kept(&mut self, prefix: &str, kept: &[Vec<usize>], x: &Tensor<3>) {
        let most = kept.iter().map(Vec::len).max().unwrap_or(0);
        let row = |kept: &Vec<usize>| {
            let missing = most - kept.len();
            let numbers = kept.iter().map(|&token| token as f32);
            numbers
                .chain(std::iter::repeat_n(-1.0, missing))
                .collect::<Vec<f32>>()
        };
        let values = kept.iter().flat_map(row).collect();
        self.note(prefix, "kept", constant(values, [kept.len(), most], x));
    }

    /// What the residual branch of each sample is multiplied by (0, or `1 / (1 - probability)`), `None` where it is as it
    /// is; `branch` is 0 for attention, 1 for the MLP.
    pub(super) fn drop_path(&self, batch: usize, depth: usize, branch: u64) -> Option<Vec<f32>> {
        let (Mode::Train { drop_path: rate }, Some(layer)) = (self.mode, self.layer) else {
            return None;
        };
        let probability = drop_probability(rate, layer, depth);
        if probability <= 0.0 {
            return None;
        }
        let key = self.draws.key.with("drop-path").at(layer as u64).at(branch);
        let kept = (1.0 / (1.0 - probability)) as f32;
        let factor = |i| {
            let dropped = self.draws.of_sample(key, i).bernoulli(probability);
            if dropped { 0.0 } else { kept }
        };
        Some((0..batch).map(factor).collect())
    }
}

/// The probability that a branch of `layer` is dropped; a model of one block is never dropped.
fn drop_probability(rate: f64, layer: usize, depth: usize) -> f64 {
    if depth < 2 {
        0.0
    } else {
        rate * layer as f64 / (depth - 1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_path_keeps_the_mean_and_depends_on_the_sample_alone() {
        assert_eq!(drop_probability(0.4, 0, 12), 0.0);
        assert_eq!(drop_probability(0.4, 11, 12), 0.4);
        assert_eq!(drop_probability(0.4, 0, 1), 0.0);
        let factors = |first_sample, batch| {
            let mut ctx = Ctx::train(DropPath {
                rate: 0.25,
                key: Key::new(5),
                first_sample,
            });
            ctx.layer = Some(3);
            ctx.drop_path(batch, 4, 1).unwrap()
        };
        let whole = factors(0, 4000);
        let mean = whole.iter().sum::<f32>() / 4000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        assert_eq!(whole[1000..1010], factors(1000, 10));
    }

    #[test]
    fn numbers_can_be_drawn_in_every_mode() {
        let train = Ctx::train(DropPath {
            rate: 0.0,
            key: Key::new(5),
            first_sample: 2,
        });
        let eval = Ctx::eval();
        let first = |ctx: &Ctx, i| {
            let key = ctx.draws.key.with("noise");
            ctx.draws.of_sample(key, i).uniform()
        };
        assert_eq!(first(&eval, 3), first(&Ctx::eval(), 3));
        assert_ne!(first(&eval, 3), first(&eval, 4));
        // Sample 1 of a pass that begins at sample 2 is sample 3 of the batch.
        let mut whole = train.clone();
        whole.draws.first_sample = 0;
        assert_eq!(first(&train, 1), first(&whole, 3));
        assert_ne!(first(&train, 1), first(&eval, 1));
    }
}
