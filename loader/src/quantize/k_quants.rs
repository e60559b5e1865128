//! Encoders of the K-quants: super-blocks of 256 weights whose groups share small integer scales (and minimums), which
//! themselves are multiples of one half-precision scale (and one for the minimums).
//!
//! Groups are searched one by one first. Then the super-block's scale and the groups' integers are improved by turns:
//! each group tries the integers beside its own, with its quants assigned anew; least squares gives the scales of the
//! super-block for all quants and integers together.

use super::search::{Block, Clips, Ints, NOTHING, Top, inverse, inverse_scales, round_f32};
use super::{Method, encode_blocks, f16, grid};
use crate::quant::k_quants::{BLOCK, Q2K, Q3K, Q4K, Q5K, Q6K};

/// Rounds of improvement of a super-block.
const MAX_ROUNDS: usize = 4;

/// Encodes Q2_K.
pub(super) fn encode_q2_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q2K, BLOCK>(x, w, out, |x, w| {
        let form = AffineForm {
            n: 3.0,
            largest: 15.0,
            clips: Clips { share: (0.5, 1.1, 13), places: 5 },
            starts: &[1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 1.05, 1.1, 1.15, 1.2],
        };
        let found = affine::<2, 16>(x, w, form, method);
        let mut b = Q2K { scales: [0; 16], qs: [0; 64], d: f16::bytes(found.d), dmin: f16::bytes(found.dmin) };
        b.scales = std::array::from_fn(|g| found.scales[g] | found.mins[g] << 4);
        put_two_bits(&mut b.qs, &found.q);
        b
    });
}

/// Encodes Q4_K.
pub(super) fn encode_q4_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q4K, BLOCK>(x, w, out, |x, w| {
        let form = AffineForm {
            n: 15.0,
            largest: 63.0,
            clips: Clips { share: (0.58, 1.06, 13), places: 3 },
            starts: &[1.0, 0.99, 0.98, 0.9, 0.75, 0.6, 0.5],
        };
        let found = affine::<4, 8>(x, w, form, method);
        let scales = scales_mins(&found.scales, &found.mins);
        let mut b = Q4K { d: f16::bytes(found.d), dmin: f16::bytes(found.dmin), scales, qs: [0; 128] };
        put_four_bits(&mut b.qs, &found.q);
        b
    });
}

/// Encodes Q5_K.
pub(super) fn encode_q5_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q5K, BLOCK>(x, w, out, |x, w| {
        let form = AffineForm {
            n: 31.0,
            largest: 63.0,
            clips: Clips { share: (0.62, 1.04, 13), places: 3 },
            starts: &[1.0, 0.99, 0.98, 0.9, 0.75, 0.6, 0.5],
        };
        let found = affine::<4, 8>(x, w, form, method);
        let scales = scales_mins(&found.scales, &found.mins);
        let (d, dmin) = (f16::bytes(found.d), f16::bytes(found.dmin));
        let mut b = Q5K { d, dmin, scales, qh: [0; 32], qs: [0; 128] };
        put_four_bits(&mut b.qs, &found.q.map(|q| q & 15));
        put_one_bit(&mut b.qh, &found.q.map(|q| q >> 4));
        b
    });
}

/// Encodes Q3_K.
pub(super) fn encode_q3_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q3K, BLOCK>(x, w, out, |x, w| {
        let form = SignedForm {
            levels: Ints { lo: -4.0, hi: 3.0 },
            scales: Ints { lo: -32.0, hi: 31.0 },
            reach: (0.5, 2.0),
            starts: &[1.0, 0.96, 0.92, 0.88, 0.84, 0.78, 0.72, 0.66, 0.6, 1.06, 1.15, 1.3, 1.5, 1.75, 2.0],
        };
        let found = signed(x, w, form, method);
        let q = found.q.map(|q| (q + 4) as u8);
        let scales = signed_scales(&found.scales);
        let mut b = Q3K { hmask: [0; 32], qs: [0; 64], scales, d: f16::bytes(found.d) };
        put_two_bits(&mut b.qs, &q.map(|q| q & 3));
        put_one_bit(&mut b.hmask, &q.map(|q| q >> 2));
        b
    });
}

/// Encodes Q6_K.
pub(super) fn encode_q6_k(x: &[f32], w: &[f32], method: Method, out: &mut [u8]) {
    encode_blocks::<Q6K, BLOCK>(x, w, out, |x, w| {
        let form = SignedForm {
            levels: Ints { lo: -32.0, hi: 31.0 },
            scales: Ints { lo: -128.0, hi: 127.0 },
            reach: (0.7, 1.4),
            starts: &[1.0, 0.97, 0.94, 0.91, 1.1, 1.25, 1.5, 2.0],
        };
        let found = signed(x, w, form, method);
        let q = found.q.map(|q| (q + 32) as u8);
        let mut b = Q6K { ql: [0; 128], qh: [0; 64], scales: found.scales, d: f16::bytes(found.d) };
        for (i, q) in q.iter().enumerate() {
            b.ql[64 * (i / 128) + i % 64] |= (q & 15) << (4 * (i % 128 / 64));
        }
        put_two_bits(&mut b.qh, &q.map(|q| q >> 4));
        b
    });
}

/// Places 2 bits of each weight as [`Q2K`] says.
fn put_two_bits(qs: &mut [u8; 64], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        qs[32 * (i / 128) + i % 32] |= q << (2 * (i % 128 / 32));
    }
}

/// Places 4 bits of each weight as [`Q4K`] says.
fn put_four_bits(qs: &mut [u8; 128], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        qs[32 * (i / 64) + i % 32] |= q << (4 * (i % 64 / 32));
    }
}

/// Places 1 bit of each weight: bit `i / 32` of byte `i % 32`.
fn put_one_bit(bits: &mut [u8; 32], q: &[u8; 256]) {
    for (i, q) in q.iter().enumerate() {
        bits[i % 32] |= q << (i / 32);
    }
}

/// 8 scales and 8 minimums of 6 bits in 12 bytes; [`crate::quant::k_quants::scale_min`] reads them.
fn scales_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
    out
}

/// 16 scales of -32..32 in 12 bytes; [`crate::quant::k_quants::q3_scale`] reads them.
fn signed_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        out[j % 8] |= (scale & 15) << (4 * (j / 8));
        out[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
    }
    out
}

/// What differs between the types with minimums.
#[derive(Clone, Copy)]
struct AffineForm {
    /// Largest quant.
    n: f32,
    /// Largest integer scale or minimum.
    largest: f32,
    clips: Clips,
    /// Shares of the scale that fits the largest group to begin with: a smaller one serves the other groups better.
    starts: &'static [f32],
}

/// A super-block of `G` groups with minimums, `w = d scale q - dmin min`.
struct AffineBlock<const G: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; G],
    mins: [u8; G],
    q: [u8; 256],
}

/// Integers of the groups for given super-block scales, and the loss with them.
#[derive(Clone, Copy)]
struct AffineGuess<const G: usize> {
    d: f32,
    dmin: f32,
    scales: [f32; G],
    mins: [f32; G],
    losses: [f32; G],
}

fn affine<const V: usize, const G: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    form: AffineForm,
    method: Method,
) -> AffineBlock<G> {
    let groups: [Block<V>; G] = std::array::from_fn(|g| {
        let range = 8 * V * g..8 * V * (g + 1);
        Block::load(&x[range.clone()], &w[range])
    });
    if method == Method::Search
        && let Some(grid::SuperAffine { d, dmin, scales, mins }) = grid::super_affine(x, form.n, form.largest)
    {
        return AffineGuess { d, dmin, scales, mins, losses: [0.0; G] }.finish(&groups, form);
    }
    // Scale and minimum (not above 0) of each group by itself.
    let fits: [(f32, f32); G] = std::array::from_fn(|g| match method {
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
    });
    let largest_scale = fits.iter().fold(0f32, |a, fit| a.max(fit.0)) / form.largest;
    let largest_min = fits.iter().fold(0f32, |a, fit| a.max(-fit.1)) / form.largest;
    let start =
        |by: f32| AffineGuess::new(&groups, &fits, f16::nearest(largest_scale * by), f16::nearest(largest_min), form);
    let best = match method {
        Method::AbsMax | Method::MinMax => start(1.0),
        Method::Search => {
            let mut top = Top::<AffineGuess<G>, 2>::new();
            for by in form.starts {
                let guess = start(*by);
                top.offer(-guess.loss(), guess);
            }
            let improved = top.kept().map(|guess| guess.improved(&groups, form));
            improved.reduce(|a, b| if b.loss() < a.loss() { b } else { a }).unwrap_or_else(|| start(1.0))
        }
    };
    best.finish(&groups, form)
}

impl<const G: usize> Default for AffineGuess<G> {
    fn default() -> Self {
        AffineGuess { d: 0.0, dmin: 0.0, scales: [0.0; G], mins: [0.0; G], losses: [f32::INFINITY; G] }
    }
}

impl<const G: usize> AffineGuess<G> {
    /// The integers nearest to what the groups want.
    fn new<const V: usize>(
        groups: &[Block<V>; G],
        fits: &[(f32, f32); G],
        d: f32,
        dmin: f32,
        form: AffineForm,
    ) -> Self {
        let integer =
            |wanted: f32, unit: f32| if unit > 0.0 { round_f32((wanted / unit).min(form.largest)) } else { 0.0 };
        let scales = fits.map(|fit| integer(fit.0, d));
        let mins = fits.map(|fit| integer(-fit.1, dmin));
        let losses = std::array::from_fn(|g| groups[g].affine_loss(d * scales[g], -dmin * mins[g], form.n));
        AffineGuess { d, dmin, scales, mins, losses }
    }

    fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }

    /// Integers and super-block scales by turns, until nothing gets better.
    fn improved<const V: usize>(mut self, groups: &[Block<V>; G], form: AffineForm) -> Self {
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

    fn group_loss<const V: usize>(&self, group: &Block<V>, scale: f32, min: f32, form: AffineForm) -> f32 {
        group.affine_loss(self.d * scale, -self.dmin * min, form.n)
    }

    /// Each group steps to better integers beside its own while there are any.
    fn walk<const V: usize>(&mut self, groups: &[Block<V>; G], form: AffineForm) {
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
    fn refit<const V: usize>(&self, groups: &[Block<V>; G], form: AffineForm) -> Option<(f32, f32)> {
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

    fn finish<const V: usize>(&self, groups: &[Block<V>; G], form: AffineForm) -> AffineBlock<G> {
        let mut q = [0; 256];
        for (g, q) in q.chunks_exact_mut(8 * V).enumerate() {
            groups[g].affine_quants(self.d * self.scales[g], -self.dmin * self.mins[g], form.n, q);
        }
        let (scales, mins) = (self.scales.map(|s| s as u8), self.mins.map(|m| m as u8));
        AffineBlock { d: self.d, dmin: self.dmin, scales, mins, q }
    }
}

/// What differs between the types without minimums.
#[derive(Clone, Copy)]
struct SignedForm {
    levels: Ints,
    /// The integers that scales are.
    scales: Ints,
    /// Where the search looks: the largest weight at these multiples of the largest level.
    reach: (f32, f32),
    starts: &'static [f32],
}

/// A super-block of 16 groups without minimums, `w = d scale q`.
struct SignedBlock {
    d: f32,
    scales: [i8; 16],
    q: [i8; 256],
}

/// Integers of the groups for a given super-block scale, and the loss with them.
#[derive(Clone, Copy, Default)]
struct SignedGuess {
    d: f32,
    scales: [f32; 16],
    losses: [f32; 16],
}

fn signed(x: &[f32; 256], w: &[f32; 256], form: SignedForm, method: Method) -> SignedBlock {
    let groups: [Block<2>; 16] =
        std::array::from_fn(|g| Block::load(&x[16 * g..16 * (g + 1)], &w[16 * g..16 * (g + 1)]));
    if method == Method::Search
        && let Some((d, scales)) = grid::signed(x, form.levels, form.scales)
    {
        return SignedGuess { d, scales, losses: [0.0; 16] }.finish(&groups, form);
    }
    let fits: [f32; 16] = std::array::from_fn(|g| {
        let extreme = groups[g].extreme();
        let absmax = extreme / form.levels.lo;
        match method {
            _ if extreme.abs() < NOTHING => 0.0,
            Method::AbsMax | Method::MinMax => absmax,
            Method::Search => {
                let candidates = inverse_scales(extreme, form.levels, form.reach.0, form.reach.1);
                groups[g].search_scale(form.levels, candidates.chain([1.0 / absmax])).d
            }
        }
    });
    // The range of integers has one more below zero: the largest scale gets it.
    let extreme = fits.iter().fold(0f32, |a, d| if d.abs() > a.abs() { *d } else { a });
    let guess = SignedGuess::new(&groups, &fits, f16::nearest(extreme / form.scales.lo), form);
    let best = if method == Method::Search {
        let mut top = Top::<SignedGuess, 2>::new();
        for c in form.starts {
            let g = SignedGuess::new(&groups, &fits, f16::nearest(extreme / (c * form.scales.lo)), form);
            top.offer(-g.loss(), g);
        }
        top.kept()
            .map(|g| g.improved(&groups, form))
            .reduce(|a, b| if b.loss() < a.loss() { b } else { a })
            .unwrap_or(guess)
    } else {
        guess
    };
    best.finish(&groups, form)
}

impl SignedGuess {
    fn new(groups: &[Block<2>; 16], fits: &[f32; 16], d: f32, form: SignedForm) -> SignedGuess {
        let Ints { lo, hi } = form.scales;
        let scales = fits.map(|fit| if d != 0.0 { round_f32((fit / d).max(lo).min(hi)) } else { 0.0 });
        let losses = std::array::from_fn(|g| groups[g].loss(d * scales[g], form.levels));
        SignedGuess { d, scales, losses }
    }

    fn loss(&self) -> f32 {
        self.losses.iter().sum()
    }

    fn improved(mut self, groups: &[Block<2>; 16], form: SignedForm) -> SignedGuess {
        self.walk(groups, form);
        for _ in 0..MAX_ROUNDS {
            let (mut xa, mut aa) = (0f64, 0f64);
            for (g, group) in groups.iter().enumerate() {
                let scale = f64::from(self.scales[g]);
                let (xq, qq) = group.scale_sums(inverse(self.d * self.scales[g]), form.levels);
                xa += scale * f64::from(xq);
                aa += scale * scale * f64::from(qq);
            }
            if aa <= 0.0 {
                break;
            }
            let mut next = SignedGuess { d: f16::nearest((xa / aa) as f32), ..self };
            next.losses = std::array::from_fn(|g| groups[g].loss(next.d * next.scales[g], form.levels));
            next.walk(groups, form);
            if next.loss() >= self.loss() {
                break;
            }
            self = next;
        }
        self
    }

    fn finish(&self, groups: &[Block<2>; 16], form: SignedForm) -> SignedBlock {
        let mut q = [0; 256];
        for (g, q) in q.chunks_exact_mut(16).enumerate() {
            groups[g].quants(self.d * self.scales[g], form.levels, q);
        }
        SignedBlock { d: self.d, scales: self.scales.map(|s| s as i8), q }
    }

    /// Each group steps to better integers beside its own while there are any.
    fn walk(&mut self, groups: &[Block<2>; 16], form: SignedForm) {
        for (g, group) in groups.iter().enumerate() {
            for step in [1.0, -1.0] {
                loop {
                    let scale = self.scales[g] + step;
                    if scale < form.scales.lo || scale > form.scales.hi {
                        break;
                    }
                    let loss = group.loss(self.d * scale, form.levels);
                    if loss >= self.losses[g] {
                        break;
                    }
                    (self.scales[g], self.losses[g]) = (scale, loss);
                }
            }
        }
    }
}
