//! `eval`: how good a model is on a data set, and on shifted versions of it.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use vitesse::data::Preprocess;
use vitesse::measure::Weights;
use vitesse::measure::accuracy::shifted::{Mean, Shifted, Version};
use vitesse::measure::accuracy::{Accuracy, Exam, Report};
use vitesse::report::format::{self, counted};
use vitesse::report::{Table, left, right};
use vitesse_train::evaluate::EvalOptions;

use super::Console;
use super::args::model::{ModelArgs, ReadArgs, WhichArgs};
use super::args::preprocess::{Joint, PreprocessArgs};
use super::args::{DataArgs, LabelsBy, RunArgs, positive, thread_count};
use super::failure::{Exit, Result};
use super::outcome::{Outcome, pairs};
use super::show::Show;

/// Measure the accuracy of a model on a data set
///
/// Images are prepared as the checkpoint says, with the arithmetic that published accuracies were measured with. Files that
/// cannot be read are left out and named. With --shifted, the model is also measured on other versions of the same classes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vitesse eval ./deit_tiny_patch16_224.fb_in1k --data ./imagenet/val
  vitesse eval --model ./my-run --data shapes:count --split test --json
  vitesse eval --model ./deit.pth --data ./photos --crop-pct 1.0 --limit 500
  vitesse eval --model ./my-run --data ./flowers --shifted ./flowers-drawn ./flowers-at-night")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Evaluate on this many images only, drawn with the classes in the proportions they have [default: all]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Data")]
    limit: Option<NonZeroUsize>,
    /// Other versions of the data set, such as drawings or noisy pictures of the same classes
    ///
    /// Classes are matched by name and may be fewer. The model then chooses among those alone, and is compared with itself on the
    /// same classes of --data, chosen so too. A version's test part is taken, else validation, else all.
    #[arg(long, num_args = 1.., value_name = "DATA", help_heading = "Data")]
    shifted: Vec<PathBuf>,
    /// How classes of the data and of the model find each other
    #[arg(long, value_enum, default_value_t, value_name = "HOW", help_heading = "Data")]
    labels_by: LabelsBy,
    /// End with status 3 when a file cannot be read
    #[arg(long, help_heading = "Data")]
    strict: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// How the two heads of a distilled model answer together
    #[arg(long, value_enum, default_value_t = Joint::LogitMean, help_heading = "Model")]
    joint: Joint,
    #[command(flatten)]
    run: RunArgs,
    /// Threads that read images while the model computes [default: as many as compute]
    #[arg(long, short = 'j', value_name = "N", value_parser = thread_count, help_heading = "Computing")]
    workers: Option<NonZeroUsize>,
}

impl Args {
    pub(super) fn run(mut self, console: &Console) -> Result<Outcome> {
        self.run.compute.start()?;
        let versions = std::mem::take(&mut self.shifted);
        let limit = self.limit.map(NonZeroUsize::get);
        // The classes of a version are more than those of a few images of it.
        let whole = (!versions.is_empty()).then(|| self.data.open()).transpose()?;
        let mut show = Show::new(console);
        let exam = self.exam(console, &mut show)?;
        let versions = versions
            .iter()
            .map(|path| Version::open(path, &self.data.decode.options(), limit, &exam))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let (team, stop) = (console.team(), console.stop());
        let mut runner = self.run.runner(&exam.checkpoint, &mut show)?;
        let mut report = exam.run(&mut runner, team, stop, &mut show)?;
        let mut unreadable = report.unreadable;
        if let Some(whole) = &whole {
            let shifted = Shifted::measure(
                &exam,
                (whole, limit),
                &versions,
                &mut runner,
                (team, stop),
                &mut show,
            )?;
            unreadable += shifted.unreadable();
            report.shifted = Some(shifted);
        }
        let unmet = self.strict && unreadable > 0;
        let outcome = Outcome::of(&report, &Text(&report))?;
        Ok(outcome.with_exit(if unmet { Exit::CheckNotMet } else { Exit::Done }))
    }

    fn exam(&self, console: &Console, show: &mut Show<'_>) -> Result<Exam> {
        let mut data = self.data.open()?;
        data.notes().iter().for_each(|note| console.note(note));
        if let Some(limit) = self.limit {
            data = data.limit(limit.get(), 0);
        }
        let classes = Some(data.class_names().len()).filter(|&classes| classes > 0);
        let mut checkpoint = self.model.load(self.which.name(), &self.read, classes, console)?;
        let exam = Exam {
            preprocess: self.preprocess.plan(&mut checkpoint)?,
            checkpoint,
            data,
            data_name: self.data.data.display().to_string(),
            labels_by: self.labels_by.into(),
            options: EvalOptions {
                batch_size: self.run.compute.batch_size.get(),
                workers: self
                    .workers
                    .map_or_else(rayon::current_num_threads, NonZeroUsize::get),
                fusion: self.joint.fusion(),
            },
        };
        exam.check_classes(show)?;
        Ok(exam)
    }
}

fn rows(accuracy: &Accuracy, images: usize) -> [(&'static str, String); 4] {
    let percent = |value: f64| format::share(value, images);
    [
        ("top-1", percent(accuracy.top1)),
        ("top-5", percent(accuracy.top5)),
        ("balanced accuracy", percent(accuracy.balanced_accuracy)),
        ("loss", format!("{:.3}", accuracy.loss)),
    ]
}

/// What an evaluation found, for people.
struct Text<'a>(&'a Report);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let Preprocess {
            input_size: [_, height, width],
            crop_pct,
            ..
        } = report.preprocess;
        let filter = format!("{:?}", report.preprocess.interpolation).to_lowercase();
        let fresh = if report.weights == Weights::Fresh {
            ", fresh weights"
        } else {
            ""
        };
        f.write_str(&pairs([
            ("model", format!("{}{fresh}", report.model)),
            ("parameters", format::si(report.param_count as f64, "")),
            ("MACs", format::si(report.macs as f64, "")),
            ("data", format!("{}, {}", report.data, report.split)),
            ("images", format::count(report.images as u64)),
            (
                "prepared as",
                format!("{width} x {height} pixels, crop {crop_pct}, {filter}"),
            ),
        ]))?;
        write!(f, "\n{}", pairs(rows(&report.joint, report.images)))?;
        for (name, head) in report
            .heads
            .iter()
            .flat_map(|heads| [("class", heads.class), ("distillation", heads.distillation)])
        {
            write!(f, "\n{name} head alone\n{}", pairs(rows(&head, report.images)))?;
        }
        let (load, forward) = (
            report.timing.load.as_secs_f64(),
            report.timing.forward.as_secs_f64(),
        );
        let threads = counted(report.threads, "thread");
        writeln!(
            f,
            "\n{} images/s in {} with {threads}, batches of {}: {} computing, {} waiting for images",
            format::number(report.images_per_s),
            report.arithmetic.precision,
            report.batch_size,
            format::duration(forward),
            format::duration(load)
        )?;
        if report.skipped > 0 {
            let files = counted(report.skipped, "file");
            writeln!(f, "left out: {files} of unsupported formats")?;
        }
        if report.unreadable > 0 {
            writeln!(
                f,
                "unreadable, and in no number above: {}",
                counted(report.unreadable, "file")
            )?;
            report
                .unreadable_files
                .iter()
                .try_for_each(|file| writeln!(f, "  {}", file.reason))?;
        }
        match &report.shifted {
            Some(shifted) => write!(f, "\n{}", ShiftedText(shifted)),
            None => Ok(()),
        }
    }
}

/// What was found on shifted versions, for people.
struct ShiftedText<'a>(&'a Shifted);

impl fmt::Display for ShiftedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shifted = self.0;
        // All versions are printed as the largest allows.
        let images = shifted.sets.iter().map(|row| row.images).max().unwrap_or(0);
        let percent = |value: f64| format::share(value, images);
        let points = |value: f64| format!("{value:+.*}", format::share_decimals(images));
        let mut table = Table::new([
            left("shifted"),
            right("images"),
            right("classes"),
            right("top-1"),
            right("balanced"),
            right("clean top-1"),
            right("difference"),
        ]);
        for row in &shifted.sets {
            table.push([
                row.data.clone(),
                format::count(row.images as u64),
                row.classes.to_string(),
                percent(row.top1),
                percent(row.balanced_accuracy),
                percent(row.clean_top1),
                points(row.difference),
            ]);
        }
        let Mean {
            top1,
            balanced_accuracy,
            difference,
        } = shifted.mean;
        let blank = String::new;
        table.push([
            "mean".to_owned(),
            blank(),
            blank(),
            percent(top1),
            percent(balanced_accuracy),
            blank(),
            points(difference),
        ]);
        write!(f, "{table}")?;
        match shifted.unreadable() {
            0 => Ok(()),
            n => writeln!(f, "unreadable, and in no number above: {}", counted(n, "file")),
        }
    }
}
