//! Super-blocks whose groups have a scale and a minimum, `w = d scale q - dmin min`.
//!
//! Groups are searched one by one first. Then the super-block's scales and the groups' integers are improved by turns:
//! each group tries the integers beside its own, with its quants assigned anew; least squares gives the scales of the
//! super-block for all quants and integers together.

use super::search::{Block, Clips, Top, round_one};
use super::{Method, f16, grid};

/// Rounds of improvement of a super-block.
const MAX_ROUNDS: usize = 4;

/// What differs between the types with minimums.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Largest quant.
    pub(super) n: f32,
    /// Largest integer scale or minimum.
    pub(super) largest: f32,
    pub(super) clips: Clips,
    /// Shares of the scale that fits the largest group to begin with: a smaller one serves the other groups better.
    pub(super) starts: &'static [f32],
}

/// A super-block of `G` groups with minimums, `w = d scale q - dmin min`.
pub(super) struct Found<const G: usize> {
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) scales: [u8; G],
    pub(super) mins: [u8; G],
    pub(super) q: [u8; 256],
}

/// Integers of the groups for given super-block scales, and the loss with them.
#[derive(Clone, Copy)]
struct Guess<const G: usize> {
    d: f32,
    dmin: f32,
    scales: [f32; G],
    mins: [f32; G],
    losses: [f32; G],
}

/// The best form found of a super-block.
pub(super) fn encode<const V: usize, const G: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    form: Form,
    method: Method,
) -> Found<G> {
    let groups: [Block<V>; G] = std::array::from_fn(|g| {
        let range = 8 * V * g..8 * V * (g + 1);
        Block::load(&x[range.clone()], &w[range])
    });
    if method == Method::Search
        && let Some(grid::SuperAffine { d, dmin, scales, mins }) = grid::super_affine(x, form.n, form.largest)
    {
        return Guess { d, dmin, scales, mins, losses: [0.0; G] }.finish(&groups, form);
    }
    let plain = |method| Guess::start(&groups, &fits(&groups, form, method), 1.0, form);
    let best = match method {
        Method::AbsMax | Method::MinMax => plain(method),
        Method::Search => {
            let mut top = Top::<Guess<G>, 2>::new();
            // So that a search never loses more than none.
            for guess in [plain(Method::AbsMax), plain(Method::MinMax)] {
                top.offer(-guess.loss(), guess);
            }
            let fits = fits(&groups, form, Method::Search);
            for by in form.starts {
                let guess = Guess::start(&groups, &fits, *by, form);
                top.offer(-guess.loss(), guess);
            }
            let improved = top.kept().map(|guess| guess.improved(&groups, form));
            improved.reduce(|a, b| if b.loss() < a.loss() { b } else { a }).unwrap_or_default()
        }
    };
    best.finish(&groups, form)
}

/// Scale and minimum (not above 0) of each group by itself.
fn fits<const V: usize, const G: usize>(groups: &[Block<V>; G], form: Form, method: Method) -> [(f32, f32); G] {
    std::array::from_fn(|g| match method {
        Method::AbsMax => {
            let reach = groups[g].extreme().abs();
            (2.0 * reach / form.n, -reach)
        }
        Method::MinMax => {
            let (lo, hi) = groups[g].extremes();
            let lo = lo.min(0.0);
            ((hi - lo).max(0.0) / form.n, lo)
        }
        Method::Search => {
            let fit = groups[g].search_affine(form.n, 0.0, form.clips);
            (fit.d, fit.m)
        }
    })
}

impl<const G: usize> Default for Guess<G> {
    fn default() -> Self {
        Guess { d: 0.0, dmin: 0.0, scales: [0.0; G], mins: [0.0; G], losses: [f32::INFINITY; G] }
    }
}

impl<const G: usize> Guess<G> {
    /// With super-block scales that reach the largest of these fits; the scale of scales `by` times that.
    fn start<const V: usize>(groups: &[Block<V>; G], fits: &[(f32, f32); G], by: f32, form: Form) -> Self {
        let largest_scale = fits.iter().fold(0f32, |a, fit| a.max(fit.0)) / form.largest;
        let largest_min = fits.iter().fold(0f32, |a, fit| a.max(-fit.1)) / form.largest;
        Guess::new(groups, fits, f16::nearest(largest_scale * by), f16::nearest(largest_min), form)
    }

    /// The integers nearest to what the groups want.
    fn new<const V: usize>(groups: &[Block<V>; G], fits: &[(f32, f32); G], d: f32, dmin: f32, form: Form) -> Self {
        let integer =
            |wanted: f32, unit: f32| if unit > 0.0 { round_one((wanted / unit).min(form.largest)) } else { 0.0 };
        let scales = fits.map(|fit| integer(fit.0, d));
        let mins = fits.map(|fit| integer(-fit.1, dmin));
        let losses = std::array::from_fn(|g| groups[g].affine_loss(d * scales[g], -dmin * mins[g], form.n));
        Guess { d, dmin, scales, mins, losses }
    }

    fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }

    /// Integers and super-block scales by turns, until nothing gets better.
    fn improved<const V: usize>(mut self, groups: &[Block<V>; G], form: Form) -> Self {
        self.walk(groups, form);
        for _ in 0..MAX_ROUNDS {
            let Some((d, dmin)) = self.refit(groups, form) else { break };
            let mut next = self;
            (next.d, next.dmin) = (f16::nearest(d), f16::nearest(dmin));
            next.losses = std::array::from_fn(|g| next.group_loss(&groups[g], next.scales[g], next.mins[g], form));
            next.walk(groups, form);
            if next.loss() >= self.loss() {
                break;
            }
            self = next;
        }
        self
    }

    fn group_loss<const V: usize>(&self, group: &Block<V>, scale: f32, min: f32, form: Form) -> f32 {
        group.affine_loss(self.d * scale, -self.dmin * min, form.n)
    }

    /// Each group steps to better integers beside its own while there are any.
    fn walk<const V: usize>(&mut self, groups: &[Block<V>; G], form: Form) {
        // A larger scale goes with a larger minimum: the range grows to both sides.
        const STEPS: [(f32, f32); 6] = [(1.0, 1.0), (-1.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)];
        for (g, group) in groups.iter().enumerate() {
            for _ in 0..8 {
                let here = (self.scales[g], self.mins[g]);
                let before = self.losses[g];
                for step in STEPS {
                    let (scale, min) = (here.0 + step.0, here.1 + step.1);
                    if scale.min(min) < 0.0 || scale.max(min) > form.largest {
                        continue;
                    }
                    let loss = self.group_loss(group, scale, min, form);
                    if loss < self.losses[g] {
                        (self.scales[g], self.mins[g], self.losses[g]) = (scale, min, loss);
                    }
                }
                if self.losses[g] >= before {
                    break;
                }
            }
        }
    }

    /// The super-block scales that are best for the quants and integers as they are.
    fn refit<const V: usize>(&self, groups: &[Block<V>; G], form: Form) -> Option<(f32, f32)> {
        // x = d a - dmin b with a = scale q, b = min: two normal equations.
        let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for (g, group) in groups.iter().enumerate() {
            let (scale, min) = (f64::from(self.scales[g]), f64::from(self.mins[g]));
            let s = group.affine_sums(self.d * self.scales[g], -self.dmin * self.mins[g], form.n);
            aa += scale * scale * f64::from(s.qq);
            ab += scale * min * f64::from(s.q);
            bb += min * min * f64::from(s.one);
            xa += scale * f64::from(s.xq);
            xb += min * f64::from(s.x);
        }
        let (d, dmin) = if bb > 0.0 {
            let det = aa * bb - ab * ab;
            ((xa * bb - ab * xb) / det, (ab * xa - aa * xb) / det)
        } else {
            (xa / aa, f64::from(self.dmin))
        };
        (d.is_finite() && dmin.is_finite() && d > 0.0 && dmin >= 0.0).then_some((d as f32, dmin as f32))
    }

    fn finish<const V: usize>(&self, groups: &[Block<V>; G], form: Form) -> Found<G> {
        let mut q = [0; 256];
        for (g, q) in q.chunks_exact_mut(8 * V).enumerate() {
            groups[g].affine_quants(self.d * self.scales[g], -self.dmin * self.mins[g], form.n, q);
        }
        let (scales, mins) = (self.scales.map(|s| s as u8), self.mins.map(|m| m as u8));
        Found { d: self.d, dmin: self.dmin, scales, mins, q }
    }
}
