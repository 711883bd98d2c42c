//! Relations of tokens of a student and a teacher, compared.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};
use vitesse_kernels::train::{self, Math, Precision};

use super::segment::{Gradient, Input, Segment, apply};
use super::{Compute, math};

/// Cross-entropy of the softmax of products between a student's tokens against a teacher's, mean over samples, relation heads, rows and pairs of
/// parts, `[1]`: both `[samples, tokens, parts · width]`, several matrices beside each other, each of which is multiplied with each, by relation
/// heads of width `c` and divided by `√c`. Fused, always in `f32`; the teacher gets no gradient where it asks for none.
///
/// # Panics
/// Where the models differ in samples or tokens, or parts and heads do not divide their widths.
pub fn relation_cross_entropy(
    student: &Tensor<3>,
    teacher: &Tensor<3>,
    parts: usize,
    heads: usize,
    compute: Compute,
) -> Tensor<1> {
    let [samples, tokens, _] = student.dims();
    let inputs = || Some([Input::of(student)?, Input::of(teacher)?]);
    let fuses = compute.fused && !teacher.is_tracked();
    if let Some(inputs) = fuses.then(inputs).flatten() {
        let relations = Relations {
            math: math(Precision::F32),
            samples,
            tokens,
            parts,
            heads,
        };
        return apply(relations, inputs, [1]);
    }
    let of = |x: &Tensor<3>, part: usize| -> Tensor<4> {
        let [_, _, width] = x.dims();
        let x = x.clone().narrow(2, part * width / parts, width / parts);
        let x = x.reshape([samples, tokens, heads, width / parts / heads]);
        x.swap_dims(1, 2)
    };
    let products = |x: &Tensor<3>, i: usize, j: usize| {
        let scale = (x.dims()[2] as f64 / (parts * heads) as f64).powf(-0.5);
        of(x, i).matmul(of(x, j).swap_dims(2, 3)) * scale
    };
    let pairs = (0..parts).flat_map(|i| (0..parts).map(move |j| (i, j)));
    let zero = Tensor::zeros([1], &student.device());
    let sum = pairs.fold(zero, |sum: Tensor<1>, (i, j)| {
        let wanted = softmax(products(teacher, i, j), 3);
        sum + (wanted * log_softmax(products(student, i, j), 3)).sum()
    });
    sum / -((parts * parts * samples * heads * tokens) as f64)
}

#[derive(Debug, Clone)]
struct Relations {
    math: Math,
    samples: usize,
    tokens: usize,
    parts: usize,
    heads: usize,
}

impl Segment<2> for Relations {
    const KEEPS: [bool; 2] = [false, false];
    /// The student's gradient.
    type Saved = Vec<f32>;

    fn name(&self) -> String {
        "relations".into()
    }

    fn flops(&self, [student, teacher]: [&[f32]; 2], wanted: Option<[bool; 2]>) -> f64 {
        if wanted.is_some() {
            return 0.0;
        }
        // Products of both, and two of the student's gradient.
        2.0 * (self.parts * self.tokens * (3 * student.len() + teacher.len())) as f64
    }

    fn forward(&self, [student, teacher]: [&[f32]; 2]) -> (Vec<f32>, Vec<f32>) {
        let relations = train::Relations {
            student,
            teacher,
            samples: self.samples,
            tokens: self.tokens,
            parts: self.parts,
            heads: self.heads,
        };
        let (loss, gradient) = relations.cross_entropy(self.math);
        (vec![loss], gradient)
    }

    fn backward(
        &self,
        _: [&[f32]; 2],
        _: &[f32],
        gradient: &Vec<f32>,
        grad: &[f32],
        [wanted, _]: [bool; 2],
    ) -> [Option<Gradient>; 2] {
        let grad = grad.first().copied().unwrap_or_default();
        let scaled = || Gradient::Values(gradient.iter().map(|x| x * grad).collect());
        [wanted.then(scaled), None]
    }
}
