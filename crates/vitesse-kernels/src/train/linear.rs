//! The linear segment: `residual + factor · (before(x) · Wᵀ + b)`, which is nearly all of a transformer.

use rayon::prelude::*;

use super::Math;
use super::blocks::{Change, Matrix, SIDE, padded};
use super::norm::NormBackward;
use super::over_rows::over_rows;
use super::product::{Finish, Operand, Plain, column_sums, product, sum_parts};
use crate::Isa;
use crate::isa::Kernel;
use crate::math::{Gelu, gelu as gelu_of, gelu_slope};
use crate::simd::Simd;

/// What happens to the input of a linear map first.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// Nothing.
    Nothing,
    /// A layer norm over the inputs.
    Norm {
        /// What the normalised input is multiplied by, `[inputs]`.
        gain: &'a [f32],
        /// What is added to it, `[inputs]`.
        shift: &'a [f32],
        /// What is added to the variance.
        eps: f32,
    },
    /// The Gaussian error linear unit.
    Gelu(Gelu),
}

/// `y = residual + factor[sample] · (before(x) · Wᵀ + b)`
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// `[rows, inputs]`
    pub input: &'a [f32],
    /// What happens to it first.
    pub before: Before<'a>,
    /// `[outputs, inputs]`
    pub weight: &'a [f32],
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
    /// `[samples]`, of which the number of rows is a multiple: drop path.
    pub factors: Option<&'a [f32]>,
    /// Numbers in a row of the result.
    pub outputs: usize,
    /// Numbers in a row of the input.
    pub inputs: usize,
}

/// Which gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Of the input, before what happens to it.
    pub input: bool,
    /// Of the weights.
    pub weight: bool,
    /// Of the bias.
    pub bias: bool,
    /// Of the norm's gain.
    pub gain: bool,
    /// Of the norm's shift.
    pub shift: bool,
}

impl Wanted {
    /// All.
    pub const ALL: Wanted = Wanted {
        input: true,
        weight: true,
        bias: true,
        gain: true,
        shift: true,
    };
}

/// The gradients of a linear segment: those that were wanted and exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinearGradients {
    /// `[rows, inputs]`
    pub input: Option<Vec<f32>>,
    /// `[outputs, inputs]`
    pub weight: Option<Vec<f32>>,
    /// `[outputs]`
    pub bias: Option<Vec<f32>>,
    /// `[inputs]`
    pub gain: Option<Vec<f32>>,
    /// `[inputs]`
    pub shift: Option<Vec<f32>>,
}

impl Linear<'_> {
    fn rows(&self) -> usize {
        self.input.len() / self.inputs.max(1)
    }

    /// The factors, and how many rows each is for.
    fn factors(&self) -> Option<(&[f32], usize)> {
        self.factors.map(|factors| {
            let rows = self.rows();
            assert!(!factors.is_empty() && rows.is_multiple_of(factors.len()));
            (factors, rows / factors.len())
        })
    }

    fn check(&self) {
        assert!(self.input.len() == self.rows() * self.inputs);
        assert!(self.weight.len() == self.outputs * self.inputs);
        assert!(self.bias.is_none_or(|bias| bias.len() == self.outputs));
    }

    /// The input as the product takes it.
    fn changed(&self) -> Matrix<'_> {
        let change = match self.before {
            Before::Nothing => Change::Nothing,
            Before::Norm { gain, shift, eps } => Change::Norm {
                gain,
                shift,
                eps,
                stats: &[],
                first: 0,
            },
            Before::Gelu(form) => Change::Gelu(form),
        };
        Matrix::new(self.input, self.inputs).with(change)
    }

    /// `[rows, outputs]`; `residual` has the same shape.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn forward(&self, math: Math, residual: Option<&[f32]>) -> Vec<f32> {
        self.check();
        assert!(residual.is_none_or(|residual| residual.len() == self.rows() * self.outputs));
        let (input, weight) = (self.changed(), Matrix::new(self.weight, self.inputs));
        let finish = Forward {
            bias: self.bias,
            factors: self.factors(),
            residual,
            outputs: self.outputs,
        };
        product(
            math,
            Operand::Upright(input),
            Operand::Transposed(weight),
            &finish,
        )
        .0
    }

    /// The gradients that are wanted, from that of the result, `[rows, outputs]`. The residual's is `grad` itself.
    ///
    /// # Panics
    /// Where shapes do not fit.
    pub fn backward(&self, math: Math, grad: &[f32], wanted: Wanted) -> LinearGradients {
        self.check();
        assert!(grad.len() == self.rows() * self.outputs);
        let factors = self.factors();
        let change = factors.map_or(Change::Nothing, |(factors, each)| Change::Factors(factors, each));
        let out = Matrix::new(grad, self.outputs).with(change);
        let mut gradients = LinearGradients::default();
        if wanted.weight {
            let (weight, bias) = over_rows(math, out, self.changed());
            gradients.weight = Some(weight);
            gradients.bias = wanted.bias.then_some(bias);
        } else if wanted.bias {
            gradients.bias = Some(column_sums(math.isa, grad, self.outputs, factors));
        }
        let weight = Operand::Upright(Matrix::new(self.weight, self.inputs));
        let out = Operand::Upright(out);
        match self.before {
            Before::Nothing if wanted.input => {
                gradients.input = Some(product(math, out, weight, &Plain).0);
            }
            Before::Gelu(form) if wanted.input => {
                let finish = Slope {
                    form,
                    input: self.input,
                    inputs: self.inputs,
                };
                gradients.input = Some(product(math, out, weight, &finish).0);
            }
            Before::Norm { gain, eps, .. } if wanted.input || wanted.gain || wanted.shift => {
                let finish = NormBackward {
                    x: self.input,
                    gain,
                    eps,
                };
                let (input, parts) = product(math, out, weight, &finish);
                let dim = self.inputs;
                gradients.input = wanted.input.then_some(input);
                gradients.gain = wanted.gain.then(|| sum_parts(&parts, 0..dim));
                gradients.shift = wanted.shift.then(|| sum_parts(&parts, dim..2 * dim));
            }
            _ => {}
        }
        gradients
    }
}

/// Bias, factor and residual.
pub(super) struct Forward<'a> {
    pub(super) bias: Option<&'a [f32]>,
    pub(super) factors: Option<(&'a [f32], usize)>,
    pub(super) residual: Option<&'a [f32]>,
    pub(super) outputs: usize,
}

impl Finish for Forward<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, row: usize, column: usize, width: usize, sums: &mut [f32; SIDE]) {
        let (mut room, mut more) = ([0f32; SIDE], [0f32; SIDE]);
        let bias = self.bias.map(|bias| padded(bias, column, &mut room));
        let factor = self.factors.map(|(factors, each)| S::splat(factors[row / each]));
        let start = row * self.outputs + column;
        let residual = self
            .residual
            .map(|residual| padded(&residual[..start + width], start, &mut more));
        for at in (0..SIDE).step_by(S::LANES) {
            let mut x = S::load(&sums[at..]);
            if let Some(bias) = bias {
                x = S::add(x, S::load(&bias[at..]));
            }
            if let Some(factor) = factor {
                x = S::mul(x, factor);
            }
            if let Some(residual) = residual {
                x = S::add(x, S::load(&residual[at..]));
            }
            S::store(x, &mut sums[at..]);
        }
    }
}

/// Times the slope of the GELU at the input.
struct Slope<'a> {
    form: Gelu,
    input: &'a [f32],
    inputs: usize,
}

impl Finish for Slope<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, row: usize, column: usize, width: usize, sums: &mut [f32; SIDE]) {
        let mut room = [0f32; SIDE];
        let start = row * self.inputs + column;
        let input = padded(&self.input[..start + width], start, &mut room);
        for at in (0..SIDE).step_by(S::LANES) {
            let slope = gelu_slope::<S>(self.form, S::load(&input[at..]));
            S::store(S::mul(S::load(&sums[at..]), slope), &mut sums[at..]);
        }
    }
}

/// Numbers that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// The Gaussian error linear unit of each number.
pub fn gelu(isa: Isa, form: Gelu, x: &[f32]) -> Vec<f32> {
    struct Job<'a>(Gelu, &'a mut [f32]);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let form = self.0;
            each::<S>(self.1, &[], |x, _| gelu_of::<S>(form, x));
        }
    }
    let mut out = x.to_vec();
    out.par_chunks_mut(CHUNK).for_each(|out| isa.run(Job(form, out)));
    out
}

/// `grad` times the slope of the GELU at `x`, which has as many numbers.
///
/// # Panics
/// Where it has not.
pub fn gelu_backward(isa: Isa, form: Gelu, x: &[f32], grad: &[f32]) -> Vec<f32> {
    struct Job<'a>(Gelu, &'a mut [f32], &'a [f32]);
    impl Kernel for Job<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self) {
            let form = self.0;
            each::<S>(self.1, self.2, |x, grad| S::mul(gelu_slope::<S>(form, x), grad));
        }
    }
    assert!(x.len() == grad.len());
    let mut out = x.to_vec();
    out.par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(out, grad)| isa.run(Job(form, out, grad)));
    out
}

/// `x = f(x, y)` for each number; `y` is zero where there are none.
#[inline(always)]
fn each<S: Simd>(x: &mut [f32], y: &[f32], f: impl Fn(S::F, S::F) -> S::F) {
    for (i, x) in x.chunks_mut(SIDE).enumerate() {
        let (mut room, mut more) = ([0f32; SIDE], [0f32; SIDE]);
        room[..x.len()].copy_from_slice(x);
        let y = if y.is_empty() {
            &more
        } else {
            padded(y, i * SIDE, &mut more)
        };
        for at in (0..SIDE).step_by(S::LANES) {
            let value = f(S::load(&room[at..]), S::load(&y[at..]));
            S::store(value, &mut room[at..]);
        }
        x.copy_from_slice(&room[..x.len()]);
    }
}
