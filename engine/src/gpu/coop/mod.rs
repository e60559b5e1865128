//! Products by cooperative matrices (tensor cores): for which matrices, and whether the device gets them right.
//!
//! They round weights and activations to f16. Output heads and routers are left to the ordinary kernels: there rounding does
//! the most harm, and little is multiplied.

mod check;

use std::collections::HashMap;

use tandem_models::{Program, Step};
use tandem_shaders::params::{ProductParams, weight_exponent};
use tandem_shaders::{Kernel, Operands};

use super::GpuOptions;
use super::buffers::Buffers;
use super::device::Gpu;
use super::error::GpuError;
use super::kernels::{Bound, Pipelines};
use super::layout::{Layout, MatrixSpec, is_head};
use super::op::dispatch;
use crate::model::Precision;

pub(super) use check::{LIMIT, Sample};

/// Workgroups that share the rows of a matrix when its largest weight is looked for.
const PEAK_WORKGROUPS: u32 = 512;

/// What is multiplied by cooperative matrices: nothing, by default.
#[derive(Debug, Default)]
pub(super) struct Coop {
    /// Threads of a workgroup.
    threads: u32,
    /// By matrix, the power of two that its weights are multiplied by.
    exponents: HashMap<usize, i32>,
}

/// What is needed to choose.
pub(super) struct Choice<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) program: &'a Program,
    pub(super) layout: &'a Layout,
    pub(super) buffers: &'a Buffers,
    pub(super) options: &'a GpuOptions,
}

/// Whether the products of a step may round their input to f16.
fn may_round(step: &Step) -> bool {
    !is_head(step) && !matches!(step, Step::Route { .. })
}

impl Coop {
    /// The kernel for wide tiles of a step's product, and what its parameters' flags say to it, if it is one of these.
    pub(super) fn kernel(
        &self,
        step: &Step,
        matrix: usize,
        operands: Operands,
        experts: bool,
    ) -> Option<(Kernel, u32)> {
        let exponent = self.exponents.get(&matrix).filter(|_| may_round(step) && operands.fit_coop())?;
        Some((Kernel::CoopMat { operands, threads: self.threads, experts }, weight_exponent(*exponent)))
    }
}

impl Choice<'_> {
    /// Chooses what is multiplied by cooperative matrices: what can be, if the device offers them and passes a check of each
    /// kernel. If it does not, a text says why.
    ///
    /// # Errors
    /// A device that is lost, or whose memory is full.
    pub(super) fn make(&self, pipelines: &mut Pipelines<'_>) -> Result<(Coop, Option<String>), GpuError> {
        let offered = self.options.cooperative.unwrap_or(self.gpu.info.cooperative_matrices);
        let matrices = self.matrices();
        if !offered || matrices.is_empty() {
            return Ok((Coop::default(), None));
        }
        let why = match self.checked(pipelines, &matrices) {
            Ok(Ok(coop)) => return Ok((coop, None)),
            Ok(Err(why)) => why,
            // A kernel that the driver does not compile or run.
            Err(GpuError::Failed { message }) => message,
            Err(other) => return Err(other),
        };
        Ok((Coop::default(), Some(format!("the GPU's cooperative matrices are not used: {why}"))))
    }

    /// The matrices that can be multiplied, and how their products read activations.
    fn matrices(&self) -> Vec<(usize, Operands)> {
        let mut found = Vec::new();
        if self.options.precision == Precision::Exact {
            return found;
        }
        for ((block, s), products) in &self.layout.products {
            let step = &self.program.blocks[*block].steps[*s];
            for product in products {
                let spec = &self.layout.matrices[product.matrix];
                let acts = spec.acts(self.options.precision, is_head(step));
                let operands = Operands { ty: spec.format.ty, acts };
                if may_round(step) && operands.fit_coop() {
                    found.push((product.matrix, operands));
                }
            }
        }
        found.sort_unstable_by_key(|(matrix, _)| *matrix);
        found.dedup_by_key(|(matrix, _)| *matrix);
        found
    }

    /// Checks each kernel that the matrices need on the first matrix that needs it; the inner error is what came out wrong.
    fn checked(
        &self,
        pipelines: &mut Pipelines<'_>,
        matrices: &[(usize, Operands)],
    ) -> Result<Result<Coop, String>, GpuError> {
        let threads = Kernel::coop_threads(self.gpu.info.subgroup_sizes.1);
        let peaks = self.peaks(pipelines, matrices)?;
        let exponents = peaks.iter().filter_map(|(matrix, peak)| Some((*matrix, exponent(*peak)?))).collect();
        let coop = Coop { threads, exponents };
        let mut seen = Vec::new();
        for (matrix, operands) in matrices {
            let spec = &self.layout.matrices[*matrix];
            let experts = spec.n_expert.is_some();
            let Some(exponent) = coop.exponents.get(matrix).filter(|_| !seen.contains(&(*operands, experts))) else {
                continue;
            };
            seen.push((*operands, experts));
            let sample = Sample::new(self.gpu, self.buffers, spec, *matrix, *operands, *exponent);
            let error = sample.error_of(pipelines, Kernel::CoopMat { operands: *operands, threads, experts })?;
            // Also where it is no number.
            if error.is_nan() || error > LIMIT {
                let what = if experts { "experts" } else { "a matrix" };
                let ty = operands.ty;
                return Ok(Err(format!(
                    "products of {what} of type {ty} are off by {error:.0e} (at most {LIMIT:.0e})"
                )));
            }
        }
        Ok(Ok(coop))
    }

    /// The largest absolute weight of each matrix; infinity or NaN where it has one.
    pub(super) fn peaks(
        &self,
        pipelines: &mut Pipelines<'_>,
        matrices: &[(usize, Operands)],
    ) -> Result<Vec<(usize, f32)>, GpuError> {
        let n_parts: usize = matrices.iter().map(|(matrix, _)| self.buffers.matrices[*matrix].len()).sum();
        let part_bytes = 4 * PEAK_WORKGROUPS as usize;
        let found = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("largest weights"),
            size: (n_parts * part_bytes) as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut at = 0;
        for (matrix, operands) in matrices {
            let pipeline = pipelines.get(Kernel::Peak { ty: operands.ty })?;
            let spec = &self.layout.matrices[*matrix];
            // One submission per matrix: some drivers stop what takes seconds.
            let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut recorder = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (rows, weights) in spec.parts.iter().zip(&self.buffers.matrices[*matrix]) {
                let views = [0, 1, 2].map(|number| Bound::whole(number, weights));
                let to = Bound { number: 5, buffer: &found, offset: at, size: Some(part_bytes) };
                let group = pipelines.bind(&pipeline, &[&views[..], &[to]].concat());
                let params = ProductParams { n_rows: rows.len() as u32, ..spec.params() };
                dispatch(&mut recorder, &pipeline, &group, &params, [PEAK_WORKGROUPS, 1, 1]);
                at += part_bytes;
            }
            drop(recorder);
            self.gpu.queue.submit([encoder.finish()]);
        }
        let bytes = self.gpu.read(&found, n_parts * part_bytes)?;
        let mut parts = bytemuck::cast_slice::<u8, u32>(&bytes).chunks_exact(PEAK_WORKGROUPS as usize);
        let peak = |(matrix, _): &(usize, Operands)| {
            let parts = parts.by_ref().take(self.buffers.matrices[*matrix].len());
            // The bits of absolute values order as the values do, with infinity and NaN on top.
            (*matrix, f32::from_bits(parts.flatten().copied().max().unwrap_or(0)))
        };
        Ok(matrices.iter().map(peak).collect())
    }
}

/// The power of two that takes a matrix's largest weight to 2^14 .. 2^15 (see `coopmat.wgsl`, which does the same with
/// activations), within what an f32 can be; `None` for what is not finite.
fn exponent(peak: f32) -> Option<i32> {
    let biased = (peak.to_bits() >> 23) as i32;
    peak.is_finite().then(|| (141 - biased).min(126))
}

impl MatrixSpec {
    /// What is the same for all products with this matrix: how its rows lie in memory.
    pub(super) fn params(&self) -> ProductParams {
        let mut planes = [0; 4];
        let offsets = self.format.offsets(self.n_in);
        for (plane, offset) in planes.iter_mut().zip(&offsets[1..]) {
            *plane = (*offset / 4) as u32;
        }
        ProductParams {
            planes,
            row_words: (self.row_bytes() / 4) as u32,
            groups: tandem_shaders::Format::groups(self.n_in) as u32,
            ..ProductParams::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_fits_f16() {
        for peak in [1e-38, 1e-30, 6e-5, 0.02, 1.0, 1.999, 2.0, 65504.0, 1e9, f32::MAX] {
            let scaled = f64::from(peak) * 2f64.powi(exponent(peak).unwrap());
            assert!((16384.0..32768.0).contains(&scaled) || peak == 1e-38, "{peak}: {scaled}");
            assert!(scaled < 32768.0);
        }
        assert_eq!((exponent(0.0), exponent(f32::MIN_POSITIVE / 4.0)), (Some(126), Some(126)));
        assert_eq!((exponent(f32::INFINITY), exponent(f32::NAN)), (None, None));
    }
}
