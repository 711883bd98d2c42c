//! Which layers of two models are compared, where nobody says: the rule behind the published pairs.
//!
//! Paper: MiniViT's code pairs layers 1 and 3 of Mini-Swin-T with the same of Swin-B, then 5, 7, 9 with 9, 15, 21, and 11 with 23: one layer of a
//! short stage, three of a long one, each the last of an equal share. All are shifted, so that windows hold the same tokens.

use vitesse_model::{ModelSpec, NetworkSpec, Site, Sites};

use crate::{Error, Result};

/// Layers of a stage that are compared at most.
const MOST: usize = 3;

/// The layers of a student and of its teacher that are compared, stage by stage: the last of as many equal shares as both depths of the
/// stage have, at most three; in windows, shares of an even number of layers.
///
/// # Errors
/// Models without layers of tokens, with other stages, or with depths of a stage that have no such shares.
pub fn usual(student: &ModelSpec, teacher: &ModelSpec) -> Result<[Vec<usize>; 2]> {
    for (who, spec) in [("student", student), ("teacher", teacher)] {
        if !spec.is_transformer() {
            return refuse(format!(
                "the {who} `{}` has no layers of tokens to compare; set `attn_weight` and `hidden_weight` to 0 and learn from predictions \
                 alone",
                spec.architecture
            ));
        }
    }
    let (own, other) = (stages(student), stages(teacher));
    if own.len() != other.len() {
        return refuse(format!(
            "the student has {} of layers and the teacher {}; list the layers that are compared in `student_layers` and \
             `teacher_layers`",
            vitesse_words::counted(own.len(), "stage"),
            other.len()
        ));
    }
    let windows = |spec: &ModelSpec| matches!(spec.network, NetworkSpec::Swin(_));
    let step = if windows(student) || windows(teacher) {
        2
    } else {
        1
    };
    let mut found = [Vec::new(), Vec::new()];
    let (mut first, mut other_first) = (0, 0);
    for (stage, (&depth, &other_depth)) in own.iter().zip(&other).enumerate() {
        let fits = |depth: usize, shares: usize| depth.is_multiple_of(shares * step);
        let shares = (1..=MOST).rfind(|&shares| fits(depth, shares) && fits(other_depth, shares));
        let Some(shares) = shares else {
            return refuse(format!(
                "stage {stage} has {depth} layers in the student and {other_depth} in the teacher, which make no equal shares; list the layers \
                 that are compared in `student_layers` and `teacher_layers`"
            ));
        };
        let lasts =
            |first: usize, depth: usize| (1..=shares).map(move |share| first + share * depth / shares - 1);
        let [of_student, of_teacher] = &mut found;
        of_student.extend(lasts(first, depth));
        of_teacher.extend(lasts(other_first, other_depth));
        (first, other_first) = (first + depth, other_first + other_depth);
    }
    Ok(found)
}

/// The depths of stages: layers that follow each other and see as many tokens.
fn stages(spec: &ModelSpec) -> Vec<usize> {
    let tokens: Vec<usize> = (0..spec.depth())
        .map(|layer| spec.sites().tokens_passing(Site::AttnQkv, layer))
        .collect();
    tokens.chunk_by(|a, b| a == b).map(<[usize]>::len).collect()
}

fn refuse<T>(sentence: String) -> Result<T> {
    Err(Error::Unsuited(sentence))
}

#[cfg(test)]
mod tests {
    use vitesse_model::zoo;

    use super::*;

    fn spec(name: &str) -> ModelSpec {
        zoo::get(name).unwrap().spec
    }

    #[test]
    fn published_pairs_are_found() {
        let pairs = |student, teacher| usual(&spec(student), &spec(teacher)).unwrap();
        let long = vec![1, 3, 9, 15, 21, 23];
        assert_eq!(
            pairs(
                "mini_swin_tiny_patch4_window7_224",
                "swin_base_patch4_window7_224"
            ),
            [vec![1, 3, 5, 7, 9, 11], long.clone()]
        );
        assert_eq!(
            pairs(
                "mini_swin_small_patch4_window7_224",
                "swin_base_patch4_window7_224"
            ),
            [long.clone(), long]
        );
        let thirds = vec![3, 7, 11];
        assert_eq!(
            pairs("deit_tiny_patch16_224", "deit_base_patch16_224"),
            [thirds.clone(), thirds]
        );
    }

    #[test]
    fn other_structures_are_refused() {
        let refused = |student, teacher| usual(&spec(student), &spec(teacher)).unwrap_err().to_string();
        let told = refused("deit_tiny_patch16_224", "regnety_160");
        assert!(
            told.contains("the teacher `regnety_160` has no layers of tokens"),
            "{told}"
        );
        let told = refused("deit_tiny_patch16_224", "swin_base_patch4_window7_224");
        assert!(told.contains("1 stage of layers and the teacher 4"), "{told}");
    }
}
