//! The limits of this machine, measured: how fast it reads memory and how fast it multiplies, with the threads and the
//! instruction set that a model would use.
//!
//! Generation is bound by the first, prompts by the second; `bench` gives its results as shares of them.

/// Makes the compiler take a register's value for unknown, so that it neither merges nor moves what is to be counted.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! opaque {
    ($class:ident, $value:expr) => {
        // SAFETY: no instruction, only a comment.
        unsafe { std::arch::asm!("/* {0} */", inout($class) $value, options(nomem, nostack, preserves_flags)) }
    };
}

#[cfg(target_arch = "aarch64")]
mod arm;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tandem_loader::GgmlType;

use super::buffer::{Buffer, Pages};
use super::kernels::IsaLevel;
use super::team::Team;
use crate::error::Result;

/// Least bytes of the buffer that is read.
const MIN_BUFFER: usize = 512 << 20;
/// Bytes of the buffer per thread: more than a core's part of any last-level cache.
const BUFFER_PER_THREAD: usize = 64 << 20;
/// How many times the largest cache must fit into the buffer.
const CACHES: usize = 4;
/// Passes whose median is the result.
const PASSES: usize = 15;
/// What a pass of multiplications takes at least, so that starting the threads does not count.
const PASS_TIME: Duration = Duration::from_millis(8);

/// What this machine can do at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Threads that worked together.
    pub threads: usize,
    /// The instruction set whose instructions were counted.
    pub isa: IsaLevel,
    /// Bytes of memory read per second.
    pub read: f64,
    /// Additions and multiplications of 8-bit integers per second, by the instructions of the dot product kernels.
    pub int8: f64,
    /// Additions and multiplications of f32 per second, by fused multiply-adds where the instruction set has them.
    pub f32: f64,
}

impl Roofline {
    /// Measures for about a second. `isa` is the highest instruction set to use.
    ///
    /// # Errors
    /// No threads, or no memory for the buffer that is read.
    pub fn measure(threads: usize, isa: Option<IsaLevel>) -> Result<Roofline> {
        let isa = IsaLevel::best(isa);
        let mut team = Team::new(threads.max(1))?;
        Ok(Roofline {
            threads: team.len(),
            isa,
            read: read_bandwidth(&mut team)?,
            int8: peak(&mut team, int8_loop(isa)),
            f32: peak(&mut team, f32_loop(isa)),
        })
    }

    /// Operations per second of work that is part int8, part f32, each at its peak: `ops` of both kinds in any unit.
    pub fn peak_of(&self, int8_ops: f64, f32_ops: f64) -> f64 {
        (int8_ops + f32_ops) / (int8_ops / self.int8 + f32_ops / self.f32)
    }
}

/// Whether the fast kernels multiply weights of this type as 8-bit integers; the others are multiplied as f32.
pub fn multiplies_int8(ty: GgmlType) -> bool {
    (IsaLevel::Scalar.kernels().matrix)(ty).is_some_and(|kernel| kernel.quantized)
}

/// A loop over registers that does nothing but count.
#[derive(Clone, Copy)]
struct Loop {
    /// Runs some iterations.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    run: unsafe fn(u64),
    /// Additions and multiplications of one iteration.
    ops: u64,
}

fn int8_loop(isa: IsaLevel) -> Loop {
    match isa {
        IsaLevel::Scalar => plain::INT8,
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx2 => x86::INT8_AVX2,
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => x86::INT8_AVX512,
        #[cfg(target_arch = "aarch64")]
        IsaLevel::Neon => arm::INT8_NEON,
        #[cfg(target_arch = "aarch64")]
        IsaLevel::NeonDotprod => arm::INT8_DOTPROD,
        #[cfg(not(target_arch = "x86_64"))]
        IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => plain::INT8,
        #[cfg(not(target_arch = "aarch64"))]
        IsaLevel::Neon | IsaLevel::NeonDotprod => plain::INT8,
    }
}

fn f32_loop(isa: IsaLevel) -> Loop {
    match isa {
        IsaLevel::Scalar => plain::F32,
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx2 => x86::F32_AVX2,
        #[cfg(target_arch = "x86_64")]
        IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => x86::F32_AVX512,
        #[cfg(target_arch = "aarch64")]
        IsaLevel::Neon | IsaLevel::NeonDotprod => arm::F32,
        #[cfg(not(target_arch = "x86_64"))]
        IsaLevel::Avx2 | IsaLevel::Avx512 | IsaLevel::Avx512Bf16 | IsaLevel::Avx512Fp16 => plain::F32,
        #[cfg(not(target_arch = "aarch64"))]
        IsaLevel::Neon | IsaLevel::NeonDotprod => plain::F32,
    }
}

/// Operations per second of all members together. `work` is for an instruction set that this CPU has.
fn peak(team: &mut Team, work: Loop) -> f64 {
    let mut iterations = 1 << 10;
    loop {
        // SAFETY: the loop is that of `IsaLevel::best`, which asked the CPU.
        let pass = |_| unsafe { (work.run)(iterations) };
        if time(team, &pass) >= PASS_TIME {
            let ops = iterations * work.ops * team.len() as u64;
            return median_rate(team, ops as f64, pass);
        }
        iterations *= 2;
    }
}

/// Bytes per second that the members read together, from a buffer that no cache holds.
fn read_bandwidth(team: &mut Team) -> Result<f64> {
    let bytes = buffer_bytes(team.len());
    let mut buffer = Buffer::zeroed(bytes, Pages::Huge, "measuring the memory")?;
    // Written once, so that every page is its own; by the team, so that each thread's share is near its core.
    let share = bytes.div_ceil(team.len()).next_multiple_of(LINE);
    team.install(|| buffer.par_chunks_mut(share).for_each(|part| part.fill(1)));
    let buffer = &buffer;
    Ok(median_rate(team, bytes as f64, |member| {
        black_box(sum(&buffer[bytes.min(member * share)..bytes.min((member + 1) * share)]));
    }))
}

/// Bytes of the buffer for so many threads.
fn buffer_bytes(threads: usize) -> usize {
    let bytes = MIN_BUFFER.max(BUFFER_PER_THREAD * threads);
    bytes.max(CACHES * largest_cache().unwrap_or(0)).next_multiple_of(LINE)
}

/// Bytes of the largest cache of the first core, where the system says (Linux).
fn largest_cache() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |folder: std::path::PathBuf| {
        let size = std::fs::read_to_string(folder.join("size")).ok()?;
        size.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    };
    caches.filter_map(|entry| size(entry.ok()?.path())).max()
}

/// Bytes summed at a time.
const LINE: usize = 128;

/// Sums in 16 lanes, so that additions do not wait for each other.
fn sum(part: &[u8]) -> u64 {
    let mut lanes = [0u64; LINE / 8];
    for line in part.as_chunks::<LINE>().0 {
        for (lane, value) in lanes.iter_mut().zip(line.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_ne_bytes(*value));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Units per second: the median of some passes, each of `units`.
fn median_rate(team: &mut Team, units: f64, pass: impl Fn(usize) + Sync) -> f64 {
    let mut times: Vec<Duration> = (0..PASSES).map(|_| time(team, &pass)).collect();
    times.sort();
    units / times[PASSES / 2].as_secs_f64()
}

/// How long it takes until every member has done `pass`, called with its index.
fn time(team: &mut Team, pass: &(impl Fn(usize) + Sync)) -> Duration {
    let start = Instant::now();
    team.run(|member| pass(member.index));
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_limits() {
        for isa in IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut team = Team::new(1).unwrap();
            for work in [int8_loop(isa), f32_loop(isa)] {
                let ops = peak(&mut team, work);
                // Between one operation per hundred cycles (emulated) and a thousand per cycle of a fast core.
                assert!((1e7..1e13).contains(&ops), "{isa:?}: {ops}");
            }
        }
    }

    #[test]
    fn work_of_two_kinds_takes_the_time_of_both() {
        let limits = Roofline { threads: 1, isa: IsaLevel::Scalar, read: 1.0, int8: 100.0, f32: 10.0 };
        assert_eq!(limits.peak_of(5.0, 0.0), 100.0);
        assert_eq!(limits.peak_of(0.0, 5.0), 10.0);
        // 10 of the one take 0.1 s, 1 of the other 0.1 s.
        assert!((limits.peak_of(10.0, 1.0) - 55.0).abs() < 1e-9);
    }

    #[test]
    fn sums_take_every_byte_of_whole_lines() {
        let bytes: Vec<u8> = (0..4 * LINE).map(|i| i as u8).collect();
        let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
        assert_eq!(sum(&bytes), words.fold(0, u64::wrapping_add));
    }

    #[test]
    fn quantized_types_are_multiplied_as_integers() {
        assert!(multiplies_int8(GgmlType::Q4_K) && !multiplies_int8(GgmlType::F16));
    }
}
