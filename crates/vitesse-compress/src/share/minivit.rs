//! MINIVIT — layers that share their matrices, and what they learn from a teacher's relations.
//!
//! **Paper.** Zhang et al., *MiniViT: Compressing Vision Transformers with Weight Multiplexing*, CVPR 2022: sharing and transformations
//! (section 3.2), weight distillation (section 3.3, equations 7 to 11).
//!
//! **When.** A model has to be small in memory or on disk and may be as slow as before.
//!
//! **Changes** the matrices of each group into one set, with transformations beside them, where `group` or `groups` says so; a model that
//! shares already, such as those of the zoo, is taken as it is. Everything learns, the head included, which stays.
//!
//! **Cost.** None in time saved: every layer is still executed. While it learns, the teacher's forward pass and the compared relations.
//!
//! **Deviations.** Without a teacher the recipe's own loss is minimised. With one, the terms below take its place; of `[distill]` the teacher is read
//! and how heads become one prediction. Which layers are compared follows a [rule](super::layers) that gives the published pairs. Beginning from a
//! pretrained model (`init` other than `fresh`) is ours.

use serde::{Deserialize, Serialize};
use vitesse_model::spec::{Groups, NormsOf};
use vitesse_model::{ModelSpec, Tensors};
use vitesse_train::method::{Begun, Method, MethodPlan};
use vitesse_train::objective::Objective;
use vitesse_train::{Result, settings};

use super::distill::{Hidden, WeightDistillation};
use super::layers;
use super::multiplex::{Start, Transformation, describe, multiplex};
use crate::Error;

/// The name on the command line and in files.
pub const NAME: &str = "minivit";

/// What a model starts as whose layers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Drawn anew, all of it, as the published recipes do.
    Fresh,
    /// As the model, a group's matrices as those of its first layer.
    First,
    /// As the model, a group's matrices as the mean of all its layers.
    Mean,
    /// As the model, a group's matrices as those of the layer with this number in its group, from 0.
    Layer(usize),
}

settings! {
    /// How layers share, and what they learn.
    pub struct Config {
        /// Layers that follow each other and share their matrices; divides the depth, of a Swin that of each stage. Where neither this nor `groups` is set, the model is taken as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub group: Option<usize> = None,
        /// The size of each group, in the order of the forward pass, instead of `group`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub groups: Option<Vec<usize>> = None,
        /// Whether the layers of a group share their norms too.
        pub shared_norms: bool = false,
        /// What a model whose layers come to share starts as: `fresh`, drawn anew as in the published recipes; or as the model, with the matrices of a group's `first` layer, the `mean` of all, or `{ layer = N }`.
        pub init: Init = Init::First,
        /// What keeps the layers of a group different: a list of `positions`, `mixing` and `local`; an empty one for plain sharing. Not set: as published for the family.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub transform: Option<Vec<Transformation>> = None,
        /// Weight of the labels, from 0 to 1, where there is a teacher; its predictions have the rest.
        pub alpha: f64 = 0.0,
        /// Temperature of predictions; the term is not multiplied by its square.
        pub temperature: f64 = 1.0,
        /// Weight of the relations of queries, keys and values; 0 leaves them out.
        pub attn_weight: f64 = 1.0,
        /// Weight of the relations of tokens after a layer; 0 leaves them out.
        pub hidden_weight: f64 = 0.1,
        /// Relation heads, which divide the widths of both models.
        pub relation_heads: usize = 1,
        /// How relations of tokens are compared: `cosine-mse`, as in the published code, or `softmax-ce`, as in the paper.
        pub hidden: Hidden = Hidden::CosineMse,
        /// Layers of the student that are compared, from 0. Not set: the last of each half or third of a stage.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub student_layers: Option<Vec<usize>> = None,
        /// Layers of the teacher that they are compared with, in ascending order.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub teacher_layers: Option<Vec<usize>> = None,
    }
}

fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(Error::Unsuited(format!("{NAME}: {}", sentence.into())).into())
}

impl Config {
    /// Which layers come to share; none where the model is taken as it is.
    fn sharing(&self) -> Result<Option<(Groups, NormsOf)>> {
        let groups = match (self.group, &self.groups) {
            (Some(_), Some(_)) => return refuse("`group` and `groups` are both set; leave one of them out"),
            (Some(size), None) => Groups::Of(size),
            (None, Some(sizes)) => Groups::Sizes(sizes.clone()),
            (None, None) => {
                let idle = [
                    ("shared_norms", self.shared_norms),
                    ("init", self.init != Init::First),
                    ("transform", self.transform.is_some()),
                ];
                return match idle.into_iter().find(|(_, set)| *set) {
                    Some((key, _)) => refuse(format!(
                        "`{key}` is set, but no layers come to share; set `group` too"
                    )),
                    None => Ok(None),
                };
            }
        };
        let norms = match self.shared_norms {
            true => NormsOf::Group,
            false => NormsOf::Layer,
        };
        Ok(Some((groups, norms)))
    }

    fn transformations(&self, spec: &ModelSpec) -> Vec<Transformation> {
        let own = self.transform.clone();
        own.unwrap_or_else(|| Transformation::published(spec))
    }

    /// Whether outputs of layers are compared, and not predictions alone.
    pub(super) fn compares_layers(&self) -> bool {
        self.attn_weight != 0.0 || self.hidden_weight != 0.0
    }

    /// The layers of student and teacher that are compared; none where nothing but predictions is.
    ///
    /// # Errors
    /// One list without the other; models for which [`layers::usual`] knows none.
    pub fn pairs(&self, student: &ModelSpec, teacher: &ModelSpec) -> Result<[Vec<usize>; 2]> {
        if !self.compares_layers() {
            return Ok([Vec::new(), Vec::new()]);
        }
        match (&self.student_layers, &self.teacher_layers) {
            (Some(own), Some(other)) => Ok([own.clone(), other.clone()]),
            (None, None) => Ok(layers::usual(student, teacher)?),
            (Some(_), None) => refuse("`student_layers` needs `teacher_layers`, layer for layer"),
            (None, Some(_)) => refuse("`teacher_layers` needs `student_layers`, layer for layer"),
        }
    }
}

impl Method for Config {
    fn name(&self) -> &'static str {
        NAME
    }

    fn adapts(&self) -> bool {
        false
    }

    fn plan(&self, spec: &ModelSpec) -> Result<MethodPlan> {
        let after = match self.sharing()? {
            None => spec.clone(),
            Some((groups, norms)) => describe(spec, (&groups, norms), &self.transformations(spec))?,
        };
        MethodPlan::new(NAME, spec, after, |_| true)
    }

    fn begin(&self, spec: &ModelSpec, tensors: &Tensors, seed: u64) -> Result<Begun> {
        let plan = self.plan(spec)?;
        let Some((groups, norms)) = self.sharing()? else {
            return plan.begin(tensors, seed);
        };
        let start = match self.init {
            Init::Fresh => None,
            Init::First => Some(Start::First),
            Init::Mean => Some(Start::Mean),
            Init::Layer(number) => Some(Start::Layer(number)),
        };
        let tensors = match start {
            None => plan.spec.init(seed)?,
            Some(start) => {
                let transformations = self.transformations(spec);
                multiplex(spec, tensors, (&groups, norms), start, &transformations)?.tensors
            }
        };
        Ok(Begun {
            spec: plan.spec,
            tensors,
            trained: plan.trainable,
            objective: None,
            hooks: Vec::new(),
        })
    }

    fn objective(&self, student: &ModelSpec, teacher: &ModelSpec) -> Result<Option<Box<dyn Objective>>> {
        let [own, other] = self.pairs(student, teacher)?;
        let found = WeightDistillation::new(self.clone(), (student, teacher), [&own, &other])?;
        Ok(Some(Box::new(found)))
    }
}

#[cfg(test)]
mod tests {
    use vitesse_model::Checkpoint;

    use super::*;
    use crate::Method as Listed;

    fn method(settings: &[(&str, &str)]) -> Listed {
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect();
        Listed::parse(NAME, &settings).unwrap()
    }

    fn base() -> Checkpoint {
        Checkpoint::fresh("deit_nano_patch8_32", Some(4), None, 1).unwrap()
    }

    #[test]
    fn a_model_comes_to_share_and_starts_as_it_is_told() {
        let base = base();
        let begun = |settings: &[(&str, &str)]| method(settings).begin(&base.spec, &base.tensors, 5).unwrap();
        let untouched = begun(&[]);
        assert_eq!(untouched.spec, base.spec);
        assert!(untouched.trained.share() > 0.999);
        let values = |begun: &Begun, name: &str| begun.tensors.get(name).unwrap().to_f32().into_owned();
        let (own, mixing) = ("blocks.1.mlp.fc1.weight", "ops.1.0.attn.logits.weight");
        let first = begun(&[("group", "2")]);
        let expected = base
            .tensors
            .get("blocks.2.mlp.fc1.weight")
            .unwrap()
            .to_f32()
            .into_owned();
        assert_eq!(values(&first, own), expected);
        assert_eq!(values(&first, mixing), [1.0, 0.0, 0.0, 1.0]);
        let layer = begun(&[("group", "2"), ("init", "{\"layer\": 1}"), ("transform", "[]")]);
        assert!(layer.spec.ops.is_empty());
        assert_ne!(values(&layer, own), expected);
        // As published: small random numbers, not the identity.
        let fresh = begun(&[("groups", "[2,2]"), ("init", "fresh"), ("shared_norms", "false")]);
        assert!(values(&fresh, mixing).iter().all(|x| x.abs() < 0.5));
        assert_ne!(values(&fresh, own), expected);
    }

    #[test]
    fn settings_that_say_nothing_or_too_much_are_refused() {
        let base = base();
        for (settings, said) in [
            (
                &[("transform", "[\"mixing\"]")][..],
                "`transform` is set, but no layers",
            ),
            (&[("init", "fresh")], "`init` is set, but no layers"),
            (&[("group", "2"), ("groups", "[2,2]")], "leave one of them out"),
            (&[("group", "3")], "groups of 3 do not divide the 4 layers"),
        ] {
            let told = method(settings).plan(&base.spec).unwrap_err().to_string();
            assert!(told.contains(said), "{told}");
        }
    }

    #[test]
    fn a_teacher_is_compared_layer_by_layer_or_by_predictions_alone() {
        let (base, deeper) = (
            base(),
            Checkpoint::fresh("deit_micro_patch4_32", Some(4), None, 1).unwrap(),
        );
        let wants = |settings: &[(&str, &str)], teacher: &Checkpoint| {
            let objective = method(settings).objective(&base.spec, &teacher.spec);
            objective.map(|found| found.unwrap().wants())
        };
        let both = wants(&[], &base).unwrap();
        assert_eq!(both.student.len(), 4);
        assert_eq!(both.teacher.unwrap().len(), 4);
        let listed = [
            ("student_layers", "[3]"),
            ("teacher_layers", "[2]"),
            ("hidden_weight", "0"),
        ];
        assert_eq!(wants(&listed, &base).unwrap().student.len(), 1);
        let none = [("attn_weight", "0"), ("hidden_weight", "0")];
        assert!(wants(&none, &deeper).unwrap().student.is_empty());
        for (settings, teacher, said) in [
            (&[][..], &deeper, "17 tokens and layer"),
            (&[("student_layers", "[1]")], &base, "needs `teacher_layers`"),
            (
                &[("relation_heads", "5")],
                &base,
                "5 relation heads do not divide",
            ),
        ] {
            let told = wants(settings, teacher).unwrap_err().to_string();
            assert!(told.contains(said), "{told}");
        }
    }
}
