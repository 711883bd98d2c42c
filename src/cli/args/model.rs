//! Which model, as typed, and how its images are prepared.

use std::path::{Path, PathBuf};

use vitesse::adapt::peft::Adapter;
use vitesse::engine::Error;
use vitesse::measure::merge::attach;
use vitesse::measure::refuse_what_is_no_name;
use vitesse::model::{Checkpoint, LoadOptions};

use crate::cli::Console;
use crate::cli::failure::{Failure, Result};
use crate::cli::show::Show;

/// Which model, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct ModelArgs {
    /// A checkpoint folder, a `.safetensors` or `.pth` file, or a name from `vitesse inspect --list`
    ///
    /// Folders of Vitesse, timm and transformers are read. A name alone stands for that architecture with fresh, untrained
    /// weights.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// An adapter trained on the model: its ops are computed and its head answers, and nothing is merged
    #[arg(long, value_name = "DIR", conflicts_with = "num_classes")]
    adapter: Option<PathBuf>,
    /// Architecture of a bare weights file that its shapes do not tell, such as deit_tiny_patch16_224
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// Number of classes; where the checkpoint has another, its head is replaced by a fresh, untrained one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    num_classes: Option<u32>,
    /// Image side in pixels; the position embedding is resized to it [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    img_size: Option<u32>,
}

/// What is typed once for several models.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(in crate::cli) struct ModelsArgs {
    /// An adapter trained on the model: its ops are computed and its head answers, and nothing is merged
    #[arg(long, value_name = "DIR", conflicts_with = "num_classes")]
    adapter: Option<PathBuf>,
    /// Number of classes; where a checkpoint has another, its head is replaced by a fresh, untrained one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    num_classes: Option<u32>,
    /// Image side in pixels; position embeddings are resized to it [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    img_size: Option<u32>,
}

impl ModelsArgs {
    /// One of the models, as [`ModelArgs::load`] would.
    pub(in crate::cli) fn load_any(
        &self,
        model: &str,
        classes: Option<usize>,
        console: &Console,
    ) -> Result<Checkpoint> {
        let args = ModelArgs {
            model: model.to_owned(),
            adapter: self.adapter.clone(),
            architecture: None,
            num_classes: self.num_classes,
            img_size: self.img_size,
        };
        args.load(classes, console)
    }

    /// The same; only those that the engine runs.
    pub(in crate::cli) fn load(
        &self,
        model: &str,
        classes: Option<usize>,
        console: &Console,
    ) -> Result<Checkpoint> {
        let checkpoint = self.load_any(model, classes, console)?;
        if checkpoint.spec.vit().is_err() {
            let sentence = format!(
                "the engine runs only vision transformers, and `{}` is another kind of network",
                checkpoint.spec.architecture
            );
            return Err(Error::Unsupported(sentence).into());
        }
        Ok(checkpoint)
    }
}

impl ModelArgs {
    /// The model as meant; what the load changed or took for granted is said on the console. Where only an architecture is
    /// named, it gets as many classes as `classes` says, unless the command line does.
    pub(in crate::cli) fn load(&self, classes: Option<usize>, console: &Console) -> Result<Checkpoint> {
        let num_classes = self.num_classes.map(|classes| classes as usize);
        let img_size = self.img_size.map(|side| [side as usize; 2]);
        if is_path(&self.model) {
            let architecture = self.architecture.clone();
            let options = LoadOptions {
                architecture,
                num_classes,
                img_size,
                ..LoadOptions::default()
            };
            let mut checkpoint = Checkpoint::load(&self.model, &options)?;
            self.overrule(&mut checkpoint);
            for note in &checkpoint.source.notes {
                console.note(note);
            }
            return match &self.adapter {
                Some(dir) => Ok(attach(
                    &checkpoint,
                    &Adapter::read(dir)?,
                    &mut Show::new(console),
                )?),
                None => Ok(checkpoint),
            };
        }
        if self.adapter.is_some() {
            let sentence = format!(
                "an adapter stands on the weights it was trained on, and `{}` is only a name",
                self.model
            );
            return Err(Failure::usage(sentence).hint("give the folder or file of the base"));
        }
        no_name(&self.model, self.architecture.as_deref())?;
        console.note(&format!(
            "`{}` is a name: its weights are fresh, so its answers are guesses",
            self.model
        ));
        let mut checkpoint = Checkpoint::fresh(&self.model, num_classes.or(classes), img_size, 0)?;
        self.overrule(&mut checkpoint);
        Ok(checkpoint)
    }

    /// An image size that was asked for also stands in the place of the one a checkpoint is best tested at.
    fn overrule(&self, checkpoint: &mut Checkpoint) {
        if self.img_size.is_some() {
            let cfg = &mut checkpoint.config.pretrained_cfg;
            (cfg.test_input_size, cfg.test_crop_pct) = (None, None);
        }
    }
}

/// Refuses a `model` that is no name, and a name with the `architecture` of a file.
pub(in crate::cli) fn no_name(model: &str, architecture: Option<&str>) -> Result<()> {
    refuse_what_is_no_name(model)?;
    if architecture.is_some() {
        return Err(Failure::usage(format!(
            "--architecture describes a weights file, but `{model}` is a name"
        )));
    }
    Ok(())
}

/// Whether `model` is meant as a path: it is there, or it looks like one.
pub(in crate::cli) fn is_path(model: &str) -> bool {
    let looks = ["/", "\\", "local-dir:", ".safetensors", ".pth", ".bin", ".tar"]
        .iter()
        .any(|part| model.contains(part));
    looks || Path::new(model).exists()
}
