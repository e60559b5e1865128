//! Rotary position embedding (RoFormer, <https://arxiv.org/abs/2104.09864>) and its frequency scalings.

use tandem_loader::Gguf;

use crate::error::{Error, Result};
use crate::hparams::{Hparams, Keys};

/// Which two elements of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Neighbours: `(2i, 2i + 1)`.
    Normal,
    /// Halves: `(i, i + n_rot / 2)`.
    NeoX,
}

/// A rotary embedding: pair `i` of a head at position `p` turns by the angle `p * freqs[i]`.
///
/// Linear scaling, YaRN and llama3 factors only change the frequencies (and the magnitude), so they are applied here
/// once, and backends see none of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Pairing of elements.
    pub pairing: RopePairing,
    /// Angle per position of each pair, `[n_rot / 2]`. Elements from `n_rot` on are left alone.
    pub freqs: Vec<f64>,
    /// Factor of the rotated elements (YaRN's attention temperature; 1 otherwise).
    pub magnitude: f32,
}

/// YaRN parameters (<https://arxiv.org/abs/2309.00071>), with the names of the metadata keys.
struct Yarn {
    ext_factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    original_ctx: f64,
}

impl Rope {
    /// The file's rotary embedding: base, scaling and (llama3) factors from metadata and `rope_freqs.weight`.
    pub(crate) fn read(pairing: RopePairing, keys: &Keys<'_>, hp: &Hparams, gguf: &Gguf) -> Result<Rope> {
        let n_rot = n_rot(keys, hp)?;
        let base = f64::from(keys.positive("rope.freq_base")?.unwrap_or(10_000.0));
        let factors = rope_factors(gguf, n_rot)?;
        let kind = keys.str("rope.scaling.type")?.unwrap_or("linear");
        let factor = keys.f32("rope.scaling.factor")?.or(keys.f32("rope.scale_linear")?).filter(|f| *f != 0.0);
        let factor = f64::from(factor.unwrap_or(1.0));
        if factor < 0.0 {
            return Err(keys.bad("rope.scaling.factor", format!("{factor} is negative")));
        }
        let attn_factor = keys.f32("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let (freq_scale, yarn) = match kind {
            "none" => (1.0, None),
            "linear" => (1.0 / factor, None),
            "yarn" => (1.0 / factor, Some(Yarn::read(keys, hp)?)),
            other => {
                return Err(Error::Unsupported {
                    what: format!("RoPE scaling `{other}` (`{}`)", keys.name("rope.scaling.type")),
                });
            }
        };
        let mut rope = Rope::plain(pairing, n_rot, base);
        for (freq, factor) in rope.freqs.iter_mut().zip(&factors) {
            *freq /= factor;
        }
        match yarn {
            None => rope.freqs.iter_mut().for_each(|f| *f *= freq_scale),
            Some(yarn) => yarn.apply(&mut rope, n_rot, base, freq_scale),
        }
        rope.magnitude *= attn_factor;
        Ok(rope)
    }

    /// A rotary embedding without scaling: `freqs[i] = base^(-2i / n_rot)`.
    pub(crate) fn plain(pairing: RopePairing, n_rot: usize, base: f64) -> Rope {
        let freqs = (0..n_rot / 2).map(|i| base.powf(-2.0 * i as f64 / n_rot as f64)).collect();
        Rope { pairing, freqs, magnitude: 1.0 }
    }
}

/// Number of rotated elements of a head: even, at most the head's size.
pub(crate) fn n_rot(keys: &Keys<'_>, hp: &Hparams) -> Result<usize> {
    let n_rot = keys.size("rope.dimension_count")?.unwrap_or(hp.head_dim);
    if n_rot > hp.head_dim || !n_rot.is_multiple_of(2) {
        let message = format!("{n_rot} must be even and at most the head size {}", hp.head_dim);
        return Err(keys.bad("rope.dimension_count", message));
    }
    Ok(n_rot)
}

/// Llama 3.1's per-pair divisors, from the tensor `rope_freqs.weight`, `[n_rot / 2]`; empty where there is none.
fn rope_factors(gguf: &Gguf, n_rot: usize) -> Result<Vec<f64>> {
    let Some(tensor) = gguf.tensor("rope_freqs.weight") else { return Ok(Vec::new()) };
    if tensor.dims() != [n_rot / 2] {
        return Err(Error::Shape {
            tensor: tensor.name.clone(),
            found: tensor.dims().to_vec(),
            expected: vec![n_rot / 2],
            offset: tensor.offset(),
        });
    }
    let factors = gguf.dequantize(tensor)?;
    if factors.iter().any(|f| !f.is_finite() || *f == 0.0) {
        return Err(Error::Hparam {
            key: tensor.name.clone(),
            message: "holds a factor that is 0 or not finite".into(),
        });
    }
    Ok(factors.into_iter().map(f64::from).collect())
}

impl Yarn {
    fn read(keys: &Keys<'_>, hp: &Hparams) -> Result<Yarn> {
        let get = |key: &str, default: f32| Ok::<f64, Error>(f64::from(keys.f32(key)?.unwrap_or(default)));
        Ok(Yarn {
            ext_factor: get("rope.scaling.yarn_ext_factor", 1.0)?,
            beta_fast: get("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: get("rope.scaling.yarn_beta_slow", 1.0)?,
            original_ctx: keys.size("rope.scaling.original_context_length")?.unwrap_or(hp.n_ctx_train) as f64,
        })
    }

    /// Blends interpolated (slow pairs) and original (fast pairs) frequencies along a ramp over the pairs.
    fn apply(&self, rope: &mut Rope, n_rot: usize, base: f64, freq_scale: f64) {
        // The pair that turns `rotations` times over the original context.
        let pair_of = |rotations: f64| {
            n_rot as f64 * (self.original_ctx / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
        };
        let low = pair_of(self.beta_fast).floor().max(0.0);
        let high = pair_of(self.beta_slow).ceil().min(n_rot as f64 - 1.0);
        for (i, freq) in rope.freqs.iter_mut().enumerate() {
            let ramp = (i as f64 - low) / (high - low).max(0.001);
            let original = (1.0 - ramp.clamp(0.0, 1.0)) * self.ext_factor;
            *freq *= freq_scale * (1.0 - original) + original;
        }
        if self.ext_factor != 0.0 {
            rope.magnitude *= (1.0 + 0.1 * (1.0 / freq_scale).ln()) as f32;
        }
    }
}
