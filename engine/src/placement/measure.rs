//! A device measures itself: small programs are timed on its backend, the same code that will run the model.

use std::ops::Range;
use std::time::{Duration, Instant};

use tandem_loader::GgmlType;
use tandem_models::BlockKind;

use super::probe::Probe;
use super::speed::{DeviceSpeed, HeadShape, Rate, Shape, WorkingSet};
use crate::backend::{Backend, Batch, Hidden};
use crate::error::Result;
use crate::model::KvType;
use crate::session::DEFAULT_BATCH;

/// How long one figure is measured.
const TIME: Duration = Duration::from_millis(100);
/// Fewest repetitions of a figure: one disturbance does not decide.
const REPETITIONS: usize = 8;
/// Repetitions that are enough of what takes long.
const FEW: usize = 4;
/// Layers timed together.
const N_LAYERS: usize = 32;
/// Positions of the cache.
pub(super) const N_CTX: usize = 4096;
/// Two shapes from which the cost of a product beside its bytes follows: matrices as in models of a hundred million weights,
/// and of some billions. Multiples of every type's block.
const SMALL: Shape = (512, 1536);
const LARGE: Shape = (2048, 8192);

/// Most likely tokens that a head is asked for, as a sampler with usual settings does.
const BEST: usize = 40;

/// Loads a probe on the device that is measured, with room for [`N_CTX`] positions.
pub(super) type Load<'a> = &'a dyn Fn(&Probe) -> Result<Box<dyn Backend>>;

/// Measures what of `needed` is missing in `speed`.
///
/// # Errors
/// Those of the backend.
pub(super) fn complete(speed: &mut DeviceSpeed, needed: &[Rate], load: Load<'_>) -> Result<()> {
    for rate in needed {
        if speed.rates.contains_key(&rate.name()) {
            continue;
        }
        let value = match *rate {
            Rate::Cache(kv_type) => steps(speed, kv_type, load)?,
            Rate::Weights(ty, shape, set) => {
                if speed.rates.keys().all(|name| name.starts_with("cache")) {
                    speed.product = product(ty, set, speed, load)?;
                }
                let products = Products::measure(ty, shape, set, speed, load)?;
                // Most of the time is reading; where it were not, half is the least it can be.
                let reading = (products.seconds - products.n * speed.product).max(products.seconds / 2.0);
                products.bytes / reading
            }
            Rate::Head(ty, shape, set) => head(ty, shape, set, speed, load)?,
        };
        speed.rates.insert(rate.name(), value);
    }
    Ok(())
}

/// Measures the cost of visits, steps and transfers; gives the speed of attention over a cache.
fn steps(speed: &mut DeviceSpeed, kv_type: KvType, load: Load<'_>) -> Result<f64> {
    let probe = Probe::layers(N_LAYERS)?;
    let mut timer = Timer::new(&probe, load)?;
    let n_rows = DEFAULT_BATCH;
    for start in (0..N_CTX).step_by(n_rows) {
        timer.run(probe.fill(), n_rows, start)?;
    }
    let (one, all) = (probe.first_layers(1), probe.first_layers(N_LAYERS));
    let [few, many, deep, row, rows] = timer.in_turns([
        (one.clone(), 1, 1),
        (all.clone(), 1, 1),
        (all.clone(), 1, N_CTX - 1),
        (probe.nothing(), 1, 1),
        (probe.nothing(), n_rows, 0),
    ])?;

    let n_steps = |blocks| probe.n_steps(blocks) as f64;
    speed.step = (many - few).max(0.0) / (n_steps(all) - n_steps(one.clone()));
    speed.visit = (few - speed.step * n_steps(one)).max(0.0);
    // In and out again.
    let bytes = 2 * 4 * (n_rows - 1) * probe.program.registers.n_embd;
    speed.transfer = (rows - row).max(0.0) / bytes as f64;
    let bytes = N_LAYERS * (N_CTX - 1) * kv_type.bytes(probe.program.kv_elements_per_position());
    // Attention that costs nothing measurable is as fast as the clock can tell.
    Ok(bytes as f64 / (deep - many).max(1e-6))
}

/// What a product costs beside its bytes.
fn product(ty: GgmlType, set: WorkingSet, speed: &DeviceSpeed, load: Load<'_>) -> Result<f64> {
    let [large, small] = [LARGE, SMALL].map(|shape| Products::measure(ty, shape, set, speed, load));
    let (large, small) = (large?, small?);
    // Two equations, `seconds = n * cost + bytes / rate`, for cost and rate.
    let determinant = small.n * large.bytes - large.n * small.bytes;
    Ok(((small.seconds * large.bytes - large.seconds * small.bytes) / determinant).max(0.0))
}

/// Speed of an output head, of as many rows as are enough to measure. Before it the rest of the working set is read.
fn head(
    ty: GgmlType,
    (n_embd, n_vocab): HeadShape,
    set: WorkingSet,
    speed: &DeviceSpeed,
    load: Load<'_>,
) -> Result<f64> {
    let row_bytes = n_embd / ty.block_size() * ty.block_bytes();
    let n_rows = n_vocab.min((set << 20) / row_bytes);
    let probe = Probe::head(ty, (n_embd, n_rows), set << 20)?;
    let (rest, head) = probe.before_head();
    let other = speed.visit + speed.step * probe.n_steps(head.clone()) as f64;
    let [_, seconds] = Timer::new(&probe, load)?.in_turns([(rest, 1, 1), (head, 1, 1)])?;
    Ok((n_rows * row_bytes) as f64 / (seconds - other).max(seconds / 2.0))
}

/// Products that were timed.
struct Products {
    n: f64,
    bytes: f64,
    /// Seconds of all of them, without the rest of their steps.
    seconds: f64,
}

impl Products {
    fn measure(ty: GgmlType, shape: Shape, set: WorkingSet, speed: &DeviceSpeed, load: Load<'_>) -> Result<Products> {
        let probe = Probe::weights(ty, shape, set << 20)?;
        let mut timer = Timer::new(&probe, load)?;
        let blocks = 0..probe.program.blocks.len();
        let other = speed.visit + speed.step * probe.n_steps(blocks.clone()) as f64;
        let seconds = timer.seconds(blocks, 1, 1)?;
        Ok(Products {
            n: probe.n_products() as f64,
            bytes: probe.matrix_bytes() as f64,
            seconds: (seconds - other).max(seconds / 2.0),
        })
    }
}

/// Times blocks of a loaded probe.
struct Timer {
    backend: Box<dyn Backend>,
    n_embd: usize,
    /// Whether a run ends in logits, of its last token.
    head: bool,
    tokens: Vec<u32>,
}

impl Timer {
    fn new(probe: &Probe, load: Load<'_>) -> Result<Timer> {
        let backend = load(probe)?;
        let head = probe.program.blocks.iter().any(|block| block.kind == BlockKind::Head);
        Ok(Timer { backend, n_embd: probe.program.registers.n_embd, head, tokens: vec![0; DEFAULT_BATCH] })
    }

    /// Runs blocks once over `n` tokens at position `start`.
    fn run(&mut self, blocks: Range<usize>, n: usize, start: usize) -> Result<f64> {
        let mut hidden = Hidden { x: vec![1.0; n * self.n_embd], enough: Some(BEST), ..Hidden::default() };
        let outputs = (n - usize::from(self.head), n);
        let batch = Batch { tokens: &self.tokens[..n], start, outputs };
        let clock = Instant::now();
        self.backend.run(blocks, &batch, &mut hidden)?;
        Ok(clock.elapsed().as_secs_f64())
    }

    /// Times a run; of one token as in a generation: the token before has been evaluated, and a device may be prepared for this one.
    fn sample(&mut self, blocks: Range<usize>, n: usize, start: usize) -> Result<f64> {
        if n == 1 && start > 0 {
            self.run(blocks.clone(), 1, start - 1)?;
        }
        self.run(blocks, n, start)
    }

    /// The first quartile of some runs, after one that is not counted: what disturbs a run can only make it slower.
    fn seconds(&mut self, blocks: Range<usize>, n: usize, start: usize) -> Result<f64> {
        let [seconds] = self.in_turns([(blocks, n, start)])?;
        Ok(seconds)
    }

    /// The same of several runs (blocks, tokens, first position) that take turns, so that what disturbs one for a while
    /// disturbs all, and their differences are still right.
    fn in_turns<const N: usize>(&mut self, runs: [(Range<usize>, usize, usize); N]) -> Result<[f64; N]> {
        let mut samples: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
        for (blocks, n, start) in &runs {
            self.run(blocks.clone(), *n, *start)?;
        }
        let clock = Instant::now();
        for turn in 0.. {
            let time = TIME * N as u32;
            let enough = if clock.elapsed() >= 4 * time { FEW } else { REPETITIONS };
            if turn >= enough && clock.elapsed() >= time {
                break;
            }
            for ((blocks, n, start), samples) in runs.iter().zip(&mut samples) {
                samples.push(self.sample(blocks.clone(), *n, *start)?);
            }
        }
        Ok(samples.map(|mut samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 4]
        }))
    }
}
