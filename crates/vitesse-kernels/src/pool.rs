//! A few threads that run one piece of work together.
//!
//! The work of an inference is short, and so are the pauses inside it: a thread that waits spins for some microseconds,
//! because waking it would take as long, and then sleeps, because a spinning thread takes the core from whoever has work.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often a waiting thread looks before it sleeps: some 20 to 50 microseconds.
const SPINS: usize = 1000;

/// A number that only grows, and that threads can wait for.
#[derive(Debug, Default)]
struct Counter {
    value: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counter {
    fn add(&self) {
        // Under the lock, so that no one falls asleep between a look and the change.
        let guard = locked(&self.lock);
        self.value.fetch_add(1, Ordering::Release);
        drop(guard);
        self.changed.notify_all();
    }

    /// Waits until the number is at least `least`.
    fn reach(&self, least: usize) {
        for _ in 0..SPINS {
            if self.value.load(Ordering::Acquire) >= least {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = locked(&self.lock);
        while self.value.load(Ordering::Acquire) < least {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Lets the members of a team wait for each other, again and again.
#[derive(Debug)]
pub struct Barrier {
    members: usize,
    arrived: AtomicUsize,
    passed: Counter,
}

impl Barrier {
    /// For so many members.
    pub fn new(members: usize) -> Barrier {
        Barrier {
            members,
            arrived: AtomicUsize::new(0),
            passed: Counter::default(),
        }
    }

    /// Returns when every member has called it as often as this one.
    pub fn wait(&self) {
        if self.members <= 1 {
            return;
        }
        let arrival = self.arrived.fetch_add(1, Ordering::AcqRel);
        let round = arrival / self.members + 1;
        if (arrival + 1).is_multiple_of(self.members) {
            self.passed.add();
        } else {
            self.passed.reach(round);
        }
    }
}

type Work = *const (dyn Fn(usize) + Sync);

/// What the threads of a pool share.
struct Shared {
    work: Mutex<Option<Pointer>>,
    /// Pieces of work handed out, and pieces finished by a thread.
    begun: Counter,
    ended: Counter,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Pointer(Work);

// SAFETY: it points to something `Sync`, and `Pool::run` keeps that alive while threads use it.
unsafe impl Send for Pointer {}

/// Threads that wait for work. The one that hands it out takes part in it.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    runs: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// `threads` threads, of which the caller is one.
    ///
    /// # Errors
    /// Where the system has no more threads.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            work: Mutex::new(None),
            begun: Counter::default(),
            ended: Counter::default(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool {
            shared,
            threads: Vec::new(),
            runs: 0,
        };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("vitesse-{index}"))
                .spawn(move || serve(&shared, index))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` with 0, 1, … on all threads at once, and returns when all are done. A panic in any of them goes on in
    /// the caller.
    pub fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return work(0);
        }
        // SAFETY: only the lifetime changes. Threads use the pointer before they count as ended, and below this function
        // waits for all of them, whatever happens.
        let pointer = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Work>(work) };
        *locked(&self.shared.work) = Some(Pointer(pointer));
        self.runs += 1;
        self.shared.begun.add();
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        self.shared.ended.reach(self.runs * self.threads.len());
        *locked(&self.shared.work) = None;
        let other = locked(&self.shared.panic).take();
        if let Some(panic) = own.err().or(other) {
            resume_unwind(panic);
        }
    }
}

fn serve(shared: &Shared, index: usize) {
    for run in 1.. {
        shared.begun.reach(run);
        let Some(Pointer(work)) = *locked(&shared.work) else {
            return;
        };
        // SAFETY: `Pool::run` keeps it alive until this thread counts as ended.
        let work = unsafe { &*work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(index))) {
            locked(&shared.panic).get_or_insert(panic);
        }
        shared.ended.add();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Begun without work: the end.
        self.shared.begun.add();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
