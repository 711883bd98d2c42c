//! The order of an epoch: a pure function of (seed, epoch).

use serde::{Deserialize, Serialize};
use vitesse_rng::Key;

use crate::{Error, Result};

/// In which order an epoch visits the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they stand, each exactly once: evaluation.
    #[default]
    Sequential,
    /// A fresh permutation every epoch: training.
    Shuffled,
    /// Repeated augmentation (Hoffer et al., 2020; DeiT): a fresh permutation of which every sample is taken `repeats` times in
    /// succession, each time augmented differently. An epoch still has about as many samples as the data set, so it
    /// visits about one in `repeats` of them.
    Repeated {
        /// Times each sample is taken; DeiT uses 3.
        repeats: usize,
    },
}

/// Which of several machines (or GPUs) this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub of: usize,
}

impl Default for Replica {
    fn default() -> Self {
        Replica { rank: 0, of: 1 }
    }
}

impl Replica {
    /// That the rank is below the number of replicas.
    pub(crate) fn check(self) -> Result<()> {
        if self.rank < self.of {
            return Ok(());
        }
        let expected = format!("a rank below {}", self.of);
        Err(Error::setting("replica", &self.rank, expected))
    }
}

/// One visit to a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The sample.
    pub index: usize,
    /// Which of its repetitions in this epoch, from 0.
    pub copy: usize,
}

impl Order {
    /// What an epoch over `n` samples visits, one after the other.
    ///
    /// # Errors
    /// [`Error::Setting`] for zero repeats.
    pub fn visits(self, n: usize, seed: u64, epoch: u64) -> Result<Vec<Pick>> {
        let key = Key::new(seed).with("order").at(epoch);
        let once = |index| Pick { index, copy: 0 };
        match self {
            Order::Sequential => Ok((0..n).map(once).collect()),
            Order::Shuffled => Ok(key.rng().permutation(n).into_iter().map(once).collect()),
            Order::Repeated { repeats: 0 } => Err(Error::setting("repeats", &0, "at least 1")),
            Order::Repeated { repeats } => Ok(repeated_augmentation(
                &key.rng().permutation(n),
                repeats,
                Replica::default(),
            )),
        }
    }
}

/// The arithmetic of repeated augmentation on a given permutation (spec of the reference: DeiT's `RASampler`): repeat each index in
/// place, pad from the start to a multiple of the replicas, deal the list out, and keep of each hand the first
/// `⌊⌊n/256⌋·256 / R⌋`. Fewer than 256 samples would keep nothing; then `⌊n / R⌋` (at least one) are kept.
pub fn repeated_augmentation(permutation: &[usize], repeats: usize, replica: Replica) -> Vec<Pick> {
    let n = permutation.len();
    let kept = if n < 256 {
        (n / replica.of).max(1)
    } else {
        n / 256 * 256 / replica.of
    };
    let mut hand = share(permutation, repeats, replica);
    hand.truncate(kept);
    hand
}

fn share(permutation: &[usize], repeats: usize, replica: Replica) -> Vec<Pick> {
    let total = permutation.len() * repeats;
    let padded = total.next_multiple_of(replica.of.max(1));
    (replica.rank..padded)
        .step_by(replica.of.max(1))
        .filter_map(|place| {
            let place = place % total.max(1);
            let index = *permutation.get(place / repeats.max(1))?;
            Some(Pick {
                index,
                copy: place % repeats.max(1),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(picks: &[Pick]) -> Vec<usize> {
        picks.iter().map(|pick| pick.index).collect()
    }

    #[test]
    fn shuffling_depends_on_seed_and_epoch_alone() {
        let visits = |seed, epoch| Order::Shuffled.visits(50, seed, epoch).unwrap();
        assert_eq!(visits(1, 2), visits(1, 2));
        assert_ne!(visits(1, 2), visits(1, 3));
        assert_ne!(visits(1, 2), visits(2, 2));
        let mut seen = indices(&visits(1, 2));
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(indices(&Order::Sequential.visits(50, 1, 2).unwrap()), seen);
    }

    #[test]
    fn copies_stand_side_by_side_and_are_dealt_out() {
        let permutation: Vec<usize> = (0..300).rev().collect();
        let one = repeated_augmentation(&permutation, 3, Replica::default());
        assert_eq!(one.len(), 256);
        assert_eq!(indices(&one[..4]), [299, 299, 299, 298]);
        assert_eq!(
            one[..4].iter().map(|pick| pick.copy).collect::<Vec<_>>(),
            [0, 1, 2, 0]
        );
        let second = repeated_augmentation(&permutation, 3, Replica { rank: 1, of: 2 });
        assert_eq!(
            (second.len(), &indices(&second[..3])[..]),
            (128, &[299, 298, 298][..])
        );
    }

    #[test]
    fn small_sets_keep_their_size() {
        let permutation: Vec<usize> = (0..100).collect();
        assert_eq!(
            repeated_augmentation(&permutation, 3, Replica::default()).len(),
            100
        );
        assert_eq!(
            repeated_augmentation(&permutation, 3, Replica { rank: 6, of: 7 }).len(),
            14
        );
        assert!(repeated_augmentation(&[], 3, Replica::default()).is_empty());
        assert!(Order::Repeated { repeats: 0 }.visits(5, 0, 0).is_err());
    }
}
