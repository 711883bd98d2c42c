//! Swins in `config.json`: the arguments of timm's constructor.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::blocks;
use super::fields::Fields;
use super::network::{differences, replace_fields};
use crate::Result;
use crate::spec::SwinSpec;
use crate::spec::limits::{DEPTH, SIDE, WIDTH};

/// The arguments of timm's `SwinTransformer` that this project has a use for.
#[derive(Debug, Clone, PartialEq)]
struct SwinArgs {
    img_size: [usize; 2],
    patch_size: usize,
    in_chans: usize,
    embed_dim: usize,
    depths: Vec<usize>,
    num_heads: Vec<usize>,
    window_size: [usize; 2],
    mlp_ratio: f64,
    qkv_bias: bool,
}

impl SwinArgs {
    /// The arguments that come closest to `swin`.
    fn of(swin: &SwinSpec) -> SwinArgs {
        let heads = |stage: usize| {
            let layers = swin.first_layer(stage)..swin.first_layer(stage + 1);
            let mut blocks = layers.filter_map(|layer| swin.block(layer));
            let heads = blocks.find_map(|block| Some(block.attn.as_ref()?.num_heads()));
            let dim = swin.stage_dim(stage);
            heads
                .filter(|&heads| heads > 0 && dim.is_multiple_of(heads))
                .unwrap_or(1)
        };
        let attn = swin.cores.iter().find_map(|core| core.attn.as_ref());
        let hidden = swin.cores.iter().enumerate().find_map(|(i, core)| {
            let dim = swin.stage_dim(swin.core_stage(i)?);
            Some((core.mlp.as_ref()?.hidden, dim))
        });
        SwinArgs {
            img_size: swin.img_size,
            patch_size: swin.patch_size,
            in_chans: swin.in_chans,
            embed_dim: swin.embed_dim,
            depths: swin.depths.clone(),
            num_heads: (0..swin.stages()).map(heads).collect(),
            window_size: swin.window_size,
            mlp_ratio: hidden.map_or(4.0, |(hidden, dim)| hidden as f64 / dim as f64),
            qkv_bias: attn.is_none_or(|attn| attn.qkv_bias),
        }
    }

    /// What timm builds from the arguments.
    fn build(&self) -> SwinSpec {
        let mut swin = SwinSpec::plain(
            0,
            self.patch_size,
            0,
            self.embed_dim,
            &self.depths,
            &self.num_heads,
        );
        let dims: Vec<usize> = (0..swin.cores.len())
            .map(|core| swin.stage_dim(swin.core_stage(core).unwrap_or(0)))
            .collect();
        for (core, dim) in swin.cores.iter_mut().zip(dims) {
            if let Some(attn) = &mut core.attn {
                attn.qkv_bias = self.qkv_bias;
            }
            if let Some(mlp) = &mut core.mlp {
                mlp.hidden = (dim as f64 * self.mlp_ratio) as usize;
            }
        }
        SwinSpec {
            img_size: self.img_size,
            in_chans: self.in_chans,
            window_size: self.window_size,
            ..swin
        }
    }

    /// Replaces the arguments that stand in the file.
    fn read(&mut self, args: &mut Fields<'_>) -> Result<()> {
        let flag = "`true` or `false`";
        self.img_size = args.sides("img_size", 1..=SIDE)?.unwrap_or(self.img_size);
        if let Some(sides) = args.sides("patch_size", 1..=SIDE)? {
            if sides[0] != sides[1] {
                return Err(args.wrong("patch_size", "the side of a square patch", Some(&json!(sides))));
            }
            self.patch_size = sides[0];
        }
        self.in_chans = args.size("in_chans", 1..=SIDE)?.unwrap_or(self.in_chans);
        self.embed_dim = args.size("embed_dim", 1..=WIDTH)?.unwrap_or(self.embed_dim);
        self.window_size = args.sides("window_size", 1..=SIDE)?.unwrap_or(self.window_size);
        self.qkv_bias = args.take("qkv_bias", flag)?.unwrap_or(self.qkv_bias);
        let stages = |args: &mut Fields<'_>, key: &str, most: usize| -> Result<Option<Vec<usize>>> {
            let expected = format!("a list of whole numbers from 1 to {most}, one a stage");
            let Some(value) = args.take::<Value>(key, &expected)? else {
                return Ok(None);
            };
            match Vec::<usize>::deserialize(&value) {
                Ok(list) if !list.is_empty() && list.iter().all(|one| (1..=most).contains(one)) => {
                    Ok(Some(list))
                }
                _ => Err(args.wrong(key, &expected, Some(&value))),
            }
        };
        let depths = stages(args, "depths", DEPTH)?;
        let heads = stages(args, "num_heads", WIDTH)?;
        self.depths = depths.unwrap_or_else(|| self.depths.clone());
        self.num_heads = heads.unwrap_or_else(|| self.num_heads.clone());
        if self.num_heads.len() != self.depths.len() {
            let expected = format!("a list of {}, one for each stage of `depths`", self.depths.len());
            return Err(args.wrong("num_heads", &expected, Some(&json!(self.num_heads))));
        }
        let most = WIDTH.ilog2() as usize + 1;
        if self.depths.len() > most {
            let expected = format!("a list of at most {most} stages");
            return Err(args.wrong("depths", &expected, Some(&json!(self.depths))));
        }
        for (stage, &heads) in self.num_heads.iter().enumerate() {
            let dim = self.embed_dim << stage;
            if !dim.is_multiple_of(heads) {
                let expected = format!("a divisor of the width {dim} of `layers.{stage}`");
                return Err(args.wrong("num_heads", &expected, Some(&json!(heads))));
            }
        }
        let expected = "a positive number, the hidden width of the MLP relative to the stream's";
        self.mlp_ratio = match args.take::<f64>("mlp_ratio", expected)? {
            Some(ratio) if !(ratio > 0.0 && ratio.is_finite()) => {
                return Err(args.wrong("mlp_ratio", expected, Some(&json!(ratio))));
            }
            ratio => ratio.unwrap_or(self.mlp_ratio),
        };
        let pool: Option<String> = args.take("global_pool", "`avg`")?;
        match pool.filter(|pool| pool != "avg") {
            Some(other) => Err(args.wrong("global_pool", "`avg`", Some(&json!(other)))),
            None => Ok(()),
        }
    }

    /// The arguments as they stand in a file.
    fn to_value(&self) -> Value {
        json!({
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "embed_dim": self.embed_dim,
            "depths": self.depths,
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
        })
    }
}

/// The network for the `args` in the file, where `known` is that of the architecture.
pub(super) fn read_base(
    known: &SwinSpec,
    input_size: Option<[usize; 3]>,
    args: &mut Fields<'_>,
) -> Result<SwinSpec> {
    let mut own = SwinArgs::of(known);
    if let Some([channels, height, width]) = input_size {
        (own.in_chans, own.img_size) = (channels, [height, width]);
    }
    own.read(args)?;
    Ok(own.build())
}

/// Replaces the fields of `swin` that stand under `vitesse`.
pub(super) fn read_delta(mut swin: SwinSpec, mut fields: Fields<'_>) -> Result<SwinSpec> {
    blocks::read(&mut fields, &mut swin.cores, &mut swin.layers)?;
    replace_fields(swin, &fields)
}

/// `model_args`, and what stands under `vitesse` besides, where `known` is the network of the architecture.
pub(super) fn write(swin: &SwinSpec, known: &SwinSpec) -> (Map<String, Value>, Map<String, Value>) {
    let (args, base) = (SwinArgs::of(swin), SwinArgs::of(known));
    let mut delta = differences(swin, &args.build());
    blocks::write(&mut delta, &swin.cores, &swin.layers);
    (differences(&args.to_value(), &base.to_value()), delta)
}
