//! The engine as others see it.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vitesse_kernels::{Barrier, Bf16, Isa, Pool, Real};
use vitesse_model::{ModelSpec, Tensors};

use crate::forward::{Member, Shared, Team};
use crate::plan::Plan;
use crate::profile::Profile;
use crate::{Error, Result};

/// The most threads of one engine.
pub(crate) const MOST_THREADS: usize = 64;
/// The fewest tokens that are worth a thread.
const LEAST_TOKENS: usize = 8;

/// In what numbers an engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in `f32`.
    #[default]
    F32,
    /// Products of bf16, summed in `f32`; norms, softmax and the residual stream in `f32`.
    Bf16,
    /// The four projections of a block in 8-bit integers: weights with a scale for each output, activations with one for
    /// each token, found as they come. The rest as in bf16 (or in `f32` where the processor has no products of bf16).
    Int8,
}

impl Precision {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Precision::F32, Precision::Bf16, Precision::Int8]
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| format!("unknown precision `{text}`; there are f32, bf16, int8"))
    }
}

/// How to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Threads; 0 for one a core.
    pub threads: usize,
    /// In what numbers to compute.
    pub precision: Precision,
    /// Which instructions to use; `None` for [`Isa::choose`].
    pub isa: Option<Isa>,
}

/// What the heads say about a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// The class head's logits `[batch, classes]`; the features `[batch, dim]` of a model without classes.
    pub class: Vec<f32>,
    /// The distillation head's, empty for a model without one.
    pub distillation: Vec<f32>,
}

/// A compiled model. It can be shared by threads; runs follow one another.
pub struct Engine {
    spec: ModelSpec,
    precision: Precision,
    isa: Isa,
    threads: usize,
    packed_bytes: usize,
    outline: Vec<String>,
    session: Mutex<Box<dyn Runner>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Engine {
            spec,
            precision,
            isa,
            threads,
            ..
        } = self;
        write!(
            f,
            "Engine({}, {precision}, {threads} threads, {isa})",
            spec.architecture
        )
    }
}

impl Engine {
    /// Compiles a model. `source` names the tensors' origin in errors.
    ///
    /// # Errors
    /// Tensors that do not fit the spec, a network that is no vision transformer, an instruction set that is not there, no
    /// more threads.
    pub fn new(spec: &ModelSpec, tensors: &Tensors, source: &str, options: Options) -> Result<Engine> {
        spec.check(tensors, source)?;
        let isa = match options.isa {
            Some(isa) if isa.is_supported() => isa,
            Some(isa) => return Err(Error::Isa(format!("this processor does not have `{isa}`"))),
            None => Isa::choose().map_err(Error::Isa)?,
        };
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
        .min(MOST_THREADS);
        let int8 = options.precision == Precision::Int8;
        let f32_between = match options.precision {
            Precision::F32 => true,
            Precision::Bf16 => false,
            Precision::Int8 => isa < Isa::Avx512Bf16,
        };
        let (session, packed_bytes, outline): (Box<dyn Runner>, usize, Vec<String>) = if f32_between {
            let plan = Plan::<f32>::new(spec, tensors, int8)?;
            let (bytes, outline) = (plan.bytes(), plan.outline());
            (Box::new(Session::new(plan, isa, threads)?), bytes, outline)
        } else {
            let plan = Plan::<Bf16>::new(spec, tensors, int8)?;
            let (bytes, outline) = (plan.bytes(), plan.outline());
            (Box::new(Session::new(plan, isa, threads)?), bytes, outline)
        };
        Ok(Engine {
            spec: spec.clone(),
            precision: options.precision,
            isa,
            threads,
            packed_bytes,
            outline,
            session: Mutex::new(session),
        })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// In what numbers it computes.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// With which instructions.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// With how many threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        self.packed_bytes
    }

    /// What is done for an image, a line a step. Ops that are folded leave no trace in it, so that a merged model's is the
    /// plain model's, line for line.
    pub fn outline(&self) -> &[String] {
        &self.outline
    }

    /// Computes `images` `[count, channels, height, width]`, normalised as the checkpoint says.
    ///
    /// # Errors
    /// As many numbers as `count` images do not have.
    pub fn run(&self, images: &[f32], count: usize) -> Result<Output> {
        let mut out = Output::default();
        self.run_into(images, count, &mut out)?;
        Ok(out)
    }

    /// The same, into memory that is there: after the first call with so many images, nothing is allocated.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_into(&self, images: &[f32], count: usize, out: &mut Output) -> Result<()> {
        self.check(images, count)?;
        self.session().run(images, count, out);
        Ok(())
    }

    /// Runs once and tells where the first thread's time went.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn profile(&self, images: &[f32], count: usize) -> Result<Profile> {
        self.check(images, count)?;
        Ok(self.session().profile(images, count))
    }

    fn session(&self) -> MutexGuard<'_, Box<dyn Runner>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, images: &[f32], count: usize) -> Result<()> {
        let [channels, height, width] = self.spec.input_size();
        let expected = count.saturating_mul(channels * height * width);
        if images.len() == expected {
            return Ok(());
        }
        Err(Error::Input {
            images: count,
            channels,
            height,
            width,
            expected,
            found: images.len(),
        })
    }
}

/// A session, whatever its activations' type.
trait Runner: Send {
    fn run(&mut self, images: &[f32], count: usize, out: &mut Output);
    fn profile(&mut self, images: &[f32], count: usize) -> Profile;
}

/// A plan with threads and their memory.
struct Session<T: Real> {
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
    fn new(plan: Plan<T>, isa: Isa, threads: usize) -> Result<Self> {
        let pool = Pool::new(threads).map_err(|source| Error::Threads { threads, source })?;
        let team = threads.min(plan.tokens / LEAST_TOKENS).max(1);
        Ok(Session {
            members: (0..threads).map(|_| Mutex::new(Member::new())).collect(),
            shared: (0..threads).map(|_| Shared::new(&plan)).collect(),
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
        let (threads, size) = (self.members.len(), self.plan.img_size.iter().product::<usize>());
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
            for i in index * each..(index + 1) * each {
                member.forward(isa, plan, &alone, image(i));
            }
            if index < team && !together.is_empty() {
                // Keys and values of the images above are done with.
                barrier.wait();
                member.begin();
                let team = Team {
                    index,
                    members: &shared[..team],
                    barrier: Some(barrier),
                };
                together
                    .clone()
                    .for_each(|i| member.forward(isa, plan, &team, image(i)));
            }
        });
        self.collect(each, count - each * threads, out);
    }

    fn profile(&mut self, images: &[f32], count: usize) -> Profile {
        self.member(0).clock.start(self.plan.layers.len());
        self.run(images, count, &mut Output::default());
        self.member(0).clock.stop()
    }
}

impl<T: Real> Session<T> {
    /// Brings the members' results in the order of the images: `each` of every member, then `rest` of the first.
    fn collect(&self, each: usize, rest: usize, out: &mut Output) {
        let width = if self.plan.heads.is_empty() {
            self.plan.dim
        } else {
            self.plan.classes
        };
        let heads = if self.plan.heads.is_empty() {
            self.plan.read_rows()
        } else {
            self.plan.heads.len()
        };
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
