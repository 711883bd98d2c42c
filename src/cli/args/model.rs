//! Which model, as typed, and how its images are prepared.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use vitesse::engine::{Error, Precision};
use vitesse::measure::merge::{attach, learned, read_adapter};
use vitesse::measure::refuse_what_is_no_name;
use vitesse::model::pos_embed::Flavour;
use vitesse::model::{Checkpoint, Heads, LoadOptions};

use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::show::Show;

/// How a checkpoint is read, as typed.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct ReadArgs {
    /// Which state dict of a file with several, such as model, state_dict_ema or teacher.backbone [default: timm's choice]
    ///
    /// timm takes state_dict_ema, model_ema, state_dict or model, whichever comes first, then the top level. `vitesse inspect`
    /// lists what a file holds. Of names with prefixes it takes those that begin so.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Architecture of a bare weights file that its shapes do not tell, such as deit_tiny_patch16_224
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    #[command(flatten)]
    heads: HeadsArgs,
}

/// How the attention of a state dict that was cut smaller is divided, as typed.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct HeadsArgs {
    /// Heads of a state dict whose blocks were cut smaller, such as 3, or one number a block, such as 3,3,2
    ///
    /// Its widths are read off the tensors, block by block; the heads of a block are taken to be equally wide.
    #[arg(long, value_name = "N|N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 14))]
    num_heads: Vec<u32>,
    /// The width of a head that the attention scale is of: its inverse square root [default: the width that is left]
    ///
    /// timm's fused attention takes the width that is left. A tool that keeps the scale of the original model has that model's, such as
    /// 64 of a DeiT.
    #[arg(long, value_name = "WIDTH", requires = "num_heads", value_parser = clap::value_parser!(u32).range(1..=1 << 14))]
    head_dim: Option<u32>,
}

impl HeadsArgs {
    /// What they stand for, if any were typed.
    pub(in crate::cli) fn heads(&self) -> Option<Heads> {
        (!self.num_heads.is_empty()).then(|| Heads {
            counts: self.num_heads.iter().map(|count| *count as usize).collect(),
            scale_dim: self.head_dim.map(|width| width as usize),
        })
    }
}

/// For which images, as typed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Model")]
struct SizeArgs {
    /// Image side in pixels, or height and width; position embeddings are resized to it [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS|HxW", value_parser = image_size)]
    img_size: Option<[usize; 2]>,
    /// Side of a Swin's windows in tokens, or height and width; its tables of relative positions are resized [default: the
    /// checkpoint's]
    #[arg(long, value_name = "TOKENS|HxW", value_parser = window_size)]
    window_size: Option<[usize; 2]>,
    /// Whose way of resizing position embeddings; a Swin's tables have one way [default: that of where the checkpoint comes from]
    #[arg(long, value_enum, value_name = "WAY", requires = "img_size")]
    pos_resize: Option<PosResize>,
}

/// Whose way of resizing position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PosResize {
    /// timm's: bicubic, antialiased
    Timm,
    /// The original DeiT code's: bicubic, without antialiasing
    Deit,
    /// transformers': as DeiT's
    Hf,
}

impl PosResize {
    fn flavour(self) -> Flavour {
        match self {
            PosResize::Timm => Flavour::Timm,
            PosResize::Deit => Flavour::Deit,
            PosResize::Hf => Flavour::Transformers,
        }
    }
}

/// A side from 1 to 4096, or height and width.
fn sides(text: &str) -> Option<[usize; 2]> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=4096).contains(side));
    match text.split_once('x') {
        Some((height, width)) => side(height)
            .zip(side(width))
            .map(|(height, width)| [height, width]),
        None => side(text).map(|side| [side; 2]),
    }
}

fn window_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let expected = "expected tokens from 1 to 4096, such as 7, or height and width, such as 7x14";
    sides(text).ok_or_else(|| expected.to_owned())
}

fn image_size(text: &str) -> std::result::Result<[usize; 2], String> {
    sides(text).ok_or_else(|| {
        "expected pixels from 1 to 4096, such as 224, or height and width, such as 224x448".to_owned()
    })
}

impl ReadArgs {
    /// Whether nothing but the state dict is described.
    #[cfg(feature = "train")]
    pub(in crate::cli) fn is_plain(&self) -> bool {
        self.architecture.is_none() && self.heads.num_heads.is_empty()
    }

    /// The state dict that was asked for.
    #[cfg(feature = "train")]
    pub(in crate::cli) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The options of a load that they stand for.
    pub(in crate::cli) fn options(&self) -> LoadOptions {
        LoadOptions {
            key: self.key.clone(),
            architecture: self.architecture.clone(),
            heads: self.heads.heads(),
            ..LoadOptions::default()
        }
    }

    /// Refuses a `model` that is no name, and a name with what describes a file.
    pub(in crate::cli) fn no_name(&self, model: &str) -> Result<()> {
        refuse_what_is_no_name(model)?;
        for (flag, given) in [
            ("--key", self.key.is_some()),
            ("--architecture", self.architecture.is_some()),
            ("--num-heads", self.heads.heads().is_some()),
        ] {
            if given {
                return Err(Failure::usage(format!(
                    "{flag} describes a weights file, but `{model}` is a name"
                )));
            }
        }
        Ok(())
    }
}

/// Which model, as typed: before the flags or among them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct WhichArgs {
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from `vitesse inspect --list`; as `--model`
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    first: Option<String>,
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from `vitesse inspect --list`
    ///
    /// Folders of Vitesse, timm and transformers are read, and of the folder of a run its best epoch. A name alone stands for
    /// that architecture with fresh, untrained weights.
    #[arg(long, value_name = "MODEL", conflicts_with = "first")]
    model: Option<String>,
}

/// What becomes of a model, or of several, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct ModelArgs {
    /// An adapter trained on the model: its ops are computed and its head answers, and nothing is merged
    #[arg(long, value_name = "DIR", conflicts_with = "num_classes")]
    adapter: Option<PathBuf>,
    /// Number of classes; where a checkpoint has another, its head is replaced by a fresh, untrained one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    num_classes: Option<u32>,
    #[command(flatten)]
    size: SizeArgs,
}

/// A model by its flag, as typed, of verbs whose other arguments are files.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct CheckpointArgs {
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from `vitesse inspect --list`
    ///
    /// Folders of Vitesse, timm and transformers are read, and of the folder of a run its best epoch. A name alone stands for
    /// that architecture with fresh, untrained weights.
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    load: ModelArgs,
}

impl CheckpointArgs {
    /// As [`ModelArgs::load`].
    pub(in crate::cli) fn load(&self, console: &Console) -> Result<Checkpoint> {
        self.load.load(&self.model, &self.read, None, console)
    }
}

impl WhichArgs {
    /// What is meant, as typed.
    pub(in crate::cli) fn name(&self) -> &str {
        let typed = self.first.as_ref().or(self.model.as_ref());
        typed.map_or("", String::as_str)
    }

    /// The files of a model that has learned something: of a mere name there is nothing to transform, since `why`.
    pub(in crate::cli) fn trained(&self, read: &ReadArgs, why: &str) -> Result<PathBuf> {
        let name = self.name();
        if is_path(name) {
            return Ok(PathBuf::from(name));
        }
        read.no_name(name)?;
        let sentence = format!("`{name}` names an architecture without weights, and {why}");
        Err(Failure::usage(sentence).hint("give the folder or file of a trained model"))
    }
}

impl ModelArgs {
    /// The `model` as meant, read as `read` says; what the load changed or took for granted is said on the console. Where only
    /// an architecture is named, it gets as many classes as `classes` says, unless the command line does.
    pub(in crate::cli) fn load(
        &self,
        model: &str,
        read: &ReadArgs,
        classes: Option<usize>,
        console: &Console,
    ) -> Result<Checkpoint> {
        refuse_precision(model)?;
        let num_classes = self.num_classes.map(|classes| classes as usize);
        let img_size = self.size.img_size;
        if is_path(model) {
            let options = LoadOptions {
                num_classes,
                img_size,
                window_size: self.size.window_size,
                pos_embed: self.size.pos_resize.map(PosResize::flavour),
                ..read.options()
            };
            let mut checkpoint = Checkpoint::load(model, &options)?;
            self.overrule(&mut checkpoint);
            for note in &checkpoint.source.notes {
                console.note(note);
            }
            let Some(dir) = &self.adapter else {
                return Ok(checkpoint);
            };
            let mut show = Show::new(console);
            let adapter = read_adapter(dir, &mut show)?;
            let mut adapted = attach(&checkpoint, &adapter, &mut show)?;
            // What it learned from is asked for where it is tested.
            adapted.config.history.push(learned(&adapter));
            return Ok(adapted);
        }
        if self.adapter.is_some() {
            let sentence =
                format!("an adapter stands on the weights it was trained on, and `{model}` is only a name");
            return Err(Failure::usage(sentence).hint("give the folder or file of the base"));
        }
        read.no_name(model)?;
        console.note(&format!(
            "`{model}` is a name: its weights are fresh, so its answers are guesses"
        ));
        let mut checkpoint = Checkpoint::fresh(model, num_classes.or(classes), img_size, 0)?;
        if let Some(size) = self.size.window_size {
            checkpoint.set_window_size(size)?;
        }
        self.overrule(&mut checkpoint);
        Ok(checkpoint)
    }

    /// One of several models, which the engine has to run.
    pub(in crate::cli) fn load_for_engine(
        &self,
        model: &str,
        classes: Option<usize>,
        console: &Console,
    ) -> Result<Checkpoint> {
        let checkpoint = self.load(model, &ReadArgs::default(), classes, console)?;
        if !checkpoint.spec.is_transformer() {
            let sentence = format!(
                "the engine runs only vision transformers, and `{}` is another kind of network",
                checkpoint.spec.architecture
            );
            return Err(Error::Unsupported(sentence).into());
        }
        Ok(checkpoint)
    }

    /// An image size that was asked for also stands in the place of the one a checkpoint is best tested at.
    fn overrule(&self, checkpoint: &mut Checkpoint) {
        if self.size.img_size.is_some() {
            let cfg = &mut checkpoint.config.pretrained_cfg;
            (cfg.test_input_size, cfg.test_crop_pct) = (None, None);
        }
    }
}

/// A model and the precision that stands after it, if one does.
pub(in crate::cli) fn named_precision(text: &str) -> Result<(&str, Option<Precision>)> {
    match text.rsplit_once('@') {
        Some((model, suffix)) if !Path::new(text).exists() && !suffix.contains(['/', '\\']) => {
            let precision = suffix
                .parse()
                .map_err(|error| Failure::usage(format!("`{text}`: {error}")))?;
            Ok((model, Some(precision)))
        }
        _ => Ok((text, None)),
    }
}

/// Refuses a precision after a `model`, which only says something where several are compared.
pub(in crate::cli) fn refuse_precision(model: &str) -> Result<()> {
    let Ok((name, Some(precision))) = named_precision(model) else {
        return Ok(());
    };
    let sentence = format!("`{model}`: only `compare` takes a precision after a model");
    let hint = format!(
        "give the model as `{name}`; `--precision {precision}` runs it so in `eval`, `predict`, `run` and `bench`"
    );
    Err(Failure::usage(sentence).hint(hint))
}

/// Whether `model` is meant as a path: it is there, or it looks like one.
pub(in crate::cli) fn is_path(model: &str) -> bool {
    let looks = [
        "/",
        "\\",
        "local-dir:",
        "hf_hub:",
        "hf-hub:",
        ".safetensors",
        ".pt",
        ".ckpt",
        ".bin",
        ".tar",
        ".json",
    ]
    .iter()
    .any(|part| model.contains(part));
    looks || Path::new(model).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_may_stand_after_a_model() {
        assert_eq!(named_precision("a/b").unwrap(), ("a/b", None));
        assert_eq!(named_precision("a@int8").unwrap(), ("a", Some(Precision::Int8)));
        assert_eq!(named_precision("me@home/model").unwrap(), ("me@home/model", None));
        let refused = named_precision("a@int3").unwrap_err().to_string();
        assert!(refused.contains("int3") && refused.contains("int8"), "{refused}");
    }
}
