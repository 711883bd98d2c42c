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

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::config::preprocessor::{self, PREPROCESSOR_FILE};
use crate::config::{CONFIG_FILE, Config};
use crate::import::{Imported, bare, hf, minivit};
use crate::pos_embed::{self, Flavour};
use crate::spec::{ModelSpec, NetworkSpec, TensorSpec};
use crate::storage::atomic::may_replace;
use crate::storage::{AtomicDir, atomic_write, pth, safetensors};
use crate::tensors::Tensors;
use crate::{Error, Result, zoo};

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
    /// The weights file; `None` for fresh weights.
    pub weights: Option<PathBuf>,
    /// What was converted, left out, resized or drawn anew, a sentence each.
    pub notes: Vec<String>,
}

/// How to load a checkpoint.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The architecture of a weights file that has no config; one that has must agree.
    pub architecture: Option<String>,
    /// Put a fresh head with so many classes in the place of one with another number; 0 removes the head.
    pub num_classes: Option<usize>,
    /// Resize the position embedding for images of this height and width.
    pub img_size: Option<[usize; 2]>,
    /// How it is resized.
    pub pos_embed: Flavour,
    /// Seed of fresh heads.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            architecture: None,
            num_classes: None,
            img_size: None,
            pos_embed: Flavour::Deit,
            seed: 0,
        }
    }
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

    /// Loads a folder of ours, timm's (`local-dir:` before it is fine) or transformers', or a `.safetensors` or `.pth`
    /// file, which is described by the `config.json` beside it, by `options.architecture`, or by its shapes.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Checkpoint> {
        let path = local(path.as_ref());
        let weights = weights_file(path)?;
        let (tensors, note) = read_weights(&weights)?;
        let config = weights.with_file_name(CONFIG_FILE);
        let described = config.is_file() && (path.is_dir() || options.architecture.is_none());
        let imported = if described {
            read_described(&config, tensors, options.architecture.as_deref())?
        } else {
            bare::import(tensors, &weights, options.architecture.as_deref())?
        };
        let Imported {
            spec,
            tensors,
            config,
            mut notes,
        } = imported;
        let tensors = minivit::read(&spec, tensors)?;
        notes.splice(0..0, note);
        let mut checkpoint = Checkpoint {
            spec,
            tensors,
            config,
            source: Source {
                weights: Some(weights),
                notes,
            },
        };
        checkpoint.check()?;
        if let Some(classes) = options.num_classes {
            checkpoint.set_num_classes(classes, options.seed)?;
        }
        if let Some(size) = options.img_size {
            checkpoint.set_img_size(size, options.pos_embed)?;
        }
        Ok(checkpoint)
    }

    /// Writes the folder `dir`, whole or not at all. An existing folder is an error unless `force` is set, and even then
    /// only a checkpoint folder is replaced. The same checkpoint gives the same bytes.
    pub fn save(&self, dir: &Path, force: bool) -> Result<()> {
        let folder = AtomicDir::create(dir, force, CONFIG_FILE)?;
        self.write_into(folder.path())?;
        folder.commit()
    }

    /// Whether [`Checkpoint::save`] may write the folder `dir`, for those who ask before long work.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn may_save(dir: &Path, force: bool) -> Result<()> {
        may_replace(dir, force, CONFIG_FILE)
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

    /// SHA-256, in hexadecimal, of the weights file this was loaded from: the parent of what is made of it.
    /// `None` for fresh weights.
    pub fn source_sha256(&self) -> Result<Option<String>> {
        self.source.weights.as_deref().map(file_sha256).transpose()
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
            _ => format!("`{heads}` drawn anew for {num_classes} classes (the file has {old})"),
        });
        Ok(())
    }

    /// Makes the model one for images of this height and width; a position embedding is resized.
    pub fn set_img_size(&mut self, img_size: [usize; 2], flavour: Flavour) -> Result<()> {
        let [_, height, width] = self.spec.input_size();
        if img_size == [height, width] {
            return Ok(());
        }
        let (mut spec, mut config) = (self.spec.clone(), self.config.clone());
        set_input(&mut spec, &mut config, img_size);
        spec.validate()?;
        if let (NetworkSpec::Vit(old), NetworkSpec::Vit(new)) = (&self.spec.network, &spec.network) {
            let ([rows, columns], [new_rows, new_columns]) = (old.grid(), new.grid());
            let prefix = old.pos_rows() - old.patches();
            let (from, to) = (Some((rows, columns)), (new_rows, new_columns));
            let table = pos_embed::resize(self.tensors.get("pos_embed")?, prefix, from, to, flavour)?;
            self.tensors.insert("pos_embed", table);
            self.source.notes.push(format!(
                "`pos_embed` resized from {rows}x{columns} to {new_rows}x{new_columns} patches, for images of {}x{}",
                img_size[0], img_size[1]
            ));
        }
        (self.spec, self.config) = (spec, config);
        Ok(())
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
        self.spec.check(&self.tensors, &file)
    }
}

/// Changes the input size in the description alone.
fn set_input(spec: &mut ModelSpec, config: &mut Config, size: [usize; 2]) {
    match &mut spec.network {
        NetworkSpec::Vit(vit) => vit.img_size = size,
        NetworkSpec::RegNet(regnet) => regnet.img_size = size,
    }
    let cfg = &mut config.pretrained_cfg;
    (cfg.pool_size, cfg.test_input_size, cfg.test_crop_pct) = (None, None, None);
}

/// Without timm's prefix for a folder.
fn local(path: &Path) -> &Path {
    path.to_str()
        .and_then(|text| text.strip_prefix("local-dir:"))
        .map_or(path, Path::new)
}

/// The weights file that [`Checkpoint::load`] reads: that of a folder, or the file itself.
///
/// # Errors
/// A folder without one.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    let path = local(path);
    if path.is_dir() {
        find_weights(path)
    } else {
        Ok(path.to_owned())
    }
}

/// The weights file of a folder, by timm's order of preference.
fn find_weights(dir: &Path) -> Result<PathBuf> {
    const PREFERRED: [&str; 4] = [
        WEIGHTS_FILE,
        "pytorch_model.bin",
        "pytorch_model.pth",
        "model.pth",
    ];
    const ENDINGS: [&str; 4] = [".safetensors", ".pth", ".pth.tar", ".bin"];
    if let Some(path) = PREFERRED
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
    {
        return Ok(path);
    }
    let entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(Error::io("read", dir))?;
    let mut names: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let found = ENDINGS
        .iter()
        .find_map(|ending| names.iter().find(|name| name.ends_with(ending)));
    found.map(|name| dir.join(name)).ok_or_else(|| {
        let nothing = format!(
            "it holds no weights: no {WEIGHTS_FILE} and no file that ends in {}",
            ENDINGS.join(", ")
        );
        Error::io("load", dir)(io::Error::new(io::ErrorKind::NotFound, nothing))
    })
}

/// The tensors of a file, and what was taken from it where it may hold more than one model.
fn read_weights(file: &Path) -> Result<(Tensors, Option<String>)> {
    if file.extension().is_some_and(|ending| ending == "safetensors") {
        return Ok((safetensors::read(file)?.0, None));
    }
    let (tensors, taken) = pth::read(file)?;
    Ok((tensors, Some(taken.to_string())))
}

/// What `config`, timm's file or transformers', makes of the tensors beside it.
fn read_described(config: &Path, tensors: Tensors, architecture: Option<&str>) -> Result<Imported> {
    let text = fs::read_to_string(config).map_err(Error::io("read", config))?;
    let keys: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    let imported = if keys.contains_key("model_type") && !keys.contains_key("architecture") {
        let preprocessor = fs::read_to_string(config.with_file_name(PREPROCESSOR_FILE)).ok();
        hf::import(&text, config, preprocessor.as_deref(), tensors)?
    } else {
        let (spec, config) = Config::parse(&text, config)?;
        Imported {
            spec,
            tensors,
            config,
            notes: Vec::new(),
        }
    };
    let found = &imported.spec.architecture;
    match architecture {
        Some(name) if zoo::get(name)?.spec.architecture != *found => Err(Error::Config {
            path: config.to_owned(),
            key: "architecture".to_owned(),
            expected: format!("`{name}`, as asked for"),
            found: format!("`{found}`"),
        }),
        _ => Ok(imported),
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn file_sha256(path: &Path) -> Result<String> {
    let digest = || -> io::Result<_> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut hash = Sha256::new();
        loop {
            let bytes = file.fill_buf()?;
            let read = bytes.len();
            if read == 0 {
                return Ok(hash.finalize());
            }
            hash.update(bytes);
            file.consume(read);
        }
    };
    let digest = digest().map_err(Error::io("read", path))?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
