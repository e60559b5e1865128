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

pub mod block32;
pub mod float;
pub mod k_quants;

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

/// The decoder of a type, or `None` where there is none yet.
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
        IQ2_XXS | IQ2_XS | IQ3_XXS | IQ1_S | IQ4_NL | IQ3_S | IQ2_S | IQ4_XS | IQ1_M => None,
        TQ1_0 | TQ2_0 | MXFP4 | NVFP4 | Q1_0 | Q2_0 => None,
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

/// The blocks of `bytes`, which must be whole blocks.
pub fn blocks<B: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[B] {
    bytemuck::cast_slice(bytes)
}
