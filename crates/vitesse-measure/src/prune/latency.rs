//! How long each half of a block takes on this machine, by its widths: measured once, kept in the user's cache folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vitesse_engine::{Engine, Options};
use vitesse_model::ModelSpec;
use vitesse_model::spec::{AttentionSpec, BlockSpec, LayerSpec, NetworkSpec, SwinSpec, Transformer, VitSpec};

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
        match spec.transformer()? {
            Transformer::Vit(vit) => self.predict_vit(spec, vit),
            Transformer::Swin(swin) => self.predict_swin(spec, swin),
        }
    }

    fn predict_vit(&self, spec: &ModelSpec, vit: &VitSpec) -> Result<f64> {
        let blocks: Vec<_> = vit
            .layers
            .iter()
            .filter_map(|layer| vit.cores.get(layer.core))
            .collect();
        let last = blocks.iter().rposition(|block| block.attn.is_some());
        let time = |blocks: &[BlockSpec]| self.time(&of_blocks(spec, vit, blocks));
        let beside = time(&[])?;
        let mut sum = beside;
        for (index, block) in blocks.into_iter().enumerate() {
            for half in halves(block) {
                // From the last attention on, the engine goes on with the tokens that the heads read alone.
                sum += if last.is_none_or(|last| index >= last) {
                    time(&[half])? - beside
                } else {
                    (time(&before_a_reader(&[half]))? - time(&before_a_reader(&[]))?) / COPIES as f64
                };
            }
        }
        Ok(sum)
    }

    /// The heads read all tokens, so that each half costs what it does among copies of itself in its stage.
    fn predict_swin(&self, spec: &ModelSpec, swin: &SwinSpec) -> Result<f64> {
        let mut sum = self.time(&around(spec, swin))?;
        for layer in 0..swin.layers.len() {
            let (Some(block), Some(place)) = (swin.block(layer), swin.place(layer)) else {
                continue;
            };
            let beside = self.time(&of_stage(spec, swin, place.stage, &EMPTY))?;
            for half in halves(block) {
                let copies = self.time(&of_stage(spec, swin, place.stage, &half))?;
                sum += (copies - beside) / COPIES as f64;
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

    /// A model, timed at most once.
    fn time(&self, model: &ModelSpec) -> Result<f64> {
        let key = key(model)?;
        if let Some(known) = self.known.borrow().get(&key) {
            return Ok(*known);
        }
        let options = Options {
            threads: self.at.threads,
            precision: self.at.precision,
            isa: None,
        };
        let engine = Engine::new(model, &model.init(0)?, "a table of latencies", options)?;
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

/// The model without its blocks, and with these in their place.
fn of_blocks(spec: &ModelSpec, vit: &VitSpec, blocks: &[BlockSpec]) -> ModelSpec {
    ModelSpec {
        network: NetworkSpec::Vit(VitSpec {
            cores: blocks.to_vec(),
            layers: (0..blocks.len()).map(LayerSpec::of).collect(),
            ..vit.clone()
        }),
        ..spec.clone()
    }
}

/// Copies of a half, and behind them an attention that reads all tokens: without it the engine would leave out those that no head reads.
fn before_a_reader(half: &[BlockSpec]) -> Vec<BlockSpec> {
    let copies = half.iter().flat_map(|half| vec![half.clone(); COPIES]);
    copies.chain([small_attention()]).collect()
}

/// An attention whose size is always the same.
fn small_attention() -> BlockSpec {
    BlockSpec {
        attn: Some(AttentionSpec::uniform(32, 1)),
        mlp: None,
    }
}

/// A block without anything in it.
const EMPTY: BlockSpec = BlockSpec {
    attn: None,
    mlp: None,
};

/// All of a Swin but what is in its blocks.
fn around(spec: &ModelSpec, swin: &SwinSpec) -> ModelSpec {
    let blocks = swin.layers.len();
    ModelSpec {
        network: NetworkSpec::Swin(SwinSpec {
            cores: vec![EMPTY; blocks],
            layers: (0..blocks).map(LayerSpec::of).collect(),
            ..swin.clone()
        }),
        ..spec.clone()
    }
}

/// A Swin of one stage that has the map of this one, and in it copies of a half, whose windows are shifted in turn. Before them stands an
/// attention: it makes whole windows of the map, as many rows as the half has amid a model.
fn of_stage(spec: &ModelSpec, swin: &SwinSpec, stage: usize, half: &BlockSpec) -> ModelSpec {
    let copies = vec![half.clone(); COPIES];
    ModelSpec {
        network: NetworkSpec::Swin(SwinSpec {
            img_size: swin.stage_map(stage).map(|side| side * swin.patch_size),
            embed_dim: swin.stage_dim(stage),
            depths: vec![1 + COPIES],
            cores: [small_attention()].into_iter().chain(copies).collect(),
            layers: (0..=COPIES).map(LayerSpec::of).collect(),
            ..swin.clone()
        }),
        ..spec.clone()
    }
}

/// All that a model's latency depends on.
fn key(model: &ModelSpec) -> Result<String> {
    let body = model.transformer()?;
    let sides = match body {
        Transformer::Vit(vit) => format!(
            "{:?}",
            (
                vit.img_size,
                vit.patch_size,
                vit.in_chans,
                vit.embed_dim,
                vit.prefix.len(),
                vit.is_distilled(),
                vit.pool,
                vit.activation,
                vit.pre_norm,
                model.num_classes,
            )
        ),
        Transformer::Swin(swin) => format!(
            "{:?}",
            (
                swin.img_size,
                swin.patch_size,
                swin.in_chans,
                swin.embed_dim,
                &swin.depths,
                swin.window_size,
                swin.window_rule,
                model.num_classes,
            )
        ),
    };
    Ok(format!(
        "{sides} {:?}",
        body.cores().iter().map(widths).collect::<Vec<_>>()
    ))
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

#[cfg(test)]
mod tests {
    use super::*;
    use vitesse_model::spec::Pool;
    use vitesse_model::zoo;

    /// What is timed is what a half computes amid a model: all of its tokens, also in a perceptron.
    #[test]
    fn copies_of_a_half_compute_all_tokens() {
        let spec = zoo::get("deit_micro_patch4_32").unwrap().spec;
        let vit = spec.vit().unwrap();
        let block = vit.cores[0].clone();
        let macs = |blocks: &[BlockSpec]| {
            let model = of_blocks(&spec, vit, blocks);
            let options = Options {
                threads: 1,
                ..Options::default()
            };
            let engine = Engine::new(&model, &model.init(0).unwrap(), "a test", options).unwrap();
            (engine.macs(), model.costs().unwrap().macs())
        };
        let (reader, all_of_reader) = macs(&before_a_reader(&[]));
        assert!(reader < all_of_reader);
        for half in halves(&block) {
            let (copies, all_of_copies) = macs(&before_a_reader(std::slice::from_ref(&half)));
            assert_eq!(copies - reader, all_of_copies - all_of_reader);
            // By itself it is the last one.
            let (alone, all_of_it) = macs(&[half]);
            assert!(alone < all_of_it);
        }
    }

    /// The pool says how many tokens go on behind the last attention.
    #[test]
    fn models_that_pool_otherwise_are_timed_apart() {
        let spec = zoo::get("deit_micro_patch4_32").unwrap().spec;
        let mut other = spec.clone();
        if let NetworkSpec::Vit(vit) = &mut other.network {
            vit.pool = Pool::Avg;
        }
        assert_ne!(key(&spec).unwrap(), key(&other).unwrap());
    }

    /// What is timed of a Swin adds up to it, also where maps are filled up to whole windows.
    #[test]
    fn halves_in_their_stages_add_up() {
        let fitting = zoo::get("swin_nano_patch2_window4_32").unwrap().spec;
        let mut filled_up = fitting.clone();
        if let NetworkSpec::Swin(swin) = &mut filled_up.network {
            swin.window_size = [3, 3];
        }
        for (spec, pads) in [(fitting, false), (filled_up, true)] {
            add_up(&spec, pads);
        }
    }

    #[track_caller]
    fn add_up(spec: &ModelSpec, pads: bool) {
        let Transformer::Swin(swin) = spec.transformer().unwrap() else {
            panic!("no Swin")
        };
        assert!((0..swin.layers.len()).all(|layer| swin.windows(layer).unwrap().pads() == pads));
        let macs = |model: &ModelSpec| {
            let engine = Engine::new(model, &model.init(0).unwrap(), "a test", Options::default()).unwrap();
            engine.macs()
        };
        let mut sum = macs(&around(spec, swin));
        for layer in 0..swin.layers.len() {
            let stage = swin.place(layer).unwrap().stage;
            let beside = macs(&of_stage(spec, swin, stage, &EMPTY));
            for half in halves(swin.block(layer).unwrap()) {
                sum += (macs(&of_stage(spec, swin, stage, &half)) - beside) / COPIES as u64;
            }
        }
        assert_eq!(sum, macs(spec));
    }
}
