//! RegNets in `config.json`: timm's constructors take hardly an argument.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::network::differences;
use crate::Result;
use crate::spec::RegNetSpec;
use crate::spec::limits::SIDE;

/// The network for the `args` in the file, where `regnet` is that of the architecture.
pub(super) fn read_base(
    mut regnet: RegNetSpec,
    input_size: Option<[usize; 3]>,
    args: &mut Fields<'_>,
) -> Result<RegNetSpec> {
    if let Some([channels, height, width]) = input_size {
        (regnet.in_chans, regnet.img_size) = (channels, [height, width]);
    }
    regnet.in_chans = args.size("in_chans", 1..=SIDE)?.unwrap_or(regnet.in_chans);
    let pool: Option<String> = args.take("global_pool", "`avg`")?;
    if let Some(other) = pool.filter(|pool| pool != "avg") {
        return Err(args.wrong("global_pool", "`avg`", Some(&json!(other))));
    }
    Ok(regnet)
}

/// What stands under `vitesse`, where `known` is the network of the architecture.
pub(super) fn write(regnet: &RegNetSpec, known: &RegNetSpec) -> Map<String, Value> {
    let base = RegNetSpec {
        img_size: regnet.img_size,
        in_chans: regnet.in_chans,
        ..known.clone()
    };
    differences(regnet, &base)
}
