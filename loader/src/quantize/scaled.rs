//! Blocks with one scale and no minimum, `w = d level`.

use super::search::{Block, Levels, NOTHING, inverse_scales};
use super::{Method, f16, grid};

/// Scale (a half-precision number) and levels of a block of `N = 8 V` weights. The search looks where the weight of
/// largest magnitude is at `reach` times the outermost level.
pub(super) fn encode<const V: usize, const N: usize, L: Levels>(
    x: &[f32; N],
    w: &[f32; N],
    levels: L,
    reach: (f32, f32),
    method: Method,
) -> (f32, [i8; N]) {
    let block = Block::<V>::load(x, w);
    let extreme = block.extreme();
    let mut q = [0; N];
    if extreme.abs() < NOTHING {
        block.quants(0.0, levels, &mut q);
        return (0.0, q);
    }
    // Where the range has one more level on one side, the weight of largest magnitude gets it.
    let absmax = extreme / levels.outermost();
    let d = match method {
        Method::AbsMax | Method::MinMax => f16::nearest(absmax),
        Method::Search => grid::scale(x, levels).unwrap_or_else(|| {
            let candidates = inverse_scales(extreme, levels, reach).chain([1.0 / absmax]);
            settle(&block, block.search_scale(levels, candidates).d, f16::nearest(absmax), levels)
        }),
    };
    block.quants(d, levels, &mut q);
    // With levels that are there with both signs the sign of the scale is free: positive, so that a block has one form.
    let is_level = |q: &i8| levels.nearest_one(-f32::from(*q)) == -f32::from(*q);
    if d < 0.0 && q.iter().all(is_level) { (-d, q.map(|q| -q)) } else { (d, q) }
}

/// The half-precision number near `d` that loses least, or the plain one, or 0, where that loses less.
fn settle<const V: usize, L: Levels>(block: &Block<V>, d: f32, plain: f32, levels: L) -> f32 {
    let mut best = (block.loss(0.0, levels), 0.0);
    for d in f16::around(d).chain([plain]) {
        let loss = block.loss(d, levels);
        if loss < best.0 {
            best = (loss, d);
        }
    }
    best.1
}
