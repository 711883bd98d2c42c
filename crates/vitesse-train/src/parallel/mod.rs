//! Several processes that do one work: data-parallel training (Li et al., 2020, "PyTorch Distributed"), and evaluation
//! in shards.
//!
//! Every process runs the same program with the same recipe. A [`Team`] says which of them this one is, and lets them
//! do three things together, each of which all of them call in the same order:
//!
//! * **meet**: tell one another in a few words whether they go on, want to stop, or cannot go on. Whatever one process
//!   finds out is acted upon by all after the same meeting, so none is left waiting for another.
//! * **gather** words of any number, such as the counts of an evaluation.
//! * **sum** tensors, such as gradients, in buckets of a fixed size. A bucket is cut into as many pieces as there are
//!   processes; each process receives one piece from everybody (all-to-all), adds it up in the order of the ranks,
//!   and hands the sum to everybody (all-gather). That is as much traffic as the ring's, and every sum has one order,
//!   whichever algorithms the library below prefers: all processes hold the same bits, in every repetition.
//!
//! So every process takes the same optimiser step and weights are never sent. The first process, of rank 0, leads: it
//! alone writes and speaks.
//!
//! The engine below is MPI ([`Team::launched`], feature `mpi`). A team of one needs none, and costs nothing.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(test)]
#[cfg(feature = "train")]
mod tests;

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::{Error, Result};

/// Numbers in a bucket: 25 MiB, as in PyTorch.
const BUCKET: usize = 25 * (1 << 20) / size_of::<f32>();

/// Words that a process says in a meeting.
pub const WORDS: usize = 4;

/// What a process says about itself, before its words.
const GO_ON: u64 = 0;
const STOP: u64 = 1;
const FAILED: u64 = 2;

/// What moves numbers between processes. Every method is called by all of them in the same order, with equally many
/// numbers, and fails only with [`Error::Lost`].
pub(crate) trait Transport: Debug + Send {
    /// Which process this is.
    fn rank(&self) -> usize;
    /// How many there are.
    fn size(&self) -> usize;
    /// Everybody's words, in the order of ranks.
    fn gather_words(&self, mine: Vec<u64>) -> Result<Vec<u64>>;
    /// Everybody's numbers, in the order of ranks.
    fn gather(&self, mine: Vec<f32>) -> Result<Vec<f32>>;
    /// Sends the `r`-th of `size` equal pieces to process `r`; returns what this process was sent, in the order of ranks.
    fn swap(&self, mine: Vec<f32>) -> Result<Vec<f32>>;
    /// From now on the others are waited for however long it takes, although this process was asked to end.
    fn be_patient(&self);
    /// Waits until everybody is here, and closes.
    fn finish(self: Box<Self>);
}

/// The processes that do one work.
#[derive(Debug)]
pub struct Team {
    transport: Option<Box<dyn Transport>>,
    bond: Cell<Bond>,
}

/// What holds a team together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bond {
    /// They go on together.
    Together,
    /// One of them cannot go on, and all know.
    Over,
    /// One of them has ended without a word.
    Lost,
}

/// What was said in a meeting.
#[derive(Debug)]
pub struct Meeting {
    /// Whether anybody wants to stop.
    pub stop: bool,
    /// Everybody's words, in the order of ranks.
    pub words: Vec<[u64; WORDS]>,
}

impl Meeting {
    /// The sum of everybody's `i`-th word, which is the bits of an `f64`, in the order of ranks.
    pub fn total(&self, i: usize) -> f64 {
        let words = self.words.iter().filter_map(|words| words.get(i));
        words.map(|&word| f64::from_bits(word)).sum()
    }
}

impl Team {
    /// One process that does everything.
    pub const fn alone() -> Team {
        Team {
            transport: None,
            bond: Cell::new(Bond::Together),
        }
    }

    /// The team that a launcher such as `mpirun` has made this process a part of; alone where there was none. Once `stop`
    /// is set, the others are no longer waited for without end: whoever asks a process to end may have ended them.
    ///
    /// # Errors
    /// [`Error::Mpi`] when MPI does not start, or when this program was built without it and was launched several times.
    #[cfg_attr(not(feature = "mpi"), expect(clippy::needless_pass_by_value))]
    pub fn launched(stop: Arc<AtomicBool>) -> Result<Team> {
        /// The number of processes, as Open MPI says it, and the launchers of MPICH and Slurm; the rank, where PMIx is followed.
        const LAUNCHERS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];
        let Some(launched) = LAUNCHERS.iter().find_map(|name| std::env::var(name).ok()) else {
            return Ok(Team::alone());
        };
        #[cfg(feature = "mpi")]
        {
            let _ = launched;
            let team = mpi::start(stop)?;
            Ok(if team.size() > 1 {
                Team::new(Box::new(team))
            } else {
                Team::alone()
            })
        }
        #[cfg(not(feature = "mpi"))]
        {
            let _ = stop;
            // One process, or the first of some.
            if launched == "1" || launched == "0" {
                return Ok(Team::alone());
            }
            Err(Error::Mpi(
                "this program was built without MPI, so each of the processes that were launched would do the whole work; \
                 build it with `cargo build --release --features mpi`, or start it once"
                    .into(),
            ))
        }
    }

    #[cfg_attr(not(any(test, feature = "mpi")), expect(dead_code))]
    pub(crate) fn new(transport: Box<dyn Transport>) -> Team {
        Team {
            transport: Some(transport),
            ..Team::alone()
        }
    }

    /// Which process this is, from 0.
    pub fn rank(&self) -> usize {
        self.transport.as_ref().map_or(0, |transport| transport.rank())
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.transport.as_ref().map_or(1, |transport| transport.size())
    }

    /// Whether this process writes and speaks for all.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Meets the others, and tells them whether to stop.
    ///
    /// # Errors
    /// [`Error::Peer`] when one of them cannot go on, [`Error::Lost`] when one has ended.
    pub fn meet(&self, stop: bool, words: [u64; WORDS]) -> Result<Meeting> {
        let said = self.say(if stop { STOP } else { GO_ON }, words)?;
        if let Some(rank) = said.iter().position(|(status, _)| *status == FAILED) {
            self.bond.set(Bond::Over);
            return Err(Error::Peer { rank });
        }
        let stop = said.iter().any(|(status, _)| *status == STOP);
        if let Some(transport) = self.transport.as_ref().filter(|_| stop) {
            transport.be_patient();
        }
        let words = said.into_iter().map(|(_, words)| words).collect();
        Ok(Meeting { stop, words })
    }

    /// Makes sure that all say the same about each of these things.
    ///
    /// # Errors
    /// [`Error::Apart`] for the first process that says something else; what [`Team::meet`] says.
    pub fn agree(&self, things: [(&'static str, u64); WORDS]) -> Result<()> {
        let meeting = self.meet(false, things.map(|(_, word)| word))?;
        let Some(first) = meeting.words.first() else {
            return Ok(());
        };
        for (rank, words) in meeting.words.iter().enumerate() {
            let mut pairs = words.iter().zip(first).zip(things);
            if let Some((_, (what, _))) = pairs.find(|((word, first), _)| word != first) {
                return Err(Error::Apart { what, rank });
            }
        }
        Ok(())
    }

    /// Tells the others, in the next meeting, that this process cannot go on. Whoever has an error calls it, once, before
    /// anything else; where the error came from a meeting the others know already, and nothing happens.
    pub fn leave(&self) {
        if self.bond.get() == Bond::Together {
            // Nobody is missed who is lost as well.
            let _ = self.say(FAILED, [0; WORDS]);
            if self.bond.get() == Bond::Together {
                self.bond.set(Bond::Over);
            }
        }
    }

    /// The end of the work: waits for all to be here, because a launcher ends all when one ends in failure.
    pub fn finish(self) {
        if let Some(transport) = self.transport.filter(|_| self.bond.get() != Bond::Lost) {
            transport.finish();
        }
    }

    /// Everybody's words, in the order of ranks; everybody may have another number of them.
    ///
    /// # Errors
    /// As [`Team::meet`].
    pub fn gather(&self, mine: Vec<u64>) -> Result<Vec<Vec<u64>>> {
        let mut counts = [0; WORDS];
        counts[0] = mine.len() as u64;
        let counts: Vec<usize> = self
            .meet(false, counts)?
            .words
            .iter()
            .map(|words| words[0] as usize)
            .collect();
        let (Some(transport), Some(&most)) = (&self.transport, counts.iter().max()) else {
            return Ok(vec![mine]);
        };
        if most == 0 {
            return Ok(vec![Vec::new(); counts.len()]);
        }
        let mut padded = mine;
        padded.resize(most, 0);
        let all = self.noted(transport.gather_words(padded))?;
        let parts = all.chunks(most).zip(counts);
        Ok(parts
            .map(|(words, count)| words.iter().take(count).copied().collect())
            .collect())
    }

    /// Adds up tensors over all processes, each of which has tensors of the same sizes.
    ///
    /// # Errors
    /// [`Error::Lost`], with the tensors half added up.
    pub fn sum<'a>(&self, tensors: impl Iterator<Item = &'a mut [f32]>) -> Result<()> {
        let Some(transport) = &self.transport else {
            return Ok(());
        };
        let (mut bucket, mut filled) = (Vec::new(), 0);
        for mut tensor in tensors {
            while !tensor.is_empty() {
                let (part, rest) = tensor.split_at_mut(tensor.len().min(BUCKET - filled));
                filled += part.len();
                bucket.push(part);
                tensor = rest;
                if filled == BUCKET {
                    self.noted(sum_bucket(transport.as_ref(), &mut bucket))?;
                    (bucket, filled) = (Vec::new(), 0);
                }
            }
        }
        if filled > 0 {
            self.noted(sum_bucket(transport.as_ref(), &mut bucket))?;
        }
        Ok(())
    }

    /// What everybody says: how they are, and their words.
    fn say(&self, status: u64, words: [u64; WORDS]) -> Result<Vec<(u64, [u64; WORDS])>> {
        let Some(transport) = &self.transport else {
            return Ok(vec![(status, words)]);
        };
        let mut mine = vec![status];
        mine.extend(words);
        let all = self.noted(transport.gather_words(mine))?;
        let records = all.chunks_exact(1 + WORDS).filter_map(<[u64]>::split_first);
        let said = records.filter_map(|(&status, words)| Some((status, words.try_into().ok()?)));
        Ok(said.collect())
    }

    /// The result, having noted whether somebody is lost.
    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(Error::Lost)) {
            self.bond.set(Bond::Lost);
        }
        result
    }
}

/// Adds up the parts of one bucket over all processes.
fn sum_bucket(transport: &dyn Transport, parts: &mut [&mut [f32]]) -> Result<()> {
    let mut values = parts.concat();
    values.resize(values.len().next_multiple_of(transport.size()), 0.0);
    let piece = values.len() / transport.size();
    let mut pieces = transport.swap(values)?;
    let (sum, others) = pieces.split_at_mut(piece);
    for other in others.chunks_exact(piece) {
        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
    pieces.truncate(piece);
    let sums = transport.gather(pieces)?;
    let mut sums = sums.iter();
    for part in parts {
        part.iter_mut()
            .zip(sums.by_ref())
            .for_each(|(to, sum)| *to = *sum);
    }
    Ok(())
}
