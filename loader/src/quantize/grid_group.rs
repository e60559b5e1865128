//! Groups of weights that are looked up in a grid, 8 or 4 at a time: IQ1, IQ2, IQ3.
//!
//! `w = scale (level + shift)` in IQ1, and `w = +- scale level` in IQ2 and IQ3, whose grids hold magnitudes.

use std::array::from_fn;

use wide::f32x8;

use super::Method;
use super::codebook::{Chosen, Grid};
use super::search::{Block, NOTHING, Scale, inverse, ladder, search_scale, sum};
use super::super_scaled::Group;

/// How the signs of 8 weights are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// As levels of the grid.
    InGrid,
    /// One bit each.
    Free,
    /// Seven bits: the number of minus signs is even.
    Even,
}

/// Which weights are shifted up or down together, by an eighth of the scale.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shift {
    None,
    Eights,
    Group,
}

/// By how much.
const SHIFT: f32 = 0.125;

/// What differs between types.
pub(super) struct Lookup<'a, C> {
    pub(super) grid: &'a C,
    pub(super) signs: Signs,
    pub(super) shift: Shift,
    /// Where the search looks: the largest weight at these multiples of the outermost level.
    pub(super) reach: (f32, f32),
}

// Derived ones would ask for a grid that can be copied.
impl<C> Clone for Lookup<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Lookup<'_, C> {}

/// A group of `8 V` weights that share a scale.
pub(super) struct GridGroup<'a, const V: usize, C> {
    /// Magnitudes, where signs are stored apart. Where eight signs do not come out even, the one that matters least is
    /// given up: that magnitude is negative.
    block: Block<V>,
    /// Minus signs of each 8 weights, first weight lowest.
    pub(super) minus: [u8; V],
    lookup: Lookup<'a, C>,
}

/// The points chosen with some scale.
#[derive(Clone, Copy)]
pub(super) struct Points<const V: usize> {
    /// For each 8 weights; levels with their shift.
    pub(super) chosen: [Chosen; V],
    /// Which of them are shifted down.
    pub(super) is_down: [bool; V],
    /// `sum of w (x / scale - level)^2` of each.
    losses: [f32; V],
}

impl<'a, const V: usize, C: Grid> GridGroup<'a, V, C> {
    /// From slices of `8 V` numbers each.
    pub(super) fn load(x: &[f32], w: &[f32], lookup: Lookup<'a, C>) -> Self {
        let mut block = Block::load(x, w);
        let mut minus = [0; V];
        if lookup.signs != Signs::InGrid {
            for v in 0..V {
                (block.x[v], minus[v]) = magnitudes(block.x[v], block.w[v], lookup.signs);
            }
        }
        GridGroup { block, minus, lookup }
    }

    /// The points to take with a scale.
    #[inline(always)]
    pub(super) fn points(&self, scale: f32) -> Points<V> {
        let t = f32x8::splat(inverse(scale));
        if self.lookup.shift == Shift::None {
            return self.shifted(t, 0.0);
        }
        let (mut up, down) = (self.shifted(t, SHIFT), self.shifted(t, -SHIFT));
        let group_goes_down = down.losses.iter().sum::<f32>() < up.losses.iter().sum();
        for v in 0..V {
            let goes_down = match self.lookup.shift {
                Shift::Group => group_goes_down,
                Shift::Eights | Shift::None => down.losses[v] < up.losses[v],
            };
            if goes_down {
                (up.chosen[v], up.losses[v]) = (down.chosen[v], down.losses[v]);
            }
            up.is_down[v] = goes_down;
        }
        up
    }

    #[inline(always)]
    fn shifted(&self, t: f32x8, shift: f32) -> Points<V> {
        let shift = f32x8::splat(shift);
        let choose = |v: usize| {
            let chosen = self.lookup.grid.choose(self.block.x[v] * t - shift, self.block.w[v]);
            Chosen { levels: chosen.levels + shift, ..chosen }
        };
        let chosen: [Chosen; V] = from_fn(choose);
        let losses = from_fn(|v| {
            let e = self.block.x[v] * t - chosen[v].levels;
            sum(self.block.w[v] * e * e)
        });
        Points { chosen, is_down: [false; V], losses }
    }

    /// The outermost level, with its shift.
    fn outermost(&self) -> f32 {
        let largest = self.lookup.grid.levels().last().copied().unwrap_or(1.0);
        if self.lookup.shift == Shift::None { largest } else { largest + SHIFT }
    }
}

/// Magnitudes and minus signs of 8 weights.
fn magnitudes(x: f32x8, w: f32x8, signs: Signs) -> (f32x8, u8) {
    let (mut x, w) = (x.to_array(), w.to_array());
    let mut minus = 0u8;
    for (i, x) in x.iter_mut().enumerate() {
        minus |= u8::from(*x < 0.0) << i;
        *x = x.abs();
    }
    if signs == Signs::Even && minus.count_ones() % 2 == 1 {
        // It gets the smallest level in any case, so the loss grows with w |x|.
        let cost = |i: &usize| w[*i] * x[*i];
        if let Some(i) = (0..8).min_by(|a, b| cost(a).total_cmp(&cost(b))) {
            x[i] = -x[i];
            minus ^= 1 << i;
        }
    }
    (f32x8::new(x), minus)
}

impl<const V: usize, C: Grid> Group for GridGroup<'_, V, C> {
    fn scale(&self, method: Method) -> f32 {
        let extreme = self.block.extreme().abs();
        if extreme < NOTHING {
            return 0.0;
        }
        let absmax = extreme / self.outermost();
        match method {
            Method::AbsMax | Method::MinMax => absmax,
            Method::Search => {
                let candidates = ladder(1.0 / absmax, self.lookup.reach);
                search_scale(candidates, |t| Scale::of(self.sums(1.0 / t))).d
            }
        }
    }

    fn loss(&self, scale: f32) -> f32 {
        let points = self.points(scale);
        let s = f32x8::splat(scale);
        let mut loss = f32x8::ZERO;
        for v in 0..V {
            let e = self.block.x[v] - points.chosen[v].levels * s;
            loss += self.block.w[v] * e * e;
        }
        sum(loss)
    }

    fn sums(&self, scale: f32) -> (f32, f32) {
        let points = self.points(scale);
        let (mut xq, mut qq) = (f32x8::ZERO, f32x8::ZERO);
        for v in 0..V {
            let q = points.chosen[v].levels;
            let wq = self.block.w[v] * q;
            xq += wq * self.block.x[v];
            qq += wq * q;
        }
        (sum(xq), sum(qq))
    }

    fn extreme(&self) -> f32 {
        self.block.extreme()
    }

    fn anchors(&self) -> impl Iterator<Item = f32> {
        let shifts: &[f32] = if self.lookup.shift == Shift::None { &[0.0] } else { &[SHIFT, -SHIFT] };
        let levels = self.lookup.grid.levels();
        let mut anchors: Vec<f32> = levels.iter().flat_map(|level| shifts.iter().map(move |s| level + s)).collect();
        anchors.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        // Scales are positive.
        let sign = self.extreme().is_sign_positive();
        anchors.into_iter().filter(move |level| level.is_sign_positive() == sign)
    }

    fn is_near(&self, scale: f32, near: f32) -> bool {
        let (points, t) = (self.points(scale), f32x8::splat(1.0 / scale));
        (0..V).all(|v| (self.block.x[v] * t - points.chosen[v].levels).to_array().iter().all(|e| e.abs() < near))
    }

    fn is_exact(&self, scale: f32) -> bool {
        let (points, s) = (self.points(scale), f32x8::splat(scale));
        (0..V).all(|v| (points.chosen[v].levels * s).to_array() == self.block.x[v].to_array())
    }
}
