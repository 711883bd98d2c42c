//! `tokens`: tokens merge or leave from layer to layer, without training, and the result is proved.

mod report;

use std::path::PathBuf;

use clap::ValueEnum;
use vitesse::compress::tokens::{Method, cait, evit, random, tome};
use vitesse::measure::tokens::Reduce;
use vitesse::model::Sites;
use vitesse::model::ops::MergeValue;

use super::Console;
use super::args::model::{ReadArgs, WhichArgs};
use super::args::{ThreadsArgs, share};
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::Show;
use super::transform::OutputArgs;
use report::Report;

/// Merge tokens of a vision transformer, or take them away, from block to block, without training
///
/// Later blocks compute on fewer tokens, so that the model needs less time at any batch size. Weights stay as they are; which tokens go is part of
/// the model's description, and the result is a model like any other, to be run, tested, compared, trained and served. `--macs` finds the mildest
/// setting for a budget. Before anything is written, the same images go through the engine and through the network that training uses, and
/// logits must agree; then model and result take turns and are timed. Without training some accuracy is lost: the report says on how many of
/// those images both name the same class, and `vitesse compare` tests both on a data set.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse tokens ./deit_tiny --r 13 -o fewer
  vitesse tokens ./deit_tiny --macs 0.65 --data ./flowers-images -o fewer
  vitesse tokens ./deit_tiny --method evit --keep 0.7 --data ./flowers-images -o fewer
  vitesse tokens ./deit_tiny --method cait --layout 6h,9v --dry-run -o fewer
  vitesse tokens ./deit_tiny --method random --macs 0.65 -o baseline
  vitesse compare ./deit_tiny ./fewer --data ./flowers-images")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Data set whose images are compared [default: the built-in `shapes`]
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Images that are compared; of fewer than 4, none with tied scores can be told from an error
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    images: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// Which tokens go, and how many, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Choice")]
struct ChoiceArgs {
    /// By what tokens merge or go
    #[arg(long, value_enum, default_value_t = Name::Tome)]
    method: Name,
    /// Largest share of the multiply-accumulates that may be left: the smallest --r (tome) or the largest --keep (evit, random) that meets it
    /// is found; not for cait
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with_all = ["r", "keep"])]
    macs: Option<f64>,
    /// tome: pairs that merge in each block, or one number a block, such as 16,16,8 (none in those that follow) [default: 13]
    #[arg(long, value_name = "N|N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(0..=1 << 14))]
    r: Vec<u32>,
    /// tome: slope of the pairs over the blocks, whose mean --r is: -1 from twice as many to none, 1 from none to twice as many [default: 0]
    #[arg(long, value_name = "SLOPE", value_parser = slope, allow_negative_numbers = true)]
    inflect: Option<f64>,
    /// tome: let attention not count a token as often as it stands for patches; for models of masked autoencoders
    #[arg(long)]
    plain_attention: bool,
    /// evit, random: share of the patches that are there which stays, rounded up, at each of the blocks [default: 0.7]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    keep: Option<f64>,
    /// evit, random: the blocks at which patches go, from 0 [default: 3,6,9 of 12 blocks, of others at the same depths]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(0..=1 << 10))]
    blocks: Vec<u32>,
    /// evit: drop the patches that go, instead of fusing them into one token
    #[arg(long)]
    drop: bool,
    /// cait: before which blocks, from 0, neighbours merge, in rows (h) or columns (v) [default: 4h,8v of 12 blocks]
    #[arg(long, value_name = "Nh|Nv,…", value_delimiter = ',')]
    layout: Vec<cait::Merge>,
    /// cait: what two neighbours become [default: mean]
    #[arg(long, value_enum, value_name = "VALUE")]
    merge: Option<Value>,
    /// random: the seed by which patches are drawn [default: 0]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

/// By what tokens go, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The most similar pairs merge, in every block (ToMe)
    Tome,
    /// The patches stay to which the class token attends most (EViT)
    Evit,
    /// Neighbours merge, and the grid survives (CAIT)
    Cait,
    /// A random set stays, the same for every image: what the others must beat
    Random,
}

/// What neighbours become, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Value {
    /// Their mean
    Mean,
    /// Their mean, weighted by the patches that each stands for
    Area,
}

/// A slope from -1 to 1.
fn slope(text: &str) -> std::result::Result<f64, String> {
    let found = text.parse().ok().filter(|slope| (-1.0..=1.0).contains(slope));
    found.ok_or_else(|| "expected a number from -1 to 1, such as -1".to_owned())
}

/// Numbers, as the library counts.
fn sizes(numbers: &[u32]) -> Vec<usize> {
    numbers.iter().map(|&number| number as usize).collect()
}

impl ChoiceArgs {
    /// Refuses settings of other methods.
    fn check(&self) -> Result<()> {
        use Name::{Cait, Evit, Random, Tome};
        let settings: [(&str, bool, &[Name]); 9] = [
            ("--r", !self.r.is_empty(), &[Tome]),
            ("--inflect", self.inflect.is_some(), &[Tome]),
            ("--plain-attention", self.plain_attention, &[Tome]),
            ("--keep", self.keep.is_some(), &[Evit, Random]),
            ("--blocks", !self.blocks.is_empty(), &[Evit, Random]),
            ("--drop", self.drop, &[Evit]),
            ("--layout", !self.layout.is_empty(), &[Cait]),
            ("--merge", self.merge.is_some(), &[Cait]),
            ("--seed", self.seed.is_some(), &[Random]),
        ];
        let name = |method: Name| {
            method
                .to_possible_value()
                .map_or_else(String::new, |value| value.get_name().to_owned())
        };
        for (flag, given, methods) in settings {
            if given && !methods.contains(&self.method) {
                let of: Vec<String> = methods
                    .iter()
                    .map(|&method| format!("--method {}", name(method)))
                    .collect();
                let sentence = format!(
                    "{flag} is a setting of {}, but the method is {}",
                    of.join(" and "),
                    name(self.method)
                );
                return Err(Failure::usage(sentence));
            }
        }
        if self.r.len() > 1 && self.inflect.is_some() {
            return Err(Failure::usage(
                "--inflect is the slope of one --r, but --r gives a number for each block",
            ));
        }
        Ok(())
    }

    /// What is meant, for a model of so many blocks.
    fn meant(&self, depth: usize) -> Method {
        match self.method {
            Name::Tome => {
                let default = tome::Config::default();
                let schedule = match (self.r.as_slice(), self.inflect) {
                    ([], None) => default.schedule,
                    ([], Some(shape)) => default.schedule.sloped(shape),
                    ([r], None) => tome::Schedule::Constant(*r as usize),
                    ([r], Some(shape)) => tome::Schedule::Constant(*r as usize).sloped(shape),
                    (list, _) => tome::Schedule::List(sizes(list)),
                };
                Method::Tome(tome::Config {
                    schedule,
                    proportional: !self.plain_attention,
                })
            }
            Name::Evit => {
                let default = evit::Config::of(depth);
                Method::Evit(evit::Config {
                    keep: self.keep.unwrap_or(default.keep),
                    blocks: self.blocks(default.blocks),
                    fuse: !self.drop,
                })
            }
            Name::Random => {
                let default = random::Config::of(depth);
                Method::Random(random::Config {
                    keep: self.keep.unwrap_or(default.keep),
                    blocks: self.blocks(default.blocks),
                    seed: self.seed.unwrap_or(default.seed),
                })
            }
            Name::Cait => {
                let default = cait::Config::of(depth);
                Method::Cait(cait::Config {
                    layout: match self.layout.is_empty() {
                        true => default.layout,
                        false => self.layout.clone(),
                    },
                    value: self.merge.map_or(default.value, |value| match value {
                        Value::Mean => MergeValue::Mean,
                        Value::Area => MergeValue::Area,
                    }),
                })
            }
        }
    }

    fn blocks(&self, default: Vec<usize>) -> Vec<usize> {
        match self.blocks.is_empty() {
            true => default,
            false => sizes(&self.blocks),
        }
    }
}

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.choice.check()?;
        self.threads.start()?;
        let written = self.output.look()?;
        let mut show = Show::new(console);
        let model = self
            .which
            .trained(&self.read, "nothing says how well it does with fewer tokens")?;
        let reduce = Reduce::open(&model, &self.read.options(), &mut show)?;
        let (method, macs) = (self.choice.meant(reduce.model().spec.depth()), self.choice.macs);
        let (reduced, exit) = if self.output.dry_run {
            (reduce.plan(&method, macs)?, written.exit(true))
        } else {
            let images = (self.data.as_deref(), self.images as usize);
            let reduced = reduce.run((&method, macs), images, console.stop(), &mut show)?;
            self.output.save(&reduced.checkpoint, &reduced.transform)?;
            let exit = written.exit(reduced.transform.is_proved());
            (reduced, exit)
        };
        Ok(Outcome::new(&Report::new(reduced, macs, written))?.with_exit(exit))
    }
}
