//! The teacher of a distillation: any model, in evaluation mode, without gradients.
//!
//! It sees exactly the student's images, augmented and mixed as they are, so that what it says belongs to what the
//! student sees. Only the normalisation is exchanged, channel by channel, when the two models want different ones. Its
//! input size is made the student's when it is loaded.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use vitesse_data::Preprocess;
use vitesse_model::network::{Ctx, Fusion, Logits, Network, Trace};
use vitesse_model::{Checkpoint, LoadOptions, ModelSpec};
use vitesse_words::counted;

use crate::classes::{ClassNames, LabelsBy};
use crate::objective::{Pass, Place};
use crate::{Error, Result};

/// A model that teaches.
#[derive(Debug)]
pub struct Teacher {
    network: Network,
    device: Device,
    /// Per channel, what turns the student's normalisation into the teacher's: `x · scale + shift`.
    renormalise: Option<Vec<(f32, f32)>>,
    names: ClassNames,
    /// Its class for each of the student's, where they stand in another order.
    order: Option<Vec<usize>>,
    name: String,
    notes: Vec<String>,
}

impl Teacher {
    /// Loads the checkpoint `path`, or the state dict `key` of it, as the teacher of a student, which takes images as `prepared`
    /// says.
    ///
    /// # Errors
    /// A checkpoint that cannot be loaded or resized, or that knows other classes than the student.
    pub fn load(
        (path, key): (&Path, Option<&str>),
        student: &ModelSpec,
        prepared: &Preprocess,
        device: &Device,
    ) -> Result<Teacher> {
        let [_, height, width] = student.input_size();
        let options = LoadOptions {
            img_size: Some([height, width]),
            key: key.map(str::to_owned),
            ..LoadOptions::default()
        };
        Teacher::new(&Checkpoint::load(path, &options)?, student, prepared, device)
    }

    /// Makes `checkpoint`, whose input size is the student's, its teacher. Autodiff is left off.
    ///
    /// # Errors
    /// Another input size or other classes than the student's.
    pub fn new(
        checkpoint: &Checkpoint,
        student: &ModelSpec,
        prepared: &Preprocess,
        device: &Device,
    ) -> Result<Teacher> {
        let spec = &checkpoint.spec;
        let source = checkpoint
            .source
            .weights
            .as_ref()
            .map(|path| path.display().to_string());
        let name = source.unwrap_or_else(|| spec.architecture.clone());
        fits((&name, spec), student)?;
        let own = checkpoint.preprocess()?;
        let same = own.mean == prepared.mean && own.std == prepared.std;
        let [mean, std, own_mean, own_std] = [&prepared.mean, &prepared.std, &own.mean, &own.std]
            .map(|values| values.as_slice().iter().copied().map(f64::from));
        let exchange = mean.zip(std).zip(own_mean.zip(own_std));
        let exchange = exchange.map(|((mean, std), (own_mean, own_std))| {
            ((std / own_std) as f32, ((mean - own_mean) / own_std) as f32)
        });
        let device = device.clone().without_autodiff();
        Ok(Teacher {
            network: Network::new(spec, &checkpoint.tensors, &name, &device)?,
            renormalise: (!same).then(|| exchange.collect()),
            names: ClassNames::of(&checkpoint.config, spec.num_classes),
            order: None,
            device,
            notes: checkpoint
                .source
                .notes
                .iter()
                .map(|note| format!("{name}: {note}"))
                .collect(),
            name,
        })
    }

    /// Lets it answer in the order of the student's classes, which are called `names`; says so where its own is another.
    ///
    /// # Errors
    /// Names that are not its own, unless classes are taken by position.
    pub fn answer_as(&mut self, names: &[String], by: LabelsBy) -> Result<Option<String>> {
        self.order = match by {
            LabelsBy::Index => None,
            LabelsBy::Name => self.names.places(names).map_err(|error| Error::Teacher {
                teacher: self.name.clone(),
                reason: error.to_string(),
            })?,
        };
        self.order
            .take_if(|order| order.iter().copied().eq(0..order.len()));
        let moved = self.order.is_some();
        let known = self.network.spec().num_classes;
        if self.order.as_ref().is_some_and(|order| order.len() != known) {
            return Err(Error::Teacher {
                teacher: self.name.clone(),
                reason: format!(
                    "it knows {} in another order, and the data name only {} of them; give the data all of them",
                    counted(known, "class"),
                    names.len()
                ),
            });
        }
        Ok(moved.then(|| {
            let name = &self.name;
            format!("`{name}` has the classes in another order, and its answers are matched by name")
        }))
    }

    /// What the teacher is called in messages: its weights file, or its architecture.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its load changed or took for granted, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What it makes of `images` `[batch, channels, height, width]`, normalised for the student, with its values at `wanted`
    /// places.
    ///
    /// # Errors
    /// Images of another size, a place that it has not, and logits that are not numbers.
    pub fn look(&self, images: Tensor<4>, wanted: &[Place]) -> Result<Pass> {
        let images = match &self.renormalise {
            None => images,
            Some(channels) => {
                let row = |value: fn(&(f32, f32)) -> f32| {
                    let values: Vec<f32> = channels.iter().map(value).collect();
                    let data = TensorData::new(values, [1, channels.len(), 1, 1]);
                    Tensor::<4>::from_data(data, &self.device)
                };
                images * row(|(scale, _)| *scale) + row(|(_, shift)| *shift)
            }
        };
        let mut ctx = Ctx::tracing(Trace::pairs(wanted));
        let mut logits = self.network.forward(images, &mut ctx)?;
        if let Some(order) = &self.order {
            let order: Vec<i64> = order.iter().map(|&class| class as i64).collect();
            let order = Tensor::<1, Int>::from_data(TensorData::from(order.as_slice()), &self.device);
            logits = Logits {
                class: logits.class.select(1, order.clone()),
                distillation: logits.distillation.map(|rows| rows.select(1, order)),
            };
        }
        let joint = logits.clone().joint(Fusion::LogitMean);
        if crate::loss::rows(&joint)?.iter().all(|x| x.is_finite()) {
            return Pass::new("the teacher", logits, &ctx, wanted);
        }
        let reason = "its logits are not numbers; check that its weights are whole".to_owned();
        Err(Error::Teacher {
            teacher: self.name.clone(),
            reason,
        })
    }
}

/// Refuses a teacher, called `name`, that has other classes than `student` or takes images of another size.
///
/// # Errors
/// [`Error::Teacher`].
pub fn fits((name, teacher): (&str, &ModelSpec), student: &ModelSpec) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Teacher {
            teacher: name.to_owned(),
            reason,
        })
    };
    if teacher.num_classes != student.num_classes {
        return refuse(format!(
            "it knows {} and the student {}; distillation compares them one by one, so train the teacher on \
             the student's classes first",
            counted(teacher.num_classes, "class"),
            student.num_classes
        ));
    }
    if teacher.input_size() != student.input_size() {
        let (found, wanted) = (teacher.input_size(), student.input_size());
        return refuse(format!(
            "it takes images of {found:?} and the student of {wanted:?}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::rows;
    use crate::testing::{prepared, regnet, vit};

    /// What a teacher says about images of these values.
    fn logits(teacher: &Teacher, values: &[f32], shape: [usize; 4]) -> Result<Vec<f32>> {
        let images = Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex());
        rows(&teacher.look(images, &[])?.logits.class)
    }

    #[test]
    fn it_sees_the_same_picture_in_its_own_normalisation() {
        let (student, device) = (vit(1).spec, Device::flex());
        let mut checkpoint = regnet(2);
        let same = Teacher::new(&checkpoint, &student, &prepared(), &device).unwrap();
        let cfg = &mut checkpoint.config.pretrained_cfg;
        (cfg.mean, cfg.std) = (vec![0.5, 0.4, 0.3], vec![0.5, 0.25, 1.0]);
        let other = Teacher::new(&checkpoint, &student, &prepared(), &device).unwrap();

        // One picture, normalised for each.
        let shape = [2, 3, 8, 8];
        let level = |i: usize| (i % 17) as f32 / 17.0;
        let normalise = |mean: [f32; 3], std: [f32; 3]| -> Vec<f32> {
            (0..2 * 3 * 64)
                .map(|i| (level(i) - mean[i / 64 % 3]) / std[i / 64 % 3])
                .collect()
        };
        let (mean, std): (Vec<f32>, Vec<f32>) = (prepared().mean.into(), prepared().std.into());
        let students = normalise(mean.try_into().unwrap(), std.try_into().unwrap());
        let own = normalise([0.5, 0.4, 0.3], [0.5, 0.25, 1.0]);
        let expected = logits(&same, &own, shape).unwrap();
        let found = logits(&other, &students, shape).unwrap();
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5),
            "{found:?} {expected:?}"
        );
        assert!(logits(&same, &students, shape).unwrap() != expected);
    }

    #[test]
    fn one_that_cannot_teach_is_refused_in_a_sentence() {
        let (student, device) = (vit(1), Device::flex());
        let mut teacher = vit(2);
        teacher.set_num_classes(4, 0).unwrap();
        let error = Teacher::new(&teacher, &student.spec, &prepared(), &device)
            .unwrap_err()
            .to_string();
        assert!(error.contains("it knows 4 classes and the student 3"), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher");
        let mut teacher = regnet(2);
        teacher.set_img_size([16, 16], None).unwrap();
        let error = Teacher::new(&teacher, &student.spec, &prepared(), &device)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("images of [3, 16, 16] and the student of [3, 8, 8]"),
            "{error}"
        );
        // Loaded from a folder, it is made to fit.
        teacher.save(&path, false).unwrap();
        let teacher = Teacher::load((&path, None), &student.spec, &prepared(), &device).unwrap();
        assert_eq!(logits(&teacher, &[0.0; 192], [1, 3, 8, 8]).unwrap().len(), 3);
        assert!(logits(&teacher, &[f32::NAN; 192], [1, 3, 8, 8]).is_err());
    }
}
