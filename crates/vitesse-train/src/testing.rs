//! What the unit tests share: tiny models, a data set in memory, and teams whose processes are threads.

use std::sync::mpsc::{Receiver, Sender, channel};

use vitesse_data::{DataSet, Error, Preprocess};
use vitesse_model::Checkpoint;
use vitesse_model::spec::{NetworkSpec, PrefixToken, RegNetSpec, RegNetStage, VitSpec};

use crate::parallel::{Team, Transport};

#[path = "../tests/tiny/mod.rs"]
mod tiny;

pub(crate) use tiny::CLASSES;
use tiny::checkpoint;

/// Three blocks of width 12 on images of 8 pixels, distilled.
pub(crate) fn vit(seed: u64) -> Checkpoint {
    let prefix = vec![PrefixToken::Class, PrefixToken::Distillation];
    let body = NetworkSpec::Vit(VitSpec::plain(8, 4, 12, 3, 3, prefix));
    checkpoint("deit_micro_distilled_patch4_32", body, seed)
}

/// Two stages of one block on images of 8 pixels.
pub(crate) fn regnet(seed: u64) -> Checkpoint {
    let stage = |width| RegNetStage {
        depth: 1,
        width,
        group_width: 4,
        stride: 2,
    };
    let body = NetworkSpec::RegNet(RegNetSpec {
        img_size: [8, 8],
        in_chans: 3,
        stem_width: 4,
        stem_stride: 1,
        stages: vec![stage(8), stage(12)],
        se_ratio: 0.25,
        bn_eps: 1e-5,
    });
    checkpoint("regnety_nano_32", body, seed)
}

/// How images are prepared for the models here.
pub(crate) fn prepared() -> Preprocess {
    let checkpoint = vit(0);
    checkpoint.preprocess().unwrap()
}

/// Labelled noise; every 10th picture from the 5th on cannot be read.
pub(crate) fn noise(n: usize) -> DataSet {
    tiny::pictures(n, |index| {
        if index % 10 == 5 {
            return Err(Error::Decode {
                name: format!("picture-{index}"),
                reason: "torn".into(),
            });
        }
        tiny::noise(index)
    })
}

/// A process of a team that is a thread.
#[derive(Debug)]
struct Thread {
    rank: usize,
    to: Vec<Sender<Vec<u64>>>,
    from: Vec<Receiver<Vec<u64>>>,
}

impl Thread {
    /// Sends `parts[r]` to thread `r`; returns what this one was sent.
    fn exchange(&self, parts: Vec<Vec<u64>>) -> crate::Result<Vec<u64>> {
        for (to, part) in self.to.iter().zip(parts) {
            to.send(part).map_err(|_| crate::Error::Lost)?;
        }
        let mut all = Vec::new();
        for from in &self.from {
            all.extend(from.recv().map_err(|_| crate::Error::Lost)?);
        }
        Ok(all)
    }

    fn exchange_floats(&self, parts: Vec<&[f32]>) -> crate::Result<Vec<f32>> {
        let bits = |part: &[f32]| part.iter().map(|x| u64::from(x.to_bits())).collect();
        let all = self.exchange(parts.into_iter().map(bits).collect())?;
        Ok(all.into_iter().map(|bits| f32::from_bits(bits as u32)).collect())
    }
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn gather_words(&self, mine: Vec<u64>) -> crate::Result<Vec<u64>> {
        self.exchange(vec![mine; self.size()])
    }

    fn gather(&self, mine: Vec<f32>) -> crate::Result<Vec<f32>> {
        self.exchange_floats(vec![&mine; self.size()])
    }

    fn swap(&self, mine: Vec<f32>) -> crate::Result<Vec<f32>> {
        assert!(mine.len().is_multiple_of(self.size()));
        self.exchange_floats(mine.chunks(mine.len() / self.size()).collect())
    }

    fn be_patient(&self) {}

    fn finish(self: Box<Self>) {}
}

/// What `size` threads make of `work`, each as a process of one team; `Err` for one that panics.
pub(crate) fn together<T: Send>(
    size: usize,
    work: impl Fn(&Team) -> T + Sync,
) -> Vec<std::thread::Result<T>> {
    let mut ends: Vec<(Vec<_>, Vec<_>)> = (0..size).map(|_| Default::default()).collect();
    for sender in 0..size {
        for receiver in 0..size {
            let (to, from) = channel();
            ends[sender].0.push(to);
            ends[receiver].1.push(from);
        }
    }
    std::thread::scope(|scope| {
        let threads = ends.into_iter().enumerate().map(|(rank, (to, from))| {
            let (work, team) = (&work, Team::new(Box::new(Thread { rank, to, from })));
            scope.spawn(move || work(&team))
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    })
}
