//! The attention step: how queries, KV heads and chunks of the cache are shared out among the members.

use tandem_models::Reg;

use super::super::attention::{AttentionWork, CHUNK, HeadCache, MAX_QUERIES, MAX_ROWS, QueryRow};
use super::super::isa::LANES;
use super::super::team::Member;
use super::Exec;
use super::scratch::{MemberScratch, slot};

// SAFETY of the `Shared` accesses below: as in the parent module.
impl Exec<'_> {
    pub(super) fn attend(
        &self,
        layer: usize,
        scale: f32,
        window: Option<usize>,
        m: &Member<'_>,
        own: &mut MemberScratch,
    ) {
        if self.n() == 1 {
            self.attend_one(layer, scale, window, m, own);
        } else {
            self.attend_batch(layer, scale, window, m, own);
        }
    }

    fn attend_chunk(
        &self,
        cache: &HeadCache,
        rows: &mut [QueryRow],
        scale: f32,
        chunk: usize,
        work: &mut AttentionWork,
    ) {
        // SAFETY: the cache holds all positions up to this batch's, and rows are set up by the callers, in the order of
        // their positions.
        unsafe { (self.attend)(cache, rows, scale, chunk, work) }
    }

    /// Positions token `t` of the batch sees.
    fn sees(&self, t: usize, window: Option<usize>) -> (usize, usize) {
        let end = self.batch.start + t + 1;
        (window.map_or(0, |w| end.saturating_sub(w)), end)
    }

    /// The `i`-th query of a KV head's group (token-major), with its result in `out`.
    fn query(&self, kv_head: usize, i: usize, window: Option<usize>, out: &mut [f32]) -> QueryRow {
        let hp = &self.program.hparams;
        let group = hp.n_head / hp.n_head_kv;
        let (t, h) = (i / group, kv_head * group + i % group);
        let at = t * self.width(Reg::Q) + h * hp.head_dim;
        out.fill(0.0);
        // SAFETY: Q is only read while attending.
        let q = unsafe { self.registers[slot(Reg::Q)].get(at..at + hp.head_dim) };
        QueryRow { q: q.as_ptr(), sees: self.sees(t, window), out: out.as_mut_ptr(), max: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Writes a query's finished result to register A.
    fn finish(&self, kv_head: usize, i: usize, mix: &[f32], sum: f32) {
        let hp = &self.program.hparams;
        let group = hp.n_head / hp.n_head_kv;
        let at = i / group * self.width(Reg::A) + (kv_head * group + i % group) * hp.head_dim;
        // SAFETY: this member's query.
        let out = unsafe { self.registers[slot(Reg::A)].get_mut(at..at + hp.head_dim) };
        let inverse = 1.0 / sum;
        out.iter_mut().zip(mix).for_each(|(o, x)| *o = x * inverse);
    }

    /// Many tokens: members claim groups of queries and walk all their chunks.
    fn attend_batch(&self, layer: usize, scale: f32, window: Option<usize>, m: &Member<'_>, own: &mut MemberScratch) {
        let hp = &self.program.hparams;
        let stride = hp.head_dim.next_multiple_of(LANES);
        let queries = self.n() * (hp.n_head / hp.n_head_kv);
        let size = block_size(queries, hp.n_head_kv, m.len());
        let blocks = queries.div_ceil(size);
        m.phase(blocks * hp.n_head_kv, 1, |items| {
            for item in items {
                // The longest first, so that the last ones claimed are short.
                let (kv_head, block) = (item % hp.n_head_kv, blocks - 1 - item / hp.n_head_kv);
                let range = block * size..queries.min((block + 1) * size);
                let mut rows = [QueryRow::EMPTY; MAX_QUERIES];
                let rows = &mut rows[..range.len()];
                for ((row, i), mix) in rows.iter_mut().zip(range.clone()).zip(own.mix.chunks_exact_mut(stride)) {
                    *row = self.query(kv_head, i, window, mix);
                }
                let first = rows.iter().map(|r| r.sees.0).min().unwrap_or(0);
                let last = rows.iter().map(|r| r.sees.1).max().unwrap_or(0);
                for chunk in first / CHUNK..last.div_ceil(CHUNK) {
                    self.attend_chunk(&self.heads[layer][kv_head], rows, scale, chunk, &mut own.attention);
                }
                for (row, i) in rows.iter().zip(range) {
                    // SAFETY: `out` is this member's `mix`, `stride` long.
                    let mix = unsafe { std::slice::from_raw_parts(row.out, stride) };
                    self.finish(kv_head, i, mix, row.sum);
                }
            }
        });
    }

    /// One token: members claim (KV head, chunk) pairs, then merge the shares in order.
    fn attend_one(&self, layer: usize, scale: f32, window: Option<usize>, m: &Member<'_>, own: &mut MemberScratch) {
        let hp = &self.program.hparams;
        let stride = hp.head_dim.next_multiple_of(LANES);
        let group = hp.n_head / hp.n_head_kv;
        let (first, last) = self.sees(0, window);
        let chunks = first / CHUNK..last.div_ceil(CHUNK);
        // Of each head and chunk: weighted values, maximum, sum.
        let share = stride + 2;
        let at = |h: usize, c: usize| (h * chunks.len() + c) * share;
        m.phase_runs(hp.n_head_kv * chunks.len(), |items| {
            for item in items {
                let (kv_head, c) = (item / chunks.len(), item % chunks.len());
                for from in (0..group).step_by(MAX_ROWS) {
                    let n = MAX_ROWS.min(group - from);
                    let row = |i: usize| {
                        let start = at(kv_head * group + from + i, c);
                        // SAFETY: this member's head and chunk.
                        self.query(kv_head, from + i, window, unsafe { self.partial.get_mut(start..start + stride) })
                    };
                    let mut rows = [QueryRow::EMPTY; MAX_ROWS];
                    let rows = &mut rows[..n];
                    rows.iter_mut().enumerate().for_each(|(i, slot)| *slot = row(i));
                    self.attend_chunk(&self.heads[layer][kv_head], rows, scale, chunks.start + c, &mut own.attention);
                    for (i, row) in rows.iter().enumerate() {
                        let start = at(kv_head * group + from + i, c);
                        // SAFETY: this member's head and chunk.
                        let (mix, sums) = unsafe { self.partial.get_mut(start..start + share) }.split_at_mut(stride);
                        if chunks.len() == 1 {
                            self.finish(kv_head, from + i, mix, row.sum);
                        }
                        sums.copy_from_slice(&[row.max, row.sum]);
                    }
                }
            }
        });
        if chunks.len() == 1 {
            return;
        }
        m.phase_even(hp.n_head, |heads| {
            for h in heads {
                let mix = &mut own.mix[..stride];
                let (kv_head, i) = (h / group, h % group);
                let mut row = self.query(kv_head, i, window, mix);
                for c in 0..chunks.len() {
                    // SAFETY: written in the phase before.
                    let part = unsafe { self.partial.get(at(h, c)..at(h, c) + share) };
                    if part[stride + 1] != 0.0 {
                        let shares = (part[stride], part[stride + 1]);
                        // SAFETY: `stride` floats each; `kernels` are those of this CPU.
                        unsafe { (self.kernels.merge)(&mut row, shares, part.as_ptr(), stride) };
                    }
                }
                self.finish(kv_head, i, &own.mix[..stride], row.sum);
            }
        });
    }
}

/// How many queries of a KV head a member claims at a time: many share one preparation of the keys and values, but every
/// member should get several blocks.
fn block_size(queries: usize, n_head_kv: usize, n_members: usize) -> usize {
    let fair = queries * n_head_kv / (4 * n_members);
    (fair / MAX_ROWS * MAX_ROWS).clamp(MAX_ROWS, MAX_QUERIES)
}
