//! Grids of points: which groups of 8 (or 4) levels can be stored, and the best of them for given weights.

use wide::f32x8;

use super::search::sum;

/// Candidates kept for each combination of levels that is not on the grid. More make the result better by less than a
/// thousandth.
const NEAR: usize = 24;
/// No point.
const NONE: u16 = u16::MAX;

/// The points of a grid, and for every combination of levels the points near to it.
pub(super) struct Codebook<const D: usize> {
    /// The levels a coordinate can have, ascending.
    levels: &'static [f32],
    points: Vec<[f32; D]>,
    /// By combination: the point that it is, or `NONE`.
    exact: Vec<u16>,
    /// By combination: the nearest points, nearest first.
    near: Vec<[u16; NEAR]>,
}

/// The points chosen for 8 weights: one of 8 coordinates, or two of 4; and their coordinates.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub(super) index: [u16; 2],
    pub(super) levels: f32x8,
}

impl<const D: usize> Codebook<D> {
    /// From points as numbers of levels.
    pub(super) fn new(levels: &'static [f32], points: impl Iterator<Item = [u8; D]>) -> Codebook<D> {
        let codes: Vec<[u8; D]> = points.collect();
        let value = |codes: &[u8; D]| codes.map(|code| levels[usize::from(code)]);
        let points: Vec<[f32; D]> = codes.iter().map(value).collect();
        let n = levels.len().pow(D as u32);
        let mut exact = vec![NONE; n];
        for (i, codes) in codes.iter().enumerate() {
            exact[combination(levels.len(), *codes)] = i as u16;
        }
        let near = (0..n).map(|c| nearest(&points, &value(&codes_of(levels.len(), c)))).collect();
        Codebook { levels, points, exact, near }
    }

    /// Numbers of the levels nearest to 8 numbers.
    #[inline(always)]
    fn codes(&self, y: f32x8) -> [u8; 8] {
        let one = f32x8::splat(1.0);
        let mut code = f32x8::ZERO;
        for pair in self.levels.windows(2) {
            code += y.simd_gt(f32x8::splat(0.5 * (pair[0] + pair[1]))) & one;
        }
        code.to_array().map(|code| code as u8)
    }
}

/// The number of a combination: its codes as digits, the first lowest.
#[inline(always)]
fn combination<const D: usize>(n_levels: usize, codes: [u8; D]) -> usize {
    codes.iter().rev().fold(0, |n, code| n * n_levels + usize::from(*code))
}

/// The codes of a combination.
fn codes_of<const D: usize>(n_levels: usize, mut c: usize) -> [u8; D] {
    std::array::from_fn(|_| {
        let code = c % n_levels;
        c /= n_levels;
        code as u8
    })
}

/// The points nearest to `at`, nearest first.
fn nearest<const D: usize>(points: &[[f32; D]], at: &[f32; D]) -> [u16; NEAR] {
    let distance = |point: &[f32; D]| point.iter().zip(at).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let mut all: Vec<(f32, u16)> = points.iter().enumerate().map(|(i, point)| (distance(point), i as u16)).collect();
    all.select_nth_unstable_by(NEAR - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.truncate(NEAR);
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    std::array::from_fn(|i| all[i].1)
}

/// A grid that 8 weights are looked up in.
pub(super) trait Grid {
    /// The points for which `sum of w (y - point)^2` is least.
    fn choose(&self, y: f32x8, w: f32x8) -> Chosen;
    /// The levels that a coordinate can have, ascending.
    fn levels(&self) -> &'static [f32];
}

impl Grid for Codebook<8> {
    #[inline(always)]
    fn choose(&self, y: f32x8, w: f32x8) -> Chosen {
        let c = combination(self.levels.len(), self.codes(y));
        // Each coordinate is the nearest there is: nothing can be better.
        if self.exact[c] != NONE {
            return self.chosen(self.exact[c]);
        }
        let mut best = (f32::INFINITY, self.near[c][0]);
        for index in self.near[c] {
            let e = y - f32x8::new(self.points[usize::from(index)]);
            let loss = sum(w * e * e);
            if loss < best.0 {
                best = (loss, index);
            }
        }
        self.chosen(best.1)
    }

    fn levels(&self) -> &'static [f32] {
        self.levels
    }
}

impl Codebook<8> {
    fn chosen(&self, index: u16) -> Chosen {
        Chosen { index: [index, 0], levels: f32x8::new(self.points[usize::from(index)]) }
    }
}

impl Grid for Codebook<4> {
    #[inline(always)]
    fn choose(&self, y: f32x8, w: f32x8) -> Chosen {
        let codes = self.codes(y);
        let halves = codes.as_chunks::<4>().0;
        let c = [0, 1].map(|half| combination(self.levels.len(), halves[half]));
        let exact = c.map(|c| self.exact[c]);
        let mut index = exact;
        if exact.contains(&NONE) {
            // Candidates of both halves at once.
            let mut best = [f32::INFINITY; 2];
            for (a, b) in self.near[c[0]].iter().zip(&self.near[c[1]]) {
                let losses = halves_of(y, w, self.both(*a, *b));
                for (half, candidate) in [*a, *b].into_iter().enumerate() {
                    if exact[half] == NONE && losses[half] < best[half] {
                        (best[half], index[half]) = (losses[half], candidate);
                    }
                }
            }
        }
        Chosen { index, levels: self.both(index[0], index[1]) }
    }

    fn levels(&self) -> &'static [f32] {
        self.levels
    }
}

impl Codebook<4> {
    #[inline(always)]
    fn both(&self, a: u16, b: u16) -> f32x8 {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (self.points[usize::from(a)], self.points[usize::from(b)]);
        f32x8::new([a0, a1, a2, a3, b0, b1, b2, b3])
    }
}

/// The losses of the first and the last four coordinates.
#[inline(always)]
fn halves_of(y: f32x8, w: f32x8, point: f32x8) -> [f32; 2] {
    let e = y - point;
    let a = (w * e * e).to_array();
    [(a[0] + a[2]) + (a[1] + a[3]), (a[4] + a[6]) + (a[5] + a[7])]
}
