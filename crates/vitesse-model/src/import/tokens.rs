//! Names of predictors and selectors in files of DynamicViT and SPViT.
//!
//! | in the file | in memory |
//! | --- | --- |
//! | `score_predictor.1.in_conv.0.weight` | `ops.1.6.block.in.in_conv.0.weight`, if op 1 is the second that scores tokens |
//! | `score_predictor.1.in_conv.2.0.weight` | `ops.1.6.block.in.in_conv.2.0.weight`, of a selector with a network for each head |
//!
//! A selector whose heads share a network has it once in memory; in files the same tensors stand there once a head.

use crate::ops::OpKind;
use crate::spec::ModelSpec;
use crate::tensors::Tensors;
use crate::{Error, Result};

/// The tensors of a file under the names they have in memory.
///
/// # Errors
/// Heads that differ where the model says that they share a network; a predictor that the model does not have.
pub fn read(spec: &ModelSpec, tensors: &Tensors) -> Result<Tensors> {
    let scoring = |kind: &OpKind| matches!(kind, OpKind::TokenPredictor(_) | OpKind::TokenSelector(_));
    let mut ops: Vec<_> = spec
        .ops
        .iter()
        .enumerate()
        .filter(|(_, op)| scoring(&op.kind))
        .collect();
    ops.sort_by_key(|(_, op)| op.layer);
    let mut out = Tensors::new();
    for (name, tensor) in tensors.iter() {
        let Some(rest) = name.strip_prefix("score_predictor.") else {
            out.insert(name, tensor.clone());
            continue;
        };
        let parts = rest.split_once('.');
        let op = parts.and_then(|(stage, end)| Some((ops.get(stage.parse::<usize>().ok()?)?, end)));
        let Some(((index, op), end)) = op else {
            return Err(Error::invalid_spec(format!(
                "`{name}` belongs to a predictor that the model does not have: it scores tokens in {} layers",
                ops.len()
            )));
        };
        let first = match &op.kind {
            OpKind::TokenSelector(selector) if selector.shared => of_first_head(end),
            _ => None,
        };
        if let Some(first) = first {
            let (stage, _) = parts.unwrap_or_default();
            let shared = tensors.get(&format!("score_predictor.{stage}.{first}"))?;
            if shared.bytes() != tensor.bytes() {
                return Err(Error::invalid_spec(format!(
                    "`{name}` differs from the same tensor of the first head, but the heads are said to share a network; set \
                     `shared` to false"
                )));
            }
            continue;
        }
        out.insert(format!("{}.{end}", op.prefix(*index)), tensor.clone());
    }
    Ok(out)
}

/// The name of a tensor in the network of the first head, where it is that of another.
fn of_first_head(end: &str) -> Option<String> {
    let (module, rest) = end.split_once('.')?;
    let (head, rest) = rest.split_once('.')?;
    let of_head = matches!(module, "in_conv" | "out_conv") && head != "0";
    of_head.then(|| format!("{module}.0.{rest}"))
}
