//! Tokens that leave or merge: which goes where, and that they go there.
//!
//! Every thread knows what all have shown and decides the same for itself; then each fetches its part of the rows that are left.
//! How many there are follows from the description, so nothing is allocated after the first image.

use vitesse_kernels::Real;

use super::Head;
use crate::member::Member;
use crate::plan::{Counts, Step};
use crate::team::Run;

/// What becomes of one token: its row times `weight` is added to the token at `place`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Move {
    pub(crate) token: u32,
    pub(crate) place: u32,
    pub(crate) weight: f32,
}

/// What a thread knows of the tokens of all.
#[derive(Debug, Default)]
pub(crate) struct TokenRoom {
    /// In the order of the tokens that were; those that only leave are not among them.
    moves: Vec<Move>,
    /// How many patches each token stands for, and the logarithms.
    pub(crate) sizes: Vec<f32>,
    pub(crate) logs: Vec<f32>,
    /// What the threads have shown of their tokens, `[tokens, width]`.
    seen: Vec<f32>,
    /// 0, or no number where one of those seen is none: then nothing that they decide is worth anything, and all rows become none.
    spoiled: f32,
    /// Scores, an order by them, and partners.
    scores: Vec<f32>,
    order: Vec<u32>,
    partners: Vec<u32>,
    next: Vec<f32>,
}

/// Shows the rows of the stream, and what is `beside` them, to the others; collects what all show beside.
pub(super) fn exchange<T: Real>(on: &mut Member<T>, run: &Run<'_, T>) {
    on.tokens_room.seen.clear();
    if run.team.members.len() == 1 {
        on.tokens_room.seen.extend_from_slice(&on.beside);
    } else {
        let mut place = run.team.own(on.turn);
        place.beside.clear();
        place.beside.extend_from_slice(&on.beside);
        drop(place);
        on.show(run.team, &on.x);
        for shown in run.team.all(on.turn).iter().flatten() {
            on.tokens_room.seen.extend_from_slice(&shown.beside);
        }
    }
    let room = &mut on.tokens_room;
    room.spoiled = room.seen.iter().map(|x| x * 0.0).sum();
}

/// The rows go where the moves say, and make `count` tokens. What the threads show was shown before.
pub(super) fn go<T: Real>(on: &mut Member<T>, run: &Run<'_, T>, count: usize) {
    let (own, panels) = (run.team.share(count), on.x.panels());
    on.spare.reshape(own.len(), panels);
    for panel in 0..panels {
        on.spare.panel_mut(panel).fill([0.0; 32]);
    }
    let alone = run.team.members.len() == 1;
    let shown = if alone {
        None
    } else {
        Some(run.team.all(on.next_turn()))
    };
    let Member {
        x,
        spare,
        tokens,
        tokens_room,
        ..
    } = &mut *on;
    let mut fetch = |theirs: &std::ops::Range<usize>, rows: &vitesse_kernels::Panels<f32>| {
        let moves = &tokens_room.moves;
        let from = moves.partition_point(|m| (m.token as usize) < theirs.start);
        let to = moves.partition_point(|m| (m.token as usize) < theirs.end);
        for m in &moves[from..to] {
            let place = m.place as usize;
            if !own.contains(&place) {
                continue;
            }
            for panel in 0..panels {
                let row = &rows.panel(panel)[m.token as usize - theirs.start];
                let sum = &mut spare.panel_mut(panel)[place - own.start];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += m.weight * x);
            }
        }
    };
    match &shown {
        None => fetch(tokens, x),
        Some(shown) => shown
            .iter()
            .flatten()
            .for_each(|shown| fetch(&shown.tokens, &shown.rows)),
    }
    drop(shown);
    on.adopt(own);
}

/// Tokens move as the description says, the same for every image.
#[derive(Debug)]
pub(crate) struct Rearrange {
    /// In the order of the tokens.
    pub(crate) moves: Vec<Move>,
    /// How many are left.
    pub(crate) count: usize,
    /// How many patches each stands for then, where the mean of all counts them.
    pub(crate) sizes: Vec<f32>,
}

impl<T: Real> Step<T> for Rearrange {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        if run.team.members.len() > 1 {
            on.show(run.team, &on.x);
        }
        on.tokens_room.moves.clear();
        on.tokens_room.moves.extend_from_slice(&self.moves);
        on.tokens_room.sizes.clear();
        on.tokens_room.sizes.extend_from_slice(&self.sizes);
        go(on, run, self.count);
    }

    fn describe(&self) -> String {
        format!("{} tokens go on, some of them merged", self.count)
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.count;
        0
    }
}

/// The most similar tokens merge, by their keys.
#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) heads: std::sync::Arc<[Head]>,
    /// How many tokens there are.
    pub(crate) tokens: usize,
    /// How many of the first ones are protected.
    pub(crate) prefix: usize,
    pub(crate) r: usize,
    /// Whether no token has merged before.
    pub(crate) first: bool,
}

impl Match {
    /// Mean keys of the thread's tokens, each of length one.
    fn metric<T: Real>(&self, on: &mut Member<T>, width: usize) {
        let rows = on.kv.rows();
        on.beside.clear();
        on.beside.resize(rows * width, 0.0);
        for head in self.heads.iter() {
            for (panel, first) in (0..width).step_by(32).enumerate() {
                let columns = (width - first).min(32);
                let keys = on.kv.panel(head.k_at + panel);
                for (row, to) in keys.iter().zip(on.beside.chunks_exact_mut(width)) {
                    let to = &mut to[first..first + columns];
                    to.iter_mut()
                        .zip(row.as_ref())
                        .for_each(|(sum, x)| *sum += x.to_f32());
                }
            }
        }
        for row in on.beside.chunks_exact_mut(width) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            let by = if norm > 0.0 { norm.recip() } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= by);
        }
    }

    /// Who merges into whom. Tokens at even positions are the first set, those at odd ones the second.
    fn decide(&self, room: &mut TokenRoom, width: usize) {
        let TokenRoom {
            seen,
            scores,
            order,
            partners,
            ..
        } = room;
        let row = |token: usize| &seen[token * width..(token + 1) * width];
        scores.clear();
        partners.clear();
        let first_b = self.prefix + 1 - self.prefix % 2;
        for a in (0..self.tokens).step_by(2) {
            let mut found = (f32::NEG_INFINITY, 0);
            if a >= self.prefix {
                // Above the protected ones, whatever the scores are: these may be no numbers.
                found = (f32::MIN, first_b as u32);
                for b in (first_b..self.tokens).step_by(2) {
                    let score = dot(row(a), row(b));
                    if score > found.0 {
                        found = (score, b as u32);
                    }
                }
            }
            scores.push(found.0);
            partners.push(found.1);
        }
        order.clear();
        order.extend(0..scores.len() as u32);
        let at = |a: u32| scores[a as usize];
        order.sort_unstable_by(|&a, &b| at(b).total_cmp(&at(a)).then(a.cmp(&b)));
        let (_, unmerged) = order.split_at_mut(self.r);
        if self.prefix > 0 {
            unmerged.sort_unstable();
        }
    }

    /// The moves, and the sizes after them.
    fn moves(&self, room: &mut TokenRoom) {
        let TokenRoom {
            moves,
            sizes,
            order,
            partners,
            next,
            spoiled,
            ..
        } = room;
        if self.first {
            sizes.clear();
            sizes.resize(self.tokens, 1.0);
        }
        let step = |token, place| Move {
            token,
            place,
            weight: 0.0,
        };
        moves.clear();
        moves.extend((0..self.tokens as u32).map(|token| step(token, token)));
        let mut place = self.prefix as u32;
        let (merged, unmerged) = order.split_at(self.r);
        let second = (1..self.tokens as u32).step_by(2);
        for token in unmerged.iter().map(|a| 2 * a).chain(second) {
            if token as usize >= self.prefix {
                moves[token as usize].place = place;
                place += 1;
            }
        }
        for &a in merged {
            moves[2 * a as usize].place = moves[partners[a as usize] as usize].place;
        }
        next.clear();
        next.resize(self.tokens - self.r, 0.0);
        for (m, size) in moves.iter().zip(&*sizes) {
            next[m.place as usize] += size;
        }
        for (m, size) in moves.iter_mut().zip(&*sizes) {
            m.weight = size / next[m.place as usize] + *spoiled;
        }
        std::mem::swap(sizes, next);
    }
}

/// A sum in eight parts, which the compiler keeps in vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        let pairs = a.iter().zip(b);
        sums.iter_mut().zip(pairs).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

impl<T: Real> Step<T> for Match {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let width = self.heads.first().map_or(0, |head| head.qk);
        self.metric(on, width);
        exchange(on, run);
        self.decide(&mut on.tokens_room, width);
        self.moves(&mut on.tokens_room);
        let TokenRoom { sizes, logs, .. } = &mut on.tokens_room;
        logs.clear();
        logs.extend(sizes.iter().map(|size| size.ln()));
        go(on, run, self.tokens - self.r);
    }

    fn describe(&self) -> String {
        let left = self.tokens - self.r;
        format!(
            "{} of {} tokens merge by their keys, {left} go on",
            self.r, self.tokens
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.tokens - self.r;
        0
    }
}

/// The class token's queries, shown to all threads, which read them behind the meeting ([`Attentions`]).
#[derive(Debug)]
pub(crate) struct ShowClass {
    pub(crate) heads: std::sync::Arc<[Head]>,
}

impl<T: Real> Step<T> for ShowClass {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        if on.tokens.start > 0 || on.tokens.is_empty() {
            return;
        }
        let mut place = run.team.own(on.turn);
        place.beside.clear();
        for head in self.heads.iter() {
            let columns = (0..head.qk).map(|n| on.q.at(0, 32 * head.q_at + n).to_f32());
            place.beside.extend(columns);
        }
    }

    fn describe(&self) -> String {
        "the class token's queries are shown".into()
    }
}

/// Products of the class token's queries with the keys of the thread's tokens, `[tokens, heads]`.
#[derive(Debug)]
pub(crate) struct Attentions {
    pub(crate) heads: std::sync::Arc<[Head]>,
}

impl<T: Real> Step<T> for Attentions {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        let (rows, heads) = (on.kv.rows(), self.heads.len());
        on.beside.clear();
        on.beside.resize(rows * heads, 0.0);
        let shown = run.team.all(on.turn);
        let Some(first) = shown.iter().flatten().next() else {
            return;
        };
        let mut from = 0;
        for (h, head) in self.heads.iter().enumerate() {
            let query = &first.beside[from..from + head.qk];
            from += head.qk;
            for (panel, query) in query.chunks(32).enumerate() {
                let keys = on.kv.panel(head.k_at + panel);
                for (row, to) in keys.iter().zip(on.beside.chunks_exact_mut(heads)) {
                    let products = row.as_ref().iter().zip(query).map(|(x, q)| x.to_f32() * q);
                    to[h] += products.sum::<f32>();
                }
            }
        }
    }

    fn describe(&self) -> String {
        "what the class token attends to".into()
    }
}

/// Tokens stay to which the class token attends most.
#[derive(Debug)]
pub(crate) struct Choose {
    pub(crate) heads: usize,
    /// How many tokens there are.
    pub(crate) tokens: usize,
    /// How many of the first ones are protected.
    pub(crate) prefix: usize,
    /// How many of those behind the prefix stay.
    pub(crate) kept: usize,
    /// Whether the others become one more.
    pub(crate) fuse: bool,
}

impl Choose {
    fn left(&self) -> usize {
        self.prefix + self.kept + usize::from(self.fuse)
    }

    /// The attention that each token is paid, mean over heads.
    fn score(&self, room: &mut TokenRoom) {
        let TokenRoom { seen, scores, .. } = room;
        scores.clear();
        scores.resize(self.tokens, 0.0);
        for head in 0..self.heads {
            let logits = || seen.iter().skip(head).step_by(self.heads);
            let most = logits().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
            let sum: f32 = logits().map(|x| (x - most).exp()).sum();
            let by = 1.0 / (sum * self.heads as f32);
            let pairs = scores.iter_mut().zip(logits());
            pairs.for_each(|(score, x)| *score += (x - most).exp() * by);
        }
    }
}

/// Orders the tokens behind the `prefix` by their scores, best first, of equals the first one; the moves of the protected ones and of
/// the `kept` best.
fn best(room: &mut TokenRoom, prefix: usize, kept: usize) {
    let TokenRoom {
        moves,
        scores,
        order,
        spoiled,
        ..
    } = room;
    order.clear();
    order.extend(prefix as u32..scores.len() as u32);
    let at = |token: u32| scores[token as usize];
    order.sort_unstable_by(|&a, &b| at(b).total_cmp(&at(a)).then(a.cmp(&b)));
    moves.clear();
    let protected = (0..prefix as u32).map(|token| (token, token));
    let best = order.iter().take(kept).enumerate();
    let best = best.map(|(i, &token)| (token, (prefix + i) as u32));
    moves.extend(protected.chain(best).map(|(token, place)| Move {
        token,
        place,
        weight: 1.0 + *spoiled,
    }));
}

impl TokenRoom {
    /// The scores that the threads have shown of the tokens behind the `prefix` decide: the `kept` best go on, in their order.
    pub(super) fn keep_best(&mut self, prefix: usize, kept: usize) {
        self.scores.clear();
        self.scores.resize(prefix, 0.0);
        self.scores.extend_from_slice(&self.seen);
        best(self, prefix, kept);
        self.moves.sort_unstable_by_key(|m| m.token);
    }
}

impl<T: Real> Step<T> for Choose {
    fn run(&self, on: &mut Member<T>, run: &Run<'_, T>) {
        exchange(on, run);
        let room = &mut on.tokens_room;
        self.score(room);
        best(room, self.prefix, self.kept);
        if self.fuse {
            let TokenRoom {
                moves, scores, order, ..
            } = &mut *room;
            let leaving = order.iter().skip(self.kept);
            moves.extend(leaving.map(|&token| Move {
                token,
                place: self.left() as u32 - 1,
                weight: scores[token as usize],
            }));
        }
        room.moves.sort_unstable_by_key(|m| m.token);
        go(on, run, self.left());
    }

    fn describe(&self) -> String {
        let fused = if self.fuse { ", the others become one" } else { "" };
        let others = self.tokens - self.prefix;
        format!(
            "{} of {others} tokens stay by the class token's attention{fused}",
            self.kept
        )
    }

    fn macs(&self, counts: &mut Counts) -> usize {
        counts.tokens = self.left();
        0
    }
}
