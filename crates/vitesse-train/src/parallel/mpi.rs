//! MPI below a team.
//!
//! One thread owns MPI and takes part in its (blocking) collectives; the process's own thread waits for the results. So a
//! process that is asked to end while it waits for one that has died can still save what it has: the thread that is stuck
//! ends with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::datatype::Equivalence;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::Transport;
use crate::{Error, Result};

/// How long the others are waited for once this process was asked to end. When a process dies, Open MPI asks the others to
/// end and kills them a second later; in that second the state has to be saved.
const GRACE: Duration = Duration::from_millis(400);

/// How often the request to end is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// What the thread that owns MPI is asked to do.
type Job = Box<dyn FnOnce(&SimpleCommunicator) + Send>;

/// All processes that were launched together.
#[derive(Debug)]
pub(super) struct World {
    rank: usize,
    size: usize,
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    patient: AtomicBool,
}

/// Starts MPI.
pub(super) fn start(stop: Arc<AtomicBool>) -> Result<World> {
    let failed = |reason: String| Error::Mpi(format!("MPI does not start: {reason}"));
    let (jobs, queue) = channel::<Job>();
    let (place, placed) = channel();
    let work = move || {
        // Only this thread calls MPI.
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return;
        };
        let world = universe.world();
        let _ = place.send((world.rank() as usize, world.size() as usize));
        queue.into_iter().for_each(|job| job(&world));
    };
    let builder = std::thread::Builder::new().name("vitesse-mpi".to_owned());
    let thread = builder.spawn(work).map_err(|error| failed(error.to_string()))?;
    let (rank, size) = placed
        .recv()
        .map_err(|_| failed("it has been started before".to_owned()))?;
    Ok(World {
        rank,
        size,
        jobs,
        thread,
        stop,
        patient: AtomicBool::new(false),
    })
}

impl World {
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Does `work` in the thread that owns MPI, and waits for its result.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SimpleCommunicator) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |world| {
            // Nobody listens any more where the process is about to end.
            let _ = answer.send(work(world));
        });
        self.jobs.send(job).map_err(|_| Error::Lost)?;
        let mut asked_to_end: Option<Instant> = None;
        loop {
            match answered.recv_timeout(GLANCE) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Lost),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.load(Ordering::Relaxed) && !self.patient.load(Ordering::Relaxed) {
                let since = asked_to_end.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    return Err(Error::Lost);
                }
            }
        }
    }

    fn gather_any<T: Equivalence + Default + Clone + Send + 'static>(&self, mine: Vec<T>) -> Result<Vec<T>> {
        let size = self.size;
        self.call(move |world| {
            let mut all = vec![T::default(); mine.len() * size];
            world.all_gather_into(&mine[..], &mut all[..]);
            all
        })
    }
}

impl Transport for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather_words(&self, mine: Vec<u64>) -> Result<Vec<u64>> {
        self.gather_any(mine)
    }

    fn gather(&self, mine: Vec<f32>) -> Result<Vec<f32>> {
        self.gather_any(mine)
    }

    fn swap(&self, mine: Vec<f32>) -> Result<Vec<f32>> {
        self.call(move |world| {
            let mut theirs = vec![0.0; mine.len()];
            world.all_to_all_into(&mine[..], &mut theirs[..]);
            theirs
        })
    }

    fn be_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    fn finish(self: Box<Self>) {
        if self.call(|world| world.barrier()).is_ok() {
            // Without jobs the thread ends, and MPI with it.
            drop(self.jobs);
            let _ = self.thread.join();
        }
    }
}
