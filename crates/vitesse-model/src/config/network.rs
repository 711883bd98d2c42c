//! How a network is written down so that timm can build it, and what stands under `vitesse` when timm cannot.
//!
//! `architecture` names an entry of the zoo and `model_args` are arguments of timm's constructor; together they give a
//! *base*. Every field of the network that differs from the base stands under `vitesse` by its name in
//! [`VitSpec`] or [`RegNetSpec`], but for two that have names of their own:
//!
//! | key | field |
//! | --- | --- |
//! | `blocks` | [`VitSpec::cores`]: the matrices of each block |
//! | `share` | `{"layers": [...]}`, [`VitSpec::layers`]; absent when every block is used once, in order |
//!
//! So a model that timm can build has no `vitesse` key, and reading is the exact inverse of writing for any model.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::spec::limits::{DEPTH, SIDE, WIDTH};
use crate::spec::{BlockSpec, LayerSpec, ModelSpec, NetworkSpec, Pool, PrefixToken, RegNetSpec, VitSpec};
use crate::{Error, Result, zoo};

/// Arguments that change how a model is trained or which images it would take besides its own size, not what it
/// computes. They are read over.
const TRAINING_ARGS: [&str; 10] = [
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "weight_init",
    "fix_init",
    "dynamic_img_size",
];

/// Arguments of timm's that would make another network than ours, with the one value that does not.
const FIXED_ARGS: [(&str, Value); 8] = [
    ("qk_norm", Value::Bool(false)),
    ("scale_attn_norm", Value::Bool(false)),
    ("scale_mlp_norm", Value::Bool(false)),
    ("proj_bias", Value::Bool(true)),
    ("pre_norm", Value::Bool(false)),
    ("final_norm", Value::Bool(true)),
    ("pool_include_prefix", Value::Bool(false)),
    ("dynamic_img_pad", Value::Bool(false)),
];

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
    pool: Pool,
    /// Not an argument but a class of its own in timm, which has no registers.
    distilled: bool,
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
            pool: vit.pool,
            distilled,
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

/// timm's name of a pooling.
fn pool_name(pool: Pool) -> &'static str {
    if pool == Pool::Token { "token" } else { "avg" }
}

/// The pooling as the file names it for information.
pub(super) fn global_pool(spec: &ModelSpec) -> &'static str {
    match &spec.network {
        NetworkSpec::Vit(vit) => pool_name(vit.pool),
        NetworkSpec::RegNet(_) => "avg",
    }
}

/// The network that `architecture` and `model_args` stand for. `input_size` is what `pretrained_cfg` says; it counts
/// where the arguments do not say otherwise.
pub(super) fn read_base(
    architecture: &str,
    input_size: Option<[usize; 3]>,
    mut args: Fields<'_>,
) -> Result<NetworkSpec> {
    let base = match zoo::get(architecture)?.spec.network {
        NetworkSpec::Vit(vit) => {
            let mut vit_args = VitArgs::of(&vit);
            if let Some([channels, height, width]) = input_size {
                (vit_args.in_chans, vit_args.img_size) = (channels, [height, width]);
            }
            vit_args.read(&mut args)?;
            NetworkSpec::Vit(vit_args.build())
        }
        NetworkSpec::RegNet(mut regnet) => {
            if let Some([channels, height, width]) = input_size {
                (regnet.in_chans, regnet.img_size) = (channels, [height, width]);
            }
            regnet.in_chans = args.size("in_chans", 1..=SIDE)?.unwrap_or(regnet.in_chans);
            let pool: Option<String> = args.take("global_pool", "`avg`")?;
            if let Some(other) = pool.filter(|pool| pool != "avg") {
                return Err(args.wrong("global_pool", "`avg`", Some(&json!(other))));
            }
            NetworkSpec::RegNet(regnet)
        }
    };
    for (key, fixed) in &FIXED_ARGS {
        if let Some(other) = args.take::<Value>(key, "")?.filter(|value| value != fixed) {
            let expected = format!("{fixed}: this network has no such part");
            return Err(args.wrong(key, &expected, Some(&other)));
        }
    }
    match args
        .keys()
        .find(|key| args.has(key) && !TRAINING_ARGS.contains(&key.as_str()))
    {
        Some(key) => Err(args.wrong(key, "left out, since no model here has it", args.get(key))),
        None => Ok(base),
    }
}

/// Replaces the fields of `base` that stand under `vitesse`.
pub(super) fn read_delta(base: NetworkSpec, mut fields: Fields<'_>) -> Result<NetworkSpec> {
    Ok(match base {
        NetworkSpec::Vit(mut vit) => {
            if let Some(blocks) =
                fields.take::<Vec<BlockSpec>>("blocks", "a list of blocks, `attn` and `mlp` each")?
            {
                vit.layers = in_order(blocks.len());
                vit.cores = blocks;
            }
            let mut share = fields.object("share")?;
            let layers = share.take(
                "layers",
                "a list of layers, each naming its block: `{\"core\": 0}`",
            )?;
            vit.layers = layers.unwrap_or(vit.layers);
            NetworkSpec::Vit(replace_fields(vit, &fields)?)
        }
        NetworkSpec::RegNet(regnet) => NetworkSpec::RegNet(replace_fields(regnet, &fields)?),
    })
}

/// A network as it stands in a file.
pub(super) struct Written {
    /// The name under which timm builds the base.
    pub(super) architecture: &'static str,
    /// Its `model_args`.
    pub(super) args: Map<String, Value>,
    /// What stands under `vitesse` because the base is not like it.
    pub(super) delta: Map<String, Value>,
}

/// Writes a network down.
pub(super) fn write(spec: &ModelSpec) -> Result<Written> {
    let entry = zoo::get(&spec.architecture)?;
    let architecture = entry.timm_name;
    let base = zoo::get(architecture)?.spec.network;
    let (args, delta) = match (&spec.network, &base) {
        (NetworkSpec::Vit(vit), NetworkSpec::Vit(base)) => {
            let base = VitArgs::of(base);
            let args = VitArgs {
                distilled: base.distilled,
                ..VitArgs::of(vit)
            };
            let mut delta = differences(vit, &args.build());
            let cores = delta.shift_remove("cores");
            let layers = delta.shift_remove("layers");
            if cores.is_some() || layers.is_some() {
                delta.insert("blocks".into(), json!(vit.cores));
                if vit.layers != in_order(vit.cores.len()) {
                    delta.insert("share".into(), json!({ "layers": vit.layers }));
                }
            }
            (differences(&args.to_value(), &base.to_value()), delta)
        }
        (NetworkSpec::RegNet(regnet), NetworkSpec::RegNet(base)) => {
            let base = RegNetSpec {
                img_size: regnet.img_size,
                in_chans: regnet.in_chans,
                ..base.clone()
            };
            (Map::new(), differences(regnet, &base))
        }
        _ => {
            return Err(Error::invalid_spec(format!(
                "`{}` names a network of another family than the one described",
                spec.architecture
            )));
        }
    };
    Ok(Written {
        architecture,
        args,
        delta,
    })
}

/// Every block once, in order.
fn in_order(blocks: usize) -> Vec<LayerSpec> {
    (0..blocks).map(|core| LayerSpec { core }).collect()
}

/// The fields of `network` that are not as in `base`.
fn differences<T: Serialize>(network: &T, base: &T) -> Map<String, Value> {
    let object = |network: &T| match json!(network) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let base = object(base);
    object(network)
        .into_iter()
        .filter(|(key, value)| base.get(key) != Some(value))
        .collect()
}

/// Puts what stands in the file in the place of fields of `network`.
fn replace_fields<T: Serialize + DeserializeOwned>(mut network: T, fields: &Fields<'_>) -> Result<T> {
    for key in fields.keys() {
        let mut object = json!(network);
        let value = fields.get(key).cloned().unwrap_or_default();
        if let Value::Object(map) = &mut object {
            map.insert(key.clone(), value);
        }
        network = serde_json::from_value(object).map_err(|error| {
            fields.wrong(
                key,
                &format!("something this version can read ({error})"),
                fields.get(key),
            )
        })?;
    }
    Ok(network)
}
