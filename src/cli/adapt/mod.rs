//! `adapt`: a pretrained model learns a new task by a small part of it.
//!
//! | file | what |
//! | --- | --- |
//! | `report` | what a comparison found: the tables and the text |
//! | `page` | the same as an HTML page with charts |
//! | `vtab` | what one on the tasks of VTAB-1k found |

mod page;
mod report;
mod vtab;

use std::num::NonZeroUsize;
use std::path::Path;

use toml::Value;
use vitesse::adapt::Method;
use vitesse::measure::trial::comparison::Comparison;
use vitesse::measure::trial::found::Report as Found;
use vitesse::measure::trial::vtab as benchmark;
use vitesse::measure::trial::{Entry, Search, setting};
use vitesse_train::recipe::set;
use vitesse_train::run::{Existing, RunFolder};

use super::Console;
use super::args::positive;
use super::failure::{Failure, Result};
use super::outcome::Outcome;
use super::show::ShowRuns;
use super::training::{RecipeArgs, RunArgs, Training};

/// Adapt a pretrained model to a new task with few parameters
///
/// The head is new and always learns; besides it, what the method adds or selects. Everything else stays as it is. The run is
/// one of `vitesse train` with the preset `adapt`, whose flags apply; its result is the folder `adapter`, which holds what was
/// learned and nothing else, and which `vitesse merge` folds into the base.
///
/// With --compare, several methods are trained with the same budget, tested once, merged where that can be done, and measured
/// on this machine, with their ops and merged; the folder then holds compare.html, compare.csv and compare.json. Where --data is a
/// folder of VTAB-1k's tasks, this is done for each of them, and the scores are in vtab.csv and vtab.json.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("several").args(["compare", "search"]).multiple(true)))]
#[command(after_help = "\
Examples:
  vitesse adapt --model ./deit_tiny --data ./flowers --method repadapter -o runs/flowers
  vitesse adapt --model ./deit_tiny --data ./flowers --method repadapter --set scale=0.5 --set placement=repattn -o runs/attn
  vitesse adapt --model ./deit_tiny --data ./flowers --method lora --set targets=qkv,fc1 --set rank=4 --epochs 20 -o runs/lora
  vitesse adapt --model ./deit_tiny --data ./flowers --search scale=0.1,0.5,1,5,10 -o runs/searched
  vitesse adapt --model ./deit_tiny --data ./flowers --compare linear,repadapter,lora:rank=4,full:optim.lr=5e-5 --seeds 0,1,2 -o runs/compared
  vitesse adapt --model ./vit_base --data ./vtab-1k --compare repadapter,lora --search optim.lr=1e-3,5e-3 -o runs/vtab
  vitesse merge --model ./deit_tiny --adapter runs/flowers/adapter -o flowers-model")]
pub(super) struct Args {
    /// What learns besides the head, with its default settings [default: the recipe's, or repadapter]
    #[arg(long, value_name = "METHOD", value_parser = Method::NAMES, help_heading = "Method")]
    method: Option<String>,
    /// A setting of the method that is not as its default or the recipe's, such as rank=4; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, help_heading = "Method")]
    settings: Vec<(String, String)>,
    /// Try these values of a setting with the first seed, and go on with the one that does best on validation images
    ///
    /// The setting is the method's, such as scale, or the recipe's, such as optim.lr. Methods without it, and those that say
    /// what it is, are left alone.
    #[arg(long, value_name = "KEY=V,V…", help_heading = "Method")]
    search: Option<Search>,
    /// Compare these methods; the first is what the others are compared with
    ///
    /// A method may have settings: repadapter:scale=0.5:placement=repattn; one with a table is the recipe's:
    /// full:optim.lr=5e-5. Names in a value are joined by +, as in lora:targets=qkv+fc1.
    #[arg(long, value_name = "METHOD[:KEY=VALUE…],…", value_delimiter = ',', conflicts_with_all = ["method", "settings"],
          help_heading = "Comparison")]
    compare: Vec<Entry>,
    /// Train every method with each of these seeds [default: the recipe's seed]
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        requires = "compare",
        conflicts_with = "seed",
        help_heading = "Comparison"
    )]
    seeds: Vec<u64>,
    /// How often each model has its turn where latency is measured
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive, requires = "several",
          help_heading = "Comparison")]
    rounds: NonZeroUsize,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The method where nobody says one.
const DEFAULT: &str = "repadapter";

impl Args {
    pub(super) fn run(self, console: &Console) -> Result<Outcome> {
        self.run.start_threads()?;
        if self.compare.is_empty() && self.search.is_none() {
            return self.single(console);
        }
        let single = self.entry(None)?;
        let entries = if self.compare.is_empty() {
            vec![single.clone()]
        } else {
            self.compare.clone()
        };
        entries.iter().try_for_each(adapting)?;
        if let Some(search) = &self.search
            && !entries.iter().any(|entry| entry.knows(&search.key))
        {
            let sentence = format!("none of the methods has a setting `{}`", search.key);
            return Err(Failure::usage(sentence));
        }
        if self.run.dry_run || self.run.existing() == Existing::Replace {
            return Err(
                Failure::usage("a comparison takes neither `--dry-run` nor `--force`")
                    .hint("look at one method with `--method` and `--dry-run`; choose a new folder for a new comparison"),
            );
        }
        let seeds = if self.seeds.is_empty() {
            let entry = entries.first().unwrap_or(&single);
            vec![self.recipe.resolve_by(None, entry, &[])?.train.seed]
        } else {
            self.seeds.clone()
        };
        let mut labels: Vec<&str> = entries.iter().map(|entry| entry.label.as_str()).collect();
        labels.sort_unstable();
        let mut known = seeds.clone();
        known.sort_unstable();
        if let Some([twice, _]) = labels.array_windows().find(|[a, b]| a == b) {
            return Err(Failure::usage(format!("`{twice}` is given twice")));
        }
        if let Some([twice, _]) = known.array_windows().find(|[a, b]| a == b) {
            return Err(Failure::usage(format!("the seed {twice} is given twice")));
        }
        let (name, mut table) = self.recipe.table(None)?;
        let mut first = self
            .recipe
            .resolve_by(None, entries.first().unwrap_or(&single), &[])?;
        if benchmark::tasks(Path::new(&first.data.path)).is_empty()
            && self.recipe.fit(&mut first, None, console)?
        {
            set(
                &mut table,
                "train.batch_size",
                Value::from(first.train.batch_size as i64),
            );
        }
        let comparison = Comparison {
            recipe: (name, table),
            entries,
            search: self.search.clone(),
            seeds,
            data: None,
            output: self.run.output.clone(),
            retrain: false,
            rounds: Some(self.rounds.get()),
        };
        let data = comparison.data_path()?;
        comparison.check(self.run.resumed().is_some())?;
        let (stop, mut show) = (console.stop(), ShowRuns::new(console));
        match &benchmark::tasks(Path::new(&data))[..] {
            [] => {
                let found = comparison.run(stop, &mut show)?;
                keep(&comparison, &found)
            }
            tasks => {
                let keep = |comparison: &Comparison, found: &Found| keep(comparison, found).map(|_| ());
                let whole = benchmark::run(&comparison, tasks, stop, &mut show, keep)?;
                let text = vtab::Text(&whole);
                whole.keep(&comparison.output, &text.accuracies().to_csv())?;
                Outcome::of(&whole, &text)
            }
        }
    }

    /// The one method that is meant: as typed, or as the recipe or the run `resumed` says.
    fn entry(&self, resumed: Option<&Path>) -> Result<Entry> {
        resumed.map(RunFolder::check_method).transpose()?;
        let entry = match &self.method {
            Some(method) => Entry::new(method, &[]),
            None => {
                let entry = self.recipe.method(resumed)?;
                entry.unwrap_or_else(|| Entry::new(DEFAULT, &[]))
            }
        };
        let typed = self.settings.iter();
        let entry = typed.fold(entry, |entry, (key, value)| entry.with(key, value));
        adapting(&entry)?;
        Ok(entry)
    }

    fn single(self, console: &Console) -> Result<Outcome> {
        let resumed = self.run.resumed();
        let mut recipe = self.recipe.resolve_by(resumed, &self.entry(resumed)?, &[])?;
        self.recipe.fit(&mut recipe, resumed, console)?;
        Training::new("adapt", recipe, self.run, console)?.run()
    }
}

/// Refuses a method that makes no adapter and no new head.
fn adapting(entry: &Entry) -> Result<()> {
    let method = entry.method()?;
    if method.adapts() {
        return Ok(());
    }
    let sentence = format!("`{}` adapts no model to another task", method.name());
    Err(Failure::usage(sentence).hint("give its recipe to `vitesse train` or `vitesse distill`"))
}

/// Keeps what a comparison found, and shows it.
fn keep(comparison: &Comparison, found: &Found) -> Result<Outcome> {
    let text = report::Text(found);
    comparison.keep(found, &text.runs().to_csv(), &page::page(found))?;
    Outcome::of(found, &text)
}
