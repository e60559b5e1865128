//! Weights that lie on a format's grid already, because they were decoded from it or trained to be on it: found, so that
//! encoding them again changes nothing.
//!
//! Everything found is checked by decoding it in the decoder's own arithmetic; what does not give exactly the weights
//! back is not used. Weights that lie on no grid are recognised after a few of them.

use super::f16;
use super::search::Levels;
use super::super_scaled::{Group, Scaled, Steps};

/// How far from an integer the ratio of two numbers may be that have an integer ratio but for rounding.
const NEAR: f32 = 1e-3;

/// Most pairs of scale and scale of minimums that are tried: weights of which many are equal fit many.
const MAX_TRIES: usize = 8192;

/// The scale with which all of `x` are a half-precision number times a level, exactly. Where there are several, the one
/// that uses the outermost levels.
pub(super) fn scale<L: Levels>(x: &[f32], levels: L) -> Option<f32> {
    let extreme = extreme(x);
    levels.anchors().find_map(|anchor| {
        let d = f16::nearest(extreme / anchor);
        let on_grid = |x: &f32| levels.nearest_one(x / d) * d == *x;
        (d.is_finite() && d != 0.0 && x.iter().all(on_grid)).then_some(d)
    })
}

/// Scale and minimum with which all of `x` (from `lo` to `hi`) are `d q + m`, q in 0..=n, exactly.
pub(super) fn affine(x: &[f32], lo: f32, hi: f32, n: f32) -> Option<(f32, f32)> {
    let n = n as i32;
    let fits = |d: f32, m: f32| {
        x.iter().all(|x| {
            let q = ((x - m) / d).round();
            (0.0..=n as f32).contains(&q) && q * d + m == *x
        })
    };
    if lo == hi {
        return (f16::nearest(lo) == lo).then_some((0.0, lo));
    }
    // The span of the quants in use. Spans up to a half are also wider ones, with half the scale.
    for span in (n / 2 + 1..=n).rev() {
        let d = f16::nearest((hi - lo) / span as f32);
        if !d.is_finite() || d == 0.0 {
            continue;
        }
        // The smallest quant in use.
        for first in 0..=n - span {
            let m = f16::nearest(lo - first as f32 * d);
            if fits(d, m) {
                return Some((d, m));
            }
        }
    }
    None
}

/// The weight of largest magnitude, with its sign.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a })
}

/// Whether a ratio is an integer but for rounding: that integer.
fn integer(ratio: f32) -> Option<f32> {
    let nearest = ratio.round();
    ((ratio - nearest).abs() < NEAR).then_some(nearest)
}

/// A super-block's scale and the integer scale of each group, with which each group's weights are `(d scale) level`,
/// exactly.
pub(super) fn signed<T: Group, const G: usize>(groups: &[T; G], steps: Steps) -> Option<Scaled<G>> {
    // The scales that a group may have; groups of zeros may have any.
    let options = groups.iter().map(|group| {
        let extreme = group.extreme();
        let scales = group.anchors().filter(|_| extreme != 0.0).map(|q| extreme / q);
        let options: Vec<f32> = scales.filter(|scale| group.is_near(*scale, NEAR)).collect();
        (extreme == 0.0 || !options.is_empty()).then_some(options)
    });
    let options: Vec<Vec<f32>> = options.collect::<Option<_>>()?;
    // The group with the fewest says most about the super-block's scale.
    let reference = options.iter().filter(|options| !options.is_empty()).min_by_key(|options| options.len())?;
    let scales = steps.all().filter(|c| *c != 0.0).flat_map(|c| reference.iter().map(move |s| f16::nearest(s / c)));
    scales.filter(|d| *d != 0.0 && d.is_finite()).take(MAX_TRIES).find_map(|d| {
        let scale = |(group, options): (&T, &Vec<f32>)| match options.is_empty() {
            true => steps.contains(0.0).then_some(0.0),
            false => {
                let scales = options.iter().filter_map(|s| steps.exact(s / d, NEAR));
                scales.into_iter().find(|scale| *scale != 0.0 && group.is_exact(d * scale))
            }
        };
        let scales: Vec<f32> = groups.iter().zip(&options).map(scale).collect::<Option<_>>()?;
        Some(Scaled { d, scales: std::array::from_fn(|g| scales[g]) })
    })
}

/// What is known of a group with a minimum: `x = s q - m`.
struct Spaced<'a> {
    x: &'a [f32],
    lo: f32,
    /// Scales `s` it may have, each with the span of quants in use. None where all weights are equal.
    options: Vec<(f32, i32)>,
}

/// The scales and integers of a super-block with minimums.
pub(super) struct SuperAffine<const G: usize> {
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) scales: [f32; G],
    pub(super) mins: [f32; G],
}

/// Scales and integers (0..=largest) with which each group of `x` is `(d scale) q - (dmin min)`, q in 0..=n, exactly.
pub(super) fn super_affine<const G: usize>(x: &[f32; 256], n: f32, largest: f32) -> Option<SuperAffine<G>> {
    let groups: Option<Vec<Spaced<'_>>> = x.chunks_exact(256 / G).map(|x| spaced(x, n as i32)).collect();
    let groups = groups?;
    let found = |(d, dmin)| SuperAffine::<G>::new(&groups, d, dmin, n, largest);
    let with_scale = groups.iter().filter(|group| !group.options.is_empty());
    let Some(reference) = with_scale.min_by_key(|group| group.options.len()) else {
        // Each group has one value: its minimum.
        return minimums(&groups, 0.0, n, largest).into_iter().find_map(|dmin| found((0.0, dmin)));
    };
    let scales =
        (1..=largest as i32).rev().flat_map(|c| reference.options.iter().map(move |o| f16::nearest(o.0 / c as f32)));
    let fits = |d: &f32| {
        let fits = |group: &Spaced<'_>| group.options.is_empty() || group.scales(*d, largest).next().is_some();
        *d != 0.0 && groups.iter().all(fits)
    };
    let pairs =
        scales.filter(fits).flat_map(|d| minimums(&groups, d, n, largest).into_iter().map(move |dmin| (d, dmin)));
    pairs.take(MAX_TRIES).find_map(found)
}

/// The spacings that a group's weights may have; `None` where they have none.
fn spaced(x: &[f32], n: i32) -> Option<Spaced<'_>> {
    let lo = x.iter().fold(f32::INFINITY, |a, x| a.min(*x));
    let hi = x.iter().fold(f32::NEG_INFINITY, |a, x| a.max(*x));
    if lo == hi {
        return Some(Spaced { x, lo, options: Vec::new() });
    }
    let spans = (1..=n).rev().map(|span| ((hi - lo) / span as f32, span));
    let options: Vec<(f32, i32)> = spans.filter(|(s, _)| x.iter().all(|x| integer((x - lo) / s).is_some())).collect();
    (!options.is_empty()).then_some(Spaced { x, lo, options })
}

impl Spaced<'_> {
    /// Whether it is `s q - m`, q in 0..=n, exactly.
    fn is(&self, s: f32, m: f32, n: f32) -> bool {
        self.x.iter().all(|x| {
            let q = if s > 0.0 { ((x + m) / s).round() } else { 0.0 };
            (0.0..=n).contains(&q) && s * q - m == *x
        })
    }

    /// The integer scales it may have with super-block scale `d`, each with the span of quants in use.
    fn scales(&self, d: f32, largest: f32) -> impl Iterator<Item = (f32, i32)> {
        let fits = move |(s, span): &(f32, i32)| {
            integer(s / d).filter(|scale| (1.0..=largest).contains(scale)).map(|scale| (scale, *span))
        };
        self.options.iter().filter_map(fits)
    }

    /// The integer scales and minimums it may have with super-block scale `d`: one for each quant that may be the
    /// smallest in use.
    fn choices(&self, d: f32, n: f32, largest: f32) -> impl Iterator<Item = (f32, f32)> {
        let minimum = move |(scale, span): (f32, i32)| {
            (0..=n as i32 - span).map(move |first| (scale, first as f32 * (d * scale) - self.lo))
        };
        self.scales(d, largest).flat_map(minimum)
    }

    /// Integer scale and minimum of a group whose weights are all `lo`.
    fn flat(&self, d: f32, dmin: f32, n: f32, largest: f32) -> Option<(f32, f32)> {
        (0..=largest as i32).find_map(|min| {
            let rest = self.lo + dmin * min as f32;
            if rest == 0.0 {
                return Some((0.0, min as f32)).filter(|_| self.is(0.0, dmin * min as f32, n));
            }
            // scale * q, with any quant.
            let product = integer(rest / d).filter(|p| (1.0..=n * largest).contains(p))? as i32;
            let q = (1..=n as i32).find(|q| product % q == 0 && product / q <= largest as i32)?;
            let scale = (product / q) as f32;
            self.is(d * scale, dmin * min as f32, n).then_some((scale, min as f32))
        })
    }
}

/// Scales of minimums that go with super-block scale `d`: those with which the group that leaves least choice has an
/// integer, and 0.
fn minimums(groups: &[Spaced<'_>], d: f32, n: f32, largest: f32) -> Vec<f32> {
    let of_group = |group: &Spaced<'_>| -> Vec<f32> { group.choices(d, n, largest).map(|choice| choice.1).collect() };
    // A group that may do without a minimum says nothing.
    let needed = |m: &Vec<f32>| !m.is_empty() && m.iter().all(|m| *m > NEAR * d);
    let reference = groups.iter().map(of_group).filter(needed).min_by_key(Vec::len).unwrap_or_else(|| {
        // Groups of one value, as the last resort: they may have a scale too.
        groups.iter().filter(|group| group.options.is_empty() && group.lo < 0.0).map(|group| -group.lo).collect()
    });
    let all = (1..=largest as i32).rev().flat_map(|c| reference.iter().map(move |m| f16::nearest(m / c as f32)));
    let mut all: Vec<f32> = all.filter(|dmin| *dmin > 0.0 && dmin.is_finite()).collect();
    all.push(0.0);
    all
}

impl<const G: usize> SuperAffine<G> {
    /// The integers of all groups for given scales, where they have some.
    fn new(groups: &[Spaced<'_>], d: f32, dmin: f32, n: f32, largest: f32) -> Option<Self> {
        let mut found = SuperAffine { d, dmin, scales: [0.0; G], mins: [0.0; G] };
        for (g, group) in groups.iter().enumerate() {
            let with_integer = |(scale, m): (f32, f32)| match dmin > 0.0 {
                true => integer(m / dmin).filter(|min| (0.0..=largest).contains(min)).map(|min| (scale, min)),
                false => (m.abs() <= NEAR * d * scale).then_some((scale, 0.0)),
            };
            (found.scales[g], found.mins[g]) = match group.options.is_empty() {
                true => group.flat(d, dmin, n, largest)?,
                false => {
                    let pairs = group.choices(d, n, largest).filter_map(with_integer);
                    pairs.into_iter().find(|(scale, min)| group.is(d * scale, dmin * min, n))?
                }
            };
        }
        Some(found)
    }
}
