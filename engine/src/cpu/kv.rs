//! The KV cache of the CPU backend.

use super::attention::HeadCache;
use super::buffer::{Buffer, Pages};
use super::isa::LANES;
use super::kv_format::{KvF16, KvF32, KvFormat, KvQ4, KvQ8};
use crate::error::Result;
use crate::model::KvType;

/// Keys and values of one layer, all KV heads; see [`HeadCache`] for the layout of a head.
pub(crate) struct LayerCache {
    k: Buffer,
    v: Buffer,
    head_dim: usize,
    /// Bytes of one head's keys and of its values.
    head_bytes: (usize, usize),
}

impl LayerCache {
    /// An empty cache for `n_ctx` positions. Memory is taken as positions are filled.
    pub(crate) fn new(n_ctx: usize, n_head_kv: usize, head_dim: usize, kv_type: KvType) -> Result<LayerCache> {
        let head_bytes = head_bytes(n_ctx, head_dim, kv_type);
        let buffer = |head: usize| {
            Buffer::zeroed(head.saturating_mul(n_head_kv), Pages::Small, "a layer's part of the KV cache")
        };
        Ok(LayerCache { k: buffer(head_bytes.0)?, v: buffer(head_bytes.1)?, head_dim, head_bytes })
    }

    /// Bytes that [`LayerCache::new`] takes.
    pub(crate) fn required_bytes(n_ctx: usize, n_head_kv: usize, head_dim: usize, kv_type: KvType) -> usize {
        let (k, v) = head_bytes(n_ctx, head_dim, kv_type);
        k.saturating_add(v).saturating_mul(n_head_kv)
    }

    /// The parts of the first `n` heads.
    pub(crate) fn heads(&mut self, n: usize) -> impl Iterator<Item = HeadCache> {
        let keys = self.k.chunks_exact_mut(self.head_bytes.0);
        let values = self.v.chunks_exact_mut(self.head_bytes.1);
        let (head_dim, value_stride) = (self.head_dim, self.head_dim.next_multiple_of(LANES));
        keys.zip(values).take(n).map(move |(k, v)| HeadCache {
            k: k.as_mut_ptr(),
            v: v.as_mut_ptr(),
            head_dim,
            value_stride,
        })
    }

    /// Bytes of the whole context.
    pub(crate) fn bytes(&self) -> usize {
        self.k.len() + self.v.len()
    }
}

/// Bytes of one head's keys and of its values. Sizes that overflow become one that no system has, so that asking for it
/// fails.
fn head_bytes(n_ctx: usize, head_dim: usize, kv_type: KvType) -> (usize, usize) {
    let tiles = n_ctx.div_ceil(LANES);
    let stride = head_dim.next_multiple_of(LANES);
    let (tile, row) = match kv_type {
        KvType::F32 => bytes::<KvF32>(head_dim, stride),
        KvType::F16 => bytes::<KvF16>(head_dim, stride),
        KvType::Q8_0 => bytes::<KvQ8>(head_dim, stride),
        KvType::Q4_0 => bytes::<KvQ4>(head_dim, stride),
    };
    (tiles.saturating_mul(tile), tiles.saturating_mul(LANES * row))
}

/// Bytes of a tile of keys and of a value.
fn bytes<K: KvFormat>(head_dim: usize, stride: usize) -> (usize, usize) {
    (K::key_tile_bytes(head_dim), K::value_bytes(stride))
}
