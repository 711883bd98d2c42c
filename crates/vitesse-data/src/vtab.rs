//! VTAB-1k: 19 tasks of 1000 training images each (Zhai et al., 2019, *A Large-scale Study of Representation Learning with the
//! Visual Task Adaptation Benchmark*), and their score.
//!
//! [`open`](crate::open) reads the folder of a task, with its lists `train800.txt`, `val200.txt`, `train800val200.txt` and
//! `test.txt`.
//!
//! ```
//! use vitesse_data::vtab;
//!
//! # fn main() -> vitesse_data::Result<()> {
//! let score = vtab::score(&[("cifar100", 72.5), ("svhn", 91.0)])?;
//! assert_eq!(score.mean, 81.75);
//! // A group's mean is there when all of its tasks are.
//! assert_eq!((score.natural, score.overall), (None, None));
//! assert_eq!(score.missing.len(), 17);
//! # Ok(())
//! # }
//! ```

use serde::Serialize;

use crate::{Error, Result};

/// The kind of pictures of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Photographs of everyday things: 7 tasks.
    Natural,
    /// Pictures of special instruments, from space or of tissue: 4 tasks.
    Specialised,
    /// Counting, distances, places and angles, mostly in rendered scenes: 8 tasks.
    Structured,
}

/// One of the 19 tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Task {
    /// The name of its folder.
    pub name: &'static str,
    /// Other names that programs give the folder.
    pub aliases: &'static [&'static str],
    /// Number of classes. The training images are not stratified, so lists may lack some.
    pub classes: usize,
    /// Which mean it counts in.
    pub group: Group,
    /// Images of the test split in the benchmark's description.
    pub test_images: usize,
}

const fn task(
    name: &'static str,
    aliases: &'static [&'static str],
    classes: usize,
    group: Group,
    test_images: usize,
) -> Task {
    Task {
        name,
        aliases,
        classes,
        group,
        test_images,
    }
}

/// All tasks, group by group.
pub const TASKS: [Task; 19] = {
    use Group::{Natural, Specialised, Structured};
    [
        task("cifar", &["cifar100"], 100, Natural, 10_000),
        task("caltech101", &[], 102, Natural, 6_084),
        task("dtd", &[], 47, Natural, 1_880),
        task("oxford_flowers102", &["flowers102"], 102, Natural, 6_149),
        task("oxford_iiit_pet", &["oxford_pet", "pets"], 37, Natural, 3_669),
        task("svhn", &[], 10, Natural, 26_032),
        task("sun397", &[], 397, Natural, 21_750),
        task("patch_camelyon", &["pcam"], 2, Specialised, 32_768),
        task("eurosat", &[], 10, Specialised, 5_400),
        task("resisc45", &[], 45, Specialised, 6_300),
        task("diabetic_retinopathy", &["retinopathy"], 5, Specialised, 42_670),
        task("clevr_count", &[], 8, Structured, 15_000),
        task("clevr_dist", &["clevr_distance"], 6, Structured, 15_000),
        task("dmlab", &[], 6, Structured, 22_735),
        task("kitti", &["kitti_distance"], 4, Structured, 711),
        task("dsprites_loc", &["dsprites_location"], 16, Structured, 73_728),
        task("dsprites_ori", &["dsprites_orientation"], 16, Structured, 73_728),
        task("smallnorb_azi", &["smallnorb_azimuth"], 18, Structured, 12_150),
        task("smallnorb_ele", &["smallnorb_elevation"], 9, Structured, 12_150),
    ]
};

impl Task {
    /// The task of this name or alias.
    pub fn find(name: &str) -> Option<&'static Task> {
        TASKS
            .iter()
            .find(|task| task.name == name || task.aliases.contains(&name))
    }
}

/// Accuracies over the tasks, in percent. What lacks a task is `None`, since it could not be compared with other scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Mean of the 7 natural tasks.
    pub natural: Option<f64>,
    /// Mean of the 4 specialised tasks.
    pub specialised: Option<f64>,
    /// Mean of the 8 structured tasks.
    pub structured: Option<f64>,
    /// The mean of the three group means, which articles call the average. It is not that of the 19 tasks.
    pub overall: Option<f64>,
    /// The mean of the tasks that are there, each counting alike.
    pub mean: f64,
    /// The tasks that are not.
    pub missing: Vec<&'static str>,
}

/// The score of top-1 accuracies in percent, each with the name or an alias of its task.
///
/// # Errors
/// [`Error::Setting`] for a task that the benchmark does not have, one that is named twice, an accuracy that is none, and no
/// task at all.
pub fn score(accuracies: &[(&str, f64)]) -> Result<Score> {
    let mut found: [Option<f64>; TASKS.len()] = [None; TASKS.len()];
    for &(name, accuracy) in accuracies {
        if !(0.0..=100.0).contains(&accuracy) {
            return Err(Error::setting("accuracy", &accuracy, "percent, from 0 to 100"));
        }
        let place = TASKS
            .iter()
            .zip(&mut found)
            .find(|(task, _)| Task::find(name) == Some(task));
        match place {
            Some((_, place @ None)) => *place = Some(accuracy),
            Some((task, Some(_))) => {
                let expected = format!("each task once, but `{}` has an accuracy already", task.name);
                return Err(Error::setting("task", name, expected));
            }
            None => {
                let names: Vec<&str> = TASKS.iter().map(|task| task.name).collect();
                let expected = format!("a task of VTAB-1k: {}", names.join(", "));
                return Err(Error::setting("task", name, expected));
            }
        }
    }
    let known: Vec<f64> = found.iter().flatten().copied().collect();
    let Some(mean) = mean(&known) else {
        return Err(Error::setting("accuracies", "empty", "one task at least"));
    };
    let group = |group: Group| {
        let tasks = TASKS.iter().zip(&found).filter(|(task, _)| task.group == group);
        let all: Option<Vec<f64>> = tasks.map(|(_, accuracy)| *accuracy).collect();
        self::mean(&all?)
    };
    let groups = [Group::Natural, Group::Specialised, Group::Structured].map(group);
    let whole: Option<Vec<f64>> = groups.into_iter().collect();
    let [natural, specialised, structured] = groups;
    Ok(Score {
        natural,
        specialised,
        structured,
        overall: whole.and_then(|groups| self::mean(&groups)),
        mean,
        missing: TASKS
            .iter()
            .zip(&found)
            .filter(|(_, accuracy)| accuracy.is_none())
            .map(|(task, _)| task.name)
            .collect(),
    })
}

/// `None` of nothing.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_benchmarks() {
        let of = |group| TASKS.iter().filter(|task| task.group == group).count();
        assert_eq!(
            [Group::Natural, Group::Specialised, Group::Structured].map(of),
            [7, 4, 8]
        );
        assert_eq!(TASKS.iter().map(|task| task.classes).sum::<usize>(), 940);
        for task in &TASKS {
            for name in task.aliases.iter().chain([&task.name]) {
                assert_eq!(Task::find(name), Some(task), "{name} names two tasks");
            }
        }
        assert_eq!(Task::find("imagenet"), None);
    }

    #[test]
    fn overall_is_the_mean_of_the_groups() {
        let accuracy = |group| match group {
            Group::Natural => 80.0,
            Group::Specialised => 90.0,
            Group::Structured => 40.0,
        };
        let all: Vec<(&str, f64)> = TASKS
            .iter()
            .map(|task| (task.name, accuracy(task.group)))
            .collect();
        let score = super::score(&all).unwrap();
        assert_eq!(
            (score.natural, score.specialised, score.structured, score.overall),
            (Some(80.0), Some(90.0), Some(40.0), Some(70.0))
        );
        assert!((score.mean - (7.0 * 80.0 + 4.0 * 90.0 + 8.0 * 40.0) / 19.0).abs() < 1e-12);
        assert!(score.missing.is_empty());

        let without: Vec<(&str, f64)> = all.iter().filter(|(name, _)| *name != "kitti").copied().collect();
        let score = super::score(&without).unwrap();
        assert_eq!((score.natural, score.structured), (Some(80.0), None));
        assert_eq!((score.overall, score.missing), (None, vec!["kitti"]));
    }

    #[test]
    fn what_is_no_score_is_a_sentence() {
        for (accuracies, expected) in [
            (
                &[("imagenet", 80.0)][..],
                "`task` is imagenet, expected a task of VTAB-1k",
            ),
            (
                &[("cifar", 80.0), ("cifar100", 81.0)],
                "`cifar` has an accuracy already",
            ),
            (&[("dtd", f64::NAN)], "`accuracy` is NaN"),
            (&[("dtd", 100.5)], "percent, from 0 to 100"),
            (&[], "one task at least"),
        ] {
            let error = score(accuracies).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
