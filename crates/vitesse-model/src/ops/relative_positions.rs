//! RELATIVE POSITIONS — numbers that depend on the offset between two tokens, in attention (iRPE).
//!
//! Paper: Wu et al., *Rethinking and Improving Relative Position Encoding for Vision Transformer*, ICCV 2021. Mini-DeiT has it on keys:
//! method product, contextual, one table for all heads, ratio 1.9. With `b(i, j)` for the bucket of the offset from key `j` to
//! query `i`, queries scaled:
//!
//! | of | contextual | bias |
//! | --- | --- | --- |
//! | k | `logit[i,j] += Σ_c q[i,c] T[c, b(i,j)]` | `logit[i,j] += T[b(i,j)]` |
//! | q | `logit[i,j] += Σ_c s·k[j,c] T[c, b(j,i)]` | `logit[i,j] += T[b(j,i)]` |
//! | v | `out[i,c] += Σ_j prob[i,j] T[b(i,j), c]` | – |
//!
//! For q and k it stands at `attn.logits`, for v at `attn.heads`. What is looked up is one product of tokens with the table and then one
//! number for each pair, not a product for each pair. Tables start at zero.

pub mod buckets;

use serde::{Deserialize, Serialize};

use self::buckets::{Axis, Buckets};
use super::QkvPart;
use crate::site::Site;
use crate::spec::limits::check_pairs;
use crate::spec::{AttentionSpec, Init, Sites, TensorSpec};
use crate::{Error, Result};

/// Learned numbers for the relative positions of patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativePositions {
    /// To which of queries, keys and values they belong.
    pub of: QkvPart,
    /// How offsets are put into buckets.
    pub method: Method,
    /// What stands in a bucket.
    pub mode: Mode,
    /// How soon far patches share a bucket: up to this distance each has one of its own, and from four times as far on all share one.
    pub ratio: f64,
    /// Whether all heads have one table.
    pub shared_heads: bool,
    /// Whether pairs with a token that is no patch, such as the class token, have a bucket; otherwise nothing is added to them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special: bool,
}

/// How the offsets between patches are put into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// By rows and columns, each pair of both a bucket.
    Product,
    /// By the distance.
    Euclidean,
    /// By the distance squared.
    Quant,
    /// By rows and by columns, with a table for each.
    Cross,
}

/// What stands in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A vector, which is multiplied with the query, key or probability of the pair.
    Contextual,
    /// A number.
    Bias,
}

impl RelativePositions {
    /// Those of Mini-DeiT, on keys; `special` where other tokens than patches are there.
    pub fn published(special: bool) -> Self {
        RelativePositions {
            of: QkvPart::K,
            method: Method::Product,
            mode: Mode::Contextual,
            ratio: 1.9,
            shared_heads: true,
            special,
        }
    }

    /// Where they stand.
    pub fn site(&self) -> Site {
        match self.of {
            QkvPart::Q | QkvPart::K => Site::AttnLogits,
            QkvPart::V => Site::AttnHeads,
        }
    }

    /// Buckets of each table.
    pub fn count(&self) -> usize {
        buckets::count(self.method, self.ratio, self.special)
    }

    /// The end of the name of each table, and which bucket each pair of tokens has there, on a map of `grid` rows and columns.
    pub fn tables(&self, grid: [usize; 2]) -> Vec<(String, Buckets)> {
        let of = |axis| Buckets::new(self.method, axis, self.ratio, self.special, grid);
        self.ends()
            .into_iter()
            .map(|(end, axis)| (end, of(axis)))
            .collect()
    }

    /// The end of the name of each table, and along what it tells tokens apart.
    fn ends(&self) -> Vec<(String, Axis)> {
        let end = match self.mode {
            Mode::Contextual => "lookup_table_weight",
            Mode::Bias => "lookup_table_bias",
        };
        match self.method {
            Method::Cross => vec![
                (format!("rp_rows.{end}"), Axis::Rows),
                (format!("rp_cols.{end}"), Axis::Columns),
            ],
            _ => vec![(end.to_owned(), Axis::Both)],
        }
    }

    pub(super) fn validate(
        &self,
        index: usize,
        site: Site,
        layer: Option<usize>,
        sites: &dyn Sites,
    ) -> Result<()> {
        let fail = |text: String| Err(Error::invalid_spec(format!("ops[{index}]: {text}")));
        if site != self.site() {
            return fail(format!(
                "relative positions of {} stand at `{}`, not at `{site}`",
                self.of.plural(),
                self.site()
            ));
        }
        if !(0.5..=64.0).contains(&self.ratio) {
            return fail(format!(
                "the ratio of relative positions must be from 0.5 to 64, but is {}",
                self.ratio
            ));
        }
        if (self.of, self.mode) == (QkvPart::V, Mode::Bias) {
            return fail(
                "relative positions of values are contextual; a bias is for queries and keys".into(),
            );
        }
        let layer = layer.unwrap_or(0);
        let tokens = sites.tokens_passing(Site::AttnLogits, layer);
        let (Some(_), Some(attn)) = (sites.grid_at(layer), sites.attention(layer)) else {
            return fail(
                "relative positions need patches that lie in a map, and attention between them".into(),
            );
        };
        // Windows of a map that is filled up may have as many pairs together as the whole map.
        if sites.fills_up(layer) || sites.pairs_at(layer) != tokens * tokens {
            return fail(format!(
                "layer {layer} attends in windows, which have a table of relative positions already"
            ));
        }
        if attn.uniform_heads().is_none() {
            return fail(format!(
                "relative positions need heads of one width, and those of layer {layer} differ"
            ));
        }
        check_pairs(Some(layer), sites)
    }

    pub(super) fn tensors(&self, prefix: &str, layer: usize, sites: &dyn Sites) -> Vec<TensorSpec> {
        let (all, qk, v) = sites
            .attention(layer)
            .and_then(AttentionSpec::uniform_heads)
            .unwrap_or((0, 0, 0));
        let (heads, count) = (if self.shared_heads { 1 } else { all }, self.count());
        let shape = match (self.mode, self.of) {
            (Mode::Bias, _) => vec![heads, count],
            (Mode::Contextual, QkvPart::V) => vec![heads, count, v],
            (Mode::Contextual, _) => vec![heads, qk, count],
        };
        let ends = self.ends().into_iter();
        ends.map(|(end, _)| TensorSpec::parameter(format!("{prefix}.{end}"), &shape, Init::Zeros))
            .collect()
    }

    /// Multiply-accumulates for one image.
    pub(super) fn macs(&self, layer: usize, sites: &dyn Sites) -> usize {
        let Some(attn) = sites.attention(layer).filter(|_| self.mode == Mode::Contextual) else {
            return 0;
        };
        let width = match self.of {
            QkvPart::V => attn.v_width(),
            QkvPart::Q | QkvPart::K => attn.qk_width(),
        };
        let tables = if self.method == Method::Cross { 2 } else { 1 };
        tables * sites.tokens_passing(Site::AttnLogits, layer) * width * self.count()
    }
}

#[cfg(feature = "train")]
pub(super) use network::RelativePositionsOp;

#[cfg(feature = "train")]
mod network {
    use std::borrow::Cow;
    use std::sync::Arc;

    use burn::module::{Module, Param};
    use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

    use super::buckets::Buckets;
    use super::{Mode, RelativePositions};
    use crate::Result;
    use crate::network::{Ctx, MOST_BUCKETS, MapChange, Parameters, Positions, Stream};
    use crate::ops::QkvPart;
    use crate::ops::network::{Act, AttentionPart};
    use crate::site::Site;
    use crate::spec::Sites;

    #[derive(Module, Debug)]
    pub(in crate::ops) struct RelativePositionsOp {
        tables: Vec<Table>,
        #[module(skip)]
        buckets: Vec<Buckets>,
        /// For each table, in the stream that the model has here.
        #[module(skip)]
        places: Vec<Places>,
        #[module(skip)]
        spec: RelativePositions,
    }

    #[derive(Module, Debug)]
    enum Table {
        /// `[1 | heads, width, buckets]`, of values `[1 | heads, buckets, width]`.
        Contextual(Param<Tensor<3>>),
        /// `[1 | heads, buckets]`
        Bias(Param<Tensor<2>>),
    }

    /// Where in a token's row of buckets each pair of its own looks, all rows one after the other.
    #[derive(Debug, Clone)]
    struct Places {
        /// Tokens before the patches, and behind them.
        beside: [usize; 2],
        /// `[tokens · tokens]`
        at: Vec<i64>,
        /// The buckets themselves, as fused attention has them: 255 for none. Nothing where there are too many.
        buckets: Option<Arc<[u8]>>,
        /// Numbers in a row.
        stride: usize,
        /// Whether the last of them is a zero for pairs that have no bucket.
        zero: bool,
    }

    impl RelativePositionsOp {
        pub(in crate::ops) fn new(
            spec: &RelativePositions,
            prefix: &str,
            layer: usize,
            sites: &dyn Sites,
            parameters: &Parameters<'_>,
        ) -> Result<Self> {
            let grid = sites.grid_at(layer).unwrap_or([0; 2]);
            let (names, buckets): (Vec<_>, Vec<_>) = spec.tables(grid).into_iter().unzip();
            let before = sites
                .tokens_passing(Site::AttnLogits, layer)
                .saturating_sub(grid[0] * grid[1]);
            let places = buckets
                .iter()
                .map(|buckets| Places::new(spec, buckets, [before, 0]));
            let table = |end: &String| {
                let name = format!("{prefix}.{end}");
                Ok(match spec.mode {
                    Mode::Contextual => Table::Contextual(parameters.parameter(&name)?),
                    Mode::Bias => Table::Bias(parameters.parameter(&name)?),
                })
            };
            Ok(RelativePositionsOp {
                tables: names.iter().map(table).collect::<Result<_>>()?,
                places: places.collect(),
                buckets,
                spec: spec.clone(),
            })
        }

        /// Each table, and where the pairs of this stream look in it. They are made again only for a stream to which another op gave other tokens
        /// than the model has here.
        fn places(&self, stream: &Stream) -> impl Iterator<Item = (&Table, Cow<'_, Places>)> {
            let beside = [stream.prefix, stream.tail];
            let places = self.places.iter().zip(&self.buckets);
            let places = places.map(move |(places, buckets)| match places.beside == beside {
                true => Cow::Borrowed(places),
                false => Cow::Owned(Places::new(&self.spec, buckets, beside)),
            });
            self.tables.iter().zip(places)
        }

        /// What each table adds to the logits, `[batch | 1, heads | 1, tokens, tokens]`; of keys where `rows`
        /// `[batch, heads, tokens, width]` are the queries.
        fn looked_up(&self, rows: &Tensor<4>, stream: &Stream) -> Vec<Tensor<4>> {
            let [batch, heads, tokens, _] = rows.dims();
            let count = self.spec.count();
            let each = self.places(stream).map(|(table, places)| match table {
                Table::Contextual(table) => {
                    let products = through(rows.clone(), table.val());
                    let products = places.with_zero(products.reshape([batch * heads, tokens, count]));
                    let products = products.reshape([batch * heads, tokens * places.stride]);
                    let at = places.at(&products.device());
                    products.select(1, at).reshape([batch, heads, tokens, tokens])
                }
                Table::Bias(table) => {
                    let table = table.val();
                    let own = table.dims()[0];
                    let table = places.with_zero(table.reshape([own, 1, count]));
                    let table = table.reshape([own, places.stride]);
                    let at = places.at(&table.device());
                    table.select(1, at).reshape([1, own, tokens, tokens])
                }
            });
            each.collect()
        }
    }

    /// Each row `[batch, heads, tokens, in]` times the matrix of its head, `[1 | heads, in, out]`.
    fn through(rows: Tensor<4>, table: Tensor<3>) -> Tensor<4> {
        let [batch, heads, tokens, width] = rows.dims();
        let [own, _, out] = table.dims();
        if own == 1 {
            let rows = rows.reshape([1, batch * heads * tokens, width]);
            return rows.matmul(table).reshape([batch, heads, tokens, out]);
        }
        let rows = rows.swap_dims(0, 1).reshape([heads, batch * tokens, width]);
        let products = rows.matmul(table).reshape([heads, batch, tokens, out]);
        products.swap_dims(0, 1)
    }

    impl Places {
        /// With so many tokens before the patches and behind them. Of a contextual table each token has a row of its own; biases are one row.
        fn new(spec: &RelativePositions, buckets: &Buckets, beside: [usize; 2]) -> Self {
            let [before, behind] = beside;
            let (pairs, count) = (buckets.pairs(before, behind), spec.count());
            let zero = pairs.contains(&None);
            let stride = count + usize::from(zero);
            let tokens = buckets.patches() + before + behind;
            let at = pairs.iter().enumerate().map(|(pair, bucket)| {
                let row = match spec.mode {
                    Mode::Contextual => pair / tokens,
                    Mode::Bias => 0,
                };
                (row * stride + bucket.unwrap_or(count)) as i64
            });
            let small = |bucket: &Option<usize>| bucket.map_or(u8::MAX, |bucket| bucket as u8);
            Places {
                beside,
                at: at.collect(),
                buckets: (count <= MOST_BUCKETS).then(|| pairs.iter().map(small).collect()),
                stride,
                zero,
            }
        }

        /// `[tokens · tokens]`
        fn at(&self, device: &Device) -> Tensor<1, Int> {
            let at = TensorData::new(self.at.clone(), [self.at.len()]);
            Tensor::from_data(at, device)
        }

        /// `[.., .., buckets]` with the zero behind, where one is needed.
        fn with_zero(&self, rows: Tensor<3>) -> Tensor<3> {
            if !self.zero {
                return rows;
            }
            let [first, second, _] = rows.dims();
            let zero = Tensor::zeros([first, second, 1], &rows.device());
            Tensor::cat(vec![rows, zero], 2)
        }
    }

    impl Act for RelativePositionsOp {
        fn map(&self, x: Tensor<4>, ctx: &mut Ctx) -> Tensor<4> {
            // What belongs to keys is multiplied with queries, and the other way round.
            let other = match self.spec.of {
                QkvPart::Q => QkvPart::K,
                QkvPart::K | QkvPart::V => QkvPart::Q,
            };
            // All of them are there at the maps; the spec was validated: heads have one width.
            let Some((state, rows)) = ctx
                .attention
                .as_ref()
                .and_then(|state| Some((state, state.heads(other)?)))
            else {
                return x;
            };
            let looked_up = self.looked_up(&(rows * state.scale()), &ctx.stream);
            looked_up.into_iter().fold(x, |x, found| match self.spec.of {
                QkvPart::Q => x + found.swap_dims(2, 3),
                QkvPart::K | QkvPart::V => x + found,
            })
        }

        fn map_change(&self, ctx: &Ctx) -> Option<MapChange> {
            let mut places = self.places(&ctx.stream);
            match (places.next()?, places.next()) {
                ((Table::Contextual(table), places), None) if self.spec.of == QkvPart::K => {
                    Some(MapChange::Positions(Positions {
                        table: table.val(),
                        buckets: places.buckets.clone()?,
                    }))
                }
                _ => None,
            }
        }

        fn tokens(&self, x: Tensor<3>, ctx: &mut Ctx) -> Tensor<3> {
            let Some(probs) = ctx.attention.as_ref().and_then(|state| state.probs.clone()) else {
                return x;
            };
            let ([batch, heads, tokens, _], count) = (probs.dims(), self.spec.count());
            let probs = probs.reshape([batch * heads, tokens * tokens]);
            self.places(&ctx.stream).fold(x, |x, (table, places)| {
                let Table::Contextual(table) = table else {
                    return x;
                };
                let sums = Tensor::zeros([batch * heads, tokens * places.stride], &probs.device());
                let at = places.at(&probs.device());
                let sums = sums.select_assign(1, at, probs.clone(), IndexingUpdateOp::Add);
                let sums = sums.reshape([batch, heads, tokens, places.stride]);
                let found = through(sums.narrow(3, 0, count), table.val());
                let width = found.dims()[3];
                x + found.swap_dims(1, 2).reshape([batch, tokens, heads * width])
            })
        }

        fn reads_attention(&self) -> Option<AttentionPart> {
            (self.spec.of == QkvPart::V).then_some(AttentionPart::Probs)
        }
    }
}
