//! The engine as others see it.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vitesse_kernels::{Bf16, Isa, Real};
use vitesse_model::spec::FeatureMap;
use vitesse_model::{ModelSpec, Tensors};

use crate::plan::Plan;
use crate::profile::Profile;
use crate::session::{Runner, Session};
use crate::team::MOST_THREADS;
use crate::weights::Format;
use crate::{Error, Result};

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
    compiled: Compiled,
}

/// A plan with its threads, whatever its activations' type, and what the plan says about itself.
struct Compiled {
    packed_bytes: usize,
    macs: u64,
    outline: Vec<String>,
    session: Mutex<Box<dyn Runner>>,
}

impl Compiled {
    /// With all projections in one format.
    fn new<T: Real>(
        (spec, tensors): (&ModelSpec, &Tensors),
        maps: &[FeatureMap],
        format: Format,
        isa: Isa,
        threads: usize,
    ) -> Result<Self> {
        let plan = Plan::<T>::new(spec, tensors, maps, &|_| format)?;
        Ok(Compiled {
            packed_bytes: plan.bytes(),
            macs: plan.macs(),
            outline: plan.outline(),
            session: Mutex::new(Box::new(Session::new(plan, isa, threads)?)),
        })
    }
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
        Engine::compile((spec, tensors), &[], options)
    }

    /// Compiles a model whose tensors were checked: for what its heads say or, where there are `maps`, for those, which stand one after
    /// the other in the place of an image's logits.
    pub(crate) fn compile(
        (spec, tensors): (&ModelSpec, &Tensors),
        maps: &[FeatureMap],
        options: Options,
    ) -> Result<Engine> {
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
        // Where the processor has no products of bf16, what is not in 8 bits is in `f32`.
        let model = (spec, tensors);
        let compiled = match options.precision {
            Precision::F32 => Compiled::new::<f32>(model, maps, Format::Real, isa, threads),
            Precision::Bf16 => Compiled::new::<Bf16>(model, maps, Format::Real, isa, threads),
            Precision::Int8 if isa < Isa::Avx512Bf16 => {
                Compiled::new::<f32>(model, maps, Format::Int8, isa, threads)
            }
            Precision::Int8 => Compiled::new::<Bf16>(model, maps, Format::Int8, isa, threads),
        }?;
        Ok(Engine {
            spec: spec.clone(),
            precision: options.precision,
            isa,
            threads,
            compiled,
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
        self.compiled.packed_bytes
    }

    /// Multiply-accumulates that it really does for one image: those of [`ModelSpec::costs`], less what nobody reads (after
    /// the last keys and values only the tokens go on that the heads read), and less the ops that are folded into their
    /// neighbours. What rows and columns are filled up with is not counted.
    pub fn macs(&self) -> u64 {
        self.compiled.macs
    }

    /// What is done for an image, a line a step. Ops that are folded leave no trace in it, so that a merged model's is the
    /// plain model's, line for line.
    pub fn outline(&self) -> &[String] {
        &self.compiled.outline
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
        self.compiled
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, images: &[f32], count: usize) -> Result<()> {
        check_images(&self.spec, images, count)
    }
}

/// Whether `images` are the numbers of `count` images `[count, channels, height, width]` of the size that the model takes.
///
/// # Errors
/// [`Error::Input`] where they are not.
pub fn check_images(spec: &ModelSpec, images: &[f32], count: usize) -> Result<()> {
    let [channels, height, width] = spec.input_size();
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
