//! How long each half of a block takes on this machine, by its widths: measured once, kept in the user's cache folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vitesse_engine::{Engine, Options};
use vitesse_model::ModelSpec;
use vitesse_model::spec::{BlockSpec, LayerSpec, NetworkSpec, VitSpec};

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
        let vit = spec.vit()?;
        let beside = self.time(spec, vit, None)?;
        let halves = vit
            .layers
            .iter()
            .filter_map(|layer| vit.cores.get(layer.core))
            .flat_map(halves);
        let each = halves.map(|half| Ok((self.time(spec, vit, Some(half))? - beside) / COPIES as f64));
        Ok(beside + each.sum::<Result<f64>>()?)
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

    /// A model that has nothing but copies of a half.
    fn time(&self, spec: &ModelSpec, vit: &VitSpec, half: Option<BlockSpec>) -> Result<f64> {
        let sides = (
            vit.img_size,
            vit.patch_size,
            vit.embed_dim,
            vit.prefix.len(),
            vit.activation,
            vit.pre_norm,
            spec.num_classes,
        );
        let key = format!("{sides:?} {}", half.as_ref().map(widths).unwrap_or_default());
        if let Some(known) = self.known.borrow().get(&key) {
            return Ok(*known);
        }
        let copies = if half.is_some() { COPIES } else { 1 };
        let block = half.unwrap_or(BlockSpec {
            attn: None,
            mlp: None,
        });
        let model = ModelSpec {
            network: NetworkSpec::Vit(VitSpec {
                cores: vec![block; copies],
                layers: (0..copies).map(LayerSpec::of).collect(),
                ..vit.clone()
            }),
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
