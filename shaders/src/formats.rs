//! How each weight type lies in GPU memory: one table row and one WGSL snippet per type.
//!
//! Blocks of a file have odd sizes and no alignment. A packed row takes them apart into **planes**: all quants of the row
//! first, then its scales, and so on, each plane at a multiple of 16 bytes, so that neighbouring threads read
//! neighbouring words. Nothing is widened. The unit of work is a **group** of 32 consecutive weights of a row.

use tandem_loader::GgmlType;
use tandem_loader::quant::{grids, iq2, iq3};

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
    /// What the snippet looks quants up in.
    pub table: Table,
}

/// What a snippet looks quants up in: it lies in every buffer of weights, before the first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Nothing.
    None,
    /// Points of 8 weights of 2 bits each, as the byte that each two bits stand for.
    Eights(&'static [u16], [u8; 4]),
    /// Points of 4 weights of 4 bits each, as the byte that each four bits (8 of their values) stand for.
    Fours(&'static [u16], [u8; 8]),
}

impl Table {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Table::None => Vec::new(),
            Table::Eights(grid, bytes) => {
                grid.iter().flat_map(|point| (0..8).map(move |t| bytes[usize::from(point >> (2 * t) & 3)])).collect()
            }
            Table::Fours(grid, bytes) => {
                grid.iter().flat_map(|point| (0..4).map(move |t| bytes[usize::from(point >> (4 * t) & 7)])).collect()
            }
        }
    }

    /// How many there are.
    pub fn n_bytes(&self) -> usize {
        match self {
            Table::None => 0,
            Table::Eights(grid, _) => 8 * grid.len(),
            Table::Fours(grid, _) => 4 * grid.len(),
        }
    }
}

const fn bytes(at: usize, len: usize) -> Plane {
    Plane::Bytes { at, len }
}

const fn bits(at: usize, width: usize, run: usize) -> Plane {
    Plane::Bits { at, width, run }
}

const fn floats(ty: GgmlType, snippet: &'static str, planes: &'static [Plane]) -> Format {
    Format { ty, decode: Decode::Floats, snippet, planes, table: Table::None }
}

const fn quants(ty: GgmlType, snippet: &'static str, planes: &'static [Plane]) -> Format {
    Format { ty, decode: Decode::Quants, snippet, planes, table: Table::None }
}

const fn eights(
    ty: GgmlType,
    snippet: &'static str,
    grid: &'static [u16],
    bytes: [u8; 4],
    planes: &'static [Plane],
) -> Format {
    Format { ty, decode: Decode::Quants, snippet, planes, table: Table::Eights(grid, bytes) }
}

const fn fours(
    ty: GgmlType,
    snippet: &'static str,
    grid: &'static [u16],
    bytes: [u8; 8],
    planes: &'static [Plane],
) -> Format {
    Format { ty, decode: Decode::Quants, snippet, planes, table: Table::Fours(grid, bytes) }
}

/// The magnitudes of the IQ2 grids; the fourth is not used.
const IQ2: [u8; 4] = [iq2::MAGNITUDES[0], iq2::MAGNITUDES[1], iq2::MAGNITUDES[2], 0];
/// Eight times the values of the IQ1 grid (of 0, 1 and 2); the fourth is not used.
const IQ1: [u8; 4] = [0, 8, 16, 0];

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
    eights(GgmlType::IQ2_XXS, "decode/iq2_xxs.wgsl", &grids::IQ2_XXS, IQ2, &[bytes(2, 64), bytes(0, 2)]),
    eights(GgmlType::IQ2_XS, "decode/iq2_xs.wgsl", &grids::IQ2_XS, IQ2, &[bytes(2, 64), bytes(66, 8), bytes(0, 2)]),
    fours(
        GgmlType::IQ3_XXS,
        "decode/iq3_xxs.wgsl",
        &grids::IQ3_XXS,
        iq3::MAGNITUDES_XXS,
        &[bytes(2, 64), bytes(66, 32), bytes(0, 2)],
    ),
    eights(GgmlType::IQ1_S, "decode/iq1_s.wgsl", &grids::IQ1, IQ1, &[bytes(2, 32), bytes(34, 16), bytes(0, 2)]),
    quants(GgmlType::IQ4_NL, "decode/iq4_nl.wgsl", &[bits(2, 4, 16), bytes(0, 2)]),
    fours(
        GgmlType::IQ3_S,
        "decode/iq3_s.wgsl",
        &grids::IQ3_S,
        iq3::MAGNITUDES_S,
        &[bytes(2, 64), bytes(66, 8), bytes(74, 32), bytes(106, 4), bytes(0, 2)],
    ),
    eights(
        GgmlType::IQ2_S,
        "decode/iq2_s.wgsl",
        &grids::IQ2_S,
        IQ2,
        &[bytes(2, 32), bytes(34, 32), bytes(66, 8), bytes(74, 8), bytes(0, 2)],
    ),
    quants(GgmlType::IQ4_XS, "decode/iq4_xs.wgsl", &[bits(8, 4, 16), bytes(2, 2), bytes(4, 4), bytes(0, 2)]),
    eights(GgmlType::IQ1_M, "decode/iq1_m.wgsl", &grids::IQ1, IQ1, &[bytes(0, 32), bytes(32, 16), bytes(48, 8)]),
    quants(GgmlType::TQ1_0, "decode/tq1_0.wgsl", &[bytes(0, 48), bytes(48, 4), bytes(52, 2)]),
    quants(GgmlType::TQ2_0, "decode/tq2_0.wgsl", &[bits(0, 2, 32), bytes(64, 2)]),
    quants(GgmlType::MXFP4, "decode/mxfp4.wgsl", &[bits(1, 4, 16), bytes(0, 1)]),
    quants(GgmlType::NVFP4, "decode/nvfp4.wgsl", &[bits(4, 4, 8), bytes(0, 4)]),
    quants(GgmlType::Q1_0, "decode/q1_0.wgsl", &[bits(2, 1, 1), bytes(0, 2)]),
    quants(GgmlType::Q2_0, "decode/q2_0.wgsl", &[bits(2, 2, 1), bytes(0, 2)]),
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

    /// Words of its table: what a buffer of weights begins with.
    pub fn table_words(&self) -> usize {
        self.table.n_bytes() / 4
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
