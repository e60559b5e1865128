//! Searches for the scale, or the scale and minimum, with which a block of weights loses least.
//!
//! The loss is `sum of w (x - y)^2` over a block's weights `x`, what they decode to `y`, and their importance `w`. Which
//! quant each weight takes follows from the scale (the nearest one), and the best scale for given quants follows from
//! linear least squares; both together have many local minima. So the searches try a range of scales, keep the few that
//! explain most, and improve those by turns: fit, assign, fit again.

use wide::f32x8;

/// Adding and subtracting it rounds a number below 2^22 to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
/// Rounds of improvement. Most blocks stop after two to four.
const MAX_ROUNDS: usize = 8;

/// Weights, or ranges, below this round to nothing with any half-precision scale.
pub(super) const NOTHING: f32 = 1e-9;

/// The nearest integers, ties to even.
#[inline(always)]
fn round(y: f32x8) -> f32x8 {
    let magic = f32x8::splat(ROUND);
    (y + magic) - magic
}

/// The nearest integer, ties to even, of a number below 2^22.
pub(super) fn round_one(y: f32) -> f32 {
    (y + ROUND) - ROUND
}

/// The sum of eight lanes, in pairs.
#[inline(always)]
pub(super) fn sum(lanes: f32x8) -> f32 {
    let a = lanes.to_array();
    let four: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The values that quants can take.
pub(super) trait Levels: Copy {
    /// The levels nearest to `y`.
    fn nearest(self, y: f32x8) -> f32x8;
    /// The level of largest magnitude.
    fn outermost(self) -> f32;
    /// Levels that the weight of largest magnitude may have, outermost first, so that every set of weights on a grid is
    /// found with one of them.
    fn anchors(self) -> impl Iterator<Item = f32>;

    /// The same where not every scale can be had: all levels but 0, outermost first.
    fn all_anchors(self) -> impl Iterator<Item = f32> {
        self.anchors()
    }

    /// The level nearest to one number.
    fn nearest_one(self, y: f32) -> f32 {
        self.nearest(f32x8::splat(y)).to_array()[0]
    }

    /// Whether the levels are the same when their signs change, so that a negative scale offers nothing new.
    fn is_symmetric(self) -> bool {
        self.nearest_one(-self.outermost()) == -self.outermost()
    }
}

/// All integers of a range.
#[derive(Clone, Copy)]
pub(super) struct Ints {
    pub(super) lo: f32,
    pub(super) hi: f32,
}

impl Levels for Ints {
    #[inline(always)]
    fn nearest(self, y: f32x8) -> f32x8 {
        round(y.fast_max(f32x8::splat(self.lo)).fast_min(f32x8::splat(self.hi)))
    }

    fn outermost(self) -> f32 {
        if self.hi > -self.lo { self.hi } else { self.lo }
    }

    /// Where only the integers up to a half are used, twice of them and half the scale do as well.
    fn anchors(self) -> impl Iterator<Item = f32> {
        let largest = self.outermost().abs() as i32;
        let both = (largest / 2..=largest).rev().filter(|q| *q > 0).flat_map(|q| [-q as f32, q as f32]);
        both.filter(move |q| (self.lo..=self.hi).contains(q))
    }

    fn all_anchors(self) -> impl Iterator<Item = f32> {
        let largest = self.outermost().abs() as i32;
        let both = (1..=largest).rev().flat_map(|q| [-q as f32, q as f32]);
        both.filter(move |q| (self.lo..=self.hi).contains(q))
    }
}

/// Uneven values, ascending.
#[derive(Clone, Copy)]
pub(super) struct Table<const K: usize> {
    pub(super) values: &'static [f32; K],
}

impl<const K: usize> Levels for Table<K> {
    /// The first value, and a step up for every midpoint between two values that lies below.
    #[inline(always)]
    fn nearest(self, y: f32x8) -> f32x8 {
        let mut level = f32x8::splat(self.values[0]);
        for pair in self.values.windows(2) {
            let above = y.simd_gt(f32x8::splat(0.5 * (pair[0] + pair[1])));
            level += above & f32x8::splat(pair[1] - pair[0]);
        }
        level
    }

    fn outermost(self) -> f32 {
        let (first, last) = (self.values[0], self.values[K - 1]);
        if last >= -first { last } else { first }
    }

    fn anchors(self) -> impl Iterator<Item = f32> {
        let mut values = *self.values;
        values.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        values.into_iter().filter(|q| *q != 0.0)
    }
}

/// A scale, and how much of `sum of w x^2` it explains: the loss is what is left.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Scale {
    pub(super) d: f32,
    pub(super) gain: f32,
}

impl Scale {
    /// The best scale for given levels `q`, from sums of `w x q` and `w q^2`.
    #[inline(always)]
    pub(super) fn of((xq, qq): (f32, f32)) -> Scale {
        if qq > 0.0 { Scale { d: xq / qq, gain: xq * xq / qq } } else { Scale::default() }
    }
}

/// The best scale found among candidates `1 / t`, the best three of them improved: fitted and assigned by turns, which
/// never makes it worse, until nothing changes. `fit` gives the best scale for the levels that the scale `1 / t` gives.
#[inline(always)]
pub(super) fn search_scale(candidates: impl Iterator<Item = f32>, fit: impl Fn(f32) -> Scale) -> Scale {
    let mut top = Top::<Scale, 3>::new();
    for t in candidates {
        let scale = fit(t);
        if scale.d != 0.0 {
            top.offer(scale.gain, scale);
        }
    }
    let mut best = Scale::default();
    for mut scale in top.kept() {
        for _ in 0..MAX_ROUNDS {
            let next = fit(1.0 / scale.d);
            if next.gain.is_nan() || next.gain <= scale.gain {
                break;
            }
            scale = next;
        }
        if scale.gain > best.gain {
            best = scale;
        }
    }
    best
}

/// A scale and a minimum, `y = d q + m`, and how much they explain of the variance of weights whose mean is 0.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Affine {
    pub(super) d: f32,
    pub(super) m: f32,
    pub(super) gain: f32,
}

/// Sums over a block, each weighed by `w`: of 1, `x`, `q`, `q^2`, `x q`.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) one: f32,
    pub(super) x: f32,
    pub(super) q: f32,
    pub(super) qq: f32,
    pub(super) xq: f32,
}

/// Which clippings of a block's range a search for scale and minimum tries.
#[derive(Clone, Copy)]
pub(super) struct Clips {
    /// Ranges kept, as a share of the whole: first, last, number of them.
    pub(super) share: (f32, f32, usize),
    /// Where the clipped rest is, from all above to all below: number of them.
    pub(super) places: usize,
}

/// Keeps the best `K` of many candidates.
pub(super) struct Top<T, const K: usize> {
    rows: [(f32, T); K],
}

impl<T: Copy + Default, const K: usize> Top<T, K> {
    pub(super) fn new() -> Self {
        Top { rows: [(f32::NEG_INFINITY, T::default()); K] }
    }

    #[inline(always)]
    pub(super) fn offer(&mut self, gain: f32, item: T) {
        if gain <= self.rows[K - 1].0 {
            return;
        }
        let mut i = K - 1;
        while i > 0 && self.rows[i - 1].0 < gain {
            self.rows[i] = self.rows[i - 1];
            i -= 1;
        }
        self.rows[i] = (gain, item);
    }

    pub(super) fn kept(self) -> impl Iterator<Item = T> {
        self.rows.into_iter().filter(|row| row.0 > f32::NEG_INFINITY).map(|row| row.1)
    }
}

/// `8 V` weights `x` with their importance `w`.
#[derive(Clone, Copy)]
pub(super) struct Block<const V: usize> {
    pub(super) x: [f32x8; V],
    pub(super) w: [f32x8; V],
}

impl<const V: usize> Block<V> {
    /// From slices of `8 V` numbers each.
    #[inline(always)]
    pub(super) fn load(x: &[f32], w: &[f32]) -> Block<V> {
        let (x, w) = (x.as_chunks::<8>().0, w.as_chunks::<8>().0);
        Block { x: std::array::from_fn(|v| f32x8::new(x[v])), w: std::array::from_fn(|v| f32x8::new(w[v])) }
    }

    /// Smallest and largest weight.
    pub(super) fn extremes(&self) -> (f32, f32) {
        let (mut lo, mut hi) = (self.x[0], self.x[0]);
        for x in &self.x[1..] {
            (lo, hi) = (lo.fast_min(*x), hi.fast_max(*x));
        }
        let (lo, hi) = (lo.to_array(), hi.to_array());
        (lo.into_iter().fold(f32::INFINITY, f32::min), hi.into_iter().fold(f32::NEG_INFINITY, f32::max))
    }

    /// The weight of largest magnitude, with its sign.
    pub(super) fn extreme(&self) -> f32 {
        let (lo, hi) = self.extremes();
        if -lo > hi { lo } else { hi }
    }

    /// Sum of `w`, and of `w x`.
    pub(super) fn moments(&self) -> (f32, f32) {
        let (mut sw, mut swx) = (f32x8::ZERO, f32x8::ZERO);
        for (x, w) in self.x.iter().zip(&self.w) {
            sw += *w;
            swx += *w * *x;
        }
        (sum(sw), sum(swx))
    }

    /// The same weights less `c`.
    pub(super) fn shifted(&self, c: f32) -> Block<V> {
        Block { x: self.x.map(|x| x - f32x8::splat(c)), w: self.w }
    }

    /// The best scale for the quants that the scale `1 / t` gives.
    #[inline(always)]
    fn fit_scale<L: Levels>(&self, t: f32, levels: L) -> Scale {
        Scale::of(self.scale_sums(t, levels))
    }

    /// The best scale found among candidates `1 / t`.
    #[inline(always)]
    pub(super) fn search_scale<L: Levels>(&self, levels: L, candidates: impl Iterator<Item = f32>) -> Scale {
        search_scale(candidates, |t| self.fit_scale(t, levels))
    }

    /// Sums of `w x q` and `w q^2` for the nearest levels to `x t`.
    #[inline(always)]
    pub(super) fn scale_sums<L: Levels>(&self, t: f32, levels: L) -> (f32, f32) {
        let (mut xq, mut qq) = (f32x8::ZERO, f32x8::ZERO);
        let t = f32x8::splat(t);
        for (x, w) in self.x.iter().zip(&self.w) {
            let q = levels.nearest(*x * t);
            let wq = *w * q;
            xq += wq * *x;
            qq += wq * q;
        }
        (sum(xq), sum(qq))
    }

    /// The loss with the nearest levels times `d`.
    #[inline(always)]
    pub(super) fn loss<L: Levels>(&self, d: f32, levels: L) -> f32 {
        let (t, d) = (f32x8::splat(inverse(d)), f32x8::splat(d));
        let mut loss = f32x8::ZERO;
        for (x, w) in self.x.iter().zip(&self.w) {
            let e = *x - levels.nearest(*x * t) * d;
            loss += *w * e * e;
        }
        sum(loss)
    }

    /// The nearest levels to `x / d`; `out` has `8 V` places.
    pub(super) fn quants<L: Levels>(&self, d: f32, levels: L, out: &mut [i8]) {
        let t = f32x8::splat(inverse(d));
        for (x, out) in self.x.iter().zip(out.as_chunks_mut::<8>().0) {
            *out = levels.nearest(*x * t).to_array().map(|q| q as i8);
        }
    }

    /// The best scale and minimum for the quants `(x - lo) t`, held in 0..=n. The weights' weighted mean is 0, `sw` is
    /// the sum of `w`, and the minimum may not be above `top`.
    #[inline(always)]
    fn fit_affine(&self, sw: f32, lo: f32, t: f32, n: f32, top: f32) -> Affine {
        let (mut q1, mut q2, mut xq) = (f32x8::ZERO, f32x8::ZERO, f32x8::ZERO);
        let (lo, t, n) = (f32x8::splat(lo), f32x8::splat(t), f32x8::splat(n));
        for (x, w) in self.x.iter().zip(&self.w) {
            let q = round(((*x - lo) * t).fast_max(f32x8::ZERO).fast_min(n));
            let wq = *w * q;
            q1 += wq;
            q2 += wq * q;
            xq += wq * *x;
        }
        let (q1, q2, xq) = (sum(q1), sum(q2), sum(xq));
        let mean = q1 / sw;
        let variance = q2 - q1 * mean;
        let d = xq / variance;
        let m = -d * mean;
        // Where all quants are equal, only rounding is left of their variance.
        if variance > 4e-6 * q2 && m <= top && d > 0.0 {
            return Affine { d, m, gain: xq * d };
        }
        // Held at `top`, what is left to explain is x - top = d q.
        let m = top.min(0.0);
        let rest = xq - m * q1;
        if rest > 0.0 && q2 > 0.0 {
            let d = rest / q2;
            return Affine { d, m, gain: rest * d - sw * m * m };
        }
        Affine { d: 0.0, m, gain: -sw * m * m }
    }

    /// Fits and assigns by turns until nothing changes.
    #[inline(always)]
    fn refine_affine(&self, sw: f32, n: f32, top: f32, start: Affine) -> Affine {
        let mut best = start;
        for _ in 0..MAX_ROUNDS {
            if best.d <= 0.0 {
                break;
            }
            let next = self.fit_affine(sw, best.m, 1.0 / best.d, n, top);
            if next.gain.is_nan() || next.gain <= best.gain {
                break;
            }
            best = next;
        }
        best
    }

    /// The best scale and minimum found among clippings of the range, the best four of them improved. The weights may
    /// have any mean; the minimum is at most `top`.
    #[inline(always)]
    pub(super) fn search_affine(&self, n: f32, top: f32, clips: Clips) -> Affine {
        let (sw, swx) = self.moments();
        let mean = swx / sw;
        let centred = self.shifted(mean);
        let (lo, hi) = centred.extremes();
        let (lo, top) = (lo.min(top - mean), top - mean);
        let range = hi - lo;
        let mut best = Affine { d: 0.0, m: top.min(0.0), gain: f32::NEG_INFINITY };
        if range > NOTHING {
            let mut found = Top::<Affine, 4>::new();
            let (first, last, count) = clips.share;
            for i in 0..count {
                let share = first + (last - first) * i as f32 / (count - 1) as f32;
                let t = n / (range * share);
                for place in 0..clips.places {
                    let below = range * (1.0 - share) * place as f32 / (clips.places - 1) as f32;
                    let fit = centred.fit_affine(sw, lo + below, t, n, top);
                    found.offer(fit.gain, fit);
                }
            }
            for start in found.kept() {
                let fit = centred.refine_affine(sw, n, top, start);
                if fit.gain > best.gain {
                    best = fit;
                }
            }
        }
        Affine { m: best.m + mean, ..best }
    }

    /// The loss with the nearest `d q + m`, q in 0..=n, and the minimum that would be best for those quants.
    #[inline(always)]
    pub(super) fn affine_loss(&self, d: f32, m: f32, n: f32) -> f32 {
        let t = f32x8::splat(inverse(d));
        let (d, m, n) = (f32x8::splat(d), f32x8::splat(m), f32x8::splat(n));
        let mut loss = f32x8::ZERO;
        for (x, w) in self.x.iter().zip(&self.w) {
            let q = round(((*x - m) * t).fast_max(f32x8::ZERO).fast_min(n));
            let e = *x - (q * d + m);
            loss += *w * e * e;
        }
        sum(loss)
    }

    /// Sums over the quants 0..=n nearest to `(x - m) / d`.
    #[inline(always)]
    pub(super) fn affine_sums(&self, d: f32, m: f32, n: f32) -> Sums {
        let mut s = [f32x8::ZERO; 5];
        let (t, m, n) = (f32x8::splat(inverse(d)), f32x8::splat(m), f32x8::splat(n));
        for (x, w) in self.x.iter().zip(&self.w) {
            let q = round(((*x - m) * t).fast_max(f32x8::ZERO).fast_min(n));
            let wq = *w * q;
            s[0] += *w;
            s[1] += *w * *x;
            s[2] += wq;
            s[3] += wq * q;
            s[4] += wq * *x;
        }
        let [one, x, q, qq, xq] = s.map(sum);
        Sums { one, x, q, qq, xq }
    }

    /// The quants 0..=n nearest to `(x - m) / d`; `out` has `8 V` places.
    pub(super) fn affine_quants(&self, d: f32, m: f32, n: f32, out: &mut [u8]) {
        let (t, m, n) = (f32x8::splat(inverse(d)), f32x8::splat(m), f32x8::splat(n));
        for (x, out) in self.x.iter().zip(out.as_chunks_mut::<8>().0) {
            *out = round(((*x - m) * t).fast_max(f32x8::ZERO).fast_min(n)).to_array().map(|q| q as u8);
        }
    }
}

/// `1 / d`, or 0 where that is too large to count with: all quants are 0 then.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    let t = 1.0 / d;
    if t.is_finite() { t } else { 0.0 }
}

/// Candidates `1 / d` that put the weight of largest magnitude (`extreme`) between `from` and `to` times the outermost
/// level; with both signs where that makes a difference.
pub(super) fn inverse_scales<L: Levels>(extreme: f32, levels: L, reach: (f32, f32)) -> impl Iterator<Item = f32> {
    let signs: &[f32] = if levels.is_symmetric() { &[1.0] } else { &[1.0, -1.0] };
    ladder(levels.outermost() / extreme, reach).flat_map(|t| signs.iter().map(move |sign| sign * t))
}

/// From `from` to `to` times `t`, in steps of 3.5 %.
pub(super) fn ladder(t: f32, (from, to): (f32, f32)) -> impl Iterator<Item = f32> {
    const STEP: f32 = 1.035;
    let n = ((to / from).ln() / STEP.ln()) as usize + 1;
    std::iter::successors(Some(t * from), |t| Some(t * STEP)).take(n)
}
