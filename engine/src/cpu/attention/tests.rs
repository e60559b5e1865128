//! Attention of every instruction set and cache type against the formula in f64.

use super::super::isa::scalar::Scalar;
use super::super::kernels::{AttendFn, IsaLevel};
use super::super::kv::LayerCache;
use super::super::kv_format::KvF16;
use super::*;
use crate::model::KvType;

struct Case {
    head_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

impl Case {
    fn new(head_dim: usize, n_ctx: usize, n_queries: usize) -> Case {
        let mut state = 12345u64;
        let mut row = || {
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 2.0
            };
            (0..head_dim).map(|_| next()).collect::<Vec<f32>>()
        };
        let mut rows = |n: usize| (0..n).map(|_| row()).collect::<Vec<_>>();
        Case { head_dim, keys: rows(n_ctx), values: rows(n_ctx), queries: rows(n_queries) }
    }

    fn cache(&self, kv_type: KvType) -> LayerCache {
        let mut cache = LayerCache::new(self.keys.len(), 1, self.head_dim, kv_type).unwrap();
        let head = cache.heads(1).next().unwrap();
        for (p, (k, v)) in self.keys.iter().zip(&self.values).enumerate() {
            // SAFETY: inside the cache, in its own format.
            unsafe {
                match kv_type {
                    KvType::F32 => head.store::<super::super::kv_format::KvF32>(p, k, v),
                    KvType::F16 => head.store::<KvF16>(p, k, v),
                    KvType::Q8_0 => head.store::<super::super::kv_format::KvQ8>(p, k, v),
                    KvType::Q4_0 => head.store::<super::super::kv_format::KvQ4>(p, k, v),
                }
            }
        }
        cache
    }

    /// The last query sees all but the first few positions, those before it one less each.
    fn sees(&self, i: usize) -> (usize, usize) {
        (i, self.keys.len() + 1 + i - self.queries.len())
    }

    /// Results of all queries, `together` at a time.
    fn attend(&self, attend: AttendFn, kv_type: KvType, together: usize) -> Vec<Vec<f32>> {
        let mut cache = self.cache(kv_type);
        let head = cache.heads(1).next().unwrap();
        let mut work = AttentionWork::new(self.head_dim);
        let mut out = vec![vec![0.0f32; head.value_stride]; self.queries.len()];
        for (b, block) in out.chunks_mut(together).enumerate() {
            let mut rows: Vec<QueryRow> = block
                .iter_mut()
                .enumerate()
                .map(|(i, out)| {
                    let i = b * together + i;
                    QueryRow {
                        q: self.queries[i].as_ptr(),
                        sees: self.sees(i),
                        out: out.as_mut_ptr(),
                        ..QueryRow::EMPTY
                    }
                })
                .collect();
            for chunk in 0..self.keys.len().div_ceil(CHUNK) {
                // SAFETY: rows and cache are set up above; levels are those of this CPU.
                unsafe { attend(&head, &mut rows, self.scale(), chunk, &mut work) };
            }
            for (row, out) in rows.iter().zip(block) {
                out.truncate(self.head_dim);
                out.iter_mut().for_each(|x| *x /= row.sum);
            }
        }
        out
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The formula.
    fn expected(&self, i: usize) -> Vec<f64> {
        let (first, last) = self.sees(i);
        let dot = |k: &[f32]| k.iter().zip(&self.queries[i]).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
        let weights: Vec<f64> =
            self.keys[first..last].iter().map(|k| (dot(k) * f64::from(self.scale())).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let values = &self.values[first..last];
        (0..self.head_dim)
            .map(|d| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / sum)
            .collect()
    }

    /// Normalized mean square error of all results.
    fn nmse(&self, got: &[Vec<f32>]) -> f64 {
        let (mut error, mut power) = (0.0, 0.0);
        for (i, got) in got.iter().enumerate() {
            for (got, want) in got.iter().zip(self.expected(i)) {
                error += (f64::from(*got) - want).powi(2);
                power += want * want;
            }
        }
        error / power
    }
}

/// What rounding to a type leaves, as noise against signal, with a margin of 4: f32 has 24 bits and f16 11; bf16 has 8, in
/// four roundings (queries, keys, weights, values); 8- and 4-bit quants have steps of 1/127 and 1/7 of the largest of 32.
/// Averaging over values shrinks the signal more than the noise, which the factor allows for.
fn limit(level: IsaLevel, kv_type: KvType) -> f64 {
    match (level, kv_type) {
        (_, KvType::F32) => 1e-11,
        (IsaLevel::Avx512Bf16, KvType::F16) => 2e-4,
        (_, KvType::F16) => 2e-6,
        (_, KvType::Q8_0) => 5e-4,
        (_, KvType::Q4_0) => 8e-2,
    }
}

#[test]
fn every_instruction_set_and_cache_type_attends() {
    for (head_dim, n_ctx, n_queries) in
        [(64, 600, 13), (80, 257, 7), (16, 31, 3), (9, 300, 66), (128, 272, 70), (64, 1060, 70)]
    {
        let case = Case::new(head_dim, n_ctx, n_queries.min(n_ctx / 2));
        for level in IsaLevel::ALL.into_iter().filter(|l| l.is_available()) {
            for kv_type in KvType::ALL {
                let attend = (level.kernels().attend)(kv_type);
                let alone = case.attend(attend, kv_type, 1);
                let nmse = case.nmse(&alone);
                let limit = limit(level, kv_type);
                assert!(nmse < limit, "{} {} {head_dim} {n_ctx}: {nmse:e}", level.name(), kv_type.name());
                for together in [2, 3, 5, 8, 13, MAX_QUERIES] {
                    assert_eq!(case.attend(attend, kv_type, together), alone, "{} {together}", level.name());
                }
            }
        }
    }
}

/// The bf16 scheme without its instructions: what it computes, on every machine.
#[test]
fn bf16_products_attend_in_plain_rust() {
    let case = Case::new(72, 530, 20);
    let attend: AttendFn = chunk::<Scalar, KvF16, InBf16>;
    let got = case.attend(attend, KvType::F16, 20);
    assert!(case.nmse(&got) < limit(IsaLevel::Avx512Bf16, KvType::F16));
}
