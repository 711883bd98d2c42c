//! Writes a page with one of everything, to look at: `cargo run -p vitesse-report --example gallery > gallery.html`.

use vitesse_report::chart::{BarChart, HALF, HeatMap, Histogram, LineChart, ScatterChart, Series};
use vitesse_report::{Content, Page, ReportError, Table, Thumbnail, format, left, right};

/// Numbers that look measured: a cheap hash of the index, in -1..1.
fn noise(i: u32) -> f64 {
    let hash = i.wrapping_mul(0x9e37_79b1) ^ i.wrapping_mul(0x85eb_ca6b).rotate_left(13);
    f64::from(hash.wrapping_mul(0xc2b2_ae35)) / f64::from(u32::MAX) * 2.0 - 1.0
}

/// A learning curve with its spread.
fn curve(name: &str, top: f64, speed: f64, seed: u32) -> Series {
    let points: Vec<(f64, f64)> = (1..=30)
        .map(|epoch| {
            let x = f64::from(epoch);
            (
                x,
                top * (1.0 - (-x * speed).exp()) + noise(seed * 100 + epoch) * 0.8,
            )
        })
        .collect();
    let band: Vec<(f64, f64)> = points
        .iter()
        .map(|&(x, y)| (y - 1.0 - 12.0 / (x + 2.0), y + 1.0 + 12.0 / (x + 2.0)))
        .collect();
    Series::new(name, points).band(band)
}

fn accuracy() -> LineChart {
    LineChart::new("Validation accuracy, mean of three seeds and standard deviation")
        .x_label("epoch")
        .y_label("top-1 (%)")
        .series(curve("RepAdapter", 74.8, 0.31, 1))
        .series(curve("LoRA, rank 8", 73.1, 0.24, 2))
        .series(curve("SSF", 71.9, 0.20, 3))
        .series(curve("AdaptFormer-64", 70.2, 0.16, 4))
        .series(curve("linear probe", 55.3, 0.45, 5))
}

fn loss() -> LineChart {
    let train = (0..40_000u32).map(|step| {
        let x = f64::from(step);
        let y = 2.3 * (-x / 9000.0).exp() * (1.0 + 0.25 * noise(step)) + 0.02;
        (
            x,
            if (17_000..18_500).contains(&step) {
                f64::NAN
            } else {
                y
            },
        )
    });
    LineChart::new("Training loss, with a gap where it was not finite")
        .x_label("step")
        .y_label("cross-entropy (nats)")
        .log_y()
        .size(HALF)
        .series(Series::new("train", train))
}

fn schedule() -> LineChart {
    let rate = |step: f64| {
        let warm = (step / 10.0).min(1.0);
        1e-3 * warm * 0.5 * (1.0 + ((step - 10.0).max(0.0) / 190.0 * std::f64::consts::PI).cos())
    };
    LineChart::new("Learning rate")
        .x_label("step")
        .size(HALF)
        .series(Series::new(
            "learning rate",
            (0..=200).map(|step| (f64::from(step), rate(f64::from(step)))),
        ))
}

fn trade_off() -> ScatterChart {
    ScatterChart::new("Accuracy against latency, batch 1, two threads")
        .x_label("latency (ms)")
        .y_label("top-1 (%)")
        .log_x()
        .series(
            "dense",
            [
                ("deit_tiny", 9.8, 72.13),
                ("deit_small", 31.4, 79.83),
                ("deit_base", 112.0, 81.79),
            ],
        )
        .series(
            "pruned",
            [
                ("deit_small, UVC 50 %", 18.2, 78.82),
                ("deit_small, WDPruning 0.3", 21.9, 78.38),
                ("deit_base, X-Pruner", 61.0, 81.02),
                ("deit_tiny, ViT-Slim", 6.9, 70.6),
            ],
        )
        .series(
            "fewer tokens",
            [
                ("deit_small, EViT 0.7", 20.8, 79.5),
                ("deit_small, ToMe r13", 19.3, 79.4),
                ("deit_small, DynamicViT 0.7", 21.2, 79.3),
                ("deit_base, EViT 0.7", 70.3, 81.3),
            ],
        )
        .series(
            "shared",
            [("mini_deit_tiny", 9.9, 72.8), ("mini_deit_small", 31.9, 80.7)],
        )
}

fn throughput() -> BarChart {
    BarChart::new(
        "Throughput by precision",
        [
            "deit_tiny_patch16_224.fb_in1k",
            "deit_small_patch16_224.fb_in1k",
            "deit_small_patch16_224.evit_keep70_pruned50_merged",
        ],
    )
    .x_label("images/s")
    .series("f32", [182.4, 61.2, 118.9])
    .series("bf16", [311.0, 104.8, f64::NAN])
    .series("int8", [402.7, 141.9, 251.3])
}

fn confusion() -> HeatMap {
    let classes = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ];
    let counts: Vec<Vec<u64>> = (0..10u32)
        .map(|t| {
            (0..10u32)
                .map(|p| match (t, p) {
                    _ if t == p => 780 + (t * 37 % 190) as u64,
                    (3, 5) | (5, 3) => 128,
                    (1, 9) | (9, 1) => 61,
                    _ => u64::from((t * 7 + p * 13) % 11),
                })
                .collect()
        })
        .collect();
    HeatMap::confusion("Confusion matrix", classes, &counts)
}

fn similarity() -> HeatMap {
    let layers = || (1..=12).map(|layer| layer.to_string());
    let values: Vec<Vec<f64>> = (0..12)
        .map(|a| {
            (0..12)
                .map(|b| (-0.02 * f64::from(a - b).powi(2)).exp())
                .collect()
        })
        .collect();
    HeatMap::new("Similarity of layers (linear CKA)", layers(), layers(), &values)
        .labels("block of the teacher", "block of the student")
        .width(HALF.0)
}

fn weights() -> Histogram {
    let bell = |i: u32| (0..6).map(|k| noise(i * 6 + k)).sum::<f64>() * 0.02;
    Histogram::new("Weights of blocks.0.mlp.fc1", (0..20_000).map(bell))
        .x_label("weight")
        .size(HALF)
}

fn methods() -> Table {
    let seeds = |centre: f64| [centre - 0.21, centre + 0.18, centre + 0.02];
    let mut table = Table::new([
        left("method"),
        right("trained"),
        right("of all"),
        right("MACs"),
        right("size"),
        right("latency"),
        right("top-1 (%)"),
    ]);
    for (method, trained, macs, size, latency, top1) in [
        ("full fine-tuning", 5_526_346, 1.254e9, 22_871_234, 9.83e-3, 76.4),
        ("RepAdapter, merged", 28_992, 1.254e9, 22_871_234, 9.81e-3, 74.8),
        ("LoRA, rank 8", 36_864, 1.261e9, 23_018_690, 10.4e-3, 73.1),
        ("linear probe", 1_930, 1.254e9, 22_871_234, 9.82e-3, 55.3),
    ] {
        table.push([
            method.to_string(),
            format::count(trained),
            format::percent(trained as f64 / 5_526_346.0),
            format::si(macs, ""),
            format::bytes(size),
            format::duration(latency),
            format::mean_spread(&seeds(top1), 2),
        ]);
    }
    table
}

/// A disc of one colour on another.
fn picture(i: u32) -> Result<Thumbnail, ReportError> {
    const SIDE: u32 = 32;
    let colour = [[208, 89, 11], [18, 135, 107], [160, 72, 143], [31, 85, 176]][i as usize % 4];
    let centre = (
        f64::from(SIDE) / 2.0 + 5.0 * noise(i),
        f64::from(SIDE) / 2.0 + 5.0 * noise(i + 50),
    );
    let mut rgb = Vec::new();
    for y in 0..SIDE {
        for x in 0..SIDE {
            let inside = (f64::from(x) - centre.0).hypot(f64::from(y) - centre.1) < 7.0 + 3.0 * noise(i + 9);
            rgb.extend(if inside {
                colour
            } else {
                [226, 221, 210].map(|c: u8| c - (x / 3) as u8)
            });
        }
    }
    let truth = ["orange disc", "green disc", "purple disc", "blue disc"][i as usize % 4];
    let guess = if i % 5 == 3 {
        "taken for a ring, 51 %"
    } else {
        "✓ 98 %"
    };
    Thumbnail::new(format!("{truth}\n{guess}"), SIDE, SIDE, &rgb)
}

fn main() -> Result<(), ReportError> {
    let pictures = (0..12).map(picture).collect::<Result<Vec<_>, _>>()?;
    let command =
        "vitesse adapt deit_tiny --method repadapter --data shapes --epochs 30 --seed 42 -o runs/repadapter";
    let page = Page::new("Adapting deit_tiny_patch16_224 to shapes")
        .summary(
            "RepAdapter reaches 74.8 % with 0.5 % of the parameters trained, and costs nothing after `vitesse merge`: \
             the merged model agrees with the adapted one to 2e-6.",
        )
        .card("Top-1", "74.80 %", "full fine-tuning: 76.40 %")
        .card("Trained", "28,992", "of 5,526,346 parameters")
        .card("Latency", "9.81 ms", "before: 9.83 ms")
        .card("Size", "22.9 MB", "unchanged")
        .section(
            "Methods compared",
            Content::new()
                .text(
                    "Four ways of adapting the same checkpoint, each over three seeds. Latency is the median of 50 runs \
                     at batch 1; the accuracy is followed by its standard deviation.",
                )
                .table(&methods())
                .warning(
                    "LoRA is not merged: its MACs rise by 0.6 %, its latency by 5.9 %. Run `vitesse merge` to fold it in.",
                )
                .command(command),
        )
        .section("Training", Content::new().chart(&accuracy()).charts(&[&loss(), &schedule()]))
        .section("Speed", Content::new().chart(&trade_off()).chart(&throughput()))
        .section(
            "What it gets wrong",
            Content::new().chart(&confusion()).charts(&[&similarity(), &weights()]).images(&pictures),
        )
        .section(
            "Settings",
            Content::new()
                .details("Recipe", Content::new().preformatted("[method]\nname = \"repadapter\"\nhidden = 8\nscale = 1.0"))
                .details("No data at all", Content::new().chart(&LineChart::new("Nothing was measured").size(HALF))),
        )
        .provenance([
            ("program", "vitesse 0.1.0"),
            ("checkpoint", "deit_tiny_patch16_224.fb_in1k"),
            ("data", "shapes, seed 42"),
            ("machine", "x86-64, AVX-512, 2 threads"),
            ("precision", "f32"),
        ]);
    println!("{}", page.render());
    Ok(())
}
