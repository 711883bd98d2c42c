//! Which units are kept: the criterion, measured where it needs images, and the budget.

use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vitesse_compress::structure::Group;
use vitesse_compress::structure::budget::{Budget, Elimination, Fit};
use vitesse_compress::structure::criteria::activation::Activation;
use vitesse_compress::structure::criteria::fisher::Fisher;
use vitesse_compress::structure::criteria::taylor::{Form, Taylor};
use vitesse_compress::structure::criteria::{Criterion, calibrate, magnitude::Magnitude, random::Random};
use vitesse_compress::structure::damage::eliminations;
use vitesse_compress::structure::rank::{Ranking, Scope, Scored};
use vitesse_model::Checkpoint;
use vitesse_train::loss::Distillation;

use super::calibration::Calibration;
use super::{Method, Settings};
use crate::{Error, Events, Progress, Result};

/// What the units of a model are worth.
pub(super) enum Worth<'a> {
    /// Scores, which a ranking compares.
    Scores(Vec<Scored<'a>>),
    /// What is lost as one after the other goes, which a knapsack weighs.
    Damage(Vec<Elimination>),
}

/// A group's units and what was said of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ranked {
    /// The group, such as `blocks.3.hidden`.
    group: String,
    /// One score for each unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Vec<f64>>,
    /// Units in the order in which they go.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Vec<usize>>,
    /// What is lost with none, one, two … gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<Vec<f64>>,
    /// The units that are kept.
    kept: Vec<usize>,
}

impl<'a> Worth<'a> {
    /// Measures what the settings' method looks at.
    pub(super) fn measure(
        model: &Checkpoint,
        settings: &Settings,
        groups: &[&'a Group],
        calibration: Option<&Calibration>,
        stop: &AtomicBool,
        events: &mut dyn Events,
    ) -> Result<Worth<'a>> {
        let (spec, tensors) = (&model.spec, &model.tensors);
        let images = || calibration.ok_or(Error::NoCalibration(settings.method.name()));
        let objective = Distillation::default();
        let criterion: Box<dyn Criterion> = match settings.method {
            Method::Obs => {
                let begun = blocks("measuring", spec.sites().depth());
                let found = eliminations(
                    spec,
                    tensors,
                    groups,
                    settings.damping,
                    images()?.images(stop),
                    |done| {
                        crate::error::check(stop)?;
                        events.progress(Progress { done, ..begun });
                        Ok::<_, Error>(())
                    },
                )?;
                events.progress(Progress {
                    done: begun.total,
                    ..begun
                });
                return Ok(Worth::Damage(found));
            }
            Method::Taylor | Method::Fisher => {
                let images = images()?;
                let begun = Progress {
                    about: "gradients",
                    ..Progress::of_images(images.len())
                };
                let lessons = images.lessons(stop, |done| events.progress(Progress { done, ..begun }));
                if settings.method == Method::Taylor {
                    Box::new(Taylor {
                        gradients: calibrate::taylor(spec, tensors, groups, &objective, lessons)?,
                        form: Form::Elementwise,
                    })
                } else {
                    Box::new(Fisher {
                        curvature: calibrate::fisher(spec, tensors, groups, &objective, lessons)?,
                    })
                }
            }
            Method::Activation => Box::new(Activation {
                squares: calibrate::activations(spec, tensors, images()?.images(stop))?,
            }),
            Method::Magnitude => Box::new(Magnitude::default()),
            Method::Random => Box::new(Random { seed: settings.seed }),
        };
        Ok(Worth::Scores(Scored::all(criterion.as_ref(), tensors, groups)?))
    }

    /// What is kept within a budget.
    pub(super) fn fit(
        &self,
        model: &Checkpoint,
        settings: &Settings,
        groups: &[&'a Group],
        budget: &Budget<'_>,
    ) -> Result<Fit> {
        let (spec, tensors) = (&model.spec, &model.tensors);
        let scope = settings.scope();
        let ranking = Ranking {
            scope: scope.clone(),
            round_to: settings.round_to,
            ..Ranking::default()
        };
        match (self, scope) {
            (Worth::Scores(scored), _) => Ok(budget.by_ranking(spec, tensors, &ranking, scored)?),
            (Worth::Damage(found), Scope::Local) => {
                let scored: Vec<Scored<'_>> = groups
                    .iter()
                    .filter_map(|group| {
                        let found = found.iter().find(|found| found.group == group.id)?;
                        Some(Scored {
                            group,
                            scores: found.places(),
                        })
                    })
                    .collect();
                Ok(budget.by_ranking(spec, tensors, &ranking, &scored)?)
            }
            (Worth::Damage(found), _) => {
                let whole = &settings.units;
                Ok(budget.by_damage(spec, tensors, found, settings.round_to, whole)?)
            }
        }
    }

    /// The half of a group's units that is worth more, at least one.
    pub(super) fn better_half(&self, group: &Group) -> Vec<usize> {
        let elimination = match self {
            Worth::Scores(scored) => {
                let found = scored.iter().find(|scored| scored.group.id == group.id);
                found.map(Elimination::of_scores)
            }
            Worth::Damage(found) => found.iter().find(|found| found.group == group.id).cloned(),
        };
        elimination.map_or_else(Vec::new, |found| found.order[found.order.len() / 2..].to_vec())
    }

    /// All that was measured, and what came of it.
    pub(super) fn ranked(&self, groups: &[&'a Group], fit: &Fit) -> Vec<Ranked> {
        let each = groups.iter().map(|group| {
            let kept = fit.selection.of(group.id.kind, group.id.core);
            let mut out = Ranked {
                group: group.id.to_string(),
                scores: None,
                order: None,
                damage: None,
                kept: kept.map_or_else(|| (0..group.units).collect(), <[usize]>::to_vec),
            };
            if fit.selection.of(group.id.kind.half(), group.id.core) == Some(&[]) {
                out.kept.clear();
            }
            match self {
                Worth::Scores(scored) => {
                    let found = scored.iter().find(|scored| scored.group.id == group.id);
                    out.scores = found.map(|scored| scored.scores.clone());
                }
                Worth::Damage(found) => {
                    let found = found.iter().find(|found| found.group == group.id);
                    out.order = found.map(|found| found.order.clone());
                    out.damage = found.map(|found| found.damage.clone());
                }
            }
            out
        });
        each.collect()
    }
}

/// Work that is counted in blocks.
pub(super) fn blocks(about: &'static str, total: usize) -> Progress {
    Progress {
        about,
        unit: "blocks",
        done: 0,
        total,
    }
}
