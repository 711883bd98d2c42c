//! Losses on logits: cross-entropy against target rows, and distillation from a teacher.
//!
//! Papers: Touvron et al., *Training data-efficient image transformers & distillation through attention*, ICML 2021,
//! section 4; Hinton et al., *Distilling the knowledge in a neural network*, 2015.
//!
//! Hard labels, smoothed labels and mixed labels are all rows of target probabilities, so there is one base loss,
//! `−Σₖ tₖ log pₖ`. With a teacher the loss is `(1 − α) · base + α · distill`:
//!
//! | kind | distill |
//! | --- | --- |
//! | hard | cross-entropy against the teacher's most likely class, the lowest of equals, not smoothed |
//! | soft | `τ² · KL(softmax(z_t / τ) ‖ softmax(z_s / τ))`, the teacher being the reference distribution |
//!
//! The base loss sees the class logits. The distillation loss sees the distillation head's, or, in a model without a
//! distillation token, the class logits too (plain distillation).

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vitesse_model::network::fused::soft_cross_entropy;
use vitesse_model::network::{Compute, Fusion, Logits};

use crate::metrics::argmax;
use crate::objective::{Objective, Seen, Term, Wants};
use crate::{Error, Result};

/// How a student learns from a teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Not at all: the base loss alone, unscaled.
    None,
    /// From its most likely class (the paper's choice, equation 3).
    #[default]
    Hard,
    /// From its probabilities (equation 2).
    Soft,
}

/// What the summed divergence of soft distillation is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normaliser {
    /// Samples times classes, as the reference program does: with 1000 classes the term is 1000 times smaller than
    /// the paper's formula suggests.
    #[default]
    PerElement,
    /// Samples, as the paper writes.
    PerSample,
}

/// Distillation: what is learned from a teacher, and how much it counts. The defaults are the reference program's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distillation {
    /// Which loss.
    pub kind: Kind,
    /// Its weight α in [0, 1]; the base loss has the rest.
    pub alpha: f64,
    /// The temperature τ, above 0; only for [`Kind::Soft`].
    pub tau: f64,
    /// The divisor; only for [`Kind::Soft`].
    pub normaliser: Normaliser,
}

impl Default for Distillation {
    fn default() -> Self {
        Distillation {
            kind: Kind::None,
            alpha: 0.5,
            tau: 1.0,
            normaliser: Normaliser::PerElement,
        }
    }
}

/// A loss and its parts, each one number, mean over the batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Against the targets: `[1]`.
    pub base: Tensor<1>,
    /// Against the teacher, before it is weighted: `[1]`.
    pub distill: Option<Tensor<1>>,
    /// What is minimised: `[1]`.
    pub total: Tensor<1>,
}

/// Rows of target probabilities for class labels, `[labels, classes]`: `1 − smoothing` on the label, and
/// `smoothing / classes` on every class, the label included.
///
/// # Errors
/// A label that is not below `classes`.
pub fn target_rows(labels: &[usize], classes: usize, smoothing: f64) -> Result<Vec<f32>> {
    mixed_rows(labels, classes, smoothing, 1.0)
}

/// As [`target_rows`], for a batch in which each sample has the share `lam` of itself, and the rest of its partner in
/// the reversed batch.
pub(crate) fn mixed_rows(labels: &[usize], classes: usize, smoothing: f64, lam: f64) -> Result<Vec<f32>> {
    match labels.iter().find(|label| **label >= classes) {
        Some(&label) => Err(Error::Label { label, classes }),
        None => Ok(vitesse_data::targets(labels, lam, smoothing, classes)?),
    }
}

/// Cross-entropy against rows of target probabilities, mean over the batch: logits and targets `[batch, classes]`
/// to `[1]`.
///
/// # Errors
/// Shapes that differ.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Result<Tensor<1>> {
    same_shape("targets", &logits, &targets)?;
    Ok(soft_cross_entropy(logits, targets, Compute::default()))
}

impl Distillation {
    /// The loss of a batch. `targets` and `teacher` are `[batch, classes]` and need no gradient; a teacher is needed
    /// unless the kind is [`Kind::None`].
    ///
    /// # Errors
    /// Shapes that differ, or a teacher that is missing.
    pub fn loss(&self, logits: Logits, targets: Tensor<2>, teacher: Option<Tensor<2>>) -> Result<Loss> {
        let student = logits.distillation.unwrap_or_else(|| logits.class.clone());
        let base = cross_entropy(logits.class, targets)?;
        let distill = match (self.kind, teacher) {
            (Kind::None, _) => {
                return Ok(Loss {
                    total: base.clone(),
                    base,
                    distill: None,
                });
            }
            (_, None) => return Err(Error::TeacherMissing),
            (Kind::Hard, Some(teacher)) => hard(student, &teacher)?,
            (Kind::Soft, Some(teacher)) => self.soft(student, teacher)?,
        };
        let total = base.clone() * (1.0 - self.alpha) + distill.clone() * self.alpha;
        Ok(Loss {
            base,
            distill: Some(distill),
            total,
        })
    }

    fn soft(&self, student: Tensor<2>, teacher: Tensor<2>) -> Result<Tensor<1>> {
        let batch = same_shape("teacher's logits", &student, &teacher)?;
        let divisor = match self.normaliser {
            Normaliser::PerElement => batch * student.dims()[1],
            Normaliser::PerSample => batch,
        };
        let teacher = teacher / self.tau;
        let (probabilities, reference) = (softmax(teacher.clone(), 1), log_softmax(teacher, 1));
        let divergence = (probabilities * (reference - log_softmax(student / self.tau, 1))).sum();
        Ok(divergence * (self.tau * self.tau / divisor as f64))
    }
}

/// The terms `base` and, with a teacher, `distill`. The teacher is asked for its logits, of both heads their mean.
impl Objective for Distillation {
    fn wants(&self) -> Wants {
        Wants {
            teacher: (self.kind != Kind::None).then(Vec::new),
            ..Wants::default()
        }
    }

    fn terms(&self, seen: &Seen<'_>) -> Result<Vec<Term>> {
        let teacher = seen.teacher.as_ref().map(|teacher| teacher.logits.clone());
        let teacher = teacher.map(|logits| logits.joint(Fusion::LogitMean));
        let loss = self.loss(seen.student.logits.clone(), seen.targets.clone(), teacher)?;
        let alpha = loss.distill.as_ref().map_or(0.0, |_| self.alpha);
        let base = ("base", loss.base, 1.0 - alpha);
        let terms = [
            Some(base),
            loss.distill.map(|distill| ("distill", distill, alpha)),
        ];
        let terms = terms.into_iter().flatten();
        Ok(terms
            .map(|(name, value, weight)| Term { name, value, weight })
            .collect())
    }
}

/// Against the teacher's most likely classes.
fn hard(student: Tensor<2>, teacher: &Tensor<2>) -> Result<Tensor<1>> {
    same_shape("teacher's logits", &student, teacher)?;
    let [batch, classes] = student.dims();
    let labels: Vec<usize> = rows(teacher)?.chunks_exact(classes.max(1)).map(argmax).collect();
    let targets = TensorData::new(target_rows(&labels, classes, 0.0)?, [batch, classes]);
    let targets = constant(targets, &student);
    cross_entropy(student, targets)
}

/// A constant on the device of `like`, outside the gradient's graph.
pub(crate) fn constant(data: TensorData, like: &Tensor<2>) -> Tensor<2> {
    let device: Device = like.device().without_autodiff();
    Tensor::from_inner(Tensor::from_data(data, &device))
}

/// The values of a matrix, row by row.
pub(crate) fn rows(matrix: &Tensor<2>) -> Result<Vec<f32>> {
    matrix
        .to_data()
        .try_to_vec::<f32>()
        .map_err(|error| Error::Backend(format!("reading logits: {error:?}")))
}

/// The batch size of two matrices that must have one shape.
fn same_shape(what: &'static str, logits: &Tensor<2>, other: &Tensor<2>) -> Result<usize> {
    if logits.dims() != other.dims() {
        return Err(Error::Shape {
            what,
            expected: logits.dims(),
            found: other.dims(),
        });
    }
    Ok(logits.dims()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: [[f32; 3]; 2] = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]];
    const DISTIL: [[f32; 3]; 2] = [[0.5, 0.5, -1.5], [-0.75, 0.0, 1.0]];
    const TEACHER: [[f32; 3]; 2] = [[2.0, 2.0, -1.0], [0.5, -0.5, 0.0]];
    const LABELS: [usize; 2] = [2, 1];

    /// A leaf that asks for its gradient.
    fn leaf(rows: [[f32; 3]; 2]) -> Tensor<2> {
        Tensor::<2>::from_data(rows, &Device::flex().autodiff()).require_grad()
    }

    fn plain(rows: [[f32; 3]; 2]) -> Tensor<2> {
        Tensor::from_inner(Tensor::from_data(rows, &Device::flex()))
    }

    fn targets(smoothing: f64) -> Tensor<2> {
        let rows = TensorData::new(target_rows(&LABELS, 3, smoothing).unwrap(), [2, 3]);
        Tensor::from_inner(Tensor::from_data(rows, &Device::flex()))
    }

    fn value(x: &Tensor<1>) -> f64 {
        f64::from(x.to_data().try_to_vec::<f32>().unwrap()[0])
    }

    fn softmax64(row: [f32; 3], tau: f64) -> [f64; 3] {
        let exps = row.map(|x| (f64::from(x) / tau).exp());
        exps.map(|x| x / exps.iter().sum::<f64>())
    }

    #[test]
    fn smoothing_is_the_mean_over_all_classes() {
        let mut expected = 0.0;
        for (row, label) in CLASS.iter().zip(LABELS) {
            let p = softmax64(*row, 1.0);
            expected -= (0.9 * p[label].ln() + 0.1 * p.iter().map(|p| p.ln()).sum::<f64>() / 3.0) / 2.0;
        }
        let found = cross_entropy(leaf(CLASS), targets(0.1)).unwrap();
        assert!((value(&found) - expected).abs() < 1e-6);
    }

    #[test]
    fn no_teacher_means_the_base_loss_unscaled() {
        let logits = Logits {
            class: leaf(CLASS),
            distillation: Some(leaf(DISTIL)),
        };
        let loss = Distillation::default().loss(logits, targets(0.0), None).unwrap();
        assert_eq!(value(&loss.total), value(&loss.base));
        assert!(loss.distill.is_none());
        let logits = Logits {
            class: leaf(CLASS),
            distillation: None,
        };
        let hard = Distillation {
            kind: Kind::Hard,
            ..Distillation::default()
        };
        assert!(matches!(
            hard.loss(logits, targets(0.0), None),
            Err(Error::TeacherMissing)
        ));
    }

    #[test]
    fn hard_labels_are_the_teachers_first_of_equals() {
        let (class, distil) = (leaf(CLASS), leaf(DISTIL));
        let logits = Logits {
            class: class.clone(),
            distillation: Some(distil.clone()),
        };
        let hard = Distillation {
            kind: Kind::Hard,
            alpha: 0.25,
            ..Distillation::default()
        };
        let loss = hard.loss(logits, targets(0.1), Some(plain(TEACHER))).unwrap();
        // Both rows of the teacher say class 0; the first is a tie.
        let expected: f64 = DISTIL.iter().map(|row| -softmax64(*row, 1.0)[0].ln() / 2.0).sum();
        assert!((value(loss.distill.as_ref().unwrap()) - expected).abs() < 1e-6);
        let total = 0.75 * value(&loss.base) + 0.25 * expected;
        assert!((value(&loss.total) - total).abs() < 1e-6);
        let gradient = distil
            .grad(&loss.total.backward())
            .unwrap()
            .to_data()
            .try_to_vec::<f32>()
            .unwrap();
        for (i, g) in gradient.iter().enumerate() {
            let p = softmax64(DISTIL[i / 3], 1.0)[i % 3];
            let expected = 0.25 * (p - f64::from(i % 3 == 0)) / 2.0;
            assert!((f64::from(*g) - expected).abs() < 1e-6, "{i}: {g} {expected}");
        }
    }

    #[test]
    fn the_gradient_of_soft_distillation_is_the_closed_form() {
        for (normaliser, divisor) in [(Normaliser::PerElement, 6.0), (Normaliser::PerSample, 2.0)] {
            let soft = Distillation {
                kind: Kind::Soft,
                alpha: 0.3,
                tau: 3.0,
                normaliser,
            };
            let distil = leaf(DISTIL);
            let logits = Logits {
                class: leaf(CLASS),
                distillation: Some(distil.clone()),
            };
            let loss = soft.loss(logits, targets(0.0), Some(plain(TEACHER))).unwrap();
            let mut divergence = 0.0;
            let gradient = distil
                .grad(&loss.total.backward())
                .unwrap()
                .to_data()
                .try_to_vec::<f32>()
                .unwrap();
            for (i, g) in gradient.iter().enumerate() {
                let (s, t) = (
                    softmax64(DISTIL[i / 3], 3.0)[i % 3],
                    softmax64(TEACHER[i / 3], 3.0)[i % 3],
                );
                divergence += t * (t.ln() - s.ln());
                let expected = 0.3 * 3.0 * (s - t) / divisor;
                assert!((f64::from(*g) - expected).abs() < 1e-6, "{i}: {g} {expected}");
            }
            assert!((value(&loss.distill.unwrap()) - 9.0 * divergence / divisor).abs() < 1e-6);
        }
    }

    #[test]
    fn one_head_learns_from_both() {
        let class = leaf(CLASS);
        let logits = Logits {
            class: class.clone(),
            distillation: None,
        };
        let hard = Distillation {
            kind: Kind::Hard,
            ..Distillation::default()
        };
        let loss = hard.loss(logits, targets(0.0), Some(plain(TEACHER))).unwrap();
        let gradient = class
            .grad(&loss.total.backward())
            .unwrap()
            .to_data()
            .try_to_vec::<f32>()
            .unwrap();
        let p = softmax64(CLASS[0], 1.0);
        let expected = [p[0] - 0.5, p[1], p[2] - 0.5].map(|g| g / 2.0);
        assert!(
            gradient[..3]
                .iter()
                .zip(expected)
                .all(|(g, e)| (f64::from(*g) - e).abs() < 1e-6)
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(
            target_rows(&[0, 3], 3, 0.0)
                .unwrap_err()
                .to_string()
                .contains("class 3")
        );
        let other = Tensor::<2>::from_data([[0.0f32; 2]; 2], &Device::flex());
        let error = cross_entropy(plain(CLASS), Tensor::from_inner(other)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the targets should have shape [2, 3], but have [2, 2]"
        );
        assert_eq!(argmax(&[0.0, 1.0, 1.0]), 1);
    }
}
