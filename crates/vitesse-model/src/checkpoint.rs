//! Checkpoint folders: a model, its weights, and what is known about them.
//!
//! ```text
//! model.safetensors          the weights, under timm's names
//! config.json                what they are (module `config`)
//! preprocessor_config.json   how images are prepared, for transformers
//! ```
//!
//! [`Checkpoint::load`] reads such folders, whether we, timm or transformers wrote them, and bare weight files. A load
//! is strict: tensors that are missing, superfluous or of another shape are an error that names them. Whatever a load
//! changed or took for granted is said in [`Source::notes`].

pub mod run;
mod weights;
mod windows;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use vitesse_data::Preprocess;
use vitesse_words::counted;

use crate::config::preprocessor::{self, PREPROCESSOR_FILE};
use crate::config::{CONFIG_FILE, Config};
use crate::import::{self, Heads, Imported, bare, hf, minivit, openai, pruned, sliced, swin as swin_names};
use crate::pos_embed::{self, Flavour};
use crate::spec::{ModelSpec, NetworkSpec, TensorSpec};
use crate::storage::atomic::{may_create, may_replace};
use crate::storage::pth::StateDict;
use crate::storage::{AtomicDir, atomic_write, safetensors};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

pub use weights::{file_sha256, sha256, weights_file, weights_sha256};

/// The name of the weights file in a checkpoint folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A model with its weights.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// What the model is.
    pub spec: ModelSpec,
    /// Its weights; they are those of the spec, no more and no fewer.
    pub tensors: Tensors,
    /// What else is known about it.
    pub config: Config,
    /// Where it came from.
    pub source: Source,
}

/// Where a checkpoint came from, and what happened to it on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// The weights file, or the index of several; `None` for fresh weights.
    pub weights: Option<PathBuf>,
    /// Which of several state dicts was asked for, as in [`LoadOptions::key`].
    pub key: Option<String>,
    /// The state dicts of a `.pth` file.
    pub state_dicts: Vec<StateDict>,
    /// How its world resizes position embeddings: transformers', DeiT's or timm's.
    pub pos_embed: Flavour,
    /// What was converted, left out, resized or drawn anew, a sentence each.
    pub notes: Vec<String>,
}

/// How to load a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Of a file that holds several state dicts, where the one stands that is meant, with dots between the levels: `model`,
    /// `teacher.backbone`. Without it timm's choice is taken.
    pub key: Option<String>,
    /// The architecture of a weights file that has no config; one that has must agree.
    pub architecture: Option<String>,
    /// The heads of a state dict whose blocks were cut smaller, which its tensors do not tell. Of a checkpoint that describes
    /// its blocks itself this is an error.
    pub heads: Option<Heads>,
    /// Put a fresh head with so many classes in the place of one with another number; 0 removes the head.
    pub num_classes: Option<usize>,
    /// Resize the position embedding for images of this height and width. Of a bare file with a table that is no square it
    /// is the size the table was trained on.
    pub img_size: Option<[usize; 2]>,
    /// Give a Swin windows of so many rows and columns; its tables of relative positions are resized.
    pub window_size: Option<[usize; 2]>,
    /// How a position embedding is resized; as where the checkpoint comes from if `None`.
    pub pos_embed: Option<Flavour>,
    /// Seed of fresh heads.
    pub seed: u64,
}

impl Checkpoint {
    /// A model of the zoo with fresh weights. `num_classes` and `img_size` (height, width) default to the zoo's.
    pub fn fresh(
        name: &str,
        num_classes: Option<usize>,
        img_size: Option<[usize; 2]>,
        seed: u64,
    ) -> Result<Checkpoint> {
        let zoo::Entry {
            mut spec,
            pretrained_cfg,
            ..
        } = zoo::get(name)?;
        spec.num_classes = num_classes.unwrap_or(spec.num_classes);
        let mut config = Config {
            pretrained_cfg,
            ..Config::default()
        };
        if let Some(size) = img_size {
            set_input(&mut spec, &mut config, size);
        }
        spec.validate()?;
        let tensors = spec.init(seed)?;
        Ok(Checkpoint {
            spec,
            tensors,
            config,
            source: Source::default(),
        })
    }

    /// Loads a folder of ours, timm's (`local-dir:` before it is fine) or transformers', a `.safetensors` or `.pth` file, or
    /// the index of several. Of the folder of a run it takes the best epoch, else the last. The model is described by the `config.json` beside the weights, by `options.architecture`, by
    /// what the training program wrote down, or by its shapes.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Checkpoint> {
        let path = weights::local(path.as_ref());
        let (weights, choice) = weights::choose(path)?;
        let config = weights.with_file_name(CONFIG_FILE);
        let mut read = weights::read(&weights, options.key.as_deref()).map_err(|error| {
            // What a folder is says more than that its tensors are unusual.
            let kind = path.is_dir().then(|| hf::unknown_type(&config)).flatten();
            kind.unwrap_or(error)
        })?;
        let original_layout = swin_names::is_old(&read.tensors);
        let (tensors, notes) = swin_names::read(read.tensors)?;
        read.tensors = tensors;
        read.notes.extend(notes);
        // A folder of transformers' or timm's may hold OpenCLIP's file too, which its `config.json` does not describe.
        let described = config.is_file()
            && (path.is_dir() || options.architecture.is_none())
            && !openai::is(&read.tensors);
        let architecture = options.architecture.as_deref();
        let imported = if let Some(description) = &read.description {
            refuse_heads(options, &weights)?;
            let mut imported = pruned::import(description, read.tensors, &weights, architecture)?;
            if config.is_file() {
                imported.notes.push(format!(
                    "`{}` is not read: the metadata of the weights describes the model",
                    config.display()
                ));
            }
            imported
        } else if described {
            read_described(&config, read.tensors, options)?
        } else {
            let known = bare::Known {
                architecture,
                img_size: options.img_size,
                heads: options.heads.as_ref(),
                run: import::run::with_args_beside(read.recorded, &weights)?,
            };
            let mut imported = bare::import(read.tensors, &weights, &known)?;
            if original_layout {
                swin_names::take_original_rule(&mut imported.spec);
            }
            imported
        };
        let original_rule = original_layout && !described;
        let Imported {
            spec,
            tensors,
            config,
            pos_embed,
            mut notes,
        } = imported;
        let tensors = minivit::read(&spec, tensors)?;
        notes.splice(0..0, choice.into_iter().chain(read.notes));
        let mut checkpoint = Checkpoint {
            spec,
            tensors,
            config,
            source: Source {
                weights: Some(weights),
                key: options.key.clone(),
                state_dicts: read.state_dicts,
                pos_embed,
                notes,
            },
        };
        checkpoint.check()?;
        if let Some(classes) = options.num_classes {
            checkpoint.set_num_classes(classes, options.seed)?;
        }
        checkpoint.set_sizes(options.img_size, options.window_size, options.pos_embed)?;
        // After the sizes, on which it depends whether the two rules differ.
        if original_rule {
            let note = swin_names::settle_rule(&mut checkpoint.spec);
            checkpoint.source.notes.extend(note);
        }
        Ok(checkpoint)
    }

    /// Writes the folder `dir`, whole or not at all. An existing folder is an error unless `force` is set, and even then
    /// only a checkpoint folder is replaced. The same checkpoint gives the same bytes.
    pub fn save(&self, dir: &Path, force: bool) -> Result<()> {
        self.save_with(dir, force, |_| Ok(()))
    }

    /// As [`Checkpoint::save`], with what `more` writes into the folder: all of it is there, or nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::save`]; what `more` says.
    pub fn save_with(&self, dir: &Path, force: bool, more: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let folder = AtomicDir::create(dir, force, CONFIG_FILE)?;
        self.write_into(folder.path())?;
        more(folder.path())?;
        folder.commit()
    }

    /// Whether [`Checkpoint::save`] may write the folder `dir`, for those who ask before long work.
    ///
    /// # Errors
    /// [`Error::Exists`]; a place that cannot be written.
    pub fn may_save(dir: &Path, force: bool) -> Result<()> {
        may_replace(dir, force, CONFIG_FILE)?;
        may_create(dir)
    }

    /// Writes the files of a checkpoint folder into a folder that exists.
    pub fn write_into(&self, folder: &Path) -> Result<()> {
        self.check()?;
        let config = self.config.to_json(&self.spec)?;
        safetensors::write(
            &folder.join(WEIGHTS_FILE),
            &minivit::write(&self.spec, &self.tensors)?,
            &safetensors::Metadata::new(),
        )?;
        atomic_write(&folder.join(CONFIG_FILE), |file| {
            file.write_all(config.as_bytes())
        })?;
        match preprocessor::to_json(&self.config.pretrained_cfg, self.spec.input_size()) {
            Some(text) => atomic_write(&folder.join(PREPROCESSOR_FILE), |file| {
                file.write_all(text.as_bytes())
            }),
            None => Ok(()),
        }
    }

    /// [`weights_sha256`] of what this was loaded from: the parent of what is made of it. `None` for fresh weights.
    pub fn source_sha256(&self) -> Result<Option<String>> {
        let sha256 = |path: &PathBuf| weights_sha256(path, self.source.key.as_deref());
        self.source.weights.as_ref().map(sha256).transpose()
    }

    /// Puts fresh heads with `num_classes` classes, drawn from `seed`, in the place of those with another number; 0
    /// removes them. The names of the classes go with the old heads.
    pub fn set_num_classes(&mut self, num_classes: usize, seed: u64) -> Result<()> {
        let old = self.spec.num_classes;
        if num_classes == old {
            return Ok(());
        }
        let spec = ModelSpec {
            num_classes,
            ..self.spec.clone()
        };
        spec.validate()?;
        let heads = spec.classifiers();
        let parameters = heads
            .iter()
            .flat_map(|head| [format!("{head}.weight"), format!("{head}.bias")]);
        let parameters: Vec<String> = parameters.collect();
        for name in parameters.iter().filter(|_| old > 0) {
            self.tensors.remove(name)?;
        }
        let fresh = |spec: &TensorSpec| parameters.contains(&spec.name);
        for tensor in spec.tensors()?.iter().filter(|tensor| fresh(tensor)) {
            self.tensors.insert(tensor.name.clone(), tensor.init(seed)?);
        }
        self.spec = spec;
        self.config.label_names.clear();
        self.config.label_descriptions.clear();
        self.config.problem_type = None;
        // It names weights whose classes are others.
        self.config.pretrained_cfg.tag = None;
        self.config.pretrained_cfg.extra.shift_remove("label_offset");
        let heads = heads.join("` and `");
        self.source.notes.push(match num_classes {
            0 => format!("`{heads}` removed: the model returns features"),
            _ => format!(
                "`{heads}` drawn anew for {} (the file has {old})",
                counted(num_classes, "class")
            ),
        });
        Ok(())
    }

    /// Makes the model one for images of this height and width; a position embedding is resized, as where the checkpoint
    /// comes from unless a flavour is given, and tables of relative positions where windows become smaller or larger.
    pub fn set_img_size(&mut self, img_size: [usize; 2], flavour: Option<Flavour>) -> Result<()> {
        self.set_sizes(Some(img_size), None, flavour)
    }

    /// Gives a Swin windows of so many rows and columns, where its maps are larger; tables of relative positions are resized.
    ///
    /// # Errors
    /// A model without windows.
    pub fn set_window_size(&mut self, window_size: [usize; 2]) -> Result<()> {
        self.set_sizes(None, Some(window_size), None)
    }

    /// Both at once, so that no size between has to be possible.
    ///
    /// # Errors
    /// As [`Checkpoint::set_img_size`] and [`Checkpoint::set_window_size`].
    pub fn set_sizes(
        &mut self,
        img_size: Option<[usize; 2]>,
        window_size: Option<[usize; 2]>,
        flavour: Option<Flavour>,
    ) -> Result<()> {
        let flavour = flavour.unwrap_or(self.source.pos_embed);
        let (mut spec, mut config) = (self.spec.clone(), self.config.clone());
        if let Some(size) = img_size.filter(|size| *size != self.spec.input_size()[1..]) {
            set_input(&mut spec, &mut config, size);
        }
        match (&mut spec.network, window_size) {
            (_, None) => {}
            (NetworkSpec::Swin(swin), Some(size)) => swin.window_size = size,
            (_, Some(_)) => {
                return Err(Error::Unsupported {
                    what: format!("another window size for `{}`", self.spec.architecture),
                    why: "only Swins attend in windows; leave the window size away".to_owned(),
                });
            }
        }
        if spec == self.spec {
            return Ok(());
        }
        spec.validate()?;
        match (&self.spec.network, &spec.network) {
            (NetworkSpec::Vit(old), NetworkSpec::Vit(new)) => {
                let ([rows, columns], [new_rows, new_columns]) = (old.grid(), new.grid());
                let prefix = old.pos_rows() - old.patches();
                let (from, to) = (Some((rows, columns)), (new_rows, new_columns));
                let table = pos_embed::resize(self.tensors.get("pos_embed")?, prefix, from, to, flavour)?;
                self.tensors.insert("pos_embed", table);
                self.source.notes.push(format!(
                    "`pos_embed` resized from {rows}x{columns} to {new_rows}x{new_columns} patches, for images of {}x{}, {flavour}",
                    new.img_size[0], new.img_size[1]
                ));
            }
            (NetworkSpec::Swin(old), NetworkSpec::Swin(new)) => {
                let note = windows::resize_tables(old, new, &mut self.tensors)?;
                self.source.notes.extend(note);
            }
            _ => {}
        }
        (self.spec, self.config) = (spec, config);
        Ok(())
    }

    /// Makes of a model that does best on larger images than it was trained on one for those, as timm evaluates it. Others
    /// stay as they are.
    ///
    /// # Errors
    /// A size that the model cannot have.
    pub fn set_test_size(&mut self) -> Result<()> {
        let cfg = &self.config.pretrained_cfg;
        if let Some([_, height, width]) = cfg.test_input_size {
            let crop_pct = cfg.test_crop_pct.unwrap_or(cfg.crop_pct);
            self.set_img_size([height, width], None)?;
            self.config.pretrained_cfg.crop_pct = crop_pct;
        }
        Ok(())
    }

    /// What must be done to an image before the model sees it.
    ///
    /// # Errors
    /// As [`PretrainedCfg::preprocess`](crate::PretrainedCfg::preprocess).
    pub fn preprocess(&self) -> Result<Preprocess> {
        self.config.pretrained_cfg.preprocess(&self.spec)
    }

    /// Strict check of the tensors against the spec.
    fn check(&self) -> Result<()> {
        let file = self
            .source
            .weights
            .as_ref()
            .map_or("the model".to_owned(), |path| path.display().to_string());
        if let NetworkSpec::Vit(vit) = &self.spec.network {
            let has_token = self.tensors.contains("dist_token");
            if has_token != vit.is_distilled() && self.tensors.contains("pos_embed") {
                let (found, wanted) = if has_token {
                    ("distilled", "plain")
                } else {
                    ("plain", "distilled")
                };
                return Err(Error::Unsupported {
                    what: format!("loading `{file}` as `{}`", self.spec.architecture),
                    why: format!(
                        "the file holds a {found} model and the architecture is a {wanted} one, so the rows of \
                         `pos_embed` would go to the wrong tokens; load it as the architecture it was trained as"
                    ),
                });
            }
        }
        bare::refuse_class_token(&self.spec, &self.tensors, &file)?;
        self.spec.check(&self.tensors, &file)
    }
}

/// Changes the input size in the description alone.
fn set_input(spec: &mut ModelSpec, config: &mut Config, size: [usize; 2]) {
    match &mut spec.network {
        NetworkSpec::Vit(vit) => vit.img_size = size,
        NetworkSpec::RegNet(regnet) => regnet.img_size = size,
        NetworkSpec::Swin(swin) => swin.img_size = size,
    }
    let cfg = &mut config.pretrained_cfg;
    (cfg.pool_size, cfg.test_input_size, cfg.test_crop_pct) = (None, None, None);
}

/// Refuses to be told what `file` says.
fn refuse_heads(options: &LoadOptions, file: &Path) -> Result<()> {
    match options.heads {
        None => Ok(()),
        Some(_) => Err(Error::Weights {
            path: file.to_owned(),
            detail: "it says itself which heads its blocks have; leave `--num-heads` away".to_owned(),
        }),
    }
}

/// What `config`, timm's file or transformers', makes of the tensors beside it.
fn read_described(config: &Path, tensors: Tensors, options: &LoadOptions) -> Result<Imported> {
    let text = fs::read_to_string(config).map_err(Error::io("read", config))?;
    let text = text.trim_start_matches('\u{feff}');
    // What is no JSON is refused by whoever reads it.
    let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let mut imported = if keys.contains_key("model_type") && !keys.contains_key("architecture") {
        let file = config.with_file_name(PREPROCESSOR_FILE);
        let preprocessor = match fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            found => Some(found.map_err(Error::io("read", &file))?),
        };
        hf::import(text, config, preprocessor.as_deref(), tensors)?
    } else {
        let mut notes = Vec::new();
        let (spec, parsed) = Config::parse_noting(text, config, &mut notes)?;
        let file = config.with_file_name(PREPROCESSOR_FILE);
        // It says the same in transformers' words, and only transformers reads it.
        if fs::read(&file).is_ok_and(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).is_err()) {
            notes.push(format!(
                "{PREPROCESSOR_FILE} is damaged (no JSON object); it is not read, since {CONFIG_FILE} says how images are prepared"
            ));
        }
        Imported {
            spec,
            tensors,
            config: parsed,
            pos_embed: Flavour::Timm,
            notes,
        }
    };
    if let Some(heads) = &options.heads {
        // Weights that fit their description were not cut: its heads are right.
        let told = keys.get("vitesse").is_some_and(|own| own.get("blocks").is_some());
        if told || imported.spec.check(&imported.tensors, "the weights").is_ok() {
            refuse_heads(options, config)?;
        }
        let note = sliced::fit(&mut imported.spec, &imported.tensors, config, heads)?;
        imported.notes.push(note);
    }
    let found = &imported.spec.architecture;
    match options.architecture.as_deref() {
        Some(name) if zoo::get(name)?.spec.architecture != *found => Err(Error::Config {
            path: config.to_owned(),
            key: "architecture".to_owned(),
            expected: format!("`{name}`, as asked for"),
            found: format!("`{found}`"),
        }),
        _ => Ok(imported),
    }
}
