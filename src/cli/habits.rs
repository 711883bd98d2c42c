//! Flags that users of other programs are used to, and what they are here.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of timm's, PEFT's and transformers' programs that have another name here, or none.
const HABITS: [(&[&str], &str); 16] = [
    (
        &["pretrained"],
        "weights come from the checkpoint: give its folder or file with `--model`",
    ),
    (
        &["initial-checkpoint", "checkpoint", "finetune"],
        "give the checkpoint's folder or file with `--model`; `--architecture` names one that the file does not tell",
    ),
    (
        &["opt", "optimizer", "optim"],
        "the optimiser is AdamW: `--lr`, `--weight-decay`, `--clip-grad`, `--layer-decay`",
    ),
    (
        &["sched", "scheduler", "lr-scheduler"],
        "the rate warms up and falls along a cosine: `--warmup-epochs`, `--warmup-lr`, `--min-lr`; `schedule.curve` in a recipe",
    ),
    (
        &[
            "bs",
            "batch",
            "validation-batch-size",
            "per-device-train-batch-size",
        ],
        "it is called `--batch-size`, or `-b`",
    ),
    (&["wd", "weight-decay-rate"], "it is called `--weight-decay`"),
    (
        &["device", "gpu", "cuda", "cpu", "num-gpu"],
        "everything is computed on the CPU: `--threads` says by how many",
    ),
    (
        &["input-size", "image-size", "img-dim"],
        "it is called `--img-size`",
    ),
    (
        &[
            "rank",
            "lora-rank",
            "lora-r",
            "lora-alpha",
            "alpha",
            "targets",
            "target-modules",
        ],
        "settings of a method are given with `--set`, such as `--set rank=8`",
    ),
    (
        &["model-ema", "ema"],
        "give the decay of the average: `--ema-decay 0.9999`",
    ),
    (&["num-workers"], "it is called `--workers`, or `-j`"),
    (
        &["output-dir", "out", "experiment", "save-dir"],
        "it is called `--output`, or `-o`",
    ),
    (&["val-split", "train-split"], "it is called `--split`"),
    (
        &["fp16", "half", "bf16", "amp-dtype", "model-dtype"],
        "`--precision bf16` runs a model so, `--amp bf16` trains one",
    ),
    (
        &["no-aug", "auto-augment", "randaugment"],
        "augmentation is `--aa`, `--hflip`, `--reprob`, `--mixup`, `--cutmix`, `--color-jitter`",
    ),
    (&["dataset", "data-path", "root", "dir"], "it is called `--data`"),
];

/// Adds to what clap says of an unknown flag what it is called here.
pub(crate) fn explain(mut error: clap::Error) -> clap::Error {
    if let Some(tip) = tip(&error) {
        // Likely spellings, which clap guesses, say less.
        error.remove(ContextKind::SuggestedArg);
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![StyledStr::from(tip)]),
        );
    }
    error
}

/// What an unknown flag is called here, if that is known.
pub(crate) fn tip(error: &clap::Error) -> Option<&'static str> {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let name = flag.trim_start_matches('-').split('=').next()?.replace('_', "-");
    let known = HABITS.iter().find(|(names, _)| names.contains(&name.as_str()));
    known.map(|(_, tip)| *tip)
}
