//! What a matrix's inputs say of its weights: the second moments of the inputs, and their triangular factors.

use rayon::prelude::*;

use crate::cpu::outer::Outer;
use crate::error::{Error, Result};

/// Columns of the vectors of [`Outer`].
const LANES: usize = 16;
/// Columns that are factored together.
const PANEL: usize = 64;
/// Less than this much of the mean of the diagonal is what rounding leaves of a column that the others explain: with the usual
/// damping none has so little.
const LEAST: f32 = 1e-5;

/// `H = sum over inputs x of x x^T`, `[n, n]`: the Hessian (but for a factor) of a product's squared error.
#[derive(Debug)]
pub(super) struct Hessian {
    n: usize,
    /// Row-major. While inputs are added only tiles of 16 x 16 on and above the diagonal are kept up.
    h: Vec<f32>,
    /// Inputs seen.
    count: u64,
}

/// `H` with damping, its columns in some order, as `U D U^T`: `U` is upper triangular with ones on the diagonal.
#[derive(Debug, Default)]
pub(super) struct Factors {
    /// Of columns and rows.
    pub(super) n: usize,
    /// `U`, row-major `[n, n]`; what is below the diagonal has no meaning.
    pub(super) u: Vec<f32>,
    /// The diagonal of `D`.
    pub(super) d: Vec<f32>,
}

impl Hessian {
    /// Of no inputs yet. `n` is a multiple of 16.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(n: usize) -> Result<Hessian> {
        debug_assert!(n.is_multiple_of(LANES));
        let mut h = Vec::new();
        h.try_reserve_exact(n * n).map_err(|_| Error::OutOfMemory {
            what: "second moments of a matrix's inputs",
            bytes: 4 * n * n,
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        h.resize(n * n, 0.0);
        Ok(Hessian { n, h, count: 0 })
    }

    /// Bytes of one with `n` columns.
    pub(super) fn bytes(n: usize) -> usize {
        n.saturating_mul(n).saturating_mul(4)
    }

    /// Inputs seen.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds inputs, `[rows, n]`.
    pub(super) fn add(&mut self, x: &[f32], outer: Outer) {
        let n = self.n;
        let rows = x.len() / n;
        self.count += rows as u64;
        self.h.par_chunks_exact_mut(LANES * n).enumerate().for_each(|(band, h)| {
            let i = band * LANES;
            for j in (i..n).step_by(LANES) {
                if rows > 0 {
                    outer.add(rows, (&x[i..], n), (&x[j..], n), (&mut h[j..], n), LANES);
                }
            }
        });
    }

    /// The mean square of each input.
    pub(super) fn mean_squares(&self) -> Vec<f32> {
        let count = self.count.max(1) as f32;
        (0..self.n).map(|i| self.h[i * self.n + i] / count).collect()
    }

    /// Whether all moments are numbers.
    pub(super) fn is_finite(&self) -> bool {
        // A moment that is no number makes one of the squares none.
        (0..self.n).all(|i| self.h[i * self.n + i].is_finite())
    }

    /// Another one with the same moments.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn copy(&self) -> Result<Hessian> {
        let mut copy = Hessian::new(self.n)?;
        copy.h.copy_from_slice(&self.h);
        copy.count = self.count;
        Ok(copy)
    }

    /// The factors, with columns (and rows) in the order given, and `damping` times the mean of the diagonal added to the
    /// diagonal.
    pub(super) fn factor(mut self, order: &[usize], damping: f32, outer: Outer) -> Factors {
        let n = self.n;
        // Of the mean, so that sums of many inputs are as good as of few.
        let mean = (0..n).map(|i| f64::from(self.h[i * n + i])).sum::<f64>() / n as f64;
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        self.mirror();
        self.permute(order);
        (0..n).for_each(|i| self.h[i * n + i] += damping * mean);
        factor(n, self.h, LEAST * mean, outer)
    }

    /// Fills the part below the diagonal.
    fn mirror(&mut self) {
        let n = self.n;
        for i in (0..n).step_by(LANES) {
            for j in (i..n).step_by(LANES) {
                for (a, b) in (0..LANES).flat_map(|a| (0..LANES).map(move |b| (i + a, j + b))) {
                    if a < b {
                        self.h[b * n + a] = self.h[a * n + b];
                    }
                }
            }
        }
    }

    /// Row `order[i]` becomes row `i`, and the columns likewise, in place: these matrices are large.
    fn permute(&mut self, order: &[usize]) {
        let n = self.n;
        let mut done = vec![false; n];
        let mut first = vec![0.0; n];
        for start in 0..n {
            if done[start] || order[start] == start {
                continue;
            }
            first.copy_from_slice(&self.h[start * n..(start + 1) * n]);
            let mut at = start;
            loop {
                done[at] = true;
                let from = order[at];
                if from == start {
                    self.h[at * n..(at + 1) * n].copy_from_slice(&first);
                    break;
                }
                self.h.copy_within(from * n..(from + 1) * n, at * n);
                at = from;
            }
        }
        self.h.par_chunks_exact_mut(n).for_each_init(
            || vec![0.0; n],
            |old, row| {
                old.copy_from_slice(row);
                row.iter_mut().zip(order).for_each(|(x, from)| *x = old[*from]);
            },
        );
    }
}

/// `U D U^T` of a symmetric matrix, from the last column to the first, in its place. A column of which less than `least` is
/// left on the diagonal explains no other: its error is not made good, rather than by numbers that are rounding's.
fn factor(n: usize, mut h: Vec<f32>, least: f32, outer: Outer) -> Factors {
    let mut d = vec![0.0; n];
    // The panel's columns as rows, and the same times -D.
    let (mut panel, mut scaled) = (vec![0.0; PANEL * n], vec![0.0; PANEL * n]);
    let mut end = n;
    while end > 0 {
        let start = end.saturating_sub(PANEL);
        for j in start..end {
            let row = &mut panel[(j - start) * n..][..=j];
            row.iter_mut().enumerate().for_each(|(i, x)| *x = h[i * n + j]);
        }
        for j in (start..end).rev() {
            let (others, row) = panel.split_at_mut((j - start) * n);
            let row = &mut row[..=j];
            let is_sound = row[j] >= least;
            d[j] = if is_sound { row[j] } else { least };
            let inverse = if is_sound { 1.0 / d[j] } else { 0.0 };
            // What column j explains of the columns before it, in the panel now and in the others at once below.
            for c in start..j {
                let by = row[c] * inverse;
                let other = &mut others[(c - start) * n..][..=c];
                other.iter_mut().zip(&row[..=c]).for_each(|(x, y)| *x -= by * y);
            }
            row.iter_mut().for_each(|x| *x *= inverse);
            row[j] = 1.0;
            let scaled = &mut scaled[(j - start) * n..][..j];
            scaled.iter_mut().zip(&row[..j]).for_each(|(s, u)| *s = -d[j] * u);
        }
        for j in start..end {
            let row = &panel[(j - start) * n..][..=j];
            row.iter().enumerate().for_each(|(i, x)| h[i * n + j] = *x);
        }
        // start is a multiple of 16: n is, and so is the panel.
        h[..start * n].par_chunks_exact_mut(LANES * n).enumerate().for_each(|(band, h)| {
            let i = band * LANES;
            for j in (i..start).step_by(LANES) {
                outer.add(end - start, (&panel[i..], n), (&scaled[j..], n), (&mut h[j..], n), LANES);
            }
        });
        end = start;
    }
    Factors { n, u: h, d }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(rows: usize, n: usize) -> Vec<f32> {
        // Neighbouring columns are alike.
        let noise = |i: usize| ((i * 7919 + 31) % 1009) as f32 / 500.0 - 1.0;
        (0..rows * n).map(|at| noise(at) + 0.7 * noise((at / n) * 101 + (at % n) / 8)).collect()
    }

    #[test]
    fn factors_give_the_damped_moments_back_in_the_order_asked_for() {
        let (n, rows) = (160, 300);
        let x = inputs(rows, n);
        let mut hessian = Hessian::new(n).unwrap();
        // In two parts, one of no rows.
        hessian.add(&x[..100 * n], Outer::best());
        hessian.add(&[], Outer::best());
        hessian.add(&x[100 * n..], Outer::best());
        assert_eq!(hessian.count(), rows as u64);
        let moment =
            |i: usize, j: usize| (0..rows).map(|r| f64::from(x[r * n + i]) * f64::from(x[r * n + j])).sum::<f64>();
        let mean = (0..n).map(|i| moment(i, i)).sum::<f64>() / n as f64;
        let order: Vec<usize> = (0..n).map(|i| (i * 57 + 3) % n).collect();
        let squares = hessian.mean_squares();
        assert!((f64::from(squares[5]) * rows as f64 / moment(5, 5) - 1.0).abs() < 1e-5);
        let factors = hessian.factor(&order, 0.01, Outer::best());
        let u = |i: usize, j: usize| if i > j { 0.0 } else { f64::from(factors.u[i * n + j]) };
        for i in 0..n {
            for j in i..n {
                let got: f64 = (0..n).map(|k| u(i, k) * f64::from(factors.d[k]) * u(j, k)).sum();
                let damping = if i == j { 0.01 * mean } else { 0.0 };
                let want = moment(order[i], order[j]) + damping;
                assert!((got - want).abs() < 1e-4 * mean, "{i} {j}: {got} {want}");
            }
        }
    }

    #[test]
    fn without_inputs_every_weight_counts_alike() {
        let order: Vec<usize> = (0..32).collect();
        let factors = Hessian::new(32).unwrap().factor(&order, 0.01, Outer::best());
        assert!(factors.d.iter().all(|d| *d == factors.d[0] && *d > 0.0));
        assert!((0..32).all(|i| (i + 1..32).all(|j| factors.u[i * 32 + j] == 0.0)));
    }
}
