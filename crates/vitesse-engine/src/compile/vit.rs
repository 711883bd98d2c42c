//! Vision transformers of one width: tokens before the patches, positions, rows that no one reads left out.

use vitesse_kernels::{Panels, Real};
use vitesse_model::Site;
use vitesse_model::spec::{Pool, PrefixToken, VitSpec};

use super::Compiler;
use crate::Result;
use crate::profile::Stage;
use crate::steps::{Embed, Mean, NormStream, Prompts, Regroup};

impl<T: Real> Compiler<'_, T> {
    /// All steps; the rows that are left for the heads, and their width.
    pub(super) fn vit(&mut self, vit: &VitSpec) -> Result<[usize; 2]> {
        let embed = self.embed(vit)?;
        self.push(Stage::Embed, embed);
        let layers = self.depth();
        let attends = |i: &usize| vit.block(*i).is_some_and(|block| block.attn.is_some());
        let last_attention = (0..layers).rev().find(attends);
        if vit.pre_norm {
            let norm = self.norm("norm_pre", None)?;
            self.push(Stage::Embed, NormStream(norm));
        }
        let read = self.read(vit);
        let late = self.looks_around(last_attention.unwrap_or(0));
        if last_attention.is_none() && !late {
            self.cut(Stage::Embed, read);
        }
        for layer in 0..layers {
            self.layer = Some(layer);
            if let Some(prompts) = self.prompts(layer, vit.embed_dim)? {
                let first = vit.prefix.len();
                self.push(Stage::Qkv, Prompts { first, rows: prompts });
            }
            let last = last_attention == Some(layer) && !late;
            self.block(layer, last.then_some(read), None)?;
            let (tokens, before) = (self.sites.tokens_at(layer), self.before(vit));
            self.take(layer, (0..tokens).map(|token| token.checked_sub(before)));
        }
        self.layer = None;
        if self.maps.is_empty() {
            if late {
                self.cut(Stage::Head, read);
            }
            self.end(vit)?;
        } else {
            self.pass_over();
        }
        let rows = match vit.pool {
            Pool::Token => read,
            Pool::Avg | Pool::AvgThenNorm => 1,
        };
        Ok([rows, vit.embed_dim])
    }

    /// Tokens before the patches.
    fn before(&self, vit: &VitSpec) -> usize {
        vit.prefix.len() + self.sites.prompts()
    }

    /// How many of the first tokens are read in the end; all, by maps and by heads that read the mean.
    fn read(&self, vit: &VitSpec) -> usize {
        match vit.pool {
            _ if !self.maps.is_empty() => self.sites.tokens_at(0),
            Pool::Token => 1 + usize::from(vit.is_distilled()),
            Pool::Avg | Pool::AvgThenNorm => self.sites.tokens_at(0),
        }
    }

    /// From here on no token needs another, and only those go on that are read.
    pub(super) fn cut(&mut self, stage: Stage, read: usize) {
        if read < self.sites.tokens_at(0) {
            self.push(stage, Regroup::new((0..read).collect()));
            self.is_cut = true;
        }
    }

    fn embed(&mut self, vit: &VitSpec) -> Result<Embed<T>> {
        let op = self.fold(Site::PatchOut, None)?;
        Ok(Embed {
            image: self.spec.input_size(),
            side: vit.patch_size,
            prefix: self.before(vit),
            start: self.start(vit)?,
            product: self.embedding(op.as_ref())?,
        })
    }

    fn start(&mut self, vit: &VitSpec) -> Result<Panels<f32>> {
        let (dim, prefix) = (vit.embed_dim, vit.prefix.len());
        let mut start = Panels::zeros(self.sites.tokens_at(0), Panels::<f32>::needed(dim));
        // A norm that stands between embedding and first block is not theirs: they come after it.
        let prompts = if vit.pre_norm { None } else { self.prompts(0, dim)? };
        if let Some(prompts) = prompts {
            for panel in 0..prompts.panels() {
                start.panel_mut(panel)[prefix..prefix + prompts.rows()].copy_from_slice(prompts.panel(panel));
            }
        }
        let pos = self.get("pos_embed")?;
        let prompts = self.sites.prompts();
        let skip = if vit.embed_prefix { 0 } else { prefix };
        for row in skip..prefix + vit.patches() {
            // Prompts, which have no position, stand before the patches.
            let token = if row < prefix { row } else { row + prompts };
            for channel in 0..dim {
                start.set(token, channel, pos[(row - skip) * dim + channel]);
            }
        }
        let mut registers = 0;
        for (i, token) in vit.prefix.iter().enumerate() {
            let (name, row) = match token {
                PrefixToken::Class => ("cls_token", 0),
                PrefixToken::Distillation => ("dist_token", 0),
                PrefixToken::Register => {
                    registers += 1;
                    ("reg_token", registers - 1)
                }
            };
            let values = self.get(name)?;
            for channel in 0..dim {
                start.set(i, channel, start.at(i, channel) + values[row * dim + channel]);
            }
        }
        Ok(start)
    }

    /// Pooling, norm and heads.
    fn end(&mut self, vit: &VitSpec) -> Result<()> {
        let norm = self.norm_at(Site::FinalNorm, None)?;
        let mean = Mean {
            prefix: self.before(vit),
            tail: self
                .sites
                .token_counts()
                .last()
                .map_or(0, |tokens| tokens.perceptron.tail),
            dim: vit.embed_dim,
            by_size: self.merged || self.areas.is_some(),
        };
        if vit.pool == Pool::AvgThenNorm {
            self.push(Stage::Head, mean);
            self.push(Stage::Head, NormStream(norm));
        } else {
            self.push(Stage::Head, NormStream(norm));
            if vit.pool == Pool::Avg {
                self.push(Stage::Head, mean);
            }
        }
        self.heads(vit.embed_dim)
    }
}
