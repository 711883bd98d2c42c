//! What a block has at its sites.

use super::{AttentionSpec, BlockSpec, MlpSpec};
use crate::site::Site;
use crate::spec::Projection;

impl BlockSpec {
    /// The width of what passes a site of a block whose stream is `dim` wide; `None` where a sub-layer is absent. Not for projections.
    pub(in crate::spec) fn width_at(&self, site: Site, dim: usize) -> Option<usize> {
        let (attn, mlp) = (self.attn.as_ref(), self.mlp.as_ref());
        match site {
            Site::AttnIn | Site::AttnOut => attn.map(|_| dim),
            Site::AttnQkv => attn.map(AttentionSpec::qkv_rows),
            Site::AttnLogits | Site::AttnProbs => attn.map(AttentionSpec::num_heads),
            Site::AttnHeads => attn.map(AttentionSpec::v_width),
            Site::MlpIn | Site::MlpOut => mlp.map(|_| dim),
            Site::MlpFc1 | Site::MlpHidden => mlp.map(|mlp| mlp.hidden),
            _ => Some(dim),
        }
    }

    /// The projection at a site; `core` is the prefix of the block's matrices.
    pub(in crate::spec) fn projection(&self, site: Site, core: &str, dim: usize) -> Option<Projection> {
        match site {
            Site::Qkv => Some(self.attn.as_ref()?.qkv(core, dim)),
            Site::Proj => Some(self.attn.as_ref()?.proj(core, dim)),
            Site::Fc1 => Some(self.mlp.as_ref()?.fc1(core, dim)),
            Site::Fc2 => Some(self.mlp.as_ref()?.fc2(core, dim)),
            _ => None,
        }
    }

    /// Which of its norms stands before a site, 1 or 2.
    pub(in crate::spec) fn norm_before(&self, site: Site) -> Option<usize> {
        match site {
            Site::AttnIn => self.attn.as_ref().map(|_| 1),
            Site::MlpIn => self.mlp.as_ref().map(|_| 2),
            _ => None,
        }
    }
}

impl AttentionSpec {
    fn qkv(&self, core: &str, dim: usize) -> Projection {
        let (qk, v) = (self.qk_width(), self.v_width());
        Projection {
            name: format!("{core}.attn.qkv"),
            outputs: self.qkv_rows(),
            inputs: dim,
            parts: Some([qk, qk, v]),
            written: None,
        }
    }

    fn proj(&self, core: &str, dim: usize) -> Projection {
        Projection {
            name: format!("{core}.attn.proj"),
            outputs: self.written(dim),
            inputs: self.v_width(),
            parts: None,
            written: self.out_idx.clone(),
        }
    }
}

impl MlpSpec {
    fn fc1(&self, core: &str, dim: usize) -> Projection {
        Projection {
            name: format!("{core}.mlp.fc1"),
            outputs: self.hidden,
            inputs: dim,
            parts: None,
            written: None,
        }
    }

    fn fc2(&self, core: &str, dim: usize) -> Projection {
        Projection {
            name: format!("{core}.mlp.fc2"),
            outputs: self.written(dim),
            inputs: self.hidden,
            parts: None,
            written: self.out_idx.clone(),
        }
    }
}
