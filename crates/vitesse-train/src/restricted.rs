//! A classifier that chooses among some of its classes.
//!
//! Shifted versions of a data set often have a part of its classes only: ImageNet-R and ImageNet-A 200 of 1000. They are measured
//! with the logits of those classes alone, and what they are compared with is measured so too.

use vitesse_model::ModelSpec;

use crate::evaluate::{Classify, Heads};
use crate::{Error, Result};

/// A classifier whose classes are some of another's, in an order of their own.
#[derive(Debug)]
pub struct Restricted<'a, C> {
    whole: &'a mut C,
    /// The whole classifier's class for each of this one's.
    classes: Vec<usize>,
    spec: ModelSpec,
}

impl<'a, C: Classify> Restricted<'a, C> {
    /// `whole`, choosing among `classes`; each is one of its own.
    ///
    /// # Errors
    /// [`Error::Label`] for a class that it does not have, [`Error::Empty`] for none at all.
    pub fn new(whole: &'a mut C, classes: Vec<usize>) -> Result<Restricted<'a, C>> {
        let known = whole.spec().num_classes;
        if let Some(&label) = classes.iter().find(|&&class| class >= known) {
            return Err(Error::Label {
                label,
                classes: known,
            });
        }
        if classes.is_empty() {
            return Err(Error::Empty {
                what: "the list of classes to choose among",
            });
        }
        let spec = ModelSpec {
            num_classes: classes.len(),
            ..whole.spec().clone()
        };
        Ok(Restricted { whole, classes, spec })
    }

    /// Rows of the whole classifier's logits to rows of this one's.
    fn select(&self, logits: &[f32]) -> Vec<f32> {
        let rows = logits.chunks_exact(self.whole.spec().num_classes);
        rows.flat_map(|row| self.classes.iter().filter_map(|&class| row.get(class)))
            .copied()
            .collect()
    }
}

impl<C: Classify> Classify for Restricted<'_, C> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn classify(&mut self, images: &[f32], shape: [usize; 4]) -> Result<Heads> {
        let heads = self.whole.classify(images, shape)?;
        Ok(Heads {
            class: self.select(&heads.class),
            distillation: heads.distillation.map(|logits| self.select(&logits)),
        })
    }
}

#[cfg(test)]
mod tests {
    use vitesse_model::Checkpoint;

    use super::*;

    /// Says the same of every image.
    struct Fixed(ModelSpec);

    impl Classify for Fixed {
        fn spec(&self) -> &ModelSpec {
            &self.0
        }

        fn classify(&mut self, _: &[f32], shape: [usize; 4]) -> Result<Heads> {
            Ok(Heads {
                class: [0.0, 1.0, 2.0, 3.0].repeat(shape[0]),
                distillation: Some([9.0, 8.0, 7.0, 6.0].repeat(shape[0])),
            })
        }
    }

    #[test]
    fn logits_are_those_of_the_classes_that_are_there() {
        let model = Checkpoint::fresh("vit_nano_patch4_32", Some(4), None, 0).unwrap();
        let mut whole = Fixed(model.spec);
        let mut few = Restricted::new(&mut whole, vec![3, 1]).unwrap();
        assert_eq!(few.spec().num_classes, 2);
        let heads = few.classify(&[], [2, 3, 32, 32]).unwrap();
        assert_eq!(heads.class, [3.0, 1.0, 3.0, 1.0]);
        assert_eq!(heads.distillation, Some(vec![6.0, 8.0, 6.0, 8.0]));

        let refusal =
            |classes, whole: &mut Fixed| Restricted::new(whole, classes).err().map(|e| e.to_string());
        assert!(refusal(vec![4], &mut whole).unwrap().contains("class 4"));
        assert!(refusal(Vec::new(), &mut whole).unwrap().contains("is empty"));
    }
}
