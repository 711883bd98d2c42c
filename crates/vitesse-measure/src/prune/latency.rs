//! How long each half of a block takes on this machine, by its widths: measured once, kept in the user's cache folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vitesse_engine::{Engine, Options};
use vitesse_model::ModelSpec;
use vitesse_model::spec::{BlockSpec, LayerSpec, NetworkSpec, SwinSpec, Transformer, VitSpec};

use crate::machine::{cache, processor};
use crate::timing::{Budget, measure, median, noise};
use crate::transform::At;
use crate::{Events, Result};

/// Copies of a half that are timed together, so that what is beside them counts little.
const COPIES: usize = 4;
/// How often each is timed, of which the fastest counts.
const TURNS: usize = 3;
/// How long each is timed.
const TURN: Budget = Budget {
    time: Duration::from_millis(30),
    runs: 5,
};

/// A table of latencies, which grows as it is asked.
pub(super) struct Latencies<'a> {
    at: At,
    stop: &'a AtomicBool,
    file: Option<PathBuf>,
    known: RefCell<BTreeMap<String, f64>>,
}

impl<'a> Latencies<'a> {
    /// With what was measured before on this machine, by this program; `events` is told where that is nothing.
    pub(super) fn open(at: At, stop: &'a AtomicBool, events: &mut dyn Events) -> Latencies<'a> {
        let file = cache::folder().map(|folder| folder.join(name(at)));
        let text = file.as_ref().and_then(|file| fs::read(file).ok());
        if text.is_none() {
            let sentence =
                "measuring once how long each width takes on this machine, for half a minute or so";
            events.say("note", sentence);
        }
        let known = text.and_then(|text| serde_json::from_slice(&text).ok());
        Latencies {
            at,
            stop,
            file,
            known: RefCell::new(known.unwrap_or_default()),
        }
    }

    /// What a model should take, in milliseconds: the sum over its halves, and what there is beside them.
    ///
    /// # Errors
    /// A model that the engine does not run; [`Error::Interrupted`](crate::Error::Interrupted) once the flag was set.
    pub(super) fn predict(&self, spec: &ModelSpec) -> Result<f64> {
        let body = spec.transformer()?;
        let mut sum = self.time(spec, &around(body), None)?;
        for layer in 0..body.layers().len() {
            let Some(block) = body.block(layer) else { continue };
            let stage = stage(body, layer);
            let beside = self.time(spec, &stage, None)?;
            for half in halves(block) {
                sum += (self.time(spec, &stage, Some(half))? - beside) / COPIES as f64;
            }
        }
        Ok(sum)
    }

    /// Keeps what was measured. A cache that cannot be written costs time, and nothing else.
    pub(super) fn save(&self) {
        if let Some(file) = &self.file {
            let written = serde_json::to_vec(&*self.known.borrow()).map_err(std::io::Error::from);
            let _ = written.and_then(|text| {
                file.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::write(file, text)
            });
        }
    }

    /// A model whose blocks, which are empty, become copies of a half.
    fn time(&self, spec: &ModelSpec, frame: &NetworkSpec, half: Option<BlockSpec>) -> Result<f64> {
        let key = format!(
            "{} {}",
            sides(frame, spec.num_classes),
            half.as_ref().map(widths).unwrap_or_default()
        );
        if let Some(known) = self.known.borrow().get(&key) {
            return Ok(*known);
        }
        let mut network = frame.clone();
        if let Some(half) = half {
            let cores = match &mut network {
                NetworkSpec::Vit(vit) => &mut vit.cores[..],
                NetworkSpec::Swin(swin) => &mut swin.cores,
                NetworkSpec::RegNet(_) => &mut [],
            };
            cores.fill(half);
        }
        let model = ModelSpec {
            network,
            ..spec.clone()
        };
        let options = Options {
            threads: self.at.threads,
            precision: self.at.precision,
            isa: None,
        };
        let engine = Engine::new(&model, &model.init(0)?, "a table of latencies", options)?;
        let images = noise(model.input_size(), self.at.batch);
        // Whatever else runs makes it slower, never faster.
        let mut found = f64::INFINITY;
        for _ in 0..TURNS {
            found = found.min(1e3 * median(measure(&engine, &images, self.at.batch, TURN, self.stop)?));
        }
        self.known.borrow_mut().insert(key, found);
        Ok(found)
    }
}

/// A block without anything in it.
const EMPTY: BlockSpec = BlockSpec {
    attn: None,
    mlp: None,
};

/// All of a model but what is in its blocks.
fn around(body: Transformer<'_>) -> NetworkSpec {
    match body {
        Transformer::Vit(vit) => NetworkSpec::Vit(copies(vit)),
        Transformer::Swin(swin) => NetworkSpec::Swin(SwinSpec {
            cores: vec![EMPTY; swin.layers.len()],
            layers: (0..swin.layers.len()).map(LayerSpec::of).collect(),
            ..swin.clone()
        }),
    }
}

/// A model with empty blocks alone that have the tokens of this layer: of a Swin its stage, whose copies shift their windows in turn.
fn stage(body: Transformer<'_>, layer: usize) -> NetworkSpec {
    match body {
        Transformer::Vit(vit) => NetworkSpec::Vit(copies(vit)),
        Transformer::Swin(swin) => {
            let stage = swin.place(layer).map_or(0, |place| place.stage);
            NetworkSpec::Swin(SwinSpec {
                img_size: swin.stage_map(stage).map(|side| side * swin.patch_size),
                embed_dim: swin.stage_dim(stage),
                depths: vec![COPIES],
                cores: vec![EMPTY; COPIES],
                layers: (0..COPIES).map(LayerSpec::of).collect(),
                ..swin.clone()
            })
        }
    }
}

fn copies(vit: &VitSpec) -> VitSpec {
    VitSpec {
        cores: vec![EMPTY; COPIES],
        layers: (0..COPIES).map(LayerSpec::of).collect(),
        ..vit.clone()
    }
}

/// All that the latency of a model of empty blocks depends on.
fn sides(frame: &NetworkSpec, classes: usize) -> String {
    match frame {
        NetworkSpec::Vit(vit) => format!(
            "{:?}",
            (
                vit.img_size,
                vit.patch_size,
                vit.embed_dim,
                vit.prefix.len(),
                vit.activation,
                vit.pre_norm,
                classes,
            )
        ),
        NetworkSpec::Swin(swin) => format!(
            "{:?}",
            (
                swin.img_size,
                swin.patch_size,
                swin.embed_dim,
                &swin.depths,
                swin.window_size,
                swin.window_rule,
                classes,
            )
        ),
        NetworkSpec::RegNet(_) => String::new(),
    }
}

/// The halves of a block, each by itself.
fn halves(block: &BlockSpec) -> impl Iterator<Item = BlockSpec> {
    let attn = block.attn.clone().map(|attn| BlockSpec {
        attn: Some(attn),
        mlp: None,
    });
    let mlp = block.mlp.clone().map(|mlp| BlockSpec {
        attn: None,
        mlp: Some(mlp),
    });
    [attn, mlp].into_iter().flatten()
}

/// All that a half's latency depends on.
fn widths(half: &BlockSpec) -> String {
    let attn = half
        .attn
        .as_ref()
        .map(|attn| (&attn.qk_dims, &attn.v_dims, attn.out_idx.as_ref().map(Vec::len)));
    let mlp = half
        .mlp
        .as_ref()
        .map(|mlp| (mlp.hidden, mlp.out_idx.as_ref().map(Vec::len)));
    format!("{attn:?} {mlp:?}")
}

/// The file of what is measured so, on this machine, by this version.
fn name(at: At) -> String {
    let isa = vitesse_kernels::Isa::detect();
    let processor = processor().unwrap_or_default();
    let whole = format!(
        "{processor} {isa:?} {} threads {} b{} {}",
        env!("CARGO_PKG_VERSION"),
        at.threads,
        at.batch,
        at.precision
    );
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    format!("{}.json", whole.chars().map(plain).collect::<String>())
}
