//! From the blocks of a file to the planes that kernels read: see [`Plane`].

use rayon::prelude::*;
use tandem_shaders::{Format, GROUP, Plane};

/// Packs rows of `n_in` weights; `file` holds their blocks, `out` takes [`Format::row_bytes`] for each. Runs on the
/// current rayon pool.
pub(super) fn pack_rows(format: &Format, n_in: usize, file: &[u8], out: &mut [u8]) {
    let file_bytes = n_in / format.ty.block_size() * format.ty.block_bytes();
    let offsets = format.offsets(n_in);
    let row_bytes = format.row_bytes(n_in);
    if file_bytes == 0 {
        return;
    }
    out.par_chunks_exact_mut(row_bytes).zip(file.par_chunks_exact(file_bytes)).for_each(|(out, file)| {
        out.fill(0);
        for (plane, at) in format.planes.iter().zip(&offsets) {
            pack_plane(format, plane, file, &mut out[*at..]);
        }
    });
}

/// Packs one plane of a row to the beginning of `out`.
fn pack_plane(format: &Format, plane: &Plane, file: &[u8], out: &mut [u8]) {
    let blocks = file.chunks_exact(format.ty.block_bytes());
    match *plane {
        Plane::Bytes { at, len } => {
            for (block, out) in blocks.zip(out.chunks_exact_mut(len)) {
                out.copy_from_slice(&block[at..at + len]);
            }
        }
        Plane::Bits { at, width, run } => {
            let groups = format.ty.block_size() / GROUP;
            for (block, out) in blocks.zip(out.chunks_exact_mut(groups * 4 * width)) {
                for (g, out) in out.chunks_exact_mut(4 * width).enumerate() {
                    let mut words = [0u32; 8];
                    for t in 0..8 {
                        let four = four_fields(&block[at..], width, run, GROUP * g + 4 * t);
                        words[t % width] |= four << (width * (t / width));
                    }
                    for (out, word) in out.chunks_exact_mut(4).zip(words) {
                        out.copy_from_slice(&word.to_le_bytes());
                    }
                }
            }
        }
    }
}

/// The fields of weights `i..i + 4`, one per byte. `fields` begins with the first field of the block.
fn four_fields(fields: &[u8], width: usize, run: usize, i: usize) -> u32 {
    let per_run = run * 8 / width;
    let mask = (1u32 << width) - 1;
    let place = |i: usize| (run * (i / per_run) + i % run, width * (i % per_run / run));
    let (byte, shift) = place(i);
    if let (true, Some(four)) = (run.is_multiple_of(4), fields[byte..].first_chunk::<4>()) {
        return u32::from_le_bytes(*four) >> shift & (mask * 0x0101_0101);
    }
    (0..4).fold(0, |word, e| {
        let (byte, shift) = place(i + e);
        word | (u32::from(fields[byte]) >> shift & mask) << (8 * e)
    })
}
