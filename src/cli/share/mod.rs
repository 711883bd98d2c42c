//! `share`: layers of a model get the same matrices, the result is proved, and learns from a teacher.

#[cfg(feature = "train")]
mod teach;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vitesse::compress::share::multiplex::{Start, Transformation, listed};
use vitesse::measure::proof::FromBase;
#[cfg(feature = "train")]
use vitesse::measure::share::Lesson;
use vitesse::measure::share::{Share, Shared, Sharing};
use vitesse::measure::transform::Transform;
use vitesse::model::spec::{Groups, NormsOf};

use super::Console;
use super::args::ThreadsArgs;
use super::args::model::{ReadArgs, WhichArgs};
use super::failure::Result;
use super::outcome::{Outcome, pairs};
use super::show::Show;
use super::transform::{self, OutputArgs, Written};
#[cfg(feature = "train")]
use teach::{Taught, TeachArgs};

/// Let layers of a model share their matrices, with transformations that keep them different (MiniViT)
///
/// Parameters become fewer; what is computed and how long it takes does not: each layer is still executed. The result is a model to be
/// trained: with --epochs it learns from the one that it comes from, or from --teacher, by weight distillation. What is exact is proved: with equal
/// matrices, and all transformations that start as the identity, the shared model answers as the one without sharing. A local convolution starts as none.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse share ./deit-small --group 2 -o ./shared
  vitesse share ./deit-small --group 2 --data ./photos --epochs 10 --test -o ./shared
  vitesse share ./deit-small --group 2 --data ./photos --epochs 10 --teacher ./deit-base --set hidden_weight=0 -o ./shared
  vitesse share ./deit-small --groups 2,2,2,2,2,1,1 --init mean --transform mixing -o ./shared
  vitesse share ./deit-small --group 3 --transform none --dry-run -o ./shared")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Layers that follow each other and share their matrices; divides the depth, of a Swin that of each stage
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    group: u32,
    /// The size of each group, in the order of the forward pass
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', conflicts_with = "group", value_parser = clap::value_parser!(u32).range(1..=1024))]
    groups: Vec<u32>,
    /// Let the layers of a group share their norms too; the paper finds this a main cause of lost accuracy
    #[arg(long)]
    shared_norms: bool,
    /// What a group's matrices start as: those of its first layer, the mean of all, or those of the layer with this number in its group
    #[arg(long, value_name = "first|mean|N", default_value = "first", value_parser = start)]
    init: Start,
    /// What keeps the layers of a group different: `none` (plain sharing), or some of `positions` (relative positions of keys, Mini-DeiT), `mixing`
    /// (heads mixed before and after the softmax), `local` (a norm and a convolution between the sub-layers, Mini-Swin) [default: as published,
    /// positions,mixing; of a Swin mixing,local]
    #[arg(long, value_name = "NAMES", value_parser = listed)]
    transform: Option<Transformations>,
    /// Data set whose images are compared, and learned from with --epochs [default: the built-in `shapes`]
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Images that are compared
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    #[cfg(feature = "train")]
    #[command(flatten)]
    teach: TeachArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// A list of them, as typed: for clap one value.
type Transformations = Vec<Transformation>;

fn start(text: &str) -> std::result::Result<Start, String> {
    match text {
        "first" => Ok(Start::First),
        "mean" => Ok(Start::Mean),
        number => number.parse().map(Start::Layer).map_err(|_| {
            "expected `first`, `mean`, or the number of a layer in its group, from 0".to_owned()
        }),
    }
}

/// What was done, and its proof; or what would be.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    written: Written,
    model: String,
    step: &'static str,
    transformations: Vec<Transformation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_base: Option<FromBase>,
    #[serde(flatten)]
    transform: Transform,
    /// What is learned from whom.
    #[cfg(feature = "train")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lesson: Option<Lesson>,
    /// What came of it.
    #[cfg(feature = "train")]
    #[serde(skip_serializing_if = "Option::is_none")]
    distilled: Option<Taught>,
}

impl Args {
    fn sharing(&self) -> Sharing {
        let sizes: Vec<usize> = self.groups.iter().map(|&size| size as usize).collect();
        Sharing {
            groups: match sizes.is_empty() {
                true => Groups::Of(self.group as usize),
                false => Groups::Sizes(sizes),
            },
            norms: match self.shared_norms {
                true => NormsOf::Group,
                false => NormsOf::Layer,
            },
            start: self.init,
            transformations: self.transform.clone(),
        }
    }

    /// Whether the output folder is there already, and is gone on with.
    #[cfg(feature = "train")]
    fn resumes(&self) -> bool {
        self.teach.resumes()
    }

    /// Without training there is nothing to go on with.
    #[cfg(not(feature = "train"))]
    fn resumes(&self) -> bool {
        false
    }

    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.threads.start()?;
        let written = match self.resumes() {
            true => self.output.found(),
            false => self.output.look()?,
        };
        let mut show = Show::new(console);
        let model = self.which.trained(&self.read, "it has no weights to share")?;
        let share = Share::open(&model, &self.read.options(), self.sharing(), &mut show)?;
        let plan = share.plan()?;
        if self.resumes() {
            self.output.holds(&plan.checkpoint)?;
        }
        #[cfg(feature = "train")]
        let teaching = self.teach.meant(
            (&model, &self.read),
            (self.output.folder(), &plan.checkpoint.spec),
            self.data.as_deref(),
            console,
        )?;
        #[cfg(feature = "train")]
        teaching.as_ref().map_or(Ok(()), |teaching| teaching.check())?;
        let (shared, exit) = if self.output.dry_run {
            (plan, written.exit(true))
        } else {
            let shared = share.run(
                self.data.as_deref(),
                self.images as usize,
                console.stop(),
                &mut show,
            )?;
            if !self.resumes() {
                self.output.save(&shared.checkpoint, &shared.transform)?;
            }
            let exit = written.exit(shared.transform.is_proved());
            (shared, exit)
        };
        let Shared {
            checkpoint,
            transform,
            transformations,
            from_base,
        } = shared;
        let report = Report {
            written,
            model: checkpoint.spec.architecture,
            step: "share",
            transformations,
            from_base,
            #[cfg(feature = "train")]
            distilled: match &teaching {
                Some(teaching) if transform.is_proved() => {
                    let taught = teaching.run(share.model(), console);
                    Some(taught.map_err(|failure| failure.hint("the shared model is proved and written; go on with the same command and `--resume`"))?)
                }
                _ => None,
            },
            #[cfg(feature = "train")]
            lesson: teaching.map(|teaching| teaching.lesson().clone()),
            transform,
        };
        Ok(Outcome::new(&report)?.with_exit(exit))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("model", self.model.clone())];
        let names: Vec<&str> = self.transformations.iter().map(|one| one.name()).collect();
        rows.push((
            "transformations",
            match names.is_empty() {
                true => "none: plain sharing".to_owned(),
                false => names.join(", "),
            },
        ));
        rows.extend(transform::rows(&self.transform));
        rows.push((
            "honest speed",
            "parameters fall, multiply-accumulates and time do not: every layer is still executed".into(),
        ));
        if let Some(FromBase { agreeing, images }) = self.from_base {
            let told = format!("names the same class on {agreeing} of {images} images, before any training");
            rows.push(("beside the base", told));
        }
        #[cfg(feature = "train")]
        rows.extend(self.distilled.as_ref().and_then(Taught::row));
        rows.push(self.written.row(&self.transform));
        f.write_str(&pairs(rows))?;
        #[cfg(feature = "train")]
        if let Some(taught) = &self.distilled {
            write!(f, "\nDistillation:\n{}", taught.run())?;
        }
        if self.written.dry_run {
            f.write_str(&transform::tensors(&self.transform.plan))?;
        }
        Ok(())
    }
}
