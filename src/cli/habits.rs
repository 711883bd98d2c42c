//! Flags and verbs that users of other programs are used to, and what they are here.

use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

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

/// Verbs of other programs that have another name here, or none.
const VERBS: [(&[&str], &str); 12] = [
    (
        &["finetune", "fine-tune", "fit", "pretrain"],
        "`train` fine-tunes the checkpoint of `--model`, or trains an architecture from scratch",
    ),
    (
        &["lora", "peft", "tune", "linear-probe", "train-adapter", "adapter"],
        "`adapt` learns a task by a small part of a model; `--method` says which",
    ),
    (
        &["quantize", "quantise", "quant"],
        "nothing needs converting: `--precision int8` runs any model so, in `eval`, `predict`, `run`, `bench` and `compare`",
    ),
    (
        &["export", "convert", "import", "onnx"],
        "checkpoints of timm, transformers and DeiT are read as they are, and `train`, `adapt`, `merge` and `prune` write folders that timm \
         loads; there is no other format",
    ),
    (
        &["test", "validate", "val", "evaluate", "accuracy", "score"],
        "it is called `eval`",
    ),
    (
        &["infer", "inference", "classify", "detect", "label"],
        "it is called `predict`; `run` takes raw tensors",
    ),
    (
        &[
            "extract",
            "embed",
            "embeddings",
            "backbone",
            "features-only",
            "forward-intermediates",
        ],
        "`features` writes feature maps to a file, and `run` what the head reads, of a model without classes (`--num-classes 0`)",
    ),
    (
        &["benchmark", "profile", "speed", "latency"],
        "it is called `bench`, and `compare` for several models in turns",
    ),
    (
        &["info", "show", "summary", "list", "ls", "zoo", "models"],
        "it is called `inspect`; `inspect --list` shows the zoo",
    ),
    (
        &["unmerge", "fold", "fuse"],
        "it is called `merge`, and `merge --unmerge` takes an adapter out again",
    ),
    (
        &["sweep", "study", "search", "resume"],
        "that is a flag: `train --sweep`, `adapt --search`, `train --resume`",
    ),
    (
        &["demo", "example", "tutorial", "start", "init"],
        "it is called `quickstart`",
    ),
];

/// Adds to what clap says of an unknown flag or verb what it is called here.
pub(crate) fn explain(mut error: clap::Error) -> clap::Error {
    if let Some(tip) = tip(&error) {
        // Likely spellings, which clap guesses, say less.
        for guess in [
            ContextKind::SuggestedArg,
            ContextKind::SuggestedSubcommand,
            ContextKind::TrailingArg,
        ] {
            error.remove(guess);
        }
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![StyledStr::from(tip)]),
        );
    }
    error
}

/// What an unknown flag or verb is called here, if that is known.
fn tip(error: &clap::Error) -> Option<&'static str> {
    let said = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.as_str()),
        _ => None,
    };
    let of = |known: &[(&[&str], &'static str)], name: &str| {
        let found = known.iter().find(|(names, _)| names.contains(&name));
        found.map(|(_, tip)| *tip)
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => of(&VERBS, said(ContextKind::InvalidSubcommand)?),
        ErrorKind::UnknownArgument => {
            let typed = said(ContextKind::InvalidArg)?;
            match typed.trim_start_matches('-') {
                name if name == typed => takes_data(error).then_some(DATA),
                name => of(&HABITS, &name.split('=').next()?.replace('_', "-")),
            }
        }
        _ => None,
    }
}

/// What a word too many is taken for, where a verb learns from data or is tested on them.
const DATA: &str = "the data set is given with `--data`, and the model with `--model` or first of all";

/// Whether the verb that was typed takes a data set.
fn takes_data(error: &clap::Error) -> bool {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return false;
    };
    let mut verb = Cli::command();
    for word in usage.to_string().split_whitespace() {
        if let Some(inner) = verb.find_subcommand(word) {
            verb = inner.clone();
        }
    }
    verb.get_arguments().any(|argument| argument.get_id() == "data")
}
