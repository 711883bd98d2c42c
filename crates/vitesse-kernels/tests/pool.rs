//! Threads that work together: every index is called once, panics come out, and the pool lives on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use vitesse_kernels::{Barrier, Pool};

#[test]
fn every_index_is_called_once_in_each_of_many_runs() {
    for threads in 1..=4 {
        let mut pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for run in 1..=500 {
            pool.run(&|index| {
                calls[index].fetch_add(1, Ordering::Relaxed);
            });
            // What the threads wrote is there when `run` returns.
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == run));
        }
    }
    assert_eq!(Pool::new(0).unwrap().threads(), 1);
}

#[test]
fn work_may_borrow_and_its_writes_are_seen() {
    let mut pool = Pool::new(3).unwrap();
    for run in 0..200usize {
        let parts: Vec<Mutex<Vec<usize>>> = (0..3).map(|_| Mutex::new(Vec::new())).collect();
        pool.run(&|index| parts[index].lock().unwrap().extend(0..run + index));
        let lens: Vec<usize> = parts
            .into_iter()
            .map(|part| part.into_inner().unwrap().len())
            .collect();
        assert_eq!(lens, [run, run + 1, run + 2]);
    }
}

#[test]
fn a_panic_comes_out_and_the_pool_works_afterwards() {
    for threads in 1..=4 {
        let mut pool = Pool::new(threads).unwrap();
        for who in (0..threads).chain([usize::MAX]) {
            let done = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|index| {
                    done.fetch_add(1, Ordering::Relaxed);
                    assert!(index != who && who != usize::MAX, "thread {index} fails");
                });
            }));
            let panic = result.unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(
                text.contains("fails") && (who == usize::MAX || text.contains(&who.to_string())),
                "{text}"
            );
            // The others were not left behind.
            assert_eq!(done.load(Ordering::Relaxed), threads);
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.load(Ordering::Relaxed), threads);
        }
    }
}

#[test]
fn nobody_passes_a_barrier_before_all_have_come() {
    for threads in 1..=4 {
        let mut pool = Pool::new(threads).unwrap();
        let barrier = Barrier::new(threads);
        let rounds = AtomicUsize::new(0);
        for run in 0..20 {
            pool.run(&|_| {
                for round in 1..=50 {
                    rounds.fetch_add(1, Ordering::Relaxed);
                    barrier.wait();
                    let seen = rounds.load(Ordering::Relaxed);
                    let least = (run * 50 + round) * threads;
                    assert!(
                        (least..=least + threads).contains(&seen),
                        "{seen} in round {round} of {threads}"
                    );
                    barrier.wait();
                }
            });
        }
    }
}
