//! The blocks of a transformer under `vitesse`: `blocks`, their matrices, and `share`, which of them each layer uses.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::Result;
use crate::spec::{BlockSpec, LayerSpec};

/// Takes the blocks of the file in the place of `cores` and `layers`, where it has some.
pub(super) fn read(
    fields: &mut Fields<'_>,
    cores: &mut Vec<BlockSpec>,
    layers: &mut Vec<LayerSpec>,
) -> Result<()> {
    if let Some(value) = fields.take::<Value>("blocks", "")? {
        *cores = Vec::<BlockSpec>::deserialize(&value).map_err(|error| {
            let expected = format!("a list of blocks, `attn` and `mlp` each ({error})");
            fields.wrong("blocks", &expected, Some(&value))
        })?;
        *layers = in_order(cores.len());
    }
    let mut share = fields.object("share")?;
    let found = share.take(
        "layers",
        "a list of layers, each naming its block: `{\"core\": 0}`",
    )?;
    if let Some(key) = share.keys().next() {
        let expected = "left out, since only `layers` is known here";
        return Err(share.wrong(key, expected, share.get(key)));
    }
    if let Some(found) = found {
        *layers = found;
    }
    Ok(())
}

/// Puts blocks that differ from those of the base, as fields of the description in `delta`, under their own names.
pub(super) fn write(delta: &mut Map<String, Value>, cores: &[BlockSpec], layers: &[LayerSpec]) {
    let differing = [delta.shift_remove("cores"), delta.shift_remove("layers")];
    if differing.iter().flatten().next().is_none() {
        return;
    }
    delta.insert("blocks".into(), json!(cores));
    if layers != in_order(cores.len()) {
        delta.insert("share".into(), json!({ "layers": layers }));
    }
}

/// Every block once, in order.
fn in_order(blocks: usize) -> Vec<LayerSpec> {
    (0..blocks).map(LayerSpec::of).collect()
}
