//! Encoders: from f32 weights to the block formats of [`quant`].
//!
//! A block format leaves open how its scales and quants are found. Here that is a [`Method`]; `docs/quantization.md`
//! explains each one with its formula and source. The default, [`Method::Search`], minimizes
//!
//! ```text
//! sum over a block of  w (x - y)^2      x: weight   y: what it decodes to   w: how much it counts
//! ```
//!
//! Encoding is deterministic: each block depends on its own weights only, so neither threads nor chunks change it.
//! Weights that already lie on a format's grid come back as they were.
//!
//! | family | file | types |
//! |---|---|---|
//! | plain numbers | `float.rs` | F32 F16 BF16 |
//! | 32 weights, one scale | `block32.rs` | Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 |
//! | 256 weights, scales of scales | `k_quants.rs` | Q2_K Q3_K Q4_K Q5_K Q6_K |
//! | 256 weights, grids of 8 or 4 | `iq1.rs` `iq2.rs` `iq3.rs` | IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S |
//! | 16 uneven values | `iq4.rs` | IQ4_NL IQ4_XS |
//! | 4-bit floats | `fp4.rs` | MXFP4 NVFP4 |
//! | -1, 0, 1 | `ternary.rs` | TQ1_0 TQ2_0 |
//! | one and two bits, one scale | `low_bit.rs` | Q1_0 Q2_0 |
//!
//! What the families share: `scaled.rs` (blocks with one scale), `super_scaled.rs` and `super_affine.rs` (super-blocks
//! without and with minimums), `grid_group.rs` and `codebook.rs` (groups that are looked up), `search.rs` (the search for
//! a scale, or scale and minimum), `grid.rs` (weights that lie on a grid already). `codes.rs` sets quants one by one.

mod block32;
mod codebook;
mod codes;
mod f16;
mod float;
mod fp4;
mod grid;
mod grid_group;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod k_quants;
mod low_bit;
mod recode;
mod scaled;
mod search;
mod super_affine;
mod super_scaled;
mod ternary;

pub use codes::Codes;
pub use recode::{Loss, Recode, measure, weigh};

use crate::ggml_type::GgmlType;

/// How scales, minimums and quants are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Symmetric: the range is that of the largest magnitude, to both sides of zero.
    AbsMax,
    /// Asymmetric: the range is from the smallest to the largest weight, in types that have a minimum (zero point);
    /// [`AbsMax`](Method::AbsMax) in the others.
    MinMax,
    /// The least weighted square error over clippings of the range, with least squares fits; uses the importance.
    Search,
}

/// Encodes weights. `x` holds whole blocks, `w` the importance of each weight (positive), `out` has exactly the bytes
/// of the blocks.
pub type Encode = fn(x: &[f32], w: &[f32], method: Method, out: &mut [u8]);

/// The encoder of a type, or `None` where there is none.
pub fn encode_fn(ty: GgmlType) -> Option<Encode> {
    use GgmlType::*;
    match ty {
        F32 => Some(float::encode_f32),
        F16 => Some(float::encode_f16),
        BF16 => Some(float::encode_bf16),
        Q4_0 => Some(block32::encode_q4_0),
        Q4_1 => Some(block32::encode_q4_1),
        Q5_0 => Some(block32::encode_q5_0),
        Q5_1 => Some(block32::encode_q5_1),
        Q8_0 => Some(block32::encode_q8_0),
        Q2_K => Some(k_quants::encode_q2_k),
        Q3_K => Some(k_quants::encode_q3_k),
        Q4_K => Some(k_quants::encode_q4_k),
        Q5_K => Some(k_quants::encode_q5_k),
        Q6_K => Some(k_quants::encode_q6_k),
        IQ1_S => Some(iq1::encode_iq1_s),
        IQ1_M => Some(iq1::encode_iq1_m),
        IQ2_XXS => Some(iq2::encode_iq2_xxs),
        IQ2_XS => Some(iq2::encode_iq2_xs),
        IQ2_S => Some(iq2::encode_iq2_s),
        IQ3_XXS => Some(iq3::encode_iq3_xxs),
        IQ3_S => Some(iq3::encode_iq3_s),
        IQ4_NL => Some(iq4::encode_iq4_nl),
        IQ4_XS => Some(iq4::encode_iq4_xs),
        TQ1_0 => Some(ternary::encode_tq1_0),
        TQ2_0 => Some(ternary::encode_tq2_0),
        MXFP4 => Some(fp4::encode_mxfp4),
        NVFP4 => Some(fp4::encode_nvfp4),
        Q1_0 => Some(low_bit::encode_q1_0),
        Q2_0 => Some(low_bit::encode_q2_0),
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => None,
    }
}

/// The types that can be encoded, for messages.
pub fn encodable_types() -> String {
    let names: Vec<&str> = GgmlType::ALL.iter().filter(|ty| encode_fn(**ty).is_some()).map(|ty| ty.name()).collect();
    names.join(" ")
}

/// Encodes block by block into block structs.
fn encode_blocks<B: bytemuck::NoUninit, const N: usize>(
    x: &[f32],
    w: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &[f32; N]) -> B,
) {
    let out = out.chunks_exact_mut(size_of::<B>());
    for ((x, w), out) in x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0).zip(out) {
        out.copy_from_slice(bytemuck::bytes_of(&encode(x, w)));
    }
}
