//! What a shared model is to learn from a teacher, known before anything is computed.

use serde::Serialize;
use toml::Value;
use vitesse_compress::share::minivit;
use vitesse_model::ModelSpec;
use vitesse_train::Recipe;
use vitesse_train::loss::{Kind, Normaliser};
use vitesse_train::method::{self, Method, named};
use vitesse_train::recipe::DistillConfig;
use vitesse_train::teacher::fits;

use crate::trial::table;
use crate::{Error, Result};

/// What is learned from whom.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lesson {
    /// What the teacher is.
    pub teacher: String,
    /// The method with its settings; none where only predictions are learned, as DeiT does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<method::Table>,
    /// Layers of the student that are compared.
    pub student_layers: Vec<usize>,
    /// Layers of the teacher that they are compared with.
    pub teacher_layers: Vec<usize>,
}

impl Lesson {
    /// Writes into a recipe that names a teacher how `student` learns from it: by MiniViT's weight distillation as `config` says, where the
    /// teacher is a transformer, and from predictions alone, as the published Mini-DeiTs do, where it is not.
    ///
    /// # Errors
    /// A teacher that cannot be loaded, or compared with the student as `config` says; a `config` other than the default for one that has no
    /// layers to compare.
    pub fn plan(recipe: &mut Recipe, config: &minivit::Config, student: &ModelSpec) -> Result<Lesson> {
        let Some(teacher) = recipe.distill.teacher_spec(student)? else {
            return Err(vitesse_train::Error::TeacherMissing.into());
        };
        let mut learner = student.clone();
        let classes = recipe.data.open()?.0.class_names().len();
        learner.num_classes = recipe.model.num_classes.unwrap_or(classes);
        fits((&teacher.architecture, &teacher), &learner)?;
        let mut lesson = Lesson {
            teacher: teacher.architecture.clone(),
            method: None,
            student_layers: Vec::new(),
            teacher_layers: Vec::new(),
        };
        if teacher.is_transformer() {
            // Whatever does not fit is refused here.
            config.plan(student)?;
            config.objective(student, &teacher)?;
            [lesson.student_layers, lesson.teacher_layers] = config.pairs(student, &teacher)?;
            lesson.method = Some(named(config));
            recipe.method = match table(config)? {
                Value::Table(table) => Some(table),
                _ => None,
            };
        } else if *config == minivit::Config::default() {
            recipe.method = None;
            recipe.distill = DistillConfig {
                kind: Some(Kind::Soft),
                alpha: 1.0,
                tau: 1.0,
                normaliser: Normaliser::PerElement,
                ..recipe.distill.clone()
            };
        } else {
            return Err(Error::Together(format!(
                "the teacher `{}` is no transformer, so that only its predictions can be learned, and settings of weight distillation have \
                 nothing to say; leave them out",
                teacher.architecture
            )));
        }
        Ok(lesson)
    }
}
