//! Rounding the rows of a matrix one column after another, each column making up for the errors of those before it.

use tandem_loader::quantize::{Codes, Encode, Method, weigh};

use super::hessian::Factors;
use crate::cpu::outer::Outer;

/// Rows rounded together: the lanes of [`Outer`]. Also the columns whose corrections are added at once.
pub(super) const ROWS: usize = 16;

/// How the rows of a matrix are rounded.
pub(super) struct Rounding<'a> {
    pub(super) factors: &'a Factors,
    /// The column of the matrix that is rounded first, second, ...; blocks stay together.
    pub(super) order: &'a [usize],
    pub(super) codes: &'a Codes,
    /// Finds the scales of a block.
    pub(super) encode: Encode,
    pub(super) outer: Outer,
}

/// Work memory of a thread.
pub(super) struct Scratch {
    /// Weights, `[n][ROWS]`, columns in the order of rounding.
    weights: Vec<f32>,
    /// What is lost, the same way.
    errors: Vec<f32>,
    /// What the errors before a block's columns add to them, `[block][ROWS]`.
    corrections: Vec<f32>,
    /// What each quant of the block stands for, `[block][count][ROWS]`.
    levels: Vec<f32>,
    /// The same of one row as the decoder gives it, `[count][block]`.
    row_levels: Vec<f32>,
    /// A row's block, and how much its weights count.
    x: Vec<f32>,
    w: Vec<f32>,
    importance: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(n: usize, codes: &Codes) -> Scratch {
        let block = codes.block();
        let zeros = |n: usize| vec![0.0; n];
        Scratch {
            weights: zeros(n * ROWS),
            errors: zeros(n * ROWS),
            corrections: zeros(block * ROWS),
            levels: zeros(block * codes.count() * ROWS),
            row_levels: zeros(block * codes.count()),
            x: zeros(block),
            w: zeros(block),
            importance: zeros(block),
        }
    }
}

impl Rounding<'_> {
    /// Rounds up to [`ROWS`] rows, `x` `[rows, n]`, into their blocks.
    ///
    /// With `H = U D U^T` the loss of a row is `sum over columns j of D_j (e_j + sum over i < j of e_i U_ij)^2`, where `e`
    /// is the weight less what it becomes. So each column is rounded to the level nearest to its weight plus that inner
    /// sum, which then is known; `D_j` says how much the rest counts.
    pub(super) fn rows(&self, x: &[f32], out: &mut [u8], scratch: &mut Scratch) {
        let n = self.factors.n;
        let row_bytes = n / self.codes.block() * self.codes.bytes();
        for (column, weights) in self.order.iter().zip(scratch.weights.chunks_exact_mut(ROWS)) {
            weights.fill(0.0);
            weights.iter_mut().zip(x.chunks_exact(n)).for_each(|(w, row)| *w = row[*column]);
        }
        for start in (0..n).step_by(self.codes.block()) {
            self.correct(scratch, start);
            for (r, row) in out.chunks_exact_mut(row_bytes).enumerate() {
                self.find_scales(start, r, self.block_of(start, row), scratch);
            }
            for panel in (0..self.codes.block()).step_by(ROWS) {
                self.round_panel(start, panel, out, row_bytes, scratch);
            }
        }
    }

    /// The bytes of the block that is rounded from place `start` on.
    fn block_of<'a>(&self, start: usize, row: &'a mut [u8]) -> &'a mut [u8] {
        let block = self.order[start] / self.codes.block();
        &mut row[block * self.codes.bytes()..][..self.codes.bytes()]
    }

    /// Sums up what the errors before a block add to its columns.
    fn correct(&self, scratch: &mut Scratch, start: usize) {
        let n = self.factors.n;
        scratch.corrections.fill(0.0);
        for (panel, sums) in scratch.corrections.chunks_exact_mut(ROWS * ROWS).enumerate() {
            let u = &self.factors.u[start + panel * ROWS..];
            self.outer.add(start, (u, n), (&scratch.errors, ROWS), (sums, ROWS), ROWS);
        }
    }

    /// Encodes a row's block as it is now, with its columns' corrections: of the result the scales are kept, and what quants
    /// stand for with them.
    fn find_scales(&self, start: usize, r: usize, block: &mut [u8], scratch: &mut Scratch) {
        let len = self.codes.block();
        for i in 0..len {
            let at = self.order[start + i] % len;
            scratch.x[at] = scratch.weights[(start + i) * ROWS + r] + scratch.corrections[i * ROWS + r];
            scratch.importance[at] = self.factors.d[start + i];
        }
        weigh(&scratch.x, &scratch.importance, 1.0, &mut scratch.w);
        (self.encode)(&scratch.x, &scratch.w, Method::Search, block);
        self.codes.levels(block, &mut scratch.row_levels);
        let count = self.codes.count();
        for i in 0..len {
            let at = self.order[start + i] % len;
            let levels = &mut scratch.levels[i * count * ROWS..(i + 1) * count * ROWS];
            for (code, levels) in levels.chunks_exact_mut(ROWS).enumerate() {
                levels[r] = scratch.row_levels[code * len + at];
            }
        }
    }

    /// Rounds 16 columns of a block, of all rows.
    fn round_panel(&self, start: usize, panel: usize, out: &mut [u8], row_bytes: usize, scratch: &mut Scratch) {
        let n = self.factors.n;
        let first = start + panel;
        let (before, errors) = scratch.errors.split_at_mut(first * ROWS);
        let sums = &mut scratch.corrections[panel * ROWS..][..ROWS * ROWS];
        let u = &self.factors.u[start * n + first..];
        self.outer.add(panel, (u, n), (&before[start * ROWS..], ROWS), (sums, ROWS), ROWS);
        let count = self.codes.count();
        for j in 0..ROWS {
            let mut target: [f32; ROWS] =
                std::array::from_fn(|r| scratch.weights[(first + j) * ROWS + r] + sums[j * ROWS + r]);
            for i in 0..j {
                let u = self.factors.u[(first + i) * n + first + j];
                (0..ROWS).for_each(|r| target[r] += u * errors[i * ROWS + r]);
            }
            let levels = &scratch.levels[(panel + j) * count * ROWS..][..count * ROWS];
            let (codes, levels) = nearest(&target, levels);
            for r in 0..ROWS {
                errors[j * ROWS + r] = scratch.weights[(first + j) * ROWS + r] - levels[r];
            }
            let at = self.order[first + j] % self.codes.block();
            for (row, code) in out.chunks_exact_mut(row_bytes).zip(codes) {
                self.codes.put(self.block_of(start, row), at, code as usize);
            }
        }
    }
}

/// In each lane the nearest of some levels (`[count][ROWS]`), the first of equals, and which it is.
fn nearest(target: &[f32; ROWS], levels: &[f32]) -> ([u32; ROWS], [f32; ROWS]) {
    let (mut codes, mut best, mut distance) = ([0; ROWS], [0.0; ROWS], [f32::INFINITY; ROWS]);
    for (code, levels) in levels.as_chunks::<ROWS>().0.iter().enumerate() {
        for r in 0..ROWS {
            let apart = (target[r] - levels[r]).abs();
            let is_nearer = apart < distance[r];
            distance[r] = if is_nearer { apart } else { distance[r] };
            best[r] = if is_nearer { levels[r] } else { best[r] };
            codes[r] = if is_nearer { code as u32 } else { codes[r] };
        }
    }
    (codes, best)
}

#[cfg(test)]
mod tests {
    use tandem_loader::GgmlType;
    use tandem_loader::quant::decode_fn;
    use tandem_loader::quantize::encode_fn;

    use super::*;
    use crate::gptq::hessian::Hessian;
    use crate::gptq::moments::order;

    /// Inputs `[count, n]` of which neighbours are alike, some columns much larger than others.
    fn inputs(count: usize, n: usize) -> Vec<f32> {
        let noise = |i: usize| ((i * 7919 + 31) % 1009) as f32 / 500.0 - 1.0;
        let size = |column: usize| if column % 29 == 3 { 6.0 } else { 1.0 };
        let value = |at: usize| noise(at) + 1.5 * noise((at / n) * 131 + (at % n) / 16);
        (0..count * n).map(|at| value(at) * size(at % n)).collect()
    }

    /// The squared error of products with these inputs.
    fn loss(inputs: &[f32], x: &[f32], y: &[f32], n: usize) -> f64 {
        let product = |input: &[f32], x: &[f32], y: &[f32]| {
            let terms = input.iter().zip(x).zip(y).map(|((a, x), y)| f64::from(*a) * f64::from(x - y));
            terms.sum::<f64>().powi(2)
        };
        let rows = || x.chunks_exact(n).zip(y.chunks_exact(n));
        inputs.chunks_exact(n).map(|input| rows().map(|(x, y)| product(input, x, y)).sum::<f64>()).sum()
    }

    #[test]
    fn products_lose_less_than_by_search_in_every_type() {
        let (n, rows, count) = (512, 21, 900);
        let inputs = inputs(count, n);
        let x: Vec<f32> = (0..rows * n).map(|i| (((i * 4241 + 7) % 1013) as f32 / 1013.0 - 0.5).powi(3)).collect();
        let mut seen = Hessian::new(n).unwrap();
        seen.add(&inputs, Outer::best());
        for ty in GgmlType::ALL.iter().filter(|ty| Codes::of(**ty).is_some()) {
            let (codes, encode) = (Codes::of(*ty).unwrap(), encode_fn(*ty).unwrap());
            let squares = tandem_loader::imatrix::positive(&seen.mean_squares());
            let row_bytes = n / codes.block() * codes.bytes();
            let decoded = |bytes: &[u8]| {
                let mut y = vec![0.0; rows * n];
                decode_fn(*ty).unwrap()(bytes, &mut y);
                y
            };
            let mut out = vec![0; rows * row_bytes];
            for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(row_bytes)) {
                encode(x, &squares, Method::Search, out);
            }
            let search = loss(&inputs, &x, &decoded(&out), n);
            for act_order in [false, true] {
                let order = order(&squares, codes.block(), act_order);
                let factors = seen.copy().unwrap().factor(&order, 0.01, Outer::best());
                let rounding =
                    Rounding { factors: &factors, order: &order, codes: &codes, encode, outer: Outer::best() };
                let mut scratch = Scratch::new(n, &codes);
                for (x, out) in x.chunks(ROWS * n).zip(out.chunks_mut(ROWS * row_bytes)) {
                    rounding.rows(x, out, &mut scratch);
                }
                let gptq = loss(&inputs, &x, &decoded(&out), n);
                // Columns are so alike that most of the error can be made up for.
                assert!(gptq < 0.7 * search, "{ty}, act order {act_order}: {gptq} {search}");
            }
        }
    }

    #[test]
    fn without_moments_beside_the_diagonal_it_is_the_search() {
        let (n, ty) = (64, GgmlType::Q4_0);
        let (codes, encode) = (Codes::of(ty).unwrap(), encode_fn(ty).unwrap());
        let x: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
        let order = order(&vec![1.0; n], codes.block(), true);
        let factors = Hessian::new(n).unwrap().factor(&order, 0.01, Outer::best());
        let rounding = Rounding { factors: &factors, order: &order, codes: &codes, encode, outer: Outer::best() };
        let mut got = vec![0; 2 * codes.bytes()];
        rounding.rows(&x, &mut got, &mut Scratch::new(n, &codes));
        let mut want = vec![0; 2 * codes.bytes()];
        for (x, want) in x.chunks_exact(32).zip(want.chunks_exact_mut(codes.bytes())) {
            let mut w = vec![0.0; 32];
            weigh(x, &[1.0; 32], 1.0, &mut w);
            encode(x, &w, Method::Search, want);
        }
        assert_eq!(got, want);
    }
}
