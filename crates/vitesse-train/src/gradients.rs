//! Gradients of an objective without an optimiser: what saliencies are made of.
//!
//! The network computes as in evaluation: no drop path, running statistics in batch norms. As in training, sums have a
//! fixed order, so the result is the same for any number of threads.
//!
//! There are two functions: [`gradients`] of a batch, and [`each_sample`], which runs the samples one after the other,
//! since the tensor library has no gradients by sample: as many passes as samples.

use vitesse_model::Tensors;
use vitesse_model::network::{Compute, Ctx, Network};

use crate::Result;
use crate::learner::Lesson;
use crate::objective::{Asking, At, Objective};
use crate::teacher::Teacher;
use crate::weights::{Gradients, Ids, add_gradients, train_only};

/// What is differentiated, with respect to what.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The network, on a device with autodiff.
    pub network: &'a Network,
    /// The tensors whose gradients are asked for.
    pub names: &'a [&'a str],
    /// What is differentiated.
    pub objective: &'a dyn Objective,
    /// Who is asked, if the objective wants one.
    pub teacher: Option<&'a Teacher>,
}

/// What a batch's gradients are, of its samples'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Their mean, as in training.
    Mean,
    /// Their sum.
    Sum,
}

/// The gradients of a batch, one for each of `of.names`; `None` where the objective does not depend on the tensor.
///
/// # Errors
/// A batch that does not fit the model, a missing teacher, [`Error::NotFinite`](crate::Error::NotFinite).
pub fn gradients(of: Of<'_>, lesson: &Lesson, over: Over) -> Result<Gradients> {
    let factor = match over {
        Over::Mean => 1.0,
        Over::Sum => lesson.samples() as f64,
    };
    let network = tracked(of);
    backward(
        Of {
            network: &network,
            ..of
        },
        lesson,
        factor,
    )
}

/// As [`gradients`], of each sample by itself: `each` is told its place in the batch and its gradients.
///
/// # Errors
/// As [`gradients`], and what `each` says.
pub fn each_sample(
    of: Of<'_>,
    lesson: &Lesson,
    each: &mut dyn FnMut(usize, Gradients) -> Result<()>,
) -> Result<()> {
    let network = tracked(of);
    let of = Of {
        network: &network,
        ..of
    };
    (0..lesson.samples()).try_for_each(|sample| each(sample, backward(of, &lesson.part(sample, 1), 1.0)?))
}

/// The network in which only what is asked for costs products.
fn tracked(of: Of<'_>) -> Network {
    train_only(of.network.clone(), &Ids::new(of.names.iter().copied()))
}

fn backward(of: Of<'_>, lesson: &Lesson, factor: f64) -> Result<Gradients> {
    let (wants, method) = (of.objective.wants(), Tensors::new());
    let asking = Asking {
        network: of.network,
        objective: of.objective,
        wants: &wants,
        teacher: of.teacher,
        method: &method,
        at: At::default(),
    };
    let mut ctx = Ctx::eval();
    ctx.compute = Compute::default();
    let mut gradients = vec![None; of.names.len()];
    // Among the threads that compute, as a step of training.
    rayon::scope(|_| {
        let asked = asking.loss(lesson.input.clone(), lesson.targets.clone(), &mut ctx)?;
        let mut backward = (asked.total * factor).backward();
        add_gradients(
            of.network,
            &mut backward,
            &Ids::new(of.names.iter().copied()),
            &mut gradients,
        )
    })?;
    Ok(gradients)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Distillation, Kind, target_rows};
    use crate::testing::{CLASSES, prepared, vit};
    use burn::tensor::Device;
    use vitesse_model::Checkpoint;
    use vitesse_rng::Key;

    const SAMPLES: usize = 5;
    const NAMES: [&str; 3] = ["head.bias", "blocks.1.attn.qkv.weight", "pos_embed"];

    fn lesson() -> Lesson {
        let mut rng = Key::new(4).rng();
        let images = (0..SAMPLES * 3 * 64).map(|_| rng.normal() as f32).collect();
        let labels: Vec<usize> = (0..SAMPLES).map(|i| i % CLASSES).collect();
        let targets = target_rows(&labels, CLASSES, 0.1).unwrap();
        Lesson::new(images, [SAMPLES, 3, 8, 8], targets, CLASSES, &Device::flex()).unwrap()
    }

    fn network(model: &Checkpoint) -> Network {
        Network::new(&model.spec, &model.tensors, "test", &Device::flex().autodiff()).unwrap()
    }

    fn soft() -> (Distillation, Teacher) {
        let objective = Distillation {
            kind: Kind::Soft,
            ..Distillation::default()
        };
        let teacher = Teacher::new(&vit(2), &vit(1).spec, &prepared(), &Device::flex());
        (objective, teacher.unwrap())
    }

    #[test]
    fn a_batch_is_the_mean_of_its_samples_for_any_number_of_threads() {
        let (network, (objective, teacher), lesson) = (network(&vit(1)), soft(), lesson());
        let of = Of {
            network: &network,
            names: &NAMES,
            objective: &objective,
            teacher: Some(&teacher),
        };
        let pool = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        let [one, two] =
            [1, 2].map(|threads| pool(threads).install(|| gradients(of, &lesson, Over::Mean).unwrap()));
        assert_eq!(one, two);
        let sum = gradients(of, &lesson, Over::Sum).unwrap();
        let mut samples = vec![Vec::new(); NAMES.len()];
        each_sample(of, &lesson, &mut |sample, found| {
            assert_eq!(sample, samples[0].len());
            let found = found.into_iter().map(Option::unwrap);
            samples
                .iter_mut()
                .zip(found)
                .for_each(|(all, found)| all.push(found));
            Ok(())
        })
        .unwrap();
        for ((name, samples), (mean, sum)) in NAMES.iter().zip(&samples).zip(one.iter().zip(&sum)) {
            let (mean, sum) = (mean.as_ref().unwrap(), sum.as_ref().unwrap());
            assert!(mean.iter().any(|g| g.abs() > 1e-3), "{name}");
            for (i, (mean, sum)) in mean.iter().zip(sum).enumerate() {
                let of_samples: f32 = samples.iter().map(|sample| sample[i]).sum();
                assert!((of_samples - sum).abs() < 1e-5, "{name}: {of_samples} {sum}");
                assert!((mean * SAMPLES as f32 - sum).abs() < 1e-5, "{name}: {mean} {sum}");
            }
            assert!(samples[0] != samples[1], "{name}");
        }
    }

    #[test]
    fn a_gradient_is_what_the_loss_changes_by() {
        let (mut model, lesson) = (vit(1), lesson());
        let objective = Distillation::default();
        let loss = |model: &Checkpoint| {
            let network = network(model);
            let (wants, method) = (objective.wants(), Tensors::new());
            let asking = Asking {
                network: &network,
                objective: &objective,
                wants: &wants,
                teacher: None,
                method: &method,
                at: At::default(),
            };
            let asked = asking.loss(lesson.input.clone(), lesson.targets.clone(), &mut Ctx::eval());
            asked.unwrap().loss
        };
        let network = network(&model);
        let of = Of {
            network: &network,
            names: &["head.bias", "head_dist.bias"],
            objective: &objective,
            teacher: None,
        };
        let found = gradients(of, &lesson, Over::Mean).unwrap();
        assert!(found[1].is_none(), "nothing is learned from that head");
        let bias = model.tensors.get("head.bias").unwrap().to_f32().into_owned();
        for (i, gradient) in found[0].as_ref().unwrap().iter().enumerate() {
            const H: f32 = 0.05;
            let mut at = |h| {
                let mut moved = bias.clone();
                moved[i] += h;
                model.tensors.insert_f32("head.bias", &[CLASSES], moved).unwrap();
                loss(&model)
            };
            let slope = (at(H) - at(-H)) / f64::from(2.0 * H);
            assert!(
                (slope - f64::from(*gradient)).abs() < 1e-3,
                "{i}: {slope} {gradient}"
            );
        }
    }
}
