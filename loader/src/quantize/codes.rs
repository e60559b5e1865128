//! Quants chosen one by one while the scales of a block stay: for methods that round weights in an order of their own.
//!
//! A type takes part if each of its weights has bits of its own in the block. What a quant stands for is not written down
//! again: the type's decoder says it.

use std::mem::offset_of;

use crate::ggml_type::GgmlType;

use crate::quant::fp4::{Mxfp4, Nvfp4};
use crate::quant::iq4::{Iq4Nl, Iq4Xs};
use crate::quant::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};

use crate::quant::ternary::Tq2;
use crate::quant::{Decode, block32, decode_fn, low_bit};

/// Some bits of a byte.
#[derive(Debug, Clone, Copy)]
struct Field {
    byte: usize,
    shift: usize,
    bits: usize,
}

/// The quants of a type's blocks.
#[derive(Debug, Clone)]
pub struct Codes {
    /// Weights of a block.
    block: usize,
    /// Bytes of a block.
    bytes: usize,
    /// Number of different quants.
    n: usize,
    /// Where the bits of each weight's quant are, lowest first.
    fields: Vec<Vec<Field>>,
    decode: Decode,
}

impl Codes {
    /// Those of a type; `None` where weights have no bits of their own (grids and base-3 digits), or are plain numbers.
    pub fn of(ty: GgmlType) -> Option<Codes> {
        use GgmlType::*;
        let (n, fields): (usize, fn(usize) -> Vec<Field>) = match ty {
            Q4_0 => (16, |i| vec![half(offset_of!(block32::Q4_0, qs), i)]),
            Q4_1 => (16, |i| vec![half(offset_of!(block32::Q4_1, qs), i)]),
            Q5_0 => (32, |i| vec![half(offset_of!(block32::Q5_0, qs), i), packed(offset_of!(block32::Q5_0, qh), 1, i)]),
            Q5_1 => (32, |i| vec![half(offset_of!(block32::Q5_1, qs), i), packed(offset_of!(block32::Q5_1, qh), 1, i)]),
            Q8_0 => (256, |i| vec![packed(offset_of!(block32::Q8_0, qs), 8, i)]),
            Q2_K => (4, |i| vec![layered(offset_of!(Q2K, qs), (2, 32, 128), i)]),
            Q3_K => (8, |i| {
                let high = layered(offset_of!(Q3K, hmask), (1, 32, 256), i);
                vec![layered(offset_of!(Q3K, qs), (2, 32, 128), i), high]
            }),
            Q4_K => (16, |i| vec![layered(offset_of!(Q4K, qs), (4, 32, 64), i)]),
            Q5_K => (32, |i| {
                let high = layered(offset_of!(Q5K, qh), (1, 32, 256), i);
                vec![layered(offset_of!(Q5K, qs), (4, 32, 64), i), high]
            }),
            Q6_K => (64, |i| {
                let high = layered(offset_of!(Q6K, qh), (2, 32, 128), i);
                vec![layered(offset_of!(Q6K, ql), (4, 64, 128), i), high]
            }),
            IQ4_NL => (16, |i| vec![half(offset_of!(Iq4Nl, qs), i)]),
            IQ4_XS => (16, |i| vec![layered(offset_of!(Iq4Xs, qs), (4, 16, 32), i)]),
            MXFP4 => (16, |i| vec![half(offset_of!(Mxfp4, qs), i)]),
            NVFP4 => (16, |i| vec![layered(offset_of!(Nvfp4, qs), (4, 8, 16), i)]),
            Q1_0 => (2, |i| vec![packed(offset_of!(low_bit::Q1_0, qs), 1, i)]),
            Q2_0 => (4, |i| vec![packed(offset_of!(low_bit::Q2_0, qs), 2, i)]),
            // The fourth quant is not used.
            TQ2_0 => (3, |i| vec![layered(offset_of!(Tq2, qs), (2, 32, 128), i)]),
            F32 | F16 | BF16 | IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | TQ1_0 => return None,
            Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => return None,
        };
        let block = ty.block_size();
        let fields = (0..block).map(fields).collect();
        Some(Codes { block, bytes: ty.block_bytes(), n, fields, decode: decode_fn(ty)? })
    }

    /// Weights of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of different quants.
    pub fn count(&self) -> usize {
        self.n
    }

    /// What each quant stands for in a block with these scales: `out` is `[count][block]`. The block's own quants are lost.
    pub fn levels(&self, block: &mut [u8], out: &mut [f32]) {
        for (code, out) in out.chunks_exact_mut(self.block).enumerate() {
            (0..self.block).for_each(|i| self.put(block, i, code));
            (self.decode)(block, out);
        }
    }

    /// Sets the quant of weight `i`.
    pub fn put(&self, block: &mut [u8], i: usize, code: usize) {
        let mut code = code;
        for field in &self.fields[i] {
            let mask = (1usize << field.bits) - 1;
            let byte = &mut block[field.byte];
            *byte = *byte & !((mask << field.shift) as u8) | ((code & mask) << field.shift) as u8;
            code >>= field.bits;
        }
    }
}

/// Nibbles of a block of 32: weight `j` in the low, weight `j + 16` in the high half of byte `j`.
fn half(start: usize, i: usize) -> Field {
    layered(start, (4, 16, 32), i)
}

/// Weights one after another, lowest bits first.
fn packed(start: usize, bits: usize, i: usize) -> Field {
    Field { byte: start + i * bits / 8, shift: i * bits % 8, bits }
}

/// Runs of `group` weights share `stride` bytes: the first `stride` weights have the lowest bits of these bytes, the next
/// the bits above them, and so on.
fn layered(start: usize, (bits, stride, group): (usize, usize, usize), i: usize) -> Field {
    Field { byte: start + stride * (i / group) + i % stride, shift: bits * (i % group / stride), bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Method, encode_fn};

    /// With the quants that give the nearest levels, a block decodes to these levels, and an encoder's own quants are
    /// among them.
    #[test]
    fn levels_are_what_the_decoder_makes_of_quants() {
        let mut types = 0;
        for ty in GgmlType::ALL {
            let Some(codes) = Codes::of(*ty) else { continue };
            types += 1;
            let n = codes.block();
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
            let mut bytes = vec![0; codes.bytes()];
            encode_fn(*ty).unwrap()(&x, &vec![1.0; n], Method::Search, &mut bytes);
            let mut encoded = vec![0.0; n];
            (codes.decode)(&bytes, &mut encoded);
            let mut levels = vec![0.0; n * codes.count()];
            codes.levels(&mut bytes, &mut levels);
            let level = |code: usize, i: usize| levels[code * n + i];
            let mut want = vec![0.0; n];
            for i in 0..n {
                let nearest =
                    |a: &usize, b: &usize| (level(*a, i) - x[i]).abs().total_cmp(&(level(*b, i) - x[i]).abs());
                let best = (0..codes.count()).min_by(nearest).unwrap();
                codes.put(&mut bytes, i, best);
                want[i] = level(best, i);
            }
            let mut got = vec![0.0; n];
            (codes.decode)(&bytes, &mut got);
            assert_eq!(got, want, "{ty}");
            let loss = |y: &[f32]| y.iter().zip(&x).map(|(y, x)| (y - x) * (y - x)).sum::<f32>();
            assert!(loss(&got) <= loss(&encoded), "{ty}");
            // The encoder's quants back again: the scales are the same.
            for i in 0..n {
                let own = (0..codes.count()).find(|code| level(*code, i) == encoded[i]).unwrap();
                codes.put(&mut bytes, i, own);
            }
            (codes.decode)(&bytes, &mut got);
            assert_eq!(got, encoded, "{ty}");
        }
        assert_eq!(types, 17);
    }
}
