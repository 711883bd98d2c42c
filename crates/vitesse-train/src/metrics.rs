//! What is counted over labelled predictions: accuracy, loss, per class, confusion; and the spread over runs.
//!
//! Sums run in `f64` in the order of the samples, so a result does not depend on how they came in batches. A score
//! that is not a number is never counted as right.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the scores of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Before the softmax.
    Logits,
    /// After it.
    Probabilities,
}

/// Accuracy over a data set. Shares are percentages, as timm prints them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Number of samples.
    pub samples: usize,
    /// Cross-entropy with the true label, in nats, mean over the samples.
    pub loss: f64,
    /// Samples whose most likely class is the true one, in percent.
    pub top1: f64,
    /// Samples whose true class is among the five most likely, in percent.
    pub top5: f64,
    /// Mean over the classes that occur of their top-1 accuracy, in percent.
    pub balanced: f64,
    /// Each class, by label.
    pub classes: Vec<ClassMetrics>,
    /// How often each class was taken for each: `confusion[truth][prediction]`.
    pub confusion: Vec<Vec<u64>>,
}

impl Metrics {
    /// How far chance reaches: two standard errors of the difference between two accuracies like this one, in points.
    pub fn margin(&self) -> f64 {
        let share = self.top1 / 100.0;
        200.0 * (2.0 * share * (1.0 - share) / self.samples.max(1) as f64).sqrt()
    }
}

/// One class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Samples of this class.
    pub samples: u64,
    /// Those recognised as it.
    pub correct: u64,
    /// Samples taken for it, rightly or not.
    pub predicted: u64,
}

impl ClassMetrics {
    /// Recognised samples, in percent of the class; `None` for a class that does not occur.
    pub fn recall(self) -> Option<f64> {
        (self.samples > 0).then(|| 100.0 * self.correct as f64 / self.samples as f64)
    }

    /// Right answers, in percent of all predictions of this class; `None` for a class that was never predicted.
    pub fn precision(self) -> Option<f64> {
        (self.predicted > 0).then(|| 100.0 * self.correct as f64 / self.predicted as f64)
    }
}

/// The index of the largest value, the lowest of equals.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row.get(i) > row.get(best) { i } else { best };
    (0..row.len()).fold(0, better)
}

/// Counts predictions as they come.
#[derive(Debug, Clone)]
pub struct Counter {
    classes: usize,
    scores: Scores,
    confusion: Vec<Vec<u64>>,
    samples: usize,
    top5: usize,
    loss: f64,
}

impl Counter {
    /// For rows of `classes` scores.
    pub fn new(classes: usize, scores: Scores) -> Self {
        Counter {
            classes,
            scores,
            confusion: vec![vec![0; classes]; classes],
            samples: 0,
            top5: 0,
            loss: 0.0,
        }
    }

    /// Counts a batch: `scores` holds one row for each label.
    ///
    /// # Errors
    /// A label that is not below the number of classes, or a number of scores that does not fit.
    pub fn add(&mut self, scores: &[f32], labels: &[usize]) -> Result<()> {
        if scores.len() != labels.len() * self.classes {
            let (expected, found) = (
                [labels.len(), self.classes],
                [labels.len(), scores.len() / labels.len().max(1)],
            );
            return Err(Error::Shape {
                what: "scores",
                expected,
                found,
            });
        }
        for (row, &label) in scores.chunks_exact(self.classes.max(1)).zip(labels) {
            let Some(&score) = row.get(label) else {
                return Err(Error::Label {
                    label,
                    classes: self.classes,
                });
            };
            self.samples += 1;
            self.loss += match self.scores {
                Scores::Logits => log_sum_exp(row) - f64::from(score),
                // What has underflowed to zero counts as the smallest probability there is.
                Scores::Probabilities => -f64::from(score.max(f32::MIN_POSITIVE)).ln(),
            };
            let rank = rank(row, label, score);
            self.top5 += usize::from(rank < 5);
            let predicted = if rank == 0 { label } else { argmax(row) };
            // Where the true score is not a number, `argmax` may name its class: count any other.
            let predicted = if rank > 0 && predicted == label {
                (label + 1) % self.classes
            } else {
                predicted
            };
            if let Some(count) = self
                .confusion
                .get_mut(label)
                .and_then(|row| row.get_mut(predicted))
            {
                *count += 1;
            }
        }
        Ok(())
    }

    /// What was counted, in words that [`Counter::absorb`] reads: samples, top five, the bits of the loss, how many cells of
    /// the confusion are not zero, and of each of them its place and its count.
    pub(crate) fn words(&self) -> Vec<u64> {
        let cells = self.confusion.iter().flatten().zip(0u64..);
        let cells: Vec<(&u64, u64)> = cells.filter(|(count, _)| **count > 0).collect();
        let mut words = vec![
            self.samples as u64,
            self.top5 as u64,
            self.loss.to_bits(),
            cells.len() as u64,
        ];
        words.extend(cells.into_iter().flat_map(|(&count, place)| [place, count]));
        words
    }

    /// Adds what another counter over the same classes has counted; returns the words behind its.
    pub(crate) fn absorb<'a>(&mut self, words: &'a [u64]) -> &'a [u64] {
        let [samples, top5, loss, cells, rest @ ..] = words else {
            return &[];
        };
        self.samples += *samples as usize;
        self.top5 += *top5 as usize;
        self.loss += f64::from_bits(*loss);
        let (cells, rest) = rest.split_at(rest.len().min(2 * *cells as usize));
        for cell in cells.chunks_exact(2) {
            let (row, column) = (cell[0] as usize / self.classes, cell[0] as usize % self.classes);
            if let Some(count) = self.confusion.get_mut(row).and_then(|row| row.get_mut(column)) {
                *count += cell[1];
            }
        }
        rest
    }

    /// The result; all zero when nothing was counted.
    pub fn finish(self) -> Metrics {
        let classes: Vec<ClassMetrics> = (0..self.classes)
            .map(|class| ClassMetrics {
                samples: self.confusion.iter().skip(class).take(1).flatten().sum(),
                correct: self
                    .confusion
                    .get(class)
                    .and_then(|row| row.get(class))
                    .copied()
                    .unwrap_or(0),
                predicted: self.confusion.iter().filter_map(|row| row.get(class)).sum(),
            })
            .collect();
        let recalls: Vec<f64> = classes.iter().filter_map(|class| class.recall()).collect();
        let correct: u64 = classes.iter().map(|class| class.correct).sum();
        let percent = |count: f64| 100.0 * count / self.samples.max(1) as f64;
        Metrics {
            samples: self.samples,
            loss: self.loss / self.samples.max(1) as f64,
            top1: percent(correct as f64),
            top5: percent(self.top5 as f64),
            balanced: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
            classes,
            confusion: self.confusion,
        }
    }
}

/// How many classes come before the true one: those with a larger score, and of equals those with a lower index.
fn rank(row: &[f32], label: usize, score: f32) -> usize {
    // Written so that a comparison with NaN counts against the true class.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let before =
        |&(i, &other): &(usize, &f32)| i != label && (!(other <= score) || (other == score && i < label));
    let ahead = row.iter().enumerate().filter(before).count();
    ahead + usize::from(score.is_nan())
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// A number measured several times, such as the accuracy of runs that differ in their seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many measurements.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation (divided by `n − 1`); 0 for one measurement.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` when there are none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        (n > 0).then(|| Spread {
            n,
            mean,
            std: (squares / (n.max(2) - 1) as f64).sqrt(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

impl std::fmt::Display for Spread {
    /// `81.27 ± 0.31`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ± {:.2}", self.mean, self.std)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rows: &[&[f32]], labels: &[usize]) -> Metrics {
        let mut counter = Counter::new(rows[0].len(), Scores::Logits);
        counter.add(&rows.concat(), labels).unwrap();
        counter.finish()
    }

    #[test]
    fn a_small_set_by_hand() {
        let metrics = count(
            &[
                &[2.0, 1.0, 0.0],
                &[0.0, 3.0, 0.0],
                &[0.0, 3.0, 0.0],
                &[0.0, 0.0, 9.0],
            ],
            &[0, 1, 0, 2],
        );
        assert_eq!((metrics.samples, metrics.top1, metrics.top5), (4, 75.0, 100.0));
        assert_eq!(metrics.confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 1]]);
        assert!((metrics.balanced - (50.0 + 100.0 + 100.0) / 3.0).abs() < 1e-12);
        assert_eq!(metrics.classes[0].recall(), Some(50.0));
        assert_eq!(metrics.classes[1].precision(), Some(50.0));
        let loss = |row: [f64; 3], label: usize| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label];
        let expected = loss([2.0, 1.0, 0.0], 0)
            + loss([0.0, 3.0, 0.0], 1)
            + loss([0.0, 3.0, 0.0], 0)
            + loss([0.0, 0.0, 9.0], 2);
        assert!((metrics.loss - expected / 4.0).abs() < 1e-12);
    }

    #[test]
    fn of_equal_scores_the_first_wins() {
        assert_eq!(count(&[&[1.0, 1.0]], &[0]).top1, 100.0);
        assert_eq!(count(&[&[1.0, 1.0]], &[1]).top1, 0.0);
        let row = [0.0f32; 7];
        assert_eq!(count(&[&row], &[4]).top5, 100.0);
        assert_eq!(count(&[&row], &[5]).top5, 0.0);
    }

    #[test]
    fn what_is_not_a_number_is_not_right() {
        for row in [[f32::NAN, 0.0], [f32::NAN, f32::NAN], [1.0, f32::NAN]] {
            let metrics = count(&[&row], &[0]);
            assert_eq!((metrics.top1, metrics.samples), (0.0, 1), "{row:?}");
        }
    }

    #[test]
    fn probabilities_and_logits_agree() {
        let mut counter = Counter::new(2, Scores::Probabilities);
        counter.add(&[0.25, 0.75], &[0]).unwrap();
        let found = counter.finish().loss;
        assert!((found - count(&[&[0.0, 3f32.ln()]], &[0]).loss).abs() < 1e-6);
    }

    #[test]
    fn wrong_labels_and_shapes_are_refused() {
        let mut counter = Counter::new(2, Scores::Logits);
        assert!(
            counter
                .add(&[0.0, 0.0], &[2])
                .unwrap_err()
                .to_string()
                .contains("class 2")
        );
        assert!(counter.add(&[0.0; 3], &[0, 1]).is_err());
    }

    #[test]
    fn spread_is_the_sample_deviation() {
        let spread = Spread::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (spread.mean, spread.std, spread.min, spread.max),
            (2.0, 1.0, 1.0, 3.0)
        );
        assert_eq!(Spread::of(&[5.0]).unwrap().std, 0.0);
        assert!(Spread::of(&[]).is_none());
        assert_eq!(spread.to_string(), "2.00 ± 1.00");
    }

    proptest::proptest! {
        #[test]
        fn how_samples_come_in_batches_changes_nothing(
            rows in proptest::collection::vec((proptest::array::uniform4(-5f32..5.0), 0usize..4), 1..30),
            cut in 0usize..30,
        ) {
            let add = |counter: &mut Counter, rows: &[([f32; 4], usize)]| {
                let scores: Vec<f32> = rows.iter().flat_map(|(row, _)| *row).collect();
                let labels: Vec<usize> = rows.iter().map(|(_, label)| *label).collect();
                counter.add(&scores, &labels).unwrap();
            };
            let (mut whole, mut parts) = (Counter::new(4, Scores::Logits), Counter::new(4, Scores::Logits));
            add(&mut whole, &rows);
            let (first, second) = rows.split_at(cut.min(rows.len()));
            add(&mut parts, first);
            add(&mut parts, second);
            // As are counters of parts, whose losses only round differently.
            let mut sum = Counter::new(4, Scores::Logits);
            for part in [first, second] {
                let mut counter = Counter::new(4, Scores::Logits);
                add(&mut counter, part);
                let mut words = counter.words();
                words.push(7);
                proptest::prop_assert_eq!(sum.absorb(&words), &[7]);
            }
            let (whole, parts, sum) = (whole.finish(), parts.finish(), sum.finish());
            proptest::prop_assert!((sum.loss - whole.loss).abs() < 1e-12);
            proptest::prop_assert_eq!(&Metrics { loss: whole.loss, ..sum }, &whole);
            proptest::prop_assert_eq!(&whole, &parts);
            let right = rows.iter().filter(|(row, label)| argmax(row) == *label).count();
            proptest::prop_assert_eq!(whole.top1, 100.0 * right as f64 / rows.len() as f64);
        }
    }
}
