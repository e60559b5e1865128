//! How far the weights of two tensors are apart.

use tandem_loader::quant::Decode;

use super::parallel;

/// Weights decoded at a time: whole blocks of every type.
const PIECE: usize = 1 << 16;

/// The blocks of a tensor and their decoder.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// Decodes whole blocks.
    pub decode: Decode,
    /// The blocks.
    pub bytes: &'a [u8],
    /// Weights in one.
    pub block: usize,
}

impl Blocks<'_> {
    /// The weights from `first` on, as many as `out` has room for; both are whole blocks.
    fn weights(&self, first: usize, out: &mut [f32], n_weights: usize) {
        let n_blocks = n_weights / self.block;
        let block_bytes = self.bytes.len() / n_blocks.max(1);
        let blocks = first / self.block..(first + out.len()) / self.block;
        (self.decode)(&self.bytes[blocks.start * block_bytes..blocks.end * block_bytes], out);
    }
}

/// Differences `b - a` of the weights of two tensors, A being what they should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightError {
    /// Weights.
    pub n: usize,
    /// Sum of the squares of the differences.
    pub squares: f64,
    /// Sum of the squares of A's weights.
    pub power: f64,
    /// The largest difference.
    pub max: f64,
    /// The block of B with the largest sum of squares: its index in the tensor, and that sum.
    pub worst: (usize, f64),
}

impl WeightError {
    /// Compares two tensors of `n` weights, whole blocks of both, by `threads` threads. The result does not depend on
    /// their number. NaN and infinity stay visible in it.
    pub fn of(a: &Blocks<'_>, b: &Blocks<'_>, n: usize, threads: usize) -> WeightError {
        let pieces = parallel(n.div_ceil(PIECE), threads, |i| piece(a, b, i * PIECE, n));
        pieces.into_iter().fold(WeightError::none(), WeightError::with)
    }

    fn none() -> WeightError {
        WeightError { n: 0, squares: 0.0, power: 0.0, max: 0.0, worst: (0, 0.0) }
    }

    /// Joined with the error of further weights.
    fn with(self, next: WeightError) -> WeightError {
        WeightError {
            n: self.n + next.n,
            squares: self.squares + next.squares,
            power: self.power + next.power,
            max: larger(self.max, next.max),
            worst: if is_larger(next.worst.1, self.worst.1) { next.worst } else { self.worst },
        }
    }

    /// Root of the mean square of the differences.
    pub fn rmse(&self) -> f64 {
        (self.squares / self.n as f64).sqrt()
    }

    /// Signal to quantization noise, `10 log10(power / squares)` decibels; infinite where nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        if self.squares == 0.0 { f64::INFINITY } else { 10.0 * (self.power / self.squares).log10() }
    }
}

/// Whether `x` is larger than `y`, or the first NaN.
fn is_larger(x: f64, y: f64) -> bool {
    x > y || (x.is_nan() && !y.is_nan())
}

fn larger(x: f64, y: f64) -> f64 {
    if is_larger(y, x) { y } else { x }
}

fn piece(a: &Blocks<'_>, b: &Blocks<'_>, first: usize, n: usize) -> WeightError {
    let len = PIECE.min(n - first);
    let (mut x, mut y) = (vec![0.0f32; len], vec![0.0f32; len]);
    a.weights(first, &mut x, n);
    b.weights(first, &mut y, n);
    let blocks = x.chunks(b.block).zip(y.chunks(b.block)).enumerate();
    blocks.fold(WeightError::none(), |sum, (i, (x, y))| {
        let mut error = WeightError { n: x.len(), ..WeightError::none() };
        for (x, y) in x.iter().zip(y) {
            let difference = f64::from(*y) - f64::from(*x);
            error.squares += difference * difference;
            error.power += f64::from(*x).powi(2);
            error.max = larger(error.max, difference.abs());
        }
        error.worst = (first / b.block + i, error.squares);
        sum.with(error)
    })
}

#[cfg(test)]
mod tests {
    use tandem_loader::quant::float::decode_f32;

    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn compare(a: &[f32], b: &[f32], block: usize, threads: usize) -> WeightError {
        let (a_bytes, b_bytes) = (bytes(a), bytes(b));
        let blocks = |bytes| Blocks { decode: decode_f32, bytes, block };
        WeightError::of(&blocks(&a_bytes), &blocks(&b_bytes), a.len(), threads)
    }

    #[test]
    fn errors_of_known_weights() {
        let error = compare(&[3.0, 4.0, 0.0, 1.0], &[3.0, 3.0, 0.5, 1.0], 2, 1);
        assert_eq!((error.n, error.squares, error.power, error.max), (4, 1.25, 26.0, 1.0));
        assert_eq!(error.worst, (0, 1.0));
        assert!((error.rmse() - (1.25f64 / 4.0).sqrt()).abs() < 1e-15);
        assert!((error.sqnr_db() - 10.0 * 20.8f64.log10()).abs() < 1e-12);
        assert_eq!(compare(&[1.0; 4], &[1.0; 4], 2, 1).sqnr_db(), f64::INFINITY);
    }

    #[test]
    fn many_pieces_and_threads_give_the_same() {
        let n = 3 * PIECE + 64;
        let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut b: Vec<f32> = a.iter().enumerate().map(|(i, x)| x + (i % 13) as f32 * 1e-3).collect();
        b[2 * PIECE + 70] += 2.0;
        let one = compare(&a, &b, 32, 1);
        assert_eq!(one, compare(&a, &b, 32, 5));
        assert_eq!(one.worst.0, (2 * PIECE + 70) / 32);
        let squares: f64 = a.iter().zip(&b).map(|(a, b)| (f64::from(*b) - f64::from(*a)).powi(2)).sum();
        assert!((one.squares / squares - 1.0).abs() < 1e-12 && one.n == n);
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        let error = compare(&[1.0; 6], &[1.0, 2.0, 1.0, f32::NAN, 9.0, 1.0], 2, 1);
        assert!(error.rmse().is_nan() && error.max.is_nan());
        assert_eq!(error.worst.0, 1);
    }
}
