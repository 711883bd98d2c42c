//! Batches from a data set: worker threads read and transform samples, batches arrive in order, memory is bounded.
//!
//! A batch is cut into pieces of a few consecutive samples. Workers take the next piece, wherever the others are, but no piece more
//! than [`LoaderOptions::prefetch`] batches ahead of the consumer. What a sample looks like depends on its key alone, made of
//! (seed, epoch, index, copy), so neither the number of threads nor their timing can change a batch.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vitesse_rng::Key;

use crate::sampler::{Order, Pick, Replica};
use crate::{DataSet, Error, Image, Preprocess, Result, cores, most_threads};

/// From a picture to the numbers a model takes.
pub trait Transform: Send + Sync {
    /// The shape of a result, `[channels, height, width]`.
    fn output(&self) -> [usize; 3];

    /// The transformed picture, `channels · height · width` numbers. Every draw must come from `key`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the transform itself is not usable.
    fn apply(&self, image: &Image, key: Key) -> Result<Vec<f32>>;
}

impl Transform for Preprocess {
    fn output(&self) -> [usize; 3] {
        self.input_size
    }

    fn apply(&self, image: &Image, _: Key) -> Result<Vec<f32>> {
        self.run(image)
    }
}

/// What to do with a sample that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Leave it out; the batch is shorter. For evaluation.
    #[default]
    Skip,
    /// Take the next sample that can be read in its place, so that every batch is full. For training.
    Replace,
    /// Stop with the error.
    Stop,
}

/// How a loader works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderOptions {
    /// Samples a batch, at least 1; of this machine, where there are several. Default 64.
    pub batch_size: usize,
    /// Threads that read and transform; 0, the default, is one for each core of the machine.
    pub workers: usize,
    /// Batches made ahead of the consumer, at least 1; bounds the memory. Default 2.
    pub prefetch: usize,
    /// The order of the samples.
    pub order: Order,
    /// Decides the order and every augmentation.
    pub seed: u64,
    /// Whether a last, shorter batch is left out.
    pub drop_last: bool,
    /// What to do with a sample that cannot be read.
    pub on_error: OnError,
    /// This machine's part of every batch: the batches of all machines side by side, in the order of their ranks, are
    /// the batches of one machine whose `batch_size` is `of` times as large.
    pub replica: Replica,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions {
            batch_size: 64,
            workers: 0,
            prefetch: 2,
            order: Order::Sequential,
            seed: 0,
            drop_last: false,
            on_error: OnError::Skip,
            replica: Replica::default(),
        }
    }
}

/// Samples side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The transformed pictures, `shape`, in one piece.
    pub images: Vec<f32>,
    /// `[samples, channels, height, width]`.
    pub shape: [usize; 4],
    /// The class of each sample, where it is known.
    pub labels: Vec<Option<usize>>,
    /// Which sample of the data set each one is.
    pub indices: Vec<usize>,
    /// The samples of this batch that could not be read.
    pub failures: Vec<Failure>,
}

/// A sample that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which sample of the data set.
    pub index: usize,
    /// What it is called.
    pub name: String,
    /// Why; a sentence that names it.
    pub reason: String,
}

impl Batch {
    /// Number of samples; the last batch, and one with unreadable samples, can be short or even empty.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The class of every sample.
    ///
    /// # Errors
    /// [`Error::NoLabel`] naming the first sample without one.
    pub fn classes(&self, data: &DataSet) -> Result<Vec<usize>> {
        let labels = self.labels.iter().zip(&self.indices);
        labels
            .map(|(label, &index)| {
                label.ok_or_else(|| Error::NoLabel {
                    name: data.name(index),
                })
            })
            .collect()
    }
}

/// Turns a data set into batches, epoch after epoch.
#[derive(Clone)]
pub struct Loader {
    data: DataSet,
    transform: Arc<dyn Transform>,
    options: LoaderOptions,
}

impl Loader {
    /// A loader over `data`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a batch size or a prefetch of zero, more workers than [`most_threads`], or an impossible replica or order.
    pub fn new(data: DataSet, transform: impl Transform + 'static, options: LoaderOptions) -> Result<Loader> {
        for (key, value) in [("batch_size", options.batch_size), ("prefetch", options.prefetch)] {
            if value == 0 {
                return Err(Error::setting(key, &0, "at least 1"));
            }
        }
        if options.workers > most_threads() {
            let expected = format!(
                "at most {} on this machine, or 0 for one on each of its {} cores",
                most_threads(),
                cores()
            );
            return Err(Error::setting("workers", &options.workers, expected));
        }
        options.order.visits(0, 0, 0)?;
        options.replica.check()?;
        Ok(Loader {
            data,
            transform: Arc::new(transform),
            options,
        })
    }

    /// The data set.
    pub fn data(&self) -> &DataSet {
        &self.data
    }

    /// Batches an epoch.
    ///
    /// # Errors
    /// None for a loader whose options were not changed; see [`Order::visits`].
    pub fn batches(&self) -> Result<usize> {
        Ok(self.visits(0, 0)?.len().div_ceil(self.options.batch_size))
    }

    /// One epoch. The threads start at once and stop when the result is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub fn epoch(&self, epoch: u64) -> Result<Batches> {
        self.rest_of_epoch(epoch, 0)
    }

    /// One epoch without its first `skipped` batches, of which nothing is read.
    ///
    /// # Errors
    /// As [`Loader::epoch`].
    pub fn rest_of_epoch(&self, epoch: u64, skipped: usize) -> Result<Batches> {
        let visits = self.visits(epoch, skipped)?;
        let size = self.options.batch_size;
        let workers = match self.options.workers {
            0 => cores(),
            n => n,
        };
        let pieces = pieces(visits.len(), size, workers);
        let job = Arc::new(Job {
            data: self.data.clone(),
            transform: Arc::clone(&self.transform),
            on_error: self.options.on_error,
            key: Key::new(self.options.seed).with("sample").at(epoch),
            ahead: pieces
                .iter()
                .take_while(|piece| piece.batch < self.options.prefetch)
                .count()
                .max(1),
            visits,
            pieces,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let mut batches = Batches {
            job,
            next: 0,
            threads: Vec::new(),
        };
        for _ in 0..workers.min(batches.job.pieces.len()) {
            let job = Arc::clone(&batches.job);
            let thread = std::thread::Builder::new()
                .name("vitesse-loader".to_owned())
                .spawn(move || job.work());
            batches
                .threads
                .push(thread.map_err(Error::io(std::path::Path::new("a loader thread")))?);
        }
        Ok(batches)
    }

    /// The samples of the batches that [`Loader::rest_of_epoch`] would read; nothing is.
    ///
    /// # Errors
    /// None for a loader whose options were not changed.
    pub fn order(&self, epoch: u64, skipped: usize) -> Result<Vec<Vec<usize>>> {
        let visits = self.visits(epoch, skipped)?;
        let batches = visits.chunks(self.options.batch_size);
        Ok(batches
            .map(|batch| batch.iter().map(|pick| pick.index).collect())
            .collect())
    }

    /// What this machine visits in an epoch, after its first `skipped` batches.
    fn visits(&self, epoch: u64, skipped: usize) -> Result<Vec<Pick>> {
        let LoaderOptions {
            batch_size: size,
            order,
            seed,
            replica,
            drop_last,
            ..
        } = self.options;
        let mut visits = order.visits(self.data.len(), seed, epoch)?;
        let together = size.saturating_mul(replica.of);
        if drop_last {
            visits.truncate(visits.len() / together * together);
        }
        let batches = visits.chunks(together).skip(skipped);
        let parts = batches.filter_map(|batch| batch.chunks(size).nth(replica.rank));
        Ok(parts.flatten().copied().collect())
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("data", &self.data)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Consecutive visits that one worker makes at a stretch; all of one batch.
#[derive(Debug)]
struct Piece {
    batch: usize,
    visits: std::ops::Range<usize>,
}

/// Cuts batches so that every worker has its share of each, in pieces of at most 8 samples.
fn pieces(visits: usize, batch_size: usize, workers: usize) -> Vec<Piece> {
    let size = batch_size.div_ceil(workers).clamp(1, 8);
    let mut pieces = Vec::new();
    for (batch, start) in (0..visits).step_by(batch_size).enumerate() {
        let end = (start + batch_size).min(visits);
        for first in (start..end).step_by(size) {
            pieces.push(Piece {
                batch,
                visits: first..(first + size).min(end),
            });
        }
    }
    pieces
}

/// An epoch, shared by its threads.
struct Job {
    data: DataSet,
    transform: Arc<dyn Transform>,
    on_error: OnError,
    key: Key,
    visits: Vec<Pick>,
    pieces: Vec<Piece>,
    /// Pieces that may be begun and not yet consumed.
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next piece to begin.
    begun: usize,
    /// Pieces given to the consumer.
    consumed: usize,
    done: BTreeMap<usize, Result<Made>>,
    stopped: bool,
}

/// The samples of a piece. They stay apart until the batch has a place for them, so that each is copied once.
#[derive(Default)]
struct Made {
    images: Vec<Vec<f32>>,
    labels: Vec<Option<usize>>,
    indices: Vec<usize>,
    failures: Vec<Failure>,
}

impl Job {
    /// The state; a panic while it was held cannot have left it half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life.
    fn work(&self) {
        loop {
            let mut state = self.lock();
            while !state.stopped
                && state.begun < self.pieces.len()
                && state.begun >= state.consumed + self.ahead
            {
                state = self.wait(state);
            }
            let index = state.begun;
            let Some(piece) = self.pieces.get(index).filter(|_| !state.stopped) else {
                return;
            };
            state.begun += 1;
            drop(state);
            let result = guarded(
                || format!("samples of batch {}", piece.batch),
                || self.make(piece),
            );
            self.lock().done.insert(index, result);
            self.changed.notify_all();
        }
    }

    /// Reads and transforms the samples of a piece.
    fn make(&self, piece: &Piece) -> Result<Made> {
        let mut made = Made::default();
        for pick in self.visits.get(piece.visits.clone()).unwrap_or_default() {
            self.add(*pick, &mut made)?;
        }
        Ok(made)
    }

    fn empty(&self, capacity: usize) -> Batch {
        let [channels, height, width] = self.transform.output();
        Batch {
            images: Vec::with_capacity(capacity * channels * height * width),
            shape: [0, channels, height, width],
            labels: Vec::with_capacity(capacity),
            indices: Vec::with_capacity(capacity),
            failures: Vec::new(),
        }
    }

    fn add(&self, pick: Pick, made: &mut Made) -> Result<()> {
        /// Successive unreadable samples after which a data set is beyond repair.
        const MOST_FAILURES: usize = 50;
        for attempt in 0..MOST_FAILURES {
            let index = (pick.index + attempt) % self.data.len().max(1);
            match self.sample(Pick { index, ..pick }) {
                Ok(pixels) => {
                    made.images.push(pixels);
                    made.labels.push(self.data.label(index));
                    made.indices.push(index);
                    return Ok(());
                }
                Err(error)
                    if self.on_error == OnError::Stop
                        || matches!(error, Error::Worker { .. } | Error::Setting { .. }) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    let name = self.data.name(index);
                    made.failures.push(Failure {
                        index,
                        name,
                        reason: error.to_string(),
                    });
                    if self.on_error == OnError::Skip {
                        return Ok(());
                    }
                    if attempt + 1 == MOST_FAILURES {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn sample(&self, pick: Pick) -> Result<Vec<f32>> {
        let name = || self.data.name(pick.index);
        let pixels = guarded(name, || {
            let key = self.key.at(pick.index as u64).at(pick.copy as u64);
            self.transform.apply(&self.data.load(pick.index)?, key)
        })?;
        let expected: usize = self.transform.output().iter().product();
        if pixels.len() != expected {
            let reason = format!(
                "its transform gave {} numbers instead of {expected}",
                pixels.len()
            );
            return Err(Error::Worker { name: name(), reason });
        }
        Ok(pixels)
    }
}

/// Turns a panic into an error: a thread that died silently would leave the consumer waiting.
fn guarded<T>(name: impl FnOnce() -> String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Worker {
            name: name(),
            reason: text.unwrap_or_else(|| "a panic".to_owned()),
        })
    })
}

/// The batches of one epoch, in order. After an error there are no more. Dropping it stops the threads.
pub struct Batches {
    job: Arc<Job>,
    /// The next piece to hand out.
    next: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let number = self.job.pieces.get(self.next)?.batch;
        let of_batch = |piece: &&Piece| piece.batch == number;
        let samples = self.job.pieces[self.next..]
            .iter()
            .take_while(of_batch)
            .map(|piece| piece.visits.len())
            .sum();
        let mut batch = self.job.empty(samples);
        while self.job.pieces.get(self.next).as_ref().is_some_and(of_batch) {
            let mut state = self.job.lock();
            let piece = loop {
                match state.done.remove(&self.next) {
                    Some(piece) => break piece,
                    None => state = self.job.wait(state),
                }
            };
            self.next += 1;
            state.consumed = self.next;
            drop(state);
            self.job.changed.notify_all();
            match piece {
                Ok(piece) => {
                    for pixels in &piece.images {
                        batch.images.extend_from_slice(pixels);
                    }
                    batch.shape[0] += piece.images.len();
                    batch.labels.extend(piece.labels);
                    batch.indices.extend(piece.indices);
                    batch.failures.extend(piece.failures);
                }
                Err(error) => {
                    self.next = self.job.pieces.len();
                    return Some(Err(error));
                }
            }
        }
        Some(Ok(batch))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.job.lock().stopped = true;
        self.job.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Workers catch panics themselves.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Samples;

    /// One-pixel pictures; some cannot be read, and one kills its reader.
    #[derive(Debug)]
    struct Pixels {
        len: usize,
        broken: Vec<usize>,
        deadly: Option<usize>,
        loads: Arc<AtomicUsize>,
    }

    impl Samples for Pixels {
        fn len(&self) -> usize {
            self.len
        }
        fn label(&self, index: usize) -> Option<usize> {
            (index % 5 != 4).then_some(index % 5)
        }
        fn name(&self, index: usize) -> String {
            format!("pixel-{index}")
        }
        fn load(&self, index: usize) -> Result<Image> {
            self.loads.fetch_add(1, Ordering::Relaxed);
            assert!(self.deadly != Some(index), "deadly pixel");
            if self.broken.contains(&index) {
                return Err(Error::decode(&self.name(index), &"broken"));
            }
            Ok(Image::filled(1, 1, [index as u8; 3]))
        }
    }

    /// The pixel's red, and a number of the sample's key.
    struct Keyed;

    impl Transform for Keyed {
        fn output(&self) -> [usize; 3] {
            [2, 1, 1]
        }
        fn apply(&self, image: &Image, key: Key) -> Result<Vec<f32>> {
            Ok(vec![f32::from(image.pixel(0, 0)[0]), key.rng().uniform() as f32])
        }
    }

    fn pixels(len: usize, broken: &[usize], deadly: Option<usize>) -> (DataSet, Arc<AtomicUsize>) {
        let loads = Arc::new(AtomicUsize::new(0));
        let samples = Pixels {
            len,
            broken: broken.to_vec(),
            deadly,
            loads: Arc::clone(&loads),
        };
        (
            DataSet::new(samples, (0..5).map(|class| class.to_string()).collect()),
            loads,
        )
    }

    fn all(data: &DataSet, options: LoaderOptions, epoch: u64) -> Result<Vec<Batch>> {
        Loader::new(data.clone(), Keyed, options)?.epoch(epoch)?.collect()
    }

    #[test]
    fn the_rest_of_an_epoch_is_the_same_and_nothing_before_it_is_read() {
        let (data, loads) = pixels(53, &[11, 30], None);
        let options = LoaderOptions {
            batch_size: 8,
            order: Order::Repeated { repeats: 3 },
            on_error: OnError::Replace,
            ..LoaderOptions::default()
        };
        let loader = Loader::new(data, Keyed, options).unwrap();
        let whole: Vec<Batch> = loader.epoch(2).unwrap().collect::<Result<_>>().unwrap();
        for skipped in [0, 3, whole.len(), 99] {
            loads.store(0, Ordering::Relaxed);
            let rest: Vec<Batch> = loader
                .rest_of_epoch(2, skipped)
                .unwrap()
                .collect::<Result<_>>()
                .unwrap();
            assert!(rest == whole[skipped.min(whole.len())..], "{skipped}");
            let read: usize = rest.iter().map(|batch| batch.len() + batch.failures.len()).sum();
            assert_eq!(loads.load(Ordering::Relaxed), read, "{skipped}");
        }
    }

    #[test]
    fn machines_side_by_side_are_one_machine() {
        let (data, _) = pixels(53, &[], None);
        for (drop_last, order) in [
            (true, Order::Shuffled),
            (false, Order::Sequential),
            (true, Order::Repeated { repeats: 3 }),
        ] {
            let batches = |batch_size, replica, skipped| -> Vec<Batch> {
                let options = LoaderOptions {
                    batch_size,
                    order,
                    drop_last,
                    replica,
                    ..LoaderOptions::default()
                };
                let loader = Loader::new(data.clone(), Keyed, options).unwrap();
                let batches: Result<Vec<Batch>> = loader.rest_of_epoch(1, skipped).unwrap().collect();
                batches.unwrap()
            };
            for skipped in [0, 2] {
                let whole = batches(12, Replica::default(), skipped);
                let parts = [0, 1, 2].map(|rank| batches(4, Replica { rank, of: 3 }, skipped));
                for (i, whole) in whole.iter().enumerate() {
                    let parts = parts.iter().filter_map(|batches| batches.get(i));
                    let indices: Vec<usize> = parts.clone().flat_map(|batch| batch.indices.clone()).collect();
                    let images: Vec<f32> = parts.flat_map(|batch| batch.images.clone()).collect();
                    assert_eq!((&indices, &images), (&whole.indices, &whole.images));
                }
                // 53 samples: the last batch has 5, of which the third machine has none.
                let counts = if drop_last { [4, 4, 4] } else { [5, 5, 4] };
                assert_eq!(parts.map(|batches| batches.len() + skipped), counts);
            }
        }
    }

    #[test]
    fn batches_are_in_order_and_complete() {
        let (data, _) = pixels(53, &[], None);
        let options = LoaderOptions {
            batch_size: 10,
            workers: 3,
            ..LoaderOptions::default()
        };
        let batches = all(&data, options.clone(), 0).unwrap();
        assert_eq!(
            batches.iter().map(Batch::len).collect::<Vec<_>>(),
            [10, 10, 10, 10, 10, 3]
        );
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices, (0..53).collect::<Vec<_>>());
        assert_eq!((batches[5].shape, batches[5].images.len()), ([3, 2, 1, 1], 6));
        assert_eq!(batches[1].images[0], 10.0);
        let loader = Loader::new(
            data.clone(),
            Keyed,
            LoaderOptions {
                drop_last: true,
                ..options
            },
        )
        .unwrap();
        assert_eq!(
            (loader.batches().unwrap(), loader.epoch(0).unwrap().count()),
            (5, 5)
        );
        let error = batches[0].classes(&data).unwrap_err().to_string();
        assert!(error.contains("pixel-4"), "{error}");
    }

    #[test]
    fn nothing_depends_on_the_number_of_threads() {
        let (data, _) = pixels(100, &[7, 8, 50], None);
        for on_error in [OnError::Skip, OnError::Replace] {
            let run = |workers, prefetch, epoch| {
                let order = Order::Repeated { repeats: 3 };
                let options = LoaderOptions {
                    batch_size: 7,
                    workers,
                    prefetch,
                    order,
                    on_error,
                    ..LoaderOptions::default()
                };
                all(&data, options, epoch).unwrap()
            };
            let reference = run(1, 1, 3);
            assert_eq!(run(4, 1, 3), reference);
            assert_eq!(run(9, 5, 3), reference);
            assert_ne!(run(1, 1, 4), reference);
        }
        // Copies of one sample are augmented differently.
        let options = LoaderOptions {
            order: Order::Repeated { repeats: 3 },
            ..LoaderOptions::default()
        };
        let batch = all(&data, options, 0).unwrap().remove(0);
        assert_eq!(batch.indices[0], batch.indices[1]);
        assert_ne!(batch.images[1], batch.images[3]);
    }

    #[test]
    fn unreadable_samples_are_reported() {
        let (data, _) = pixels(20, &[3, 4], None);
        let run = |on_error| {
            all(
                &data,
                LoaderOptions {
                    batch_size: 10,
                    on_error,
                    ..LoaderOptions::default()
                },
                0,
            )
        };
        let skipped = run(OnError::Skip).unwrap();
        assert_eq!((skipped[0].len(), skipped[0].failures.len()), (8, 2));
        assert_eq!(skipped[0].failures[0].name, "pixel-3");
        assert_eq!(
            skipped[0].failures[0].reason,
            "`pixel-3` cannot be decoded: broken"
        );
        let replaced = run(OnError::Replace).unwrap();
        assert_eq!(replaced[0].indices[2..6], [2, 5, 5, 5]);
        assert!(run(OnError::Stop).unwrap_err().to_string().contains("pixel-3"));
        let (hopeless, _) = pixels(3, &[0, 1, 2], None);
        let options = LoaderOptions {
            on_error: OnError::Replace,
            ..LoaderOptions::default()
        };
        assert!(all(&hopeless, options, 0).is_err());
    }

    #[test]
    fn a_panic_is_an_error_and_ends_the_epoch() {
        let (data, _) = pixels(100, &[], Some(42));
        let options = LoaderOptions {
            batch_size: 10,
            workers: 2,
            ..LoaderOptions::default()
        };
        let mut batches = Loader::new(data, Keyed, options).unwrap().epoch(0).unwrap();
        let error = batches.find_map(Result::err).unwrap().to_string();
        assert!(
            error.contains("pixel-42") && error.contains("deadly pixel"),
            "{error}"
        );
        assert!(batches.next().is_none());
    }

    #[test]
    fn dropping_early_stops_the_work_and_memory_is_bounded() {
        let (data, loads) = pixels(10_000, &[], None);
        let options = LoaderOptions {
            batch_size: 8,
            workers: 4,
            prefetch: 2,
            ..LoaderOptions::default()
        };
        let mut batches = Loader::new(data, Keyed, options).unwrap().epoch(0).unwrap();
        batches.next().unwrap().unwrap();
        drop(batches);
        // One batch consumed, and at most two begun ahead of it.
        assert!(loads.load(Ordering::Relaxed) <= 24);
    }

    #[test]
    fn impossible_options_are_named() {
        let (data, _) = pixels(3, &[], None);
        let key = |options| match Loader::new(data.clone(), Keyed, options) {
            Err(Error::Setting { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            key(LoaderOptions {
                batch_size: 0,
                ..LoaderOptions::default()
            }),
            "batch_size"
        );
        assert_eq!(
            key(LoaderOptions {
                prefetch: 0,
                ..LoaderOptions::default()
            }),
            "prefetch"
        );
        assert_eq!(
            key(LoaderOptions {
                workers: 100_000,
                ..LoaderOptions::default()
            }),
            "workers"
        );
        let replica = Replica { rank: 1, of: 1 };
        assert_eq!(
            key(LoaderOptions {
                replica,
                ..LoaderOptions::default()
            }),
            "replica"
        );
        // An empty set is no error.
        assert_eq!(
            all(&data.subset(&[]), LoaderOptions::default(), 0).unwrap().len(),
            0
        );
    }
}
