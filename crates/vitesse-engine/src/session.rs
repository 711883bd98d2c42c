//! A plan with threads: how a batch is shared by them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vitesse_kernels::{Barrier, Isa, Pool, Real};

use crate::engine::Output;
use crate::member::Member;
use crate::plan::Plan;
use crate::profile::Profile;
use crate::team::{LEAST_TOKENS, Run, Shared, Team};
use crate::{Error, Result};

/// A session, whatever its activations' type.
pub(crate) trait Runner: Send {
    fn run(&mut self, images: &[f32], count: usize, out: &mut Output);
    fn profile(&mut self, images: &[f32], count: usize) -> Profile;
}

/// A plan with threads and their memory.
pub(crate) struct Session<T: Real> {
    plan: Plan<T>,
    isa: Isa,
    pool: Pool,
    members: Vec<Mutex<Member<T>>>,
    shared: Vec<Shared<T>>,
    barrier: Barrier,
    /// How many threads compute one image together.
    team: usize,
}

impl<T: Real> Session<T> {
    pub(crate) fn new(plan: Plan<T>, isa: Isa, threads: usize) -> Result<Self> {
        let pool = Pool::new(threads).map_err(|source| Error::Threads { threads, source })?;
        let team = threads.min(plan.tokens / LEAST_TOKENS).max(1);
        Ok(Session {
            members: (0..threads).map(|_| Mutex::new(Member::new())).collect(),
            shared: (0..threads).map(|_| Shared::new()).collect(),
            barrier: Barrier::new(team),
            team,
            plan,
            isa,
            pool,
        })
    }

    fn member(&self, index: usize) -> MutexGuard<'_, Member<T>> {
        self.members[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Real> Runner for Session<T> {
    fn run(&mut self, images: &[f32], count: usize, out: &mut Output) {
        let (threads, size) = (self.members.len(), self.plan.pixels);
        let each = count / threads;
        let together = each * threads..count;
        let image = |i: usize| &images[i * size..(i + 1) * size];
        let Session {
            plan,
            isa,
            pool,
            members,
            shared,
            barrier,
            team,
            ..
        } = &mut *self;
        let (plan, isa, team) = (&*plan, *isa, *team);
        pool.run(&|index| {
            let mut member = members[index].lock().unwrap_or_else(PoisonError::into_inner);
            let member = &mut *member;
            member.results.clear();
            member.begin();
            let alone = Team {
                index: 0,
                members: &shared[index..=index],
                barrier: None,
            };
            let forward = |member: &mut Member<T>, team: &Team<'_, T>, i: usize| {
                let image = image(i);
                plan.forward(member, &Run { isa, image, team });
            };
            (index * each..(index + 1) * each).for_each(|i| forward(member, &alone, i));
            if index < team && !together.is_empty() {
                // Keys and values of the images above are done with.
                barrier.wait();
                member.begin();
                let team = Team {
                    index,
                    members: &shared[..team],
                    barrier: Some(barrier),
                };
                together.clone().for_each(|i| forward(member, &team, i));
            }
        });
        self.collect(each, count - each * threads, out);
    }

    fn profile(&mut self, images: &[f32], count: usize) -> Profile {
        self.member(0).clock.start(self.plan.layers);
        self.run(images, count, &mut Output::default());
        self.member(0).clock.stop()
    }
}

impl<T: Real> Session<T> {
    /// Brings the members' results in the order of the images: `each` of every member, then `rest` of the first.
    fn collect(&self, each: usize, rest: usize, out: &mut Output) {
        let [heads, width] = self.plan.answers;
        out.class.clear();
        out.distillation.clear();
        let mut take = |results: &[f32]| {
            for image in results.chunks_exact(heads * width) {
                out.class.extend_from_slice(&image[..width]);
                out.distillation.extend_from_slice(&image[width..]);
            }
        };
        for index in 0..self.members.len() {
            take(&self.member(index).results[..each * heads * width]);
        }
        take(&self.member(0).results[each * heads * width..][..rest * heads * width]);
    }
}
