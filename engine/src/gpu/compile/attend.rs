//! Heads and attention.

use tandem_models::{Reg, RopePairing, Step, Vector};
use tandem_shaders::params::{AttendParams, HeadsParams};
use tandem_shaders::{Acts, Cache, GROUP, Kernel, Pairing};

use super::super::kernels::Bound;
use super::super::layout::{Buf, cache_tiles, stride};
use super::super::op::{Attend, AttendPart, Bind, Op};
use super::{Compiler, State};
use crate::error::Result;
use crate::model::KvType;

/// Steps that one kernel does together: norm, then rotation, then storing; any of them may be missing.
#[derive(Debug, Default)]
pub(super) struct Heads {
    norm: Option<(Vector, Vector)>,
    rope: Option<usize>,
    store: Option<usize>,
}

impl Heads {
    /// Takes a step in, if it comes in the kernel's order. Other kinds of steps only fit where there is none waiting.
    pub(super) fn take(&mut self, step: &Step) -> bool {
        match step {
            Step::HeadNorm { q, k } if self.is_empty() => self.norm = Some((*q, *k)),
            Step::Rope { rope } if self.rope.is_none() && self.store.is_none() => self.rope = Some(*rope),
            Step::StoreKv { layer } if self.store.is_none() => self.store = Some(*layer),
            Step::HeadNorm { .. } | Step::Rope { .. } | Step::StoreKv { .. } => return false,
            Step::Embed { .. }
            | Step::Norm { .. }
            | Step::Qkv { .. }
            | Step::Attend { .. }
            | Step::Linear { .. }
            | Step::Glu { .. }
            | Step::Route { .. }
            | Step::ExpertGlu { .. }
            | Step::ExpertDown { .. }
            | Step::SigmoidGate { .. }
            | Step::Logits { .. } => return self.is_empty(),
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.norm.is_none() && self.rope.is_none() && self.store.is_none()
    }
}

/// The cache type's name among the kernels.
fn cache(kv_type: KvType) -> Cache {
    match kv_type {
        KvType::F32 => Cache::F32,
        KvType::F16 => Cache::F16,
        KvType::Q8_0 => Cache::Q8_0,
        KvType::Q4_0 => Cache::Q4_0,
    }
}

impl Compiler<'_> {
    /// Turns the steps that wait into operations: one for each part of the cache that is bound by itself.
    pub(super) fn flush_heads(&mut self, state: &mut State<'_>) -> Result<()> {
        let heads = std::mem::take(&mut state.heads);
        if heads.is_empty() {
            return Ok(());
        }
        let hp = &self.program.hparams;
        let rope = heads.rope.map(|r| &self.program.ropes[r]);
        let kernel = Kernel::Heads {
            shape: self.layout.shape,
            norm: heads.norm.is_some(),
            rope: rope.map(|rope| match rope.pairing {
                RopePairing::Normal => Pairing::Normal,
                RopePairing::NeoX => Pairing::NeoX,
            }),
            store: heads.store.map(|_| cache(self.options.kv_type)),
        };
        let mut common = vec![self.buffer(0, Buf::Qkv)];
        if let Some((q, k)) = heads.norm {
            common.extend([self.vector(1, q.weight), self.vector(2, k.weight)]);
        }
        if rope.is_some() {
            common.push(Bound::whole(3, &self.buffers.angles));
        }
        // Storing alone has nothing to do for Q.
        let q_heads = if heads.norm.is_some() || rope.is_some() { hp.n_head } else { 0 };
        let params = HeadsParams {
            stride: stride(self.program, Buf::Qkv) as u32,
            n_head: hp.n_head as u32,
            n_head_kv: hp.n_head_kv as u32,
            q_heads: q_heads as u32,
            kv_first: 0,
            kv_heads: hp.n_head_kv as u32,
            start: 0,
            tiles: cache_tiles(self.options.n_ctx) as u32,
            n_pairs: rope.map_or(0, |rope| rope.freqs.len() as u32),
            angle: 0,
            q_eps: heads.norm.map_or(0.0, |(q, _)| q.eps),
            k_eps: heads.norm.map_or(0.0, |(_, k)| k.eps),
        };
        let Some(layer) = heads.store else {
            let bind = self.bind(kernel, &common)?;
            state.ops.push(Op::Heads { bind, params, rope: heads.rope });
            return Ok(());
        };
        for (i, part) in self.buffers.caches[layer].iter().enumerate() {
            let bound = [&common[..], &[Bound::whole(4, &part.keys), Bound::whole(5, &part.values)]].concat();
            let bind = self.bind(kernel, &bound)?;
            let params = HeadsParams {
                q_heads: if i == 0 { params.q_heads } else { 0 },
                kv_first: part.heads.start as u32,
                kv_heads: part.heads.len() as u32,
                ..params
            };
            state.ops.push(Op::Heads { bind, params, rope: heads.rope });
        }
        Ok(())
    }

    /// Attention of step `s`, its results also as int8 where a product reads them so.
    pub(super) fn attend(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        layer: usize,
        scale: f32,
        window: Option<usize>,
    ) -> Result<()> {
        let shape = self.layout.shape;
        let whole = (shape.head_dim as usize).is_multiple_of(GROUP);
        let quantize = whole && self.acts_read(state, s, Reg::A) == Acts::Int8;
        let cache = cache(self.options.kv_type);
        let rows = [shape.group.next_power_of_two().min(shape.max_rows()), shape.max_rows()];
        let mut pipelines = Vec::new();
        for shares in [false, true] {
            let quantize = quantize && !shares;
            let mut pipeline = |rows| self.pipelines.get(Kernel::Attend { shape, cache, rows, shares, quantize });
            pipelines.push([pipeline(rows[0])?, pipeline(rows[1])?]);
        }
        let pipelines = [pipelines[0].clone(), pipelines[1].clone()];
        let acts: Vec<Bound<'_>> = quantize.then(|| Bound::whole(3, &self.buffers.acts)).into_iter().collect();
        let mut parts = Vec::new();
        for part in &self.buffers.caches[layer] {
            let bind = |results: &[Bound<'_>], pipeline| {
                let inputs = [self.buffer(0, Buf::Qkv), Bound::whole(1, &part.keys), Bound::whole(2, &part.values)];
                self.pipelines.bind(pipeline, &[&inputs[..], results].concat())
            };
            parts.push(AttendPart {
                direct: bind(&[&[self.buffer(4, Buf::A)], &acts[..]].concat(), &pipelines[0][0]),
                shared: bind(&[Bound::whole(4, &self.buffers.partial)], &pipelines[1][0]),
                heads: part.heads.clone(),
            });
        }
        let merge = [&[Bound::whole(0, &self.buffers.partial), self.buffer(1, Buf::A)], &acts[..]].concat();
        let merge: Bind = self.bind(Kernel::Merge { shape, quantize }, &merge)?;
        let params = AttendParams {
            q_stride: stride(self.program, Buf::Qkv) as u32,
            a_stride: stride(self.program, Buf::A) as u32,
            tiles: cache_tiles(self.options.n_ctx) as u32,
            window: window.map_or(0, |w| u32::try_from(w).unwrap_or(u32::MAX)),
            scale,
            ..AttendParams::default()
        };
        state.ops.push(Op::Attend(Box::new(Attend { shape, parts, pipelines, rows, merge, params })));
        state.written(&[Reg::A]);
        if quantize {
            state.quantized = Some((Reg::A, Acts::Int8));
        }
        Ok(())
    }
}
