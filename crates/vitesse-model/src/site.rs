//! Sites: the stations of a transformer block at which ops stand and traces listen.
//!
//! ```text
//! [embed]─ patch.out ─ … block.in ─ norm1 ─ attn.in ─[qkv]─ attn.qkv ─ q·kᵀ ─ attn.logits ─ softmax ─ attn.probs ─ ·v ─ attn.heads ─[proj]─ attn.out ─(+)─
//! mid ─ norm2 ─ mlp.in ─[fc1]─ mlp.fc1 ─ gelu ─ mlp.hidden ─[fc2]─ mlp.out ─(+)─ block.out … ─ final.norm
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One station. The shape of the value that passes it stands beside each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Site {
    /// After the patch embedding, before prefix tokens and positions: `[batch, patches, dim]`.
    PatchOut,
    /// After the norm of the patch embedding, where it has one: `[batch, patches, dim]`.
    PatchNorm,
    /// After the norm of patch merging, before the first block of a stage: `[batch, tokens, 4·dim]`.
    MergeIn,
    /// Where a block begins: `[batch, tokens, dim]`.
    BlockIn,
    /// After `norm1`: `[batch, tokens, dim]`.
    AttnIn,
    /// After the fused projection, q then k then v, each head-major: `[batch, tokens, Σ(2·qk + v)]`.
    AttnQkv,
    /// Scaled products of queries and keys: `[batch, heads, tokens, tokens]`.
    AttnLogits,
    /// After the softmax over keys: `[batch, heads, tokens, tokens]`.
    AttnProbs,
    /// Concatenated head outputs: `[batch, tokens, Σv]`.
    AttnHeads,
    /// After `proj`, before the residual sum: `[batch, tokens, dim]`.
    AttnOut,
    /// Between the sub-layers: `[batch, tokens, dim]`.
    Mid,
    /// After `norm2`: `[batch, tokens, dim]`.
    MlpIn,
    /// After `fc1`: `[batch, tokens, hidden]`.
    MlpFc1,
    /// After the activation: `[batch, tokens, hidden]`.
    MlpHidden,
    /// After `fc2`, before the residual sum: `[batch, tokens, dim]`.
    MlpOut,
    /// Where a block ends: `[batch, tokens, dim]`.
    BlockOut,
    /// After the final norm: `[batch, tokens, dim]`.
    FinalNorm,
    /// The fused projection to queries, keys and values.
    Qkv,
    /// The projection after attention.
    Proj,
    /// The perceptron's first projection.
    Fc1,
    /// The perceptron's second projection.
    Fc2,
    /// The convolution that makes tokens of patches, as a projection of flattened patches. It stands before all blocks.
    Embed,
}

impl Site {
    /// Every site that a value passes in all transformers, in the order in which a forward pass meets them.
    pub const ALL: [Site; 15] = [
        Site::PatchOut,
        Site::BlockIn,
        Site::AttnIn,
        Site::AttnQkv,
        Site::AttnLogits,
        Site::AttnProbs,
        Site::AttnHeads,
        Site::AttnOut,
        Site::Mid,
        Site::MlpIn,
        Site::MlpFc1,
        Site::MlpHidden,
        Site::MlpOut,
        Site::BlockOut,
        Site::FinalNorm,
    ];

    /// Those that only networks with stages have.
    pub const OF_STAGES: [Site; 2] = [Site::PatchNorm, Site::MergeIn];

    /// The projections of a block: an op on one sees what enters it and what leaves it. No trace listens there.
    pub const PROJECTIONS: [Site; 4] = [Site::Qkv, Site::Proj, Site::Fc1, Site::Fc2];

    /// The name used in files and on the command line, such as `attn.qkv`.
    pub fn name(self) -> &'static str {
        match self {
            Site::PatchOut => "patch.out",
            Site::PatchNorm => "patch.norm",
            Site::MergeIn => "merge.in",
            Site::BlockIn => "block.in",
            Site::AttnIn => "attn.in",
            Site::AttnQkv => "attn.qkv",
            Site::AttnLogits => "attn.logits",
            Site::AttnProbs => "attn.probs",
            Site::AttnHeads => "attn.heads",
            Site::AttnOut => "attn.out",
            Site::Mid => "mid",
            Site::MlpIn => "mlp.in",
            Site::MlpFc1 => "mlp.fc1",
            Site::MlpHidden => "mlp.hidden",
            Site::MlpOut => "mlp.out",
            Site::BlockOut => "block.out",
            Site::FinalNorm => "final.norm",
            Site::Qkv => "qkv",
            Site::Proj => "proj",
            Site::Fc1 => "fc1",
            Site::Fc2 => "fc2",
            Site::Embed => "embed",
        }
    }

    /// Whether every block has this site (the others occur once a model).
    pub fn in_block(self) -> bool {
        !matches!(
            self,
            Site::PatchOut | Site::PatchNorm | Site::FinalNorm | Site::Embed
        )
    }

    /// Whether it is a projection and not a station between two.
    pub fn is_projection(self) -> bool {
        Site::PROJECTIONS.contains(&self) || self == Site::Embed
    }

    /// The station whose value enters this projection; `None` for what is none, and for the patches' own.
    pub fn input(self) -> Option<Site> {
        match self {
            Site::Qkv => Some(Site::AttnIn),
            Site::Proj => Some(Site::AttnHeads),
            Site::Fc1 => Some(Site::MlpIn),
            Site::Fc2 => Some(Site::MlpHidden),
            _ => None,
        }
    }

    /// The station that what leaves this projection passes; `None` for what is none.
    pub fn output(self) -> Option<Site> {
        match self {
            Site::Qkv => Some(Site::AttnQkv),
            Site::Proj => Some(Site::AttnOut),
            Site::Fc1 => Some(Site::MlpFc1),
            Site::Fc2 => Some(Site::MlpOut),
            Site::Embed => Some(Site::PatchOut),
            _ => None,
        }
    }

    /// Whether the value is an attention map, `[batch, heads, tokens, tokens]`, and not a token stream.
    pub fn is_map(self) -> bool {
        matches!(self, Site::AttnLogits | Site::AttnProbs)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut known = Site::ALL
            .into_iter()
            .chain(Site::OF_STAGES)
            .chain(Site::PROJECTIONS)
            .chain([Site::Embed]);
        known.find(|site| site.name() == text).ok_or_else(|| {
            let known = Site::ALL.iter().chain(&Site::OF_STAGES);
            let known = known.chain(&Site::PROJECTIONS).chain(&[Site::Embed]);
            let names: Vec<&str> = known.map(|site| site.name()).collect();
            Error::invalid_spec(format!(
                "unknown site `{text}`; the sites are {}",
                names.join(", ")
            ))
        })
    }
}

impl TryFrom<String> for Site {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Site> for String {
    fn from(site: Site) -> String {
        site.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for site in Site::ALL
            .into_iter()
            .chain(Site::OF_STAGES)
            .chain(Site::PROJECTIONS)
            .chain([Site::Embed])
        {
            assert_eq!(site.name().parse::<Site>().unwrap(), site);
        }
        assert!(
            "attn.nope"
                .parse::<Site>()
                .unwrap_err()
                .to_string()
                .contains("attn.qkv")
        );
    }
}
