//! Element formats of the KV cache: how 16 positions' keys and one position's value lie in memory.
//!
//! Keys are transposed in tiles of 16 positions, so that a score needs no sum across lanes. Quantized formats have one
//! f16 scale per 32 elements of a position's key or value: `x = d q`, q 8 bits or 4 bits signed.

use super::isa::{F16, Isa, LANES};

/// Elements that share a scale in the quantized formats.
const GROUP: usize = 32;

/// A format of the cache.
pub(crate) trait KvFormat: 'static {
    /// Whether elements are plain numbers, but shorter than f32: many queries then share one conversion.
    const WIDENS: bool = false;
    /// Bytes of 16 positions' keys of `n` elements.
    fn key_tile_bytes(n: usize) -> usize;
    /// Bytes of one position's value of `n` elements, `n` a multiple of 16.
    fn value_bytes(n: usize) -> usize;

    /// Stores a key in lane `lane` of its tile.
    ///
    /// # Safety
    /// `tile` points to a tile of keys of this length.
    unsafe fn store_key(tile: *mut u8, lane: usize, key: &[f32]);
    /// Stores a value; elements from its length to `n` stay 0.
    ///
    /// # Safety
    /// `row` points to a value of `n` elements.
    unsafe fn store_value(row: *mut u8, n: usize, value: &[f32]);

    /// Element `d` of the 16 keys of a tile, of `n` elements each.
    ///
    /// # Safety
    /// `tile` points to a tile; the CPU has the instruction set.
    unsafe fn key<S: Isa>(tile: *const u8, n: usize, d: usize) -> S::F;
    /// Dot products of `R` queries of `n` elements with the 16 keys of each tile.
    ///
    /// # Safety
    /// The pointers are valid; the CPU has the instruction set.
    unsafe fn dot<S: Isa, const R: usize, const T: usize>(
        tiles: &[*const u8; T],
        n: usize,
        queries: &[*const f32; R],
    ) -> [[S::F; R]; T];
    /// Elements `d..d + 32` of a value of `n` elements; the second 16 repeat the first where only 16 are left.
    ///
    /// # Safety
    /// `row` points to a value of `n` elements; the CPU has the instruction set.
    unsafe fn value<S: Isa>(row: *const u8, n: usize, d: usize) -> (S::F, S::F);

    /// Element `d` of the 32 keys of a tile and the next, in f16.
    ///
    /// # Safety
    /// As for [`KvFormat::key`], for both tiles.
    #[inline(always)]
    unsafe fn half_keys<S: F16>(tile: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: as the caller promises.
        unsafe { S::h_pack(Self::key::<S>(tile, n, d), Self::key::<S>(tile.add(Self::key_tile_bytes(n)), n, d)) }
    }
    /// As [`KvFormat::value`], in f16.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn half_value<S: F16>(row: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: as the caller promises.
        unsafe {
            let (first, second) = Self::value::<S>(row, n, d);
            S::h_pack(first, second)
        }
    }
}

/// Plain numbers.
trait Element: 'static {
    const BYTES: usize;
    /// # Safety
    /// `p` points to 16 elements; the CPU has the instruction set.
    unsafe fn load<S: Isa>(p: *const u8) -> S::F;
    /// Twice 16 elements in f16.
    ///
    /// # Safety
    /// `low` and `high` point to 16 elements; the CPU has the instruction set.
    #[inline(always)]
    unsafe fn halves<S: F16>(low: *const u8, high: *const u8) -> S::B {
        // SAFETY: as the caller promises.
        unsafe { S::h_pack(Self::load::<S>(low), Self::load::<S>(high)) }
    }
    /// # Safety
    /// `p` points to an element.
    unsafe fn store(p: *mut u8, x: f32);
}

/// 16-bit floats.
pub(crate) struct KvF16;
/// 32-bit floats.
pub(crate) struct KvF32;
/// 8-bit integers, one scale per 32.
pub(crate) struct KvQ8;
/// 4-bit integers, one scale per 32.
pub(crate) struct KvQ4;

impl Element for KvF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::F {
        // SAFETY: the caller points to the elements that are read.
        unsafe { S::f_load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn halves<S: F16>(low: *const u8, high: *const u8) -> S::B {
        // SAFETY: the caller points to the elements that are read.
        unsafe { S::h_join(low.cast(), high.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, x: f32) {
        // SAFETY: the caller points to room for an element.
        unsafe { p.cast::<[u8; 2]>().write(half::f16::from_f32(x).to_le_bytes()) }
    }
}

impl Element for KvF32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const u8) -> S::F {
        // SAFETY: the caller points to the elements that are read.
        unsafe { S::f_load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, x: f32) {
        // SAFETY: the caller points to room for an element.
        unsafe { p.cast::<f32>().write_unaligned(x) }
    }
}

/// A tile is `[n][16]`, a value `[n]`.
impl<E: Element> KvFormat for E {
    const WIDENS: bool = E::BYTES < 4;
    fn key_tile_bytes(n: usize) -> usize {
        n * LANES * E::BYTES
    }
    fn value_bytes(n: usize) -> usize {
        n * E::BYTES
    }
    #[inline(always)]
    unsafe fn store_key(tile: *mut u8, lane: usize, key: &[f32]) {
        for (d, x) in key.iter().enumerate() {
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { E::store(tile.add((d * LANES + lane) * E::BYTES), *x) };
        }
    }
    #[inline(always)]
    unsafe fn store_value(row: *mut u8, _: usize, value: &[f32]) {
        for (d, x) in value.iter().enumerate() {
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { E::store(row.add(d * E::BYTES), *x) };
        }
    }
    #[inline(always)]
    unsafe fn key<S: Isa>(tile: *const u8, _: usize, d: usize) -> S::F {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe { E::load::<S>(tile.add(d * LANES * E::BYTES)) }
    }
    #[inline(always)]
    unsafe fn dot<S: Isa, const R: usize, const T: usize>(
        tiles: &[*const u8; T],
        n: usize,
        queries: &[*const f32; R],
    ) -> [[S::F; R]; T] {
        // SAFETY: inside the tile and the queries that the caller points to.
        unsafe {
            let mut sum = [[S::f_splat(0.0); R]; T];
            for d in 0..n {
                let mut keys = [S::f_splat(0.0); T];
                for t in 0..T {
                    keys[t] = Self::key::<S>(tiles[t], n, d);
                }
                for r in 0..R {
                    let q = S::f_splat(*queries[r].add(d));
                    for t in 0..T {
                        sum[t][r] = S::f_fma(keys[t], q, sum[t][r]);
                    }
                }
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn value<S: Isa>(row: *const u8, n: usize, d: usize) -> (S::F, S::F) {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let first = E::load::<S>(row.add(d * E::BYTES));
            let second = if d + GROUP <= n { E::load::<S>(row.add((d + LANES) * E::BYTES)) } else { first };
            (first, second)
        }
    }
    #[inline(always)]
    unsafe fn half_keys<S: F16>(tile: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let low = tile.add(d * LANES * E::BYTES);
            E::halves::<S>(low, low.add(n * LANES * E::BYTES))
        }
    }
    #[inline(always)]
    unsafe fn half_value<S: F16>(row: *const u8, n: usize, d: usize) -> S::B {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let first = row.add(d * E::BYTES);
            E::halves::<S>(first, if d + GROUP <= n { first.add(LANES * E::BYTES) } else { first })
        }
    }
}

/// Scale and rounded quants of up to 32 elements, |q| at most `max`; the scale is rounded to f16 first. Of elements that are
/// no numbers it is none: they must reach the logits and be seen there.
fn quantize(x: &[f32], max: f32) -> (half::f16, [i8; GROUP]) {
    // Bits order as magnitudes do, with infinity and then NaN above them.
    let absmax = f32::from_bits(x.iter().fold(0, |m, x| m.max(x.abs().to_bits())));
    let d = half::f16::from_f32(absmax / max);
    let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    let q = std::array::from_fn(|i| x.get(i).map_or(0.0, |x| (x * inverse).round_ties_even().clamp(-max, max)) as i8);
    (d, q)
}

/// A tile is `[n][16]` bytes, then scales `[n / 32][16]`; a value `[n]` bytes, then scales `[n / 32]`.
impl KvFormat for KvQ8 {
    fn key_tile_bytes(n: usize) -> usize {
        LANES * (n + n.div_ceil(GROUP) * 2)
    }
    fn value_bytes(n: usize) -> usize {
        n + n.div_ceil(GROUP) * 2
    }
    #[inline(always)]
    unsafe fn store_key(tile: *mut u8, lane: usize, key: &[f32]) {
        for (g, x) in key.chunks(GROUP).enumerate() {
            let (d, q) = quantize(x, 127.0);
            for (i, q) in q.iter().enumerate().take(x.len()) {
                // SAFETY: inside the tile or value that the caller points to.
                unsafe { tile.add((g * GROUP + i) * LANES + lane).write(*q as u8) };
            }
            let scale = key.len() * LANES + (g * LANES + lane) * 2;
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { tile.add(scale).cast::<[u8; 2]>().write(d.to_le_bytes()) };
        }
    }
    #[inline(always)]
    unsafe fn store_value(row: *mut u8, n: usize, value: &[f32]) {
        for (g, x) in value.chunks(GROUP).enumerate() {
            let (d, q) = quantize(x, 127.0);
            for (i, q) in q.iter().enumerate().take(x.len()) {
                // SAFETY: inside the tile or value that the caller points to.
                unsafe { row.add(g * GROUP + i).write(*q as u8) };
            }
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { row.add(n + 2 * g).cast::<[u8; 2]>().write(d.to_le_bytes()) };
        }
    }
    #[inline(always)]
    unsafe fn key<S: Isa>(tile: *const u8, n: usize, d: usize) -> S::F {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let scale = S::f_load_f16(tile.add(n * LANES + d / GROUP * LANES * 2).cast());
            S::f_mul(S::i_to_f(S::i_load_i8(tile.add(d * LANES).cast())), scale)
        }
    }
    #[inline(always)]
    unsafe fn dot<S: Isa, const R: usize, const T: usize>(
        tiles: &[*const u8; T],
        n: usize,
        queries: &[*const f32; R],
    ) -> [[S::F; R]; T] {
        // SAFETY: inside the tile and the queries that the caller points to.
        unsafe {
            let mut sum = [[S::f_splat(0.0); R]; T];
            for g in 0..n.div_ceil(GROUP) {
                let mut part = [[S::f_splat(0.0); R]; T];
                for d in g * GROUP..n.min((g + 1) * GROUP) {
                    for t in 0..T {
                        let k = S::i_to_f(S::i_load_i8(tiles[t].add(d * LANES).cast()));
                        for r in 0..R {
                            part[t][r] = S::f_fma(k, S::f_splat(*queries[r].add(d)), part[t][r]);
                        }
                    }
                }
                for t in 0..T {
                    let scale = S::f_load_f16(tiles[t].add(n * LANES + g * LANES * 2).cast());
                    for r in 0..R {
                        sum[t][r] = S::f_fma(part[t][r], scale, sum[t][r]);
                    }
                }
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn value<S: Isa>(row: *const u8, n: usize, d: usize) -> (S::F, S::F) {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let scale = value_scale::<S>(row.add(n + d / GROUP * 2));
            let first = S::f_mul(S::i_to_f(S::i_load_i8(row.add(d).cast())), scale);
            if d + GROUP > n {
                return (first, first);
            }
            (first, S::f_mul(S::i_to_f(S::i_load_i8(row.add(d + LANES).cast())), scale))
        }
    }
}

/// As [`KvQ8`], with nibbles offset by 8: element `i` of each 32 in the low half of byte `i`, `i + 16` in the high one.
/// Keys and values are padded to a multiple of 32.
impl KvFormat for KvQ4 {
    fn key_tile_bytes(n: usize) -> usize {
        LANES * n.div_ceil(GROUP) * (GROUP / 2 + 2)
    }
    fn value_bytes(n: usize) -> usize {
        n.div_ceil(GROUP) * (GROUP / 2 + 2)
    }
    #[inline(always)]
    unsafe fn store_key(tile: *mut u8, lane: usize, key: &[f32]) {
        for (g, x) in key.chunks(GROUP).enumerate() {
            let (d, q) = quantize(x, 7.0);
            // SAFETY: inside the tile or value that the caller points to.
            let group = unsafe { tile.add(g * LANES * (GROUP / 2 + 2)) };
            for i in 0..GROUP / 2 {
                // SAFETY: inside the tile or value that the caller points to.
                unsafe { group.add(i * LANES + lane).write(nibbles(q[i], q[i + 16])) };
            }
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { group.add(LANES * GROUP / 2 + 2 * lane).cast::<[u8; 2]>().write(d.to_le_bytes()) };
        }
    }
    #[inline(always)]
    unsafe fn store_value(row: *mut u8, _: usize, value: &[f32]) {
        for (g, x) in value.chunks(GROUP).enumerate() {
            let (d, q) = quantize(x, 7.0);
            // SAFETY: inside the tile or value that the caller points to.
            let group = unsafe { row.add(g * (GROUP / 2 + 2)) };
            for i in 0..GROUP / 2 {
                // SAFETY: inside the tile or value that the caller points to.
                unsafe { group.add(i).write(nibbles(q[i], q[i + 16])) };
            }
            // SAFETY: inside the tile or value that the caller points to.
            unsafe { group.add(GROUP / 2).cast::<[u8; 2]>().write(d.to_le_bytes()) };
        }
    }
    #[inline(always)]
    unsafe fn key<S: Isa>(tile: *const u8, _: usize, d: usize) -> S::F {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let group = tile.add(d / GROUP * LANES * (GROUP / 2 + 2));
            let bytes = S::i_load_u8(group.add(d % (GROUP / 2) * LANES));
            let q = if d % GROUP < GROUP / 2 { S::i_and(bytes, 15) } else { S::i_shr(bytes, 4) };
            let scale = S::f_load_f16(group.add(LANES * GROUP / 2).cast());
            S::f_mul(signed::<S>(q), scale)
        }
    }
    #[inline(always)]
    unsafe fn dot<S: Isa, const R: usize, const T: usize>(
        tiles: &[*const u8; T],
        n: usize,
        queries: &[*const f32; R],
    ) -> [[S::F; R]; T] {
        // SAFETY: inside the tile and the queries that the caller points to.
        unsafe {
            let mut sum = [[S::f_splat(0.0); R]; T];
            for t in 0..T {
                sum[t] = dot_q4::<S, R>(tiles[t], n, queries);
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn value<S: Isa>(row: *const u8, _: usize, d: usize) -> (S::F, S::F) {
        // SAFETY: inside the tile or value that the caller points to.
        unsafe {
            let group = row.add(d / GROUP * (GROUP / 2 + 2));
            let scale = value_scale::<S>(group.add(GROUP / 2));
            let bytes = S::i_load_u8(group);
            let (low, high) = (signed::<S>(S::i_and(bytes, 15)), signed::<S>(S::i_shr(bytes, 4)));
            (S::f_mul(low, scale), S::f_mul(high, scale))
        }
    }
}

/// The quants of nibbles.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn signed<S: Isa>(nibbles: S::I) -> S::F {
    // SAFETY: register operations.
    unsafe { S::i_to_f(S::i_add(nibbles, S::i_splat(-8))) }
}

/// Dot products of `R` queries with a tile of [`KvQ4`].
///
/// # Safety
/// As for [`KvFormat::dot`].
#[inline(always)]
unsafe fn dot_q4<S: Isa, const R: usize>(tile: *const u8, n: usize, queries: &[*const f32; R]) -> [S::F; R] {
    // SAFETY: offsets stay inside the tile the caller points to.
    unsafe {
        let mut sum = [S::f_splat(0.0); R];
        for g in 0..n.div_ceil(GROUP) {
            let group = tile.add(g * LANES * (GROUP / 2 + 2));
            let mut part = [S::f_splat(0.0); R];
            for i in 0..GROUP / 2 {
                let bytes = S::i_load_u8(group.add(i * LANES));
                for (d, nibbles) in [(i, S::i_and(bytes, 15)), (i + 16, S::i_shr(bytes, 4))] {
                    if g * GROUP + d < n {
                        for r in 0..R {
                            let q = S::f_splat(*queries[r].add(g * GROUP + d));
                            part[r] = S::f_fma(signed::<S>(nibbles), q, part[r]);
                        }
                    }
                }
            }
            let scale = S::f_load_f16(group.add(LANES * GROUP / 2).cast());
            for r in 0..R {
                sum[r] = S::f_fma(part[r], scale, sum[r]);
            }
        }
        sum
    }
}

/// How far ahead of a read through the cache memory is asked for.
pub(crate) const PREFETCH: usize = 4096;

/// Asks for `n` bytes at any address.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn prefetch<S: Isa>(p: *const u8, n: usize) {
    for line in (0..n).step_by(64) {
        // SAFETY: prefetching touches nothing.
        unsafe { S::prefetch(p.wrapping_add(line)) };
    }
}

/// Two signed 4-bit quants in a byte.
fn nibbles(low: i8, high: i8) -> u8 {
    (low + 8) as u8 | ((high + 8) as u8) << 4
}

/// One f16 in all lanes.
///
/// # Safety
/// `p` points to an f16; the CPU has the instruction set.
#[inline(always)]
unsafe fn value_scale<S: Isa>(p: *const u8) -> S::F {
    // SAFETY: as the caller promises.
    unsafe { S::f_splat(half::f16::from_le_bytes(p.cast::<[u8; 2]>().read()).to_f32()) }
}
