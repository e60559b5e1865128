//! The check that a kernel for wide tiles must pass on the device before it is used.

use tandem_shaders::params::{ProductParams, weight_exponent};
use tandem_shaders::{Acts, GROUP, Kernel, Operands};
use wgpu::util::DeviceExt;

use super::super::buffers::Buffers;
use super::super::device::Gpu;
use super::super::error::GpuError;
use super::super::kernels::{Bound, Pipelines};
use super::super::layout::MatrixSpec;
use super::super::op::dispatch;

/// Largest error, as power relative to the result's, of a kernel that passes. Rounding to f16 changes a factor by up to 2^-11 of
/// itself, or 2^-10 where a driver rounds towards zero: two factors by 2^-9, a power of 3.8e-6. (To the nearest, it is 1.6e-7 at
/// most, for errors differ.) One wrong element of a sample is more than 1e-4, one wrong weight more than 1e-5.
pub(in crate::gpu) const LIMIT: f64 = 4e-6;

/// Tokens of a sample: a whole tile, and a part of one.
const TOKENS: u32 = 75;
/// Most rows: likewise.
const ROWS: u32 = 80;
/// Most groups of a row.
const GROUPS: u32 = 16;

/// A small product: the first rows and columns of a matrix of the model, with random activations.
pub(in crate::gpu) struct Sample<'a> {
    gpu: &'a Gpu,
    operands: Operands,
    experts: bool,
    params: ProductParams,
    /// What is bound, but for the result.
    weights: &'a wgpu::Buffer,
    bias: &'a wgpu::Buffer,
    acts: wgpu::Buffer,
    chosen: wgpu::Buffer,
    order: wgpu::Buffer,
    tiles: wgpu::Buffer,
}

/// A token's activations are this power of two times numbers around 1: far beyond f16 in both directions, for kernels must not
/// mind.
fn token_exponent(token: u32) -> i32 {
    (token * 7 % 61) as i32 - 30
}

/// Repeatable numbers in [-1, 1).
struct Random(u64);

impl Random {
    /// One step of Knuth's MMIX generator.
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

impl<'a> Sample<'a> {
    /// Of a matrix whose largest weight fits f16 when multiplied by 2 to `exponent`.
    pub(in crate::gpu) fn new(
        gpu: &'a Gpu,
        buffers: &'a Buffers,
        spec: &MatrixSpec,
        matrix: usize,
        operands: Operands,
        exponent: i32,
    ) -> Sample<'a> {
        let all = spec.params();
        let groups = all.groups.min(GROUPS);
        let part = spec.parts.first().map_or(0, |rows| rows.len());
        let n_rows = ROWS.min(part.min(spec.n_out) as u32);
        let params = ProductParams {
            groups,
            n_rows,
            n_tokens: TOKENS,
            act_stride: groups * (operands.acts.group_bytes() / 16) as u32,
            out_stride: n_rows,
            flags: weight_exponent(exponent),
            n_experts: 1,
            pairs_per_row: 1,
            ..all
        };
        let buffer = |words: &[u32]| {
            gpu.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("a check"),
                contents: bytemuck::cast_slice(words),
                usage: wgpu::BufferUsages::STORAGE,
            })
        };
        // All tokens go to one expert, the last one first: as `group.wgsl` would say it.
        let order: Vec<u32> = (0..TOKENS).rev().collect();
        Sample {
            gpu,
            operands,
            experts: spec.n_expert.is_some(),
            params,
            weights: &buffers.matrices[matrix][0],
            bias: &buffers.vectors,
            acts: buffer(&activations(operands.acts, groups)),
            chosen: buffer(&vec![0; 2 * TOKENS as usize]),
            order: buffer(&order),
            tiles: buffer(&[[2, 0, 0, 0], [0, 0, 64, 0], [0, 64, TOKENS - 64, 0]].concat()),
        }
    }

    /// How far a kernel's product is from that of the ordinary kernel, as power relative to its; NaN where one of its results
    /// is no number.
    ///
    /// # Errors
    /// A kernel that is not compiled, a device that fails.
    pub(in crate::gpu) fn error_of(&self, pipelines: &mut Pipelines<'_>, kernel: Kernel) -> Result<f64, GpuError> {
        let ordinary = Kernel::MatMat { operands: self.operands, wide: true, experts: self.experts };
        let want = self.product(pipelines, ordinary)?;
        let got = self.gpu.attempt(|| self.product(pipelines, kernel))?;
        let (mut error, mut power) = (0.0, 0.0);
        for (want, got) in want.iter().zip(&got) {
            error += (want - got).powi(2);
            power += want.powi(2);
        }
        // All zeros are right where zeros are wanted.
        Ok(if error == 0.0 { 0.0 } else { error / power })
    }

    /// The product by a kernel for tiles of 64 rows and 64 tokens, `[TOKENS, rows]`, without the tokens' powers of two.
    fn product(&self, pipelines: &mut Pipelines<'_>, kernel: Kernel) -> Result<Vec<f64>, GpuError> {
        let n_rows = self.params.n_rows;
        let bytes = (4 * TOKENS * n_rows) as usize;
        let y = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("a check"),
            size: bytes as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let pipeline = pipelines.get(kernel)?;
        let mut bound = [0, 1, 2].map(|number| Bound::whole(number, self.weights)).to_vec();
        bound.extend([Bound::whole(3, &self.acts), Bound::whole(5, &y)]);
        if self.experts {
            let lists = [&self.chosen, &self.order, &self.tiles];
            bound.extend((6..).zip(lists).map(|(number, list)| Bound::whole(number, list)));
        } else {
            bound.push(Bound::whole(4, self.bias));
        }
        let group = pipelines.bind(&pipeline, &bound);
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut recorder = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let size = [n_rows.div_ceil(64), TOKENS.div_ceil(64), 1];
        dispatch(&mut recorder, &pipeline, &group, &self.params, size);
        drop(recorder);
        self.gpu.queue.submit([encoder.finish()]);
        let bytes = self.gpu.read(&y, bytes)?;
        let y = bytemuck::cast_slice::<u8, f32>(&bytes).chunks_exact(n_rows as usize);
        let row = |(token, y): (u32, &[f32])| {
            let scale = 2f64.powi(-token_exponent(token));
            y.iter().map(|y| scale * f64::from(*y)).collect::<Vec<f64>>()
        };
        Ok((0..).zip(y).flat_map(row).collect())
    }
}

/// Random activations as products read them: see `unit.wgsl`.
fn activations(acts: Acts, groups: u32) -> Vec<u32> {
    let mut random = Random(1);
    let mut words = Vec::new();
    for token in 0..TOKENS {
        let scale = 2f32.powi(token_exponent(token));
        for _ in 0..groups {
            if acts == Acts::F32 {
                words.extend((0..GROUP).map(|_| (scale * random.float()).to_bits()));
                continue;
            }
            let q: Vec<i8> = (0..GROUP).map(|_| (127.5 * random.float()) as i8).collect();
            let d = scale * (1.0 + 0.5 * random.float()) / 127.0;
            let sum = |half: &[i8]| (d * half.iter().map(|q| f32::from(*q)).sum::<f32>()).to_bits();
            words.extend(q.chunks_exact(4).map(|q| u32::from_le_bytes([q[0], q[1], q[2], q[3]].map(|q| q as u8))));
            words.extend([d.to_bits(), sum(&q[..GROUP / 2]), sum(&q[GROUP / 2..]), 0]);
        }
    }
    words
}
