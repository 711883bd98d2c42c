//! Vision transformers in `config.json`: the arguments of timm's constructor.

use serde_json::{Map, Value, json};

use super::blocks;
use super::fields::Fields;
use super::network::{differences, replace_fields};
use crate::Result;
use crate::spec::limits::{DEPTH, SIDE, WIDTH};
use crate::spec::{Activation, Pool, PrefixToken, VitSpec};

/// The arguments of timm's `VisionTransformer` that this project has a use for.
#[derive(Debug, Clone, PartialEq)]
struct VitArgs {
    img_size: [usize; 2],
    patch_size: usize,
    in_chans: usize,
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
    mlp_ratio: f64,
    qkv_bias: bool,
    class_token: bool,
    reg_tokens: usize,
    no_embed_class: bool,
    pre_norm: bool,
    activation: Activation,
    pool: Pool,
    /// Not an argument but a class of its own in timm, which has no registers.
    distilled: bool,
    /// Not an argument that a file can hold: it belongs to the architecture.
    norm_eps: f64,
}

impl VitArgs {
    /// The arguments that come closest to `vit`.
    fn of(vit: &VitSpec) -> VitArgs {
        let attn = vit.cores.iter().find_map(|core| core.attn.as_ref());
        let mlp = vit.cores.iter().find_map(|core| core.mlp.as_ref());
        let heads = attn.map_or(1, |attn| attn.num_heads());
        let distilled = vit.is_distilled();
        let registers = vit
            .prefix
            .iter()
            .filter(|token| **token == PrefixToken::Register)
            .count();
        VitArgs {
            img_size: vit.img_size,
            patch_size: vit.patch_size,
            in_chans: vit.in_chans,
            embed_dim: vit.embed_dim,
            depth: vit.layers.len(),
            num_heads: if heads > 0 && vit.embed_dim.is_multiple_of(heads) {
                heads
            } else {
                1
            },
            mlp_ratio: mlp.map_or(4.0, |mlp| ratio(mlp.hidden, vit.embed_dim)),
            qkv_bias: attn.is_none_or(|attn| attn.qkv_bias),
            class_token: vit.prefix.contains(&PrefixToken::Class),
            reg_tokens: if distilled { 0 } else { registers },
            no_embed_class: !vit.embed_prefix,
            pre_norm: vit.pre_norm,
            activation: vit.activation,
            pool: vit.pool,
            distilled,
            norm_eps: vit.norm_eps,
        }
    }

    /// What timm builds from the arguments.
    fn build(&self) -> VitSpec {
        let prefix = [
            (PrefixToken::Class, usize::from(self.class_token)),
            (PrefixToken::Distillation, usize::from(self.distilled)),
            (PrefixToken::Register, self.reg_tokens),
        ];
        let prefix = prefix
            .iter()
            .flat_map(|&(token, count)| vec![token; count])
            .collect();
        let mut vit = VitSpec::plain(
            0,
            self.patch_size,
            self.embed_dim,
            self.depth,
            self.num_heads,
            prefix,
        );
        for core in &mut vit.cores {
            if let Some(attn) = &mut core.attn {
                attn.qkv_bias = self.qkv_bias;
            }
            if let Some(mlp) = &mut core.mlp {
                mlp.hidden = (self.embed_dim as f64 * self.mlp_ratio) as usize;
            }
        }
        VitSpec {
            img_size: self.img_size,
            in_chans: self.in_chans,
            embed_prefix: !self.no_embed_class,
            patch_bias: !self.pre_norm,
            pre_norm: self.pre_norm,
            activation: self.activation,
            norm_eps: self.norm_eps,
            pool: self.pool,
            ..vit
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
        self.depth = args.size("depth", 0..=DEPTH)?.unwrap_or(self.depth);
        self.num_heads = args.size("num_heads", 1..=WIDTH)?.unwrap_or(self.num_heads);
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            let expected = format!("a divisor of the width {}", self.embed_dim);
            return Err(args.wrong("num_heads", &expected, Some(&json!(self.num_heads))));
        }
        let expected = "a positive number, the hidden width of the MLP relative to the stream's";
        self.mlp_ratio = match args.take::<f64>("mlp_ratio", expected)? {
            Some(ratio) if !(ratio > 0.0 && ratio.is_finite()) => {
                return Err(args.wrong("mlp_ratio", expected, Some(&json!(ratio))));
            }
            ratio => ratio.unwrap_or(self.mlp_ratio),
        };
        self.qkv_bias = args.take("qkv_bias", flag)?.unwrap_or(self.qkv_bias);
        self.class_token = args.take("class_token", flag)?.unwrap_or(self.class_token);
        self.reg_tokens = args.size("reg_tokens", 0..=SIDE)?.unwrap_or(self.reg_tokens);
        self.no_embed_class = args.take("no_embed_class", flag)?.unwrap_or(self.no_embed_class);
        self.pre_norm = args.take("pre_norm", flag)?.unwrap_or(self.pre_norm);
        if let Some(name) = args.take::<String>("act_layer", ACTIVATIONS_EXPECTED)? {
            let known = ACTIVATIONS.iter().find(|(_, known)| *known == name);
            let wrong = || args.wrong("act_layer", ACTIVATIONS_EXPECTED, Some(&json!(name)));
            self.activation = known.ok_or_else(wrong)?.0;
        }
        let pool: Option<String> = args.take("global_pool", "`token` or `avg`")?;
        let fc_norm: Option<bool> = args.take("fc_norm", flag)?;
        let pool = pool
            .as_deref()
            .unwrap_or(if self.pool == Pool::Token { "token" } else { "avg" });
        self.pool = match (pool, fc_norm) {
            ("token", None | Some(false)) => Pool::Token,
            ("avg", Some(false)) => Pool::Avg,
            ("avg", None | Some(true)) => Pool::AvgThenNorm,
            ("token", Some(true)) => {
                return Err(args.wrong(
                    "fc_norm",
                    "`false` where `global_pool` is `token`",
                    Some(&json!(true)),
                ));
            }
            (other, _) => return Err(args.wrong("global_pool", "`token` or `avg`", Some(&json!(other)))),
        };
        Ok(())
    }

    /// The arguments as they stand in a file.
    fn to_value(&self) -> Value {
        let mut args = json!({
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "class_token": self.class_token,
            "reg_tokens": self.reg_tokens,
            "no_embed_class": self.no_embed_class,
            "pre_norm": self.pre_norm,
            "act_layer": activation_name(self.activation),
            "global_pool": pool_name(self.pool),
        });
        if self.pool == Pool::Avg {
            // timm's own choice would be the norm after pooling.
            args["fc_norm"] = json!(false);
        }
        args
    }
}

/// The ratio from which timm gets back exactly `hidden`, truncating `dim · ratio`.
fn ratio(hidden: usize, dim: usize) -> f64 {
    let exact = hidden as f64 / dim as f64;
    if (dim as f64 * exact) as usize == hidden {
        exact
    } else {
        (hidden as f64 + 0.5) / dim as f64
    }
}

/// timm's names of activations.
const ACTIVATIONS: [(Activation, &str); 4] = [
    (Activation::Gelu, "gelu"),
    (Activation::QuickGelu, "quick_gelu"),
    (Activation::Relu, "relu"),
    (Activation::None, "identity"),
];
const ACTIVATIONS_EXPECTED: &str = "`gelu`, `quick_gelu`, `relu` or `identity`";

fn activation_name(activation: Activation) -> &'static str {
    ACTIVATIONS
        .iter()
        .find(|(known, _)| *known == activation)
        .map_or("gelu", |(_, name)| name)
}

/// timm's name of a pooling.
pub(super) fn pool_name(pool: Pool) -> &'static str {
    if pool == Pool::Token { "token" } else { "avg" }
}

/// The network for the `args` in the file, where `known` is that of the architecture.
pub(super) fn read_base(
    known: &VitSpec,
    input_size: Option<[usize; 3]>,
    args: &mut Fields<'_>,
) -> Result<VitSpec> {
    let mut own = VitArgs::of(known);
    if let Some([channels, height, width]) = input_size {
        (own.in_chans, own.img_size) = (channels, [height, width]);
    }
    own.read(args)?;
    Ok(own.build())
}

/// Replaces the fields of `vit` that stand under `vitesse`.
pub(super) fn read_delta(mut vit: VitSpec, mut fields: Fields<'_>) -> Result<VitSpec> {
    blocks::read(&mut fields, &mut vit.cores, &mut vit.layers)?;
    replace_fields(vit, &fields)
}

/// `model_args`, and what stands under `vitesse` besides, where `known` is the network of the architecture.
pub(super) fn write(vit: &VitSpec, known: &VitSpec) -> (Map<String, Value>, Map<String, Value>) {
    let base = VitArgs::of(known);
    let args = VitArgs {
        distilled: base.distilled,
        norm_eps: base.norm_eps,
        ..VitArgs::of(vit)
    };
    let mut delta = differences(vit, &args.build());
    blocks::write(&mut delta, &vit.cores, &vit.layers);
    (differences(&args.to_value(), &base.to_value()), delta)
}
