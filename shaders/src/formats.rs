//! How each weight type lies in GPU memory: one table row and one WGSL snippet per type.
//!
//! Blocks of a file have odd sizes and no alignment. A packed row takes them apart into **planes**: all quants of the row
//! first, then its scales, and so on, each plane at a multiple of 16 bytes, so that neighbouring threads read
//! neighbouring words. Nothing is widened. The unit of work is a **group** of 32 consecutive weights of a row.

use tandem_loader::GgmlType;

/// Weights that a kernel decodes at a time.
pub const GROUP: usize = 32;
/// Planes and rows begin at multiples of this many bytes: a `vec4<u32>`.
pub const ALIGNMENT: usize = 16;
/// Most planes a format has: the offsets of all but the first are given to the kernels as one `vec4<u32>`.
pub const MAX_PLANES: usize = 5;

/// A part of every block, gathered over a whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// Bytes `at..at + len` of every block, one block after the other.
    Bytes {
        /// First byte in the block.
        at: usize,
        /// Number of bytes.
        len: usize,
    },
    /// One field of `width` bits per weight (1, 2 or 4), as `width` words per group of 32: word `t % width` holds weights
    /// `4 t .. 4 t + 4` in the bytes of `word >> (width * (t / width))`, so that one shift and one mask give four weights.
    ///
    /// In the file, byte `at + run * (i / per_run) + i % run` holds weight `i`, where `per_run = run * 8 / width`, at bit
    /// `width * (i % per_run / run)`.
    Bits {
        /// First byte in the block.
        at: usize,
        /// Bits per weight.
        width: usize,
        /// Consecutive bytes whose lowest bits hold consecutive weights.
        run: usize,
    },
}

/// What a format's snippet offers to the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decode {
    /// `fn float4(row, i) -> vec4<f32>`: weights `4 i .. 4 i + 4` of a row.
    Floats,
    /// `fn decode(row, g) -> Group`: 32 weights as signed bytes, and scale and minimum of each half.
    Quants,
}

/// A weight type on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The type in the file.
    pub ty: GgmlType,
    /// What its snippet offers.
    pub decode: Decode,
    /// Name of the snippet among the sources.
    pub snippet: &'static str,
    /// Planes of a row, in order.
    pub planes: &'static [Plane],
}

const fn bytes(at: usize, len: usize) -> Plane {
    Plane::Bytes { at, len }
}

const fn bits(at: usize, width: usize, run: usize) -> Plane {
    Plane::Bits { at, width, run }
}

const fn floats(ty: GgmlType, snippet: &'static str, planes: &'static [Plane]) -> Format {
    Format { ty, decode: Decode::Floats, snippet, planes }
}

const fn quants(ty: GgmlType, snippet: &'static str, planes: &'static [Plane]) -> Format {
    Format { ty, decode: Decode::Quants, snippet, planes }
}

/// All types that the kernels can multiply with.
pub static FORMATS: &[Format] = &[
    floats(GgmlType::F32, "decode/f32.wgsl", &[bytes(0, 4)]),
    floats(GgmlType::F16, "decode/f16.wgsl", &[bytes(0, 2)]),
    floats(GgmlType::BF16, "decode/bf16.wgsl", &[bytes(0, 2)]),
    quants(GgmlType::Q4_0, "decode/q4_0.wgsl", &[bits(2, 4, 16), bytes(0, 2)]),
    quants(GgmlType::Q4_1, "decode/q4_1.wgsl", &[bits(4, 4, 16), bytes(0, 4)]),
    quants(GgmlType::Q5_0, "decode/q5_0.wgsl", &[bits(6, 4, 16), bits(2, 1, 1), bytes(0, 2)]),
    quants(GgmlType::Q5_1, "decode/q5_1.wgsl", &[bits(8, 4, 16), bits(4, 1, 1), bytes(0, 4)]),
    quants(GgmlType::Q8_0, "decode/q8_0.wgsl", &[bytes(2, 32), bytes(0, 2)]),
    quants(GgmlType::Q2_K, "decode/q2_k.wgsl", &[bits(16, 2, 32), bytes(0, 16), bytes(80, 4)]),
    quants(GgmlType::Q3_K, "decode/q3_k.wgsl", &[bits(32, 2, 32), bits(0, 1, 32), bytes(96, 12), bytes(108, 2)]),
    quants(GgmlType::Q4_K, "decode/q4_k.wgsl", &[bits(16, 4, 32), bytes(4, 12), bytes(0, 4)]),
    quants(GgmlType::Q5_K, "decode/q5_k.wgsl", &[bits(48, 4, 32), bits(16, 1, 32), bytes(4, 12), bytes(0, 4)]),
    quants(GgmlType::Q6_K, "decode/q6_k.wgsl", &[bits(0, 4, 64), bits(128, 2, 32), bytes(192, 16), bytes(208, 2)]),
];

impl Format {
    /// The format of a type, or `None` where the kernels cannot multiply with it.
    pub fn of(ty: GgmlType) -> Option<&'static Format> {
        FORMATS.iter().find(|f| f.ty == ty)
    }

    /// Groups of a row of `n_in` weights; the last one is filled up with zeros.
    pub fn groups(n_in: usize) -> usize {
        n_in.div_ceil(GROUP)
    }

    /// Byte offset of each plane in a packed row of `n_in` weights, and at the end the bytes of the whole row.
    pub fn offsets(&self, n_in: usize) -> Vec<usize> {
        let weights = Format::groups(n_in) * GROUP;
        let mut offsets = vec![0];
        for plane in self.planes {
            let bytes = match plane {
                Plane::Bytes { len, .. } => weights / self.ty.block_size() * len,
                Plane::Bits { width, .. } => weights / 8 * width,
            };
            offsets.push(offsets[offsets.len() - 1] + bytes.next_multiple_of(ALIGNMENT));
        }
        offsets
    }

    /// Bytes of a packed row of `n_in` weights.
    pub fn row_bytes(&self, n_in: usize) -> usize {
        self.offsets(n_in).last().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of a block is in exactly one plane, and every plane inside the block.
    #[test]
    fn planes_cover_blocks() {
        for format in FORMATS {
            let (weights, bytes) = (format.ty.block_size(), format.ty.block_bytes());
            let mut seen = vec![0; bytes];
            for plane in format.planes {
                let (at, len) = match *plane {
                    Plane::Bytes { at, len } => (at, len),
                    Plane::Bits { at, width, run } => {
                        assert!(weights.is_multiple_of(run * 8 / width), "{}", format.ty);
                        (at, weights / 8 * width)
                    }
                };
                seen[at..at + len].iter_mut().for_each(|n| *n += 1);
            }
            assert!(seen.iter().all(|n| *n == 1), "{}: {seen:?}", format.ty);
            assert!(format.planes.len() <= MAX_PLANES, "{}", format.ty);
        }
    }

    #[test]
    fn rows_are_hardly_longer_than_in_the_file() {
        for format in FORMATS {
            let n_in = 4096;
            let file = format.ty.row_bytes(n_in).unwrap();
            let packed = format.row_bytes(n_in);
            assert!(packed >= file && packed - file < MAX_PLANES * ALIGNMENT, "{}: {packed} for {file}", format.ty);
        }
    }
}
