//! How fast this machine reads memory, measured on the spot: the bound of generation.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes read in a pass: far more than any cache holds.
const BUFFER: usize = 512 << 20;
/// How long to measure.
const TIME: Duration = Duration::from_millis(300);

/// Bytes per second that `threads` threads read together: the best pass over a large buffer.
pub(super) fn measure(threads: usize) -> f64 {
    // Written once, so that every page is its own and not the shared page of zeros.
    let buffer: Vec<u64> = (0..(BUFFER / 8) as u64).collect();
    let share = buffer.len().div_ceil(threads);
    let mut best = 0.0f64;
    let start = Instant::now();
    while start.elapsed() < TIME {
        let pass = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.max(BUFFER as f64 / pass.elapsed().as_secs_f64());
    }
    best
}

/// Sums in 16 lanes, so that additions do not wait for each other.
fn sum(part: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    for line in part.as_chunks::<16>().0 {
        for (lane, value) in lanes.iter_mut().zip(line) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}
