//! `report.html`: what was measured, drawn.

use vitesse::data::Image;
use vitesse::report::chart::{HALF, HeatMap, LineChart, Series};
use vitesse::report::format::{self, counted};
use vitesse::report::{Content, Page, Table, Thumbnail, left, right};
use vitesse_train::run::EpochRecord;

use super::TASK;
use super::experiment::Method;
use super::report::{Prediction, Report, Run, best_of, points};
use crate::cli::failure::Result;
use crate::cli::shell::word;

/// What the paper found, beside which nothing here is of the same size.
const PAPER: &str = "For comparison, the paper (Touvron et al., ICML 2021) trained DeiT-Ti for 300 epochs of ImageNet's 1.28 \
                     million pictures, with a teacher of 82.9 %: 72.2 % without distillation, 72.2 % with soft and 74.3 % with hard \
                     distillation, 74.5 % with the token.";

/// The page; `pictures` are those of the predictions, in their order.
pub(super) fn page(report: &Report, pictures: &[Thumbnail]) -> String {
    let title = "A teacher, a student and four ways to learn";
    let mut page = Page::new(title).summary(format!("{}.", report.finding));
    let distilled = best_of(report.runs.iter().filter(|run| run.method.distils()));
    let [teacher, none] = [Method::Teacher, Method::None].map(|method| report.run(method));
    for run in [teacher, none, distilled].into_iter().flatten() {
        page = page.card(
            capital(run.method.name()),
            points(run.test.top1),
            against(report, run),
        );
    }
    let memory = report
        .peak_memory_bytes
        .map(|bytes| format!("{} of memory at most", format::bytes(bytes)));
    page = page.card(
        "Time",
        format::duration(report.seconds),
        memory.unwrap_or_default(),
    );
    page = page
        .section("What was compared", compared(report))
        .section("Learning", learning(report));
    if let Some(best) = report.run(report.best_student) {
        page = page.section("What the best student confuses", confusion(report, best));
    }
    page.section("What it sees", seen(report, pictures))
        .section("Other tasks", report.adapted.section(&report.output))
        .section("Smaller", report.pruned.section(&report.output))
        .section("The two tokens", tokens(report))
        .section("Time and memory", costs(report))
        .section("Go on", commands(report))
        .provenance(provenance(report))
        .render()
}

/// The picture of a prediction, with what it is and what it was taken for.
pub(super) fn thumbnail(found: &Prediction, image: &Image) -> Result<Thumbnail> {
    // A caption is narrow: the sign stays with its number.
    let score = format!("{:.0}\u{a0}%", 100.0 * found.score);
    let taken = if found.name == found.truth {
        format!("\u{2713} {score}")
    } else {
        format!("taken for {}, {score}", found.name)
    };
    let caption = format!("{}\n{taken}", found.truth);
    let (width, height) = (image.width() as u32, image.height() as u32);
    Ok(Thumbnail::new(caption, width, height, image.data())?)
}

/// What to compare a test accuracy with: guessing, or the student that had no teacher.
fn against(report: &Report, run: &Run) -> String {
    match report.run(Method::None) {
        Some(none) if run.method.distils() => {
            let gain = format!("{:+.1}\u{a0}points", run.test.top1 - none.test.top1);
            format!("best of three on validation; {}", minus(&gain))
        }
        _ => format!(
            "on test pictures; guessing: {}",
            points(report.chance).replace(' ', "\u{a0}")
        ),
    }
}

fn compared(report: &Report) -> Content {
    let count = |n: usize| format::count(n as u64);
    let data = format!(
        "Every network learned from the same {} pictures of `{TASK}`, which the program draws: one light \
         figure of {} kinds on a dark ground, in any colour, size and place, more or less upright, with noise. The students have the same blocks; those without \
         a token begin with the same weights. All saw the pictures in the same order. The best epoch was chosen on {} \
         validation pictures; the accuracies are on {} test pictures that nothing was chosen by.",
        count(report.train_images),
        report.class_names.len(),
        count(report.validation_images),
        count(report.test_images)
    );
    let mut table = Table::new([
        left("method"),
        left("network"),
        right("parameters"),
        right("MACs"),
        right("validation"),
        right("test top-1"),
        right("test loss"),
    ]);
    for run in &report.runs {
        table.push([
            run.method.name().to_owned(),
            run.model.to_owned(),
            format::count(run.param_count as u64),
            format::si(run.macs as f64, ""),
            points(run.validation_top1),
            points(run.test.top1),
            format!("{:.3}", run.test.loss),
        ]);
        for (head, metrics) in run.heads.iter().flat_map(|heads| {
            [
                ("class head alone", &heads.class),
                ("distillation head alone", &heads.distillation),
            ]
        }) {
            let (top1, loss) = (points(metrics.top1), format!("{:.3}", metrics.loss));
            table.push(["", head, "", "", "", &top1, &loss]);
        }
    }
    let chance = (report.class_names.len() as f64).ln();
    table.push([
        "guessing",
        "",
        "",
        "",
        "",
        &points(report.chance),
        &format!("{chance:.3}"),
    ]);
    let mut content = Content::new();
    if report.short {
        content = content.warning(
            "This is a short run: every step is the real one, but on so few pictures little is learned, and the numbers \
             compare nothing.",
        );
    }
    let honest = "One seed and minutes of training say little about a method: another `--seed` moves each number by points.";
    content
        .text(&data)
        .table(&table)
        .text(&format!("{honest} {PAPER}"))
}

fn learning(report: &Report) -> Content {
    let chart = |title: &str, unit: &str, value: &dyn Fn(&EpochRecord) -> Option<f64>| {
        let chart = LineChart::new(title).x_label("epoch").y_label(unit);
        report.runs.iter().fold(chart, |chart, run| {
            let point = |record: &EpochRecord| ((record.epoch + 1) as f64, value(record).unwrap_or(f64::NAN));
            chart.series(Series::new(run.method.name(), run.curve.iter().map(point)))
        })
    };
    let accuracy = chart("Validation accuracy", "top-1 (%)", &|record| record.eval_top1);
    let validation = chart("Validation loss", "cross-entropy (nats)", &|record| {
        record.eval_loss
    })
    .size(HALF);
    let train = chart("Training loss", "what each minimises (nats)", &|record| {
        Some(record.train_loss)
    })
    .size(HALF);
    Content::new().chart(&accuracy).charts(&[&validation, &train]).text(
        "The validation loss is against the labels for all. The training losses are not comparable: a distilled student's \
         contains what the teacher says.",
    )
}

fn confusion(report: &Report, best: &Run) -> Content {
    let text = format!(
        "{} has the best validation accuracy of the students. Rows are what a test picture shows, columns what it was taken \
         for.",
        capital(best.method.name())
    );
    let title = format!("Confusion, {}", best.method.name());
    let map = HeatMap::confusion(title, report.class_names.iter().cloned(), &best.test.confusion);
    Content::new().text(&text).chart(&map)
}

fn seen(report: &Report, pictures: &[Thumbnail]) -> Content {
    let right = report
        .predictions
        .iter()
        .filter(|found| found.name == found.truth)
        .count();
    let text = format!(
        "Test pictures, what they show, and what the best student takes them for, with its probability: {right} of {} are right.",
        report.predictions.len()
    );
    Content::new().text(&text).images(pictures)
}

fn tokens(report: &Report) -> Content {
    let tokens = &report.tokens;
    let blocks = tokens
        .blocks
        .iter()
        .enumerate()
        .map(|(i, &cosine)| ((i + 1) as f64, cosine));
    let points = std::iter::once((0.0, tokens.input)).chain(blocks);
    let chart = LineChart::new("Class and distillation token")
        .x_label("blocks passed")
        .y_label("cosine, mean over pictures")
        .series(Series::new("similarity", points));
    let cosine = |value: f64| minus(&format!("{value:.2}"));
    let text = format!(
        "The student with a token carries two summaries of a picture through its blocks: one answers with the label, the other \
         with the teacher's decision. As learned, the two vectors have a cosine of {}; after the final norm, on {} test \
         pictures, {}. In the paper's models it is 0.06 and 0.93.",
        cosine(tokens.learned),
        format::count(tokens.images as u64),
        cosine(tokens.norm)
    );
    Content::new().text(&text).chart(&chart)
}

fn costs(report: &Report) -> Content {
    let mut table = Table::new([
        left("method"),
        right("epochs"),
        right("training"),
        right("trained pictures/s"),
        right("classified pictures/s"),
    ]);
    for run in &report.runs {
        let pictures = (run.curve.len() * report.train_images) as f64;
        table.push([
            run.method.name().to_owned(),
            run.curve.len().to_string(),
            format::duration(run.train_seconds),
            format::count((pictures / run.train_seconds).round() as u64),
            format::count(run.images_per_s.round() as u64),
        ]);
    }
    let memory = report.peak_memory_bytes.map_or(String::new(), |bytes| {
        format!(" and at most {} of memory", format::bytes(bytes))
    });
    let text = format!(
        "The whole took {}{memory}, with {}. A distilled student is trained more slowly because the teacher looks at \
         every picture too; afterwards it is as fast as any other.",
        format::duration(report.seconds),
        counted(report.threads, "thread")
    );
    Content::new().text(&text).table(&table)
}

fn commands(report: &Report) -> Content {
    let mut content = Content::new();
    for (what, command) in report.next() {
        content = content.text(&format!("{}:", capital(what))).command(&command);
    }
    let mut repeat = Content::new()
        .text("All of it, with the same numbers for any number of threads:")
        .command(&itself(report));
    for run in &report.runs {
        let (key, verb) = (run.method.key(), run.method.verb());
        let command = format!(
            "vitesse {verb} --recipe {} -o runs/{key}",
            word(&format!("{}/{key}/recipe.toml", report.output))
        );
        repeat = repeat
            .text(&format!("{}:", capital(run.method.name())))
            .command(&command);
    }
    content.details("Repeat it, as a whole or run by run", repeat)
}

/// The command that wrote the page.
fn itself(report: &Report) -> String {
    let short = if report.short { " --short" } else { "" };
    format!(
        "vitesse quickstart{short} --seed {} -o {}",
        report.seed,
        word(&report.output)
    )
}

fn provenance(report: &Report) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("program", format!("vitesse {}", report.version)),
        ("command", itself(report)),
        ("seed", report.seed.to_string()),
        ("threads", report.threads.to_string()),
        ("data", format!("{TASK}, drawn by the program")),
        ("arithmetic", "f32, on the CPU".to_owned()),
    ];
    facts.extend(report.processor.clone().map(|name| ("processor", name)));
    facts
}

/// A number with a minus sign instead of a hyphen.
fn minus(number: &str) -> String {
    number.replace('-', "\u{2212}")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
