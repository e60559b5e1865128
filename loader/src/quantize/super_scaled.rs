//! Super-blocks whose groups have a scale and no minimum, `w = d scale level`.
//!
//! Groups are searched one by one first. Then the super-block's scale and the groups' integers are improved by turns:
//! each group tries the integers beside its own, with its levels assigned anew; least squares gives the scale of the
//! super-block for all levels and integers together.

use wide::f32x8;

use super::search::{Block, Levels, NOTHING, Top, inverse, inverse_scales, round_one};
use super::{Method, f16, grid};

/// Rounds of improvement of a super-block.
const MAX_ROUNDS: usize = 4;

/// A group of weights that share a scale.
pub(super) trait Group {
    /// The scale that is best for the group by itself, or that plain rounding gives it; 0 where all weights are nothing.
    fn scale(&self, method: Method) -> f32;
    /// The loss with a scale.
    fn loss(&self, scale: f32) -> f32;
    /// Sums of `w x q` and `w q^2` for the levels `q` that weights take with a scale.
    fn sums(&self, scale: f32) -> (f32, f32);
    /// The weight of largest magnitude, with its sign.
    fn extreme(&self) -> f32;
    /// Levels that it may have, outermost first.
    fn anchors(&self) -> impl Iterator<Item = f32>;
    /// Whether all weights are levels times a scale, but for rounding: levels are missed by less than `near`.
    fn is_near(&self, scale: f32, near: f32) -> bool;
    /// Whether they are, exactly.
    fn is_exact(&self, scale: f32) -> bool;
}

/// The integers that scales of groups can be: `lo`, `lo + step`, ..., `hi`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) lo: f32,
    pub(super) hi: f32,
    pub(super) step: f32,
}

impl Steps {
    /// The nearest one.
    fn nearest(self, y: f32) -> f32 {
        let n = (self.hi - self.lo) / self.step;
        self.lo + self.step * round_one(((y - self.lo) / self.step).max(0.0).min(n))
    }

    /// The one of largest magnitude, which the group of largest scale gets.
    pub(super) fn outermost(self) -> f32 {
        if self.hi >= -self.lo { self.hi } else { self.lo }
    }

    /// Whether it is between the first and the last.
    pub(super) fn contains(self, y: f32) -> bool {
        (self.lo..=self.hi).contains(&y)
    }

    /// All of them, outermost first.
    pub(super) fn all(self) -> impl Iterator<Item = f32> {
        let n = ((self.hi - self.lo) / self.step) as i32;
        let outermost_first = move |i: i32| {
            if self.hi >= -self.lo { self.hi - self.step * i as f32 } else { self.lo + self.step * i as f32 }
        };
        (0..=n).map(outermost_first)
    }

    /// The integer that a ratio is, but for rounding, where it is one of these.
    pub(super) fn exact(self, ratio: f32, near: f32) -> Option<f32> {
        let nearest = self.nearest(ratio);
        ((ratio - nearest).abs() < near).then_some(nearest)
    }
}

/// What differs between types.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) scales: Steps,
    /// Multiples of the smallest scale of the super-block with which no group is cut off, to begin with: smaller ones
    /// serve the groups with small scales better.
    pub(super) starts: &'static [f32],
}

/// The super-block's scale and the groups' integers.
#[derive(Clone, Copy)]
pub(super) struct Scaled<const G: usize> {
    /// A half-precision number.
    pub(super) d: f32,
    pub(super) scales: [f32; G],
}

/// The best scales found, or those that plain rounding gives.
pub(super) fn scales<T: Group, const G: usize>(groups: &[T; G], form: Form, method: Method) -> Scaled<G> {
    if method == Method::Search
        && let Some(found) = grid::signed(groups, form.scales)
    {
        return found;
    }
    let plain: [f32; G] = std::array::from_fn(|g| groups[g].scale(Method::AbsMax));
    let plain = Guess::new(groups, &plain, f16::nearest(unit(&plain, form)), form);
    if method != Method::Search {
        return Scaled { d: plain.d, scales: plain.scales };
    }
    let fits = std::array::from_fn(|g| groups[g].scale(method));
    let mut starts = Top::<Guess<G>, 2>::new();
    // So that a search never loses more than none.
    starts.offer(-plain.loss(), plain);
    for start in form.starts {
        let guess = Guess::new(groups, &fits, f16::nearest(unit(&fits, form) * start), form);
        starts.offer(-guess.loss(), guess);
    }
    let improved = starts.kept().map(|guess| guess.improved(groups, form));
    let best = improved.reduce(|a, b| if b.loss() < a.loss() { b } else { a }).unwrap_or(plain);
    Scaled { d: best.d, scales: best.scales }
}

/// The super-block's scale with which no group is cut off.
fn unit<const G: usize>(fits: &[f32; G], form: Form) -> f32 {
    let extreme = fits.iter().fold(0f32, |a, d| if d.abs() > a.abs() { *d } else { a });
    extreme / form.scales.outermost()
}

/// The integers nearest to what the groups want.
fn integers<const G: usize>(fits: &[f32; G], d: f32, form: Form) -> [f32; G] {
    fits.map(|fit| form.scales.nearest(if d == 0.0 { 0.0 } else { fit / d }))
}

/// Integers of the groups for a given super-block scale, and the loss with them.
#[derive(Clone, Copy)]
struct Guess<const G: usize> {
    d: f32,
    scales: [f32; G],
    losses: [f32; G],
}

impl<const G: usize> Default for Guess<G> {
    fn default() -> Self {
        Guess { d: 0.0, scales: [1.0; G], losses: [f32::INFINITY; G] }
    }
}

impl<const G: usize> Guess<G> {
    fn new<T: Group>(groups: &[T; G], fits: &[f32; G], d: f32, form: Form) -> Self {
        let scales = integers(fits, d, form);
        Guess { d, scales, losses: std::array::from_fn(|g| groups[g].loss(d * scales[g])) }
    }

    fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }

    /// Integers and the super-block's scale by turns, until nothing gets better.
    fn improved<T: Group>(mut self, groups: &[T; G], form: Form) -> Self {
        self.walk(groups, form);
        for _ in 0..MAX_ROUNDS {
            let d = self.refit(groups);
            if d == self.d || d == 0.0 || !d.is_finite() {
                break;
            }
            let mut next = Guess { d, ..self };
            next.losses = std::array::from_fn(|g| groups[g].loss(d * next.scales[g]));
            next.walk(groups, form);
            if next.loss() >= self.loss() {
                break;
            }
            self = next;
        }
        self
    }

    /// The half-precision scale that is best for the levels and integers as they are.
    fn refit<T: Group>(&self, groups: &[T; G]) -> f32 {
        let (mut xa, mut aa) = (0f64, 0f64);
        for (g, group) in groups.iter().enumerate() {
            let scale = f64::from(self.scales[g]);
            let (xq, qq) = group.sums(self.d * self.scales[g]);
            xa += scale * f64::from(xq);
            aa += scale * scale * f64::from(qq);
        }
        f16::nearest((xa / aa) as f32)
    }

    /// Each group steps to better integers beside its own while there are any.
    fn walk<T: Group>(&mut self, groups: &[T; G], form: Form) {
        for (g, group) in groups.iter().enumerate() {
            for step in [form.scales.step, -form.scales.step] {
                loop {
                    let scale = self.scales[g] + step;
                    if !form.scales.contains(scale) {
                        break;
                    }
                    let loss = group.loss(self.d * scale);
                    if loss >= self.losses[g] {
                        break;
                    }
                    (self.scales[g], self.losses[g]) = (scale, loss);
                }
            }
        }
    }
}

/// A group whose weights each take the nearest of some levels.
#[derive(Clone, Copy)]
pub(super) struct Leveled<const V: usize, L> {
    pub(super) block: Block<V>,
    pub(super) levels: L,
    /// Where the search looks: the largest weight at these multiples of the outermost level.
    pub(super) reach: (f32, f32),
}

impl<const V: usize, L: Levels> Group for Leveled<V, L> {
    fn scale(&self, method: Method) -> f32 {
        let extreme = self.block.extreme();
        let absmax = extreme / self.levels.outermost();
        match method {
            _ if extreme.abs() < NOTHING => 0.0,
            Method::AbsMax | Method::MinMax => absmax,
            Method::Search => {
                let candidates = inverse_scales(extreme, self.levels, self.reach).chain([1.0 / absmax]);
                self.block.search_scale(self.levels, candidates).d
            }
        }
    }

    fn loss(&self, scale: f32) -> f32 {
        self.block.loss(scale, self.levels)
    }

    fn sums(&self, scale: f32) -> (f32, f32) {
        self.block.scale_sums(inverse(scale), self.levels)
    }

    fn extreme(&self) -> f32 {
        self.block.extreme()
    }

    fn anchors(&self) -> impl Iterator<Item = f32> {
        self.levels.all_anchors()
    }

    fn is_near(&self, scale: f32, near: f32) -> bool {
        self.block.x.iter().all(|x| {
            let y = *x / f32x8::splat(scale);
            (y - self.levels.nearest(y)).to_array().iter().all(|e| e.abs() < near)
        })
    }

    fn is_exact(&self, scale: f32) -> bool {
        let s = f32x8::splat(scale);
        // With a scale of 0 everything decodes to 0.
        self.block.x.iter().all(|x| match scale == 0.0 {
            true => x.to_array() == [0.0; 8],
            false => (s * self.levels.nearest(*x / s)).to_array() == x.to_array(),
        })
    }
}

/// The levels that 256 weights in `G` groups of `8 V` take with the best scales found, or those of plain rounding; and
/// the scales.
pub(super) fn encode<const V: usize, const G: usize, L: Levels>(
    x: &[f32; 256],
    w: &[f32; 256],
    (levels, reach, form): (L, (f32, f32), Form),
    method: Method,
) -> (Scaled<G>, [i8; 256]) {
    let groups: [Leveled<V, L>; G] = std::array::from_fn(|g| {
        let range = 8 * V * g..8 * V * (g + 1);
        Leveled { block: Block::load(&x[range.clone()], &w[range]), levels, reach }
    });
    let found = scales(&groups, form, method);
    let mut q = [0; 256];
    for (g, q) in q.chunks_exact_mut(8 * V).enumerate() {
        groups[g].block.quants(found.d * found.scales[g], levels, q);
    }
    (found, q)
}
