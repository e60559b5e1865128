//! The small operations between matrix products.

use tandem_models::{Activation, Rope, RopePairing};

use super::isa::{Isa, LANES};

/// `out = x / rms(x) * weight`, or added to `out`. All slices have the norm's length.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Isa>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], add: bool) {
    let n = weight.len();
    assert!(x.len() == n && out.len() == n);
    let whole = n / LANES * LANES;
    // SAFETY: whole vectors inside slices of length n.
    unsafe {
        let mut squares = S::f_splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let v = S::f_load(x.as_ptr().add(i));
            squares = S::f_fma(v, v, squares);
        }
        let sum = x[whole..].iter().fold(S::f_sum(squares), |sum, v| sum + v * v);
        let scale = 1.0 / (sum / n as f32 + eps).sqrt();
        for i in (0..whole).step_by(LANES) {
            let y =
                S::f_mul(S::f_mul(S::f_load(x.as_ptr().add(i)), S::f_splat(scale)), S::f_load(weight.as_ptr().add(i)));
            let p = out.as_mut_ptr().add(i);
            S::f_store(p, if add { S::f_add(S::f_load(p), y) } else { y });
        }
        for i in whole..n {
            let y = x[i] * scale * weight[i];
            out[i] = if add { out[i] + y } else { y };
        }
    }
}

/// RMS norm of a head in place.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn head_norm<S: Isa>(head: &mut [f32], weight: &[f32], eps: f32) {
    // SAFETY: the CPU has the instruction set.
    let sum = unsafe { super::matmul::dot_f32::<S>(head.as_ptr(), head.as_ptr(), head.len()) };
    let scale = 1.0 / (sum / head.len() as f32 + eps).sqrt();
    for (x, w) in head.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// Cosines and sines of one position for one rotary embedding, times its magnitude.
pub(crate) fn rope_angles(rope: &Rope, position: usize, cos: &mut [f32], sin: &mut [f32]) {
    for (i, freq) in rope.freqs.iter().enumerate() {
        let (s, c) = (position as f64 * freq).sin_cos();
        cos[i] = (c * f64::from(rope.magnitude)) as f32;
        sin[i] = (s * f64::from(rope.magnitude)) as f32;
    }
}

/// Rotates one head.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], pairing: RopePairing, cos: &[f32], sin: &[f32]) {
    match pairing {
        RopePairing::Normal => {
            for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                *pair = [pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c];
            }
        }
        RopePairing::NeoX => {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
            }
        }
    }
}

/// Copies `n` columns of 16 floats, `[n][16]`, to rows that are `stride` floats apart, or adds them.
///
/// # Safety
/// `tiles` has `16 n` floats, `out` 16 at each of `n` strides; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn write_tiles<S: Isa>(tiles: *const f32, n: usize, out: *mut f32, stride: usize, add: bool) {
    for i in 0..n {
        // SAFETY: as the caller promises.
        unsafe {
            let (tile, out) = (S::f_load(tiles.add(LANES * i)), out.add(stride * i));
            S::f_store(out, if add { S::f_add(S::f_load(out), tile) } else { tile });
        }
    }
}

/// `gate = act(gate) * up`.
///
/// # Safety
/// The slices are equally long, a multiple of 16; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn glu<S: Isa>(act: Activation, gate: &mut [f32], up: &[f32]) {
    for i in (0..gate.len()).step_by(LANES) {
        // SAFETY: whole vectors, as the caller promises.
        unsafe {
            let gate = gate.as_mut_ptr().add(i);
            S::f_store(gate, activate::<S>(act, S::f_load(gate), S::f_load(up.as_ptr().add(i))));
        }
    }
}

/// `act(g) * u`.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn activate<S: Isa>(act: Activation, g: S::F, u: S::F) -> S::F {
    // SAFETY: register operations.
    unsafe {
        // Both are g * sigmoid(z): SiLU with z = g, GELU (tanh form) with z = 2 sqrt(2/pi) (g + 0.044715 g^3).
        let minus_z = match act {
            Activation::Silu => S::f_mul(g, S::f_splat(-1.0)),
            Activation::GeluTanh => {
                let cubic = S::f_fma(S::f_mul(g, g), S::f_splat(0.044_715), S::f_splat(1.0));
                S::f_mul(S::f_mul(g, cubic), S::f_splat(-1.595_769))
            }
        };
        let denominator = S::f_add(S::f_splat(1.0), S::f_exp(minus_z));
        S::f_mul(S::f_div(g, denominator), u)
    }
}
