//! Mixtures of experts: choosing experts for each token, and the products of each expert with the tokens that chose it.
//!
//! Row `t * n_used + i` of register F belongs to token `t` and the `i`-th of its `n_used` experts, in ascending order.

use std::ops::Range;

use tandem_models::{Activation, Linear, Reg, WeightId};

use super::super::isa::LANES;
use super::super::matmul::Acts;
use super::super::matrix::Matrix;
use super::super::team::{Member, Shared};
use super::scratch::{MemberScratch, slot};
use super::{Exec, Int8, Target, column_passes, write_tile};

/// An expert that tokens of the batch chose.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Visited {
    /// The expert.
    expert: usize,
    /// Its part of [`Routing::rows`] and [`Routing::tokens`], from and to.
    columns: (usize, usize),
}

impl Visited {
    /// Its columns in parts; see [`column_passes`].
    fn passes(self, n_in: usize) -> impl Iterator<Item = Range<usize>> {
        let (from, to) = self.columns;
        column_passes(to - from, n_in).map(move |part| from + part.start..from + part.end)
    }
}

/// Which experts the tokens of a batch go to.
#[derive(Debug, Default)]
pub(super) struct Routing {
    /// The experts of each token, `[n_tokens, n_used]`.
    chosen: Vec<u32>,
    /// The experts that were chosen at all, ascending; then, up to the number of experts, some without columns.
    visited: Vec<Visited>,
    /// Rows of register F, expert by expert.
    rows: Vec<u32>,
    /// The token of each of `rows`.
    tokens: Vec<u32>,
}

/// How much room [`Routing`] has.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoutingSizes {
    /// Tokens of the largest batch, times the experts that each uses.
    pub(super) rows: usize,
    /// Experts of a block.
    pub(super) experts: usize,
}

impl RoutingSizes {
    /// Bytes of all lists.
    pub(super) fn bytes(self) -> usize {
        3 * size_of::<u32>() * self.rows + size_of::<Visited>() * self.experts
    }
}

/// The same, as members see it.
pub(super) struct SharedRouting {
    chosen: Shared<u32>,
    visited: Shared<Visited>,
    rows: Shared<u32>,
    tokens: Shared<u32>,
}

impl Routing {
    pub(super) fn new(sizes: RoutingSizes) -> Routing {
        let list = || vec![0; sizes.rows];
        let visited = vec![Visited::default(); sizes.experts];
        Routing { chosen: list(), visited, rows: list(), tokens: list() }
    }

    pub(super) fn share(&mut self) -> SharedRouting {
        SharedRouting {
            chosen: Shared::new(&mut self.chosen),
            visited: Shared::new(&mut self.visited),
            rows: Shared::new(&mut self.rows),
            tokens: Shared::new(&mut self.tokens),
        }
    }
}

/// Chooses the experts with the largest of `row`'s logits, as many as `chosen` has room for, and turns the row into their
/// weights.
fn choose(row: &mut [f32], chosen: &mut [u32], normalize: bool) {
    // What is no number comes first, so that it shows in the result.
    let key = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    let mut max = f32::NEG_INFINITY;
    let mut last: Option<(f32, usize)> = None;
    for choice in chosen.iter_mut() {
        let mut best: Option<(f32, usize)> = None;
        for (e, x) in row.iter().enumerate() {
            let x = key(*x);
            let is_left = last.is_none_or(|(y, i)| x < y || x == y && e > i);
            if is_left && best.is_none_or(|(y, _)| x > y) {
                best = Some((x, e));
            }
        }
        max = best.map_or(max, |(x, _)| max.max(x));
        *choice = best.map_or(0, |(_, e)| e as u32);
        last = best;
    }
    chosen.sort_unstable();
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = if normalize { chosen.iter().map(|e| row[*e as usize]).sum() } else { row.iter().sum() };
    let mut chosen = chosen.iter().peekable();
    for (e, x) in row.iter_mut().enumerate() {
        *x = if chosen.next_if_eq(&&(e as u32)).is_some() { *x / sum } else { 0.0 };
    }
}

/// Sorts rows by expert.
fn sort_by_expert(chosen: &[u32], n_used: usize, visited: &mut [Visited], rows: &mut [u32], tokens: &mut [u32]) {
    for (expert, v) in visited.iter_mut().enumerate() {
        *v = Visited { expert, columns: (0, 0) };
    }
    chosen.iter().for_each(|e| visited[*e as usize].columns.1 += 1);
    let mut first = 0;
    for v in visited.iter_mut() {
        let count = v.columns.1;
        v.columns = (first, first);
        first += count;
    }
    for (row, e) in chosen.iter().enumerate() {
        let end = &mut visited[*e as usize].columns.1;
        rows[*end] = row as u32;
        tokens[*end] = (row / n_used) as u32;
        *end += 1;
    }
    let mut n = 0;
    for e in 0..visited.len() {
        if visited[e].columns.0 < visited[e].columns.1 {
            visited.swap(n, e);
            n += 1;
        }
    }
}

// SAFETY of the `Shared` accesses below: as in the parent module. The lists of the routing are written by `route`, and only
// read there and in the phases of the steps after it.
impl Exec<'_> {
    fn n_used(&self) -> usize {
        self.program.hparams.n_expert_used
    }

    /// Most experts that the tokens of the batch can have chosen; what they did choose is known in phases only.
    fn most_visited(&self) -> usize {
        self.width(Reg::R).min(self.n() * self.n_used())
    }

    /// The experts that tokens chose.
    fn visited(&self) -> &[Visited] {
        // SAFETY: see above.
        let all = unsafe { self.routing.visited.get(0..self.most_visited()) };
        let n = all.iter().take_while(|v| v.columns.0 < v.columns.1).count();
        &all[..n]
    }

    /// Of each expert that tokens chose: the expert, its tokens, and its rows of register F.
    pub(super) fn expert_rows(&self) -> impl Iterator<Item = (usize, &[u32], &[u32])> {
        self.visited().iter().map(|v| {
            let part = v.columns.0..v.columns.1;
            // SAFETY: only read after `route`.
            let (tokens, rows) = unsafe { (self.routing.tokens.get(part.clone()), self.routing.rows.get(part)) };
            (v.expert, tokens, rows)
        })
    }

    /// Members claim tokens, for which they compute the logits and choose; then one sorts. The logits of a single token
    /// are shared out by panels.
    pub(super) fn route(&self, router: &Linear, normalize: bool, m: &Member<'_>, own: &mut MemberScratch) {
        let mut input = self.input(Reg::H, &[router], m);
        if self.n() == 1 {
            self.products(&[(router, Reg::R, false)], &mut input, m, own);
        }
        let (width, n_used) = (self.width(Reg::R), self.n_used());
        self.tokens(m, |tokens| {
            if self.n() > 1 {
                let acts = input.ready(self, own);
                self.router_logits(router, tokens.clone(), acts, own);
            }
            for t in tokens {
                // SAFETY: this member's tokens.
                unsafe {
                    let row = self.registers[slot(Reg::R)].get_mut(t * width..(t + 1) * width);
                    choose(row, self.routing.chosen.get_mut(t * n_used..(t + 1) * n_used), normalize);
                }
            }
        });
        m.alone(|_| {
            let all = 0..self.n() * n_used;
            // SAFETY: one member does it all.
            unsafe {
                let visited = self.routing.visited.get_mut(0..width);
                let (rows, tokens) = (self.routing.rows.get_mut(all.clone()), self.routing.tokens.get_mut(all.clone()));
                sort_by_expert(self.routing.chosen.get(all), n_used, visited, rows, tokens);
            }
        });
    }

    /// All logits of some tokens.
    fn router_logits(&self, router: &Linear, tokens: Range<usize>, acts: &Acts, own: &mut MemberScratch) {
        let matrix = self.matrix(router);
        let target = Target { out: self.registers[slot(Reg::R)], stride: self.width(Reg::R), add: false };
        for cols in column_passes(tokens.len(), matrix.n_in) {
            let cols = tokens.start + cols.start..tokens.start + cols.end;
            for p in 0..matrix.n_panels() {
                let outputs = p * LANES..matrix.n_out.min((p + 1) * LANES);
                // SAFETY: `acts` covers all columns of the batch.
                unsafe { matrix.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile) };
                let tiles = &mut own.tile[..LANES * cols.len()];
                self.scale_and_bias(router, &outputs, tiles);
                self.write(tiles, cols.clone(), outputs, target);
            }
        }
    }

    /// Members claim (expert, panel) pairs.
    pub(super) fn expert_glu(
        &self,
        gate: WeightId,
        up: WeightId,
        act: Activation,
        m: &Member<'_>,
        own: &mut MemberScratch,
    ) {
        let (gate, up) = (self.matrices(gate), self.matrices(up));
        let quantized = gate.wants_quantized() || up.wants_quantized();
        let int8 = if quantized { Int8::Once } else { Int8::No };
        let mut input = self.rows_as_input(Reg::H, gate.n_in, 0..self.n(), int8, m);
        input.acts.rows = self.routing.tokens.as_ptr();
        let n_panels = gate.n_panels();
        m.phase_even(self.most_visited() * n_panels, |claimed| {
            let acts = input.ready(self, own);
            let visited = self.visited();
            for i in claimed.start / n_panels..claimed.end.div_ceil(n_panels) {
                let first = i * n_panels;
                let panels = claimed.start.max(first) - first..claimed.end.min(first + n_panels) - first;
                let Some(visited) = visited.get(i) else { break };
                self.expert_glu_panels((gate, up), act, *visited, panels, acts, own);
            }
        });
    }

    /// Some panels of one expert's hidden.
    fn expert_glu_panels(
        &self,
        (gate, up): (&Matrix, &Matrix),
        act: Activation,
        visited: Visited,
        panels: Range<usize>,
        acts: &Acts,
        own: &mut MemberScratch,
    ) {
        let n_ff = gate.n_out;
        for cols in visited.passes(gate.n_in) {
            // SAFETY: only read after `route`.
            let rows = unsafe { self.routing.rows.get(cols.clone()) };
            for p in panels.clone() {
                let hidden = p * LANES..n_ff.min((p + 1) * LANES);
                let p = visited.expert * gate.n_panels() + p;
                // SAFETY: the columns are tokens of the batch, which `acts` covers.
                unsafe {
                    gate.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile);
                    up.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile2);
                }
                let all = ..LANES * cols.len();
                // SAFETY: equally long, whole vectors.
                unsafe { (self.kernels.glu)(act, &mut own.tile[all], &own.tile2[all]) };
                for (row, tile) in rows.iter().zip(own.tile.chunks_exact(LANES)) {
                    let at = *row as usize * n_ff + hidden.start;
                    // SAFETY: this member's panel.
                    write_tile(unsafe { self.registers[slot(Reg::F)].get_mut(at..at + hidden.len()) }, tile, false);
                }
            }
        }
    }

    /// Members claim panels, and add up the experts' shares in ascending order.
    pub(super) fn expert_down(&self, down: WeightId, output: Reg, add: bool, m: &Member<'_>, own: &mut MemberScratch) {
        let down = self.matrices(down);
        let n = self.n() * self.n_used();
        let int8 = if down.wants_quantized() { Int8::Once } else { Int8::No };
        let mut input = self.rows_as_input(Reg::F, down.n_in, 0..n, int8, m);
        input.acts.rows = self.routing.rows.as_ptr();
        m.phase_even(down.n_panels(), |panels| {
            let acts = input.ready(self, own);
            let outputs = panels.start * LANES..down.n_out.min(panels.end * LANES);
            if !add {
                for t in 0..self.n() {
                    // SAFETY: this member's panels.
                    unsafe { self.output_mut(output, t, outputs.clone()) }.fill(0.0);
                }
            }
            for visited in self.visited() {
                self.expert_down_panels(down, output, *visited, panels.clone(), acts, own);
            }
        });
    }

    /// Adds one expert's share to the outputs of some panels.
    fn expert_down_panels(
        &self,
        down: &Matrix,
        output: Reg,
        visited: Visited,
        panels: Range<usize>,
        acts: &Acts,
        own: &mut MemberScratch,
    ) {
        for cols in visited.passes(down.n_in) {
            // SAFETY: only read after `route`.
            let tokens = unsafe { self.routing.tokens.get(cols.clone()) };
            for p in panels.clone() {
                let outputs = p * LANES..down.n_out.min((p + 1) * LANES);
                let p = visited.expert * down.n_panels() + p;
                // SAFETY: the columns are rows of F, which `acts` covers.
                unsafe { down.multiply(self.arena, p, acts, cols.clone(), &mut own.work, &mut own.tile) };
                for (t, tile) in tokens.iter().zip(own.tile.chunks_exact(LANES)) {
                    let t = *t as usize;
                    let at = t * self.width(Reg::R) + visited.expert;
                    // SAFETY: weights are only read after `route`; this member's panel.
                    unsafe {
                        let weight = self.registers[slot(Reg::R)].get(at..at + 1)[0];
                        let out = self.output_mut(output, t, outputs.clone());
                        out.iter_mut().zip(tile).for_each(|(o, y)| *o += weight * y);
                    }
                }
            }
        }
    }

    /// Members claim tokens.
    pub(super) fn sigmoid_gate(&self, weight: WeightId, n_ff: usize, m: &Member<'_>) {
        let (weight, n_embd) = (self.vector(weight), self.width(Reg::H));
        self.tokens(m, |tokens| {
            for t in tokens {
                // SAFETY: H is only read; this member's rows of F.
                unsafe {
                    let x = self.registers[slot(Reg::H)].get(t * n_embd..(t + 1) * n_embd);
                    let gate = (self.kernels.dot_f32)(x.as_ptr(), weight.as_ptr(), n_embd);
                    let factor = 1.0 / (1.0 + (-gate).exp());
                    let hidden = self.registers[slot(Reg::F)].get_mut(t * n_ff..(t + 1) * n_ff);
                    hidden.iter_mut().for_each(|x| *x *= factor);
                }
            }
        });
    }

    /// Some of a token's outputs.
    ///
    /// # Safety
    /// No other member reads or writes them in this phase.
    #[allow(clippy::mut_from_ref)]
    unsafe fn output_mut(&self, output: Reg, t: usize, outputs: Range<usize>) -> &mut [f32] {
        let at = t * self.width(output);
        // SAFETY: as the caller promises.
        unsafe { self.registers[slot(output)].get_mut(at + outputs.start..at + outputs.end) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_logits_are_chosen(
            mut row in proptest::collection::vec(prop_oneof![-3.0f32..3.0, Just(1.0f32), Just(-200.0)], 1..20),
            used: prop::sample::Index,
            normalize: bool,
        ) {
            let n_used = 1 + used.index(row.len());
            let logits = row.clone();
            // Of equal ones the first: a stable sort.
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            let mut expected = order[..n_used].to_vec();
            expected.sort_unstable();
            let mut chosen = vec![u32::MAX; n_used];
            choose(&mut row, &mut chosen, normalize);
            prop_assert_eq!(&chosen, &expected);
            let exp = |e: u32| f64::from(logits[e as usize]).exp();
            let all: Vec<u32> = if normalize { expected.clone() } else { order };
            let sum: f64 = all.into_iter().map(exp).sum();
            for (e, weight) in row.iter().enumerate() {
                let want = if expected.contains(&(e as u32)) { exp(e as u32) / sum } else { 0.0 };
                // 20 roundings of f32.
                prop_assert!((f64::from(*weight) - want).abs() <= 2e-6 * want + 1e-30, "{weight} {want}");
            }
        }

        #[test]
        fn every_row_goes_to_its_expert(chosen in proptest::collection::vec(0u32..9, 0..40), n_used in 1usize..4) {
            let n = chosen.len() / n_used * n_used;
            let chosen = &chosen[..n];
            let mut visited = vec![Visited { expert: 7, columns: (1, 9) }; 9];
            let (mut rows, mut tokens) = (vec![0; n], vec![0; n]);
            sort_by_expert(chosen, n_used, &mut visited, &mut rows, &mut tokens);
            let used: Vec<&Visited> = visited.iter().take_while(|v| v.columns.0 < v.columns.1).collect();
            prop_assert!(visited[used.len()..].iter().all(|v| v.columns.0 == v.columns.1));
            prop_assert!(used.windows(2).all(|w| w[0].expert < w[1].expert && w[0].columns.1 == w[1].columns.0));
            let covered: usize = used.iter().map(|v| v.columns.1 - v.columns.0).sum();
            prop_assert_eq!(covered, n);
            for v in used {
                let part = v.columns.0..v.columns.1;
                prop_assert!(rows[part.clone()].is_sorted());
                for (row, token) in rows[part.clone()].iter().zip(&tokens[part]) {
                    prop_assert_eq!(chosen[*row as usize], v.expert as u32);
                    prop_assert_eq!(*token as usize, *row as usize / n_used);
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        let mut chosen = [0; 2];
        let mut row = [1.0, f32::NAN, 3.0, 2.0];
        choose(&mut row, &mut chosen, true);
        assert!(chosen.iter().all(|e| row[*e as usize].is_nan()), "{row:?}");
    }
}
