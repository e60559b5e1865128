//! Block formats: what N weights look like in the file, and their scalar decoders.
//!
//! A quantized type is N weights as small integers plus scale(s) and minimum(s). The decoders here are the
//! specification that every fast path is tested against; they equal ggml's own bit for bit, so the order of
//! floating-point operations in them matters. Layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>.
//!
//! | family | file | types |
//! |---|---|---|
//! | plain numbers | [`float`] | F32 F16 BF16 |
//! | 32 weights, one scale | [`block32`] | Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 |
//! | 256 weights, scales of scales | [`k_quants`] | Q2_K Q3_K Q4_K Q5_K Q6_K |
//! | 256 weights, grids of 8 or 4 | [`iq1`] [`iq2`] [`iq3`] | IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S |
//! | 16 uneven values | [`iq4`] | IQ4_NL IQ4_XS |
//! | 4-bit floats | [`fp4`] | MXFP4 NVFP4 |
//! | -1, 0, 1 | [`ternary`] | TQ1_0 TQ2_0 |
//! | one and two bits, one scale | [`low_bit`] | Q1_0 Q2_0 |

pub mod block32;
pub mod float;
pub mod fp4;
pub mod grids;
pub mod iq1;
pub mod iq2;
pub mod iq3;
pub mod iq4;
pub mod k_quants;
pub mod low_bit;
pub mod ternary;

use crate::error::{Error, Result};
use crate::ggml_type::GgmlType;
use crate::gguf::TensorInfo;

/// Decodes whole rows: `bytes` holds the blocks of exactly `out.len()` weights.
pub type Decode = fn(bytes: &[u8], out: &mut [f32]);

/// A 16-bit little-endian float inside a block (blocks have no alignment in the file).
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F16Bytes(pub [u8; 2]);

impl F16Bytes {
    /// The value as f32.
    pub fn to_f32(self) -> f32 {
        half::f16::from_le_bytes(self.0).to_f32()
    }
}

/// The decoder of a type, or `None` where weights are not stored in it.
pub fn decode_fn(ty: GgmlType) -> Option<Decode> {
    use GgmlType::*;
    match ty {
        F32 => Some(float::decode_f32),
        F16 => Some(float::decode_f16),
        BF16 => Some(float::decode_bf16),
        Q4_0 => Some(block32::decode_q4_0),
        Q4_1 => Some(block32::decode_q4_1),
        Q5_0 => Some(block32::decode_q5_0),
        Q5_1 => Some(block32::decode_q5_1),
        Q8_0 => Some(block32::decode_q8_0),
        Q2_K => Some(k_quants::decode_q2_k),
        Q3_K => Some(k_quants::decode_q3_k),
        Q4_K => Some(k_quants::decode_q4_k),
        Q5_K => Some(k_quants::decode_q5_k),
        Q6_K => Some(k_quants::decode_q6_k),
        IQ1_S => Some(iq1::decode_iq1_s),
        IQ1_M => Some(iq1::decode_iq1_m),
        IQ2_XXS => Some(iq2::decode_iq2_xxs),
        IQ2_XS => Some(iq2::decode_iq2_xs),
        IQ2_S => Some(iq2::decode_iq2_s),
        IQ3_XXS => Some(iq3::decode_iq3_xxs),
        IQ3_S => Some(iq3::decode_iq3_s),
        IQ4_NL => Some(iq4::decode_iq4_nl),
        IQ4_XS => Some(iq4::decode_iq4_xs),
        TQ1_0 => Some(ternary::decode_tq1_0),
        TQ2_0 => Some(ternary::decode_tq2_0),
        MXFP4 => Some(fp4::decode_mxfp4),
        NVFP4 => Some(fp4::decode_nvfp4),
        Q1_0 => Some(low_bit::decode_q1_0),
        Q2_0 => Some(low_bit::decode_q2_0),
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => None,
    }
}

/// The types that can be decoded, for messages.
pub fn supported_types() -> String {
    let names: Vec<&str> = GgmlType::ALL.iter().filter(|ty| decode_fn(**ty).is_some()).map(|ty| ty.name()).collect();
    names.join(" ")
}

/// The decoder of a tensor, or an error that names it.
pub fn decoder(tensor: &TensorInfo) -> Result<Decode> {
    decode_fn(tensor.ty).ok_or_else(|| Error::UnsupportedType {
        tensor: tensor.name.clone(),
        ty: tensor.ty.name(),
        supported: supported_types(),
    })
}

/// The fields of a grid point, `BITS` each, first weight lowest.
pub fn point<const BITS: u32, const N: usize>(point: u16) -> [u8; N] {
    std::array::from_fn(|t| (point >> (BITS * t as u32) & ((1 << BITS) - 1)) as u8)
}

/// 8 signs from the low 7 bits of `bits`: the number of minus signs is even, which gives the eighth.
pub fn eighth_sign(bits: u32) -> u8 {
    let seven = bits & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// `value`, or its negative where the lowest bit of `sign` is 1.
fn signed(value: f32, sign: u8) -> f32 {
    if sign & 1 == 1 { -value } else { value }
}

/// The blocks of `bytes`, which must be whole blocks.
pub fn blocks<B: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[B] {
    bytemuck::cast_slice(bytes)
}
