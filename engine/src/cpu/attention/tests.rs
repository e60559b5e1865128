//! Attention of every instruction set and cache type against the formula in f64.

use super::super::isa::scalar::Scalar;
use super::super::kernels::{AttendFn, IsaLevel};
use super::super::kv::LayerCache;
use super::super::kv_format::{KvF16, KvF32, KvQ4, KvQ8};
use super::*;
use crate::model::KvType;

struct Case {
    head_dim: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
    /// By how many positions each query's window begins after that of the one before.
    slide: usize,
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
        Case { head_dim, keys: rows(n_ctx), values: rows(n_ctx), queries: rows(n_queries), slide: 1 }
    }

    fn cache(&self, kv_type: KvType) -> LayerCache {
        let mut cache = LayerCache::new(self.keys.len(), 1, self.head_dim, kv_type).unwrap();
        let head = cache.heads(1).next().unwrap();
        for (p, (k, v)) in self.keys.iter().zip(&self.values).enumerate() {
            // SAFETY: inside the cache, in its own format.
            unsafe {
                match kv_type {
                    KvType::F32 => head.store::<KvF32>(p, k, v),
                    KvType::F16 => head.store::<KvF16>(p, k, v),
                    KvType::Q8_0 => head.store::<KvQ8>(p, k, v),
                    KvType::Q4_0 => head.store::<KvQ4>(p, k, v),
                }
            }
        }
        cache
    }

    /// The last query sees all but the first positions, those before it end one earlier each.
    fn sees(&self, i: usize) -> (usize, usize) {
        (i * self.slide, self.keys.len() + 1 + i - self.queries.len())
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
/// four roundings (queries, keys, weights, values); sums in f16 are rounded up to 64 times; 8- and 4-bit quants have steps of 1/127 and 1/7 of the largest of 32.
/// Averaging over values shrinks the signal more than the noise, which the factor allows for.
fn limit(level: IsaLevel, kv_type: KvType) -> f64 {
    match (level, kv_type) {
        (_, KvType::F32) => 1e-11,
        (IsaLevel::Avx512Bf16, KvType::F16) => 2e-4,
        (IsaLevel::Avx512Fp16, KvType::F16) => 5e-5,
        (_, KvType::F16) => 2e-6,
        (_, KvType::Q8_0) => 5e-4,
        (_, KvType::Q4_0) => 8e-2,
    }
}

/// Numbers that are none reach the results, whatever the cache holds them in.
#[test]
fn broken_numbers_are_not_lost() {
    for kv_type in KvType::ALL {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(64, 40, 3);
            case.values[7][40] = broken;
            for level in IsaLevel::ALL.into_iter().filter(|l| l.is_available()) {
                let got = case.attend((level.kernels().attend)(kv_type), kv_type, 3);
                assert!(got.iter().all(|row| !row[40].is_finite()), "{} {} {broken}", level.name(), kv_type.name());
            }
        }
    }
}

#[test]
fn every_instruction_set_and_cache_type_attends() {
    for (head_dim, n_ctx, n_queries) in
        [(64, 600, 13), (80, 257, 7), (16, 31, 3), (9, 300, 66), (128, 272, 70), (64, 1060, 70), (9, 1060, 40)]
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

/// The schemes of less than f32's precision without their instructions: what they compute, on every machine.
fn reduced<K: KvFormat>() -> [(AttendFn, IsaLevel); 2] {
    [(chunk_mixed::<Scalar, K, InBf16>, IsaLevel::Avx512Bf16), (chunk_mixed::<Scalar, K, InF16>, IsaLevel::Avx512Fp16)]
}

#[test]
fn reduced_products_attend_in_plain_rust() {
    for (head_dim, n_queries) in [(72, 20), (80, 5)] {
        let case = Case::new(head_dim, 1100, n_queries);
        let exact = case.attend(chunk::<Scalar, KvF16, InF32>, KvType::F16, n_queries);
        for (attend, level) in reduced::<KvF16>() {
            let got = case.attend(attend, KvType::F16, n_queries);
            assert!(case.nmse(&got) < limit(level, KvType::F16), "{}", level.name());
            assert_ne!(got, exact, "{}", level.name());
        }
        for (attend, level) in reduced::<KvQ8>() {
            assert!(case.nmse(&case.attend(attend, KvType::Q8_0, n_queries)) < limit(level, KvType::Q8_0));
        }
        for (attend, level) in reduced::<KvQ4>() {
            assert!(case.nmse(&case.attend(attend, KvType::Q4_0, n_queries)) < limit(level, KvType::Q4_0));
        }
    }
}

/// Windows begin anywhere in whole chunks, and each query gets what it gets alone.
#[test]
fn sliding_windows_do_not_depend_on_company() {
    let case = Case { slide: 37, ..Case::new(24, 1300, 21) };
    for (attend, level) in reduced::<KvF16>() {
        let alone = case.attend(attend, KvType::F16, 1);
        assert!(case.nmse(&alone) < limit(level, KvType::F16), "{}", level.name());
        for together in [2, 7, 16, 21] {
            assert_eq!(case.attend(attend, KvType::F16, together), alone, "{} {together}", level.name());
        }
    }
}

/// Queries whose scores would be rounded too much are computed in f32, whoever comes with them, and so is everything
/// where numbers leave f16's range.
#[test]
fn large_scores_and_values_are_computed_in_f32() {
    let mut case = Case::new(64, 1100, 12);
    for q in case.queries.iter_mut().skip(1).step_by(3) {
        q.iter_mut().for_each(|x| *x *= 40.0);
    }
    let exact = case.attend(chunk::<Scalar, KvF16, InF32>, KvType::F16, 12);
    for (attend, level) in reduced::<KvF16>() {
        let alone = case.attend(attend, KvType::F16, 1);
        for (i, (got, exact)) in alone.iter().zip(&exact).enumerate() {
            assert_eq!(got == exact, i % 3 == 1, "{} query {i}", level.name());
        }
        assert_eq!(case.attend(attend, KvType::F16, 12), alone);
    }
    let in_f16 = reduced::<KvF16>()[1].0;
    // One in the middle of each chunk.
    for v in case.values.iter_mut().skip(128).step_by(CHUNK) {
        v[7] = 2000.0;
    }
    let exact = case.attend(chunk::<Scalar, KvF16, InF32>, KvType::F16, 12);
    assert_eq!(case.attend(in_f16, KvType::F16, 12), exact);
    // Queries that are no f16, and keys that no product with them shows.
    let mut case = Case::new(16, 1100, 3);
    case.queries.iter_mut().for_each(|q| q[3] = 1e6);
    case.keys.iter_mut().for_each(|k| k.fill(0.0));
    let exact = case.attend(chunk::<Scalar, KvF16, InF32>, KvType::F16, 3);
    assert!(exact.iter().flatten().all(|x| x.is_finite()));
    assert_eq!(case.attend(in_f16, KvType::F16, 3), exact);
}

/// Nothing is reduced up to [`LONG`] positions, and in a chunk of which a query does not see the end.
#[test]
fn short_texts_and_last_chunks_are_computed_in_f32() {
    for (attend, level) in reduced::<KvF16>() {
        let case = Case::new(16, LONG, 9);
        let exact = case.attend(chunk::<Scalar, KvF16, InF32>, KvType::F16, 9);
        assert_eq!(case.attend(attend, KvType::F16, 9), exact, "{}", level.name());
        // Windows of 200 positions, the last of which is before the end of a chunk.
        let case = Case { slide: 1, ..Case::new(16, 2 * LONG - 1, 3) };
        let windows = |attend: AttendFn| {
            let mut cache = case.cache(KvType::F16);
            let head = cache.heads(1).next().unwrap();
            let mut work = AttentionWork::new(16);
            let mut out = vec![0.0; 16];
            let q = case.queries[0].as_ptr();
            let sees = (2 * LONG - 201, 2 * LONG - 1);
            let mut rows = [QueryRow { q, sees, out: out.as_mut_ptr(), ..QueryRow::EMPTY }];
            // SAFETY: the rows and the cache are set up above.
            unsafe { attend(&head, &mut rows, 0.25, 2 * LONG / CHUNK - 1, &mut work) };
            (out, rows[0].max, rows[0].sum)
        };
        assert_eq!(windows(attend), windows(chunk::<Scalar, KvF16, InF32>), "{}", level.name());
    }
}
