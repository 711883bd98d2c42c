//! Weight distillation: a model that shares its matrices learns from one that does not.
//!
//! Paper: MiniViT, section 3.3, equations 7 to 11: `α · truth + (1 − α) · soft + β · attn + γ · hidden`. The defaults are those of the
//! published Mini-Swins, which learn nothing from the labels. Mini-DeiT, whose teacher is a convolutional network, learns from predictions
//! alone, as DeiT does ([`Distillation`](vitesse_train::loss::Distillation)).

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};
use serde::{Deserialize, Serialize};
use vitesse_model::network::Fusion;
use vitesse_model::{ModelSpec, NetworkSpec, Site, Sites};
use vitesse_train::loss;
use vitesse_train::objective::{Objective, Pass, Place, Seen, Term, Wants};

use super::minivit::Config;
use super::relations;
use crate::{Error, Result};

/// How outputs of layers are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hidden {
    /// Cosines between tokens, by the squared difference, as the published code does.
    #[default]
    CosineMse,
    /// The softmax of products between tokens, by cross-entropy, as the paper writes.
    SoftmaxCe,
}

/// The objective: what the [method](Config) says of losses, for two models, with the layers that are compared.
#[derive(Debug, Clone)]
pub struct WeightDistillation {
    config: Config,
    pairs: Vec<Pair>,
}

/// A layer of each model.
#[derive(Debug, Clone, Copy)]
struct Pair {
    student: usize,
    teacher: usize,
}

fn refuse<T>(sentence: String) -> Result<T> {
    Err(Error::Unsuited(sentence))
}

/// Refuses weights and temperatures that are none.
fn check(config: &Config) -> Result<()> {
    if !config.temperature.is_finite() || config.temperature <= 0.0 {
        return refuse(format!(
            "the temperature must be a number above 0, but it is {}",
            config.temperature
        ));
    }
    if !(0.0..=1.0).contains(&config.alpha) {
        return refuse(format!("alpha must be from 0 to 1, but it is {}", config.alpha));
    }
    let weights = [
        ("attention", config.attn_weight),
        ("hidden", config.hidden_weight),
    ];
    match weights
        .into_iter()
        .find(|(_, weight)| !weight.is_finite() || *weight < 0.0)
    {
        Some((name, weight)) => refuse(format!(
            "the weight of the {name} relations must be a number from 0, but it is {weight}"
        )),
        None => Ok(()),
    }
}

impl WeightDistillation {
    /// `layers` of the student and of the teacher are compared in ascending order, however they are listed.
    ///
    /// # Errors
    /// Weights and temperatures that are none; lists of different lengths, and empty ones where relations have a weight; layers that a model has
    /// not, layers with other tokens, and in windows shifted by another offset; queries, keys and values of different widths; relation heads that
    /// do not divide them.
    pub fn new(
        config: Config,
        (student, teacher): (&ModelSpec, &ModelSpec),
        [of_student, of_teacher]: [&[usize]; 2],
    ) -> Result<Self> {
        if of_student.len() != of_teacher.len() {
            return refuse(format!(
                "{} layers of the student and {} of the teacher are listed; each needs its partner",
                of_student.len(),
                of_teacher.len()
            ));
        }
        check(&config)?;
        if of_student.is_empty() && config.compares_layers() {
            return refuse(format!(
                "no layers are listed, but relations have the weights {} (attention) and {} (hidden); list layers, or set both weights to 0",
                config.attn_weight, config.hidden_weight
            ));
        }
        let ascending = |layers: &[usize]| {
            let mut layers = layers.to_vec();
            layers.sort_unstable();
            layers
        };
        let pairs = ascending(of_student).into_iter().zip(ascending(of_teacher));
        let pairs = pairs.map(|(own, other)| {
            let found = [("student", student, own), ("teacher", teacher, other)];
            check_pair(&found)?;
            if config.attn_weight != 0.0 {
                found.iter().try_for_each(|(who, spec, layer)| {
                    check_widths(who, spec, *layer, config.relation_heads)
                })?;
            }
            Ok(Pair {
                student: own,
                teacher: other,
            })
        });
        Ok(WeightDistillation {
            pairs: pairs.collect::<Result<_>>()?,
            config,
        })
    }

    /// The terms `truth`, `soft`, `attn` and `hidden` of what both made of the same images, at the places that are wanted; those of relations
    /// where they have a weight. `targets` are probabilities `[samples, classes]`.
    ///
    /// # Errors
    /// Places that were not recorded; targets that do not fit.
    pub fn compare(
        &self,
        student: &Pass,
        teacher: &Pass,
        targets: &Tensor<2>,
    ) -> vitesse_train::Result<Vec<Term>> {
        let config = &self.config;
        let [logits, wanted] = [student, teacher].map(|pass| pass.logits.clone().joint(Fusion::LogitMean));
        let mut terms = vec![
            Term {
                name: "truth",
                value: loss::cross_entropy(logits.clone(), targets.clone())?,
                weight: config.alpha,
            },
            Term {
                name: "soft",
                value: soft(logits, wanted, config.temperature),
                weight: 1.0 - config.alpha,
            },
        ];
        type Relations = fn(&WeightDistillation, &Pass, &Pass, &Pair) -> vitesse_train::Result<Tensor<1>>;
        let relations: [(_, Relations, _); 2] = [
            ("attn", WeightDistillation::attention, config.attn_weight),
            ("hidden", WeightDistillation::hidden, config.hidden_weight),
        ];
        for (name, compare, weight) in relations.into_iter().filter(|(_, _, weight)| *weight != 0.0) {
            let each = self
                .pairs
                .iter()
                .map(|pair| compare(self, student, teacher, pair));
            let each = each.collect::<vitesse_train::Result<Vec<_>>>()?;
            let share = 1.0 / each.len().max(1) as f64;
            let sum = each.into_iter().reduce(|sum, term| sum + term);
            terms.extend(sum.map(|sum| Term {
                name,
                value: sum * share,
                weight,
            }));
        }
        Ok(terms)
    }

    fn places(&self, of: impl Fn(&Pair) -> usize) -> Vec<Place> {
        let wanted = [
            (self.config.attn_weight, Site::AttnQkv),
            (self.config.hidden_weight, Site::BlockOut),
        ];
        let sites = wanted.into_iter().filter(|(weight, _)| *weight != 0.0);
        sites
            .flat_map(|(_, site)| self.pairs.iter().map(move |pair| (site, pair)))
            .map(|(site, pair)| (site, Some(of(pair))))
            .collect()
    }

    fn attention(&self, student: &Pass, teacher: &Pass, pair: &Pair) -> vitesse_train::Result<Tensor<1>> {
        let own = student.tokens(Site::AttnQkv, Some(pair.student))?;
        let other = teacher.tokens(Site::AttnQkv, Some(pair.teacher))?;
        Ok(relations::attention(&own, &other, self.config.relation_heads))
    }

    fn hidden(&self, student: &Pass, teacher: &Pass, pair: &Pair) -> vitesse_train::Result<Tensor<1>> {
        let own = student.tokens(Site::BlockOut, Some(pair.student))?;
        let other = teacher.tokens(Site::BlockOut, Some(pair.teacher))?;
        Ok(match self.config.hidden {
            Hidden::CosineMse => relations::cosines(&own, &other),
            Hidden::SoftmaxCe => relations::products(&own, &other),
        })
    }
}

/// Refuses two layers whose tokens are not the same.
fn check_pair(pair: &[(&str, &ModelSpec, usize); 2]) -> Result<()> {
    for (who, spec, layer) in pair {
        if *layer >= spec.depth() {
            return refuse(format!(
                "the {who} has no layer {layer}; its layers are 0 to {}",
                spec.depth().saturating_sub(1)
            ));
        }
    }
    let [(_, student, own), (_, teacher, other)] = pair;
    // Where relations of attention are read, and those of tokens.
    for site in [Site::AttnQkv, Site::BlockOut] {
        let of = |spec: &ModelSpec, layer| spec.sites().tokens_passing(site, layer);
        let (tokens, others) = (of(student, *own), of(teacher, *other));
        if tokens != others {
            return refuse(format!(
                "layer {own} of the student has {tokens} tokens and layer {other} of the teacher {others}; pair layers with \
                 the same tokens"
            ));
        }
    }
    let windows = |spec: &ModelSpec, layer| match &spec.network {
        NetworkSpec::Swin(swin) => swin.windows(layer),
        _ => None,
    };
    let (here, there) = (windows(student, *own), windows(teacher, *other));
    let same = match (&here, &there) {
        (Some(here), Some(there)) => here.window == there.window && here.shift == there.shift,
        (None, None) => true,
        // A window that is the whole map holds its tokens in their order.
        (Some(one), None) | (None, Some(one)) => one.is_one(),
    };
    if same {
        return Ok(());
    }
    let shifts = |windows: &Option<vitesse_model::spec::Windows>| match windows {
        Some(windows) if windows.shifts() => "is shifted",
        Some(_) => "is not shifted",
        None => "attends without windows",
    };
    refuse(format!(
        "layer {own} of the student {} and layer {other} of the teacher {}, or their windows differ in size, so that the same \
         window holds other tokens; pair layers alike in both",
        shifts(&here),
        shifts(&there)
    ))
}

/// Refuses a layer whose queries, keys and values cannot be multiplied with each other in this many relation heads.
fn check_widths(who: &str, spec: &ModelSpec, layer: usize, heads: usize) -> Result<()> {
    let parts = spec
        .projection(Site::Qkv, layer)
        .and_then(|projection| projection.parts);
    let Some([queries, keys, values]) = parts else {
        return refuse(format!("layer {layer} of the {who} has no attention to compare"));
    };
    if queries != keys || keys != values {
        return refuse(format!(
            "queries, keys and values of layer {layer} of the {who} have the widths {queries}, {keys} and {values}, but relations multiply \
             each with each; choose a layer where all three are equal, or set the weight of the attention relations to 0"
        ));
    }
    if heads == 0 || values % heads != 0 {
        return refuse(format!(
            "{heads} relation heads do not divide the width {values} of layer {layer} of the {who}"
        ));
    }
    Ok(())
}

impl Objective for WeightDistillation {
    fn is_whole(&self) -> bool {
        true
    }

    fn wants(&self) -> Wants {
        Wants {
            student: self.places(|pair| pair.student),
            teacher: Some(self.places(|pair| pair.teacher)),
            ..Wants::default()
        }
    }

    fn terms(&self, seen: &Seen<'_>) -> vitesse_train::Result<Vec<Term>> {
        match &seen.teacher {
            Some(teacher) => self.compare(&seen.student, teacher, &seen.targets),
            None => Err(vitesse_train::Error::TeacherMissing),
        }
    }
}

/// Cross-entropy of predictions `[samples, classes]` against a teacher's, both at a temperature: mean over samples, `[1]`.
pub fn soft(student: Tensor<2>, teacher: Tensor<2>, temperature: f64) -> Tensor<1> {
    let samples = student.dims()[0];
    let wanted = softmax(teacher / temperature, 1);
    let sum = (wanted * log_softmax(student / temperature, 1)).sum();
    sum / -(samples as f64)
}

#[cfg(test)]
mod tests {
    use vitesse_model::spec::{PrefixToken, SwinSpec, VitSpec};

    use super::*;

    fn model(network: NetworkSpec) -> ModelSpec {
        ModelSpec {
            architecture: "a model".into(),
            num_classes: 3,
            network,
            ops: Vec::new(),
        }
    }

    fn swin(dim: usize, depths: &[usize]) -> ModelSpec {
        model(NetworkSpec::Swin(SwinSpec::plain(32, 4, 2, dim, depths, &[1, 2])))
    }

    fn vit(img_size: usize) -> ModelSpec {
        let vit = VitSpec::plain(img_size, 4, 6, 2, 2, vec![PrefixToken::Class]);
        model(NetworkSpec::Vit(vit))
    }

    fn refused(models: (&ModelSpec, &ModelSpec), layers: [&[usize]; 2], relation_heads: usize) -> String {
        let config = Config {
            relation_heads,
            ..Config::default()
        };
        let found = WeightDistillation::new(config, models, layers);
        found.unwrap_err().to_string()
    }

    #[test]
    fn layers_are_paired_in_ascending_order_however_they_are_listed() {
        let (student, teacher) = (swin(4, &[2, 2]), swin(6, &[2, 4]));
        let found = WeightDistillation::new(Config::default(), (&student, &teacher), [&[3, 1], &[1, 5]]);
        let wants = found.unwrap().wants();
        let at = |site, layers: [usize; 2]| layers.map(|layer| (site, Some(layer)));
        let expected = [at(Site::AttnQkv, [1, 3]), at(Site::BlockOut, [1, 3])];
        assert_eq!(wants.student, expected.concat());
        let expected = [at(Site::AttnQkv, [1, 5]), at(Site::BlockOut, [1, 5])];
        assert_eq!(wants.teacher.unwrap(), expected.concat());
    }

    #[test]
    fn numbers_that_weigh_nothing_or_less_are_refused() {
        let (student, teacher) = (vit(16), vit(16));
        let found = |config: Config, layers: [&[usize]; 2]| {
            WeightDistillation::new(config, (&student, &teacher), layers)
        };
        let one: [&[usize]; 2] = [&[0], &[1]];
        let plain = Config::default;
        for (config, layers, expected) in [
            (
                Config {
                    alpha: f64::NAN,
                    ..plain()
                },
                one,
                "alpha must be",
            ),
            (
                Config {
                    temperature: f64::INFINITY,
                    ..plain()
                },
                one,
                "the temperature must be",
            ),
            (
                Config {
                    attn_weight: -1.0,
                    ..plain()
                },
                one,
                "the attention relations must be a number from 0",
            ),
            (
                Config {
                    hidden_weight: f64::NAN,
                    ..plain()
                },
                one,
                "the hidden relations must be a number from 0",
            ),
            (plain(), [&[], &[]], "no layers are listed"),
        ] {
            let error = found(config, layers).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let predictions = Config {
            attn_weight: 0.0,
            hidden_weight: 0.0,
            ..plain()
        };
        assert!(found(predictions, [&[], &[]]).is_ok());
    }

    #[test]
    fn queries_and_values_of_different_widths_are_refused_for_attention_alone() {
        let (mut pruned, teacher) = (vit(16), vit(16));
        let NetworkSpec::Vit(body) = &mut pruned.network else {
            panic!("a ViT")
        };
        body.cores[1].attn.as_mut().unwrap().qk_dims = vec![2, 2];
        let of = |config, layers: [&[usize]; 2]| WeightDistillation::new(config, (&pruned, &teacher), layers);
        let error = of(Config::default(), [&[1], &[1]]).unwrap_err().to_string();
        assert!(error.contains("the widths 4, 4 and 6"), "{error}");
        assert!(of(Config::default(), [&[0], &[1]]).is_ok());
        let hidden = Config {
            attn_weight: 0.0,
            ..Config::default()
        };
        assert!(of(hidden, [&[1], &[1]]).is_ok());
    }

    #[test]
    fn layers_that_do_not_see_the_same_tokens_are_refused() {
        let (student, teacher) = (swin(4, &[2, 2]), swin(6, &[2, 4]));
        for (found, expected) in [
            (
                refused((&student, &teacher), [&[1, 3], &[1]], 1),
                "2 layers of the student and 1",
            ),
            (
                refused((&student, &teacher), [&[4], &[1]], 1),
                "the student has no layer 4",
            ),
            (
                refused((&student, &teacher), [&[1], &[3]], 1),
                "64 tokens and layer 3 of the teacher 16",
            ),
            (
                refused((&student, &teacher), [&[1], &[0]], 1),
                "layer 1 of the student is shifted and layer 0 of the teacher is not shifted",
            ),
            (
                refused((&student, &teacher), [&[1], &[1]], 4),
                "4 relation heads do not divide the width 6",
            ),
            (
                refused((&vit(16), &vit(20)), [&[0], &[0]], 1),
                "17 tokens and layer 0 of the teacher 26",
            ),
        ] {
            assert!(found.contains(expected), "{found}");
        }
    }
}
