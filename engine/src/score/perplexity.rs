//! Perplexity: the exponential of the mean negative log likelihood.

use super::{log_sum_exp, parallel};

/// `-ln p(target)` for rows of logits `[n_rows, n_vocab]`, row-major, one target each, by `threads` threads.
pub fn negative_log_likelihoods(logits: &[f32], targets: &[u32], threads: usize) -> Vec<f64> {
    let n_vocab = logits.len() / targets.len().max(1);
    parallel(targets.len(), threads, |i| {
        let row = &logits[i * n_vocab..(i + 1) * n_vocab];
        log_sum_exp(row) - f64::from(row[targets[i] as usize])
    })
}

/// Sums of negative log likelihoods, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    n: usize,
    sum: f64,
    squares: f64,
}

impl Perplexity {
    /// Adds a token's.
    pub fn add(&mut self, nll: f64) {
        self.n += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    /// Tokens scored.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Mean negative log likelihood; NaN without tokens.
    pub fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    /// The perplexity; NaN without tokens.
    pub fn value(&self) -> f64 {
        self.mean().exp()
    }

    /// Standard error of the perplexity: that of the mean, times the perplexity. 0 for a single token.
    pub fn error(&self) -> f64 {
        self.mean_error() * self.value()
    }

    /// Standard error of the mean negative log likelihood, by its sample variance.
    pub fn mean_error(&self) -> f64 {
        if self.n < 2 {
            return 0.0;
        }
        let variance = self.squares / self.n as f64 - self.mean().powi(2);
        (variance.max(0.0) / (self.n - 1) as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_the_vocabulary_as_perplexity() {
        let logits = vec![0.25; 3 * 50];
        let mut perplexity = Perplexity::default();
        for nll in negative_log_likelihoods(&logits, &[0, 7, 49], 2) {
            perplexity.add(nll);
        }
        assert_eq!(perplexity.n(), 3);
        assert!((perplexity.value() - 50.0).abs() < 1e-12);
        assert!(perplexity.error() < 1e-6);
    }

    #[test]
    fn a_sure_prediction_costs_nothing_and_a_wrong_one_much() {
        let row = [0.0, 60.0, -4.0];
        let nll = negative_log_likelihoods(&row.repeat(2), &[1, 2], 1);
        assert!(nll[0].abs() < 1e-15 && (nll[1] - 64.0).abs() < 1e-12);
    }

    #[test]
    fn mean_and_error_of_known_values() {
        let mut perplexity = Perplexity::default();
        assert!(perplexity.value().is_nan());
        perplexity.add(1.0);
        assert_eq!(perplexity.error(), 0.0);
        perplexity.add(3.0);
        // Variance 1 (of all), over n - 1.
        assert_eq!((perplexity.mean(), perplexity.mean_error()), (2.0, 1.0));
        assert!((perplexity.error() - 2f64.exp()).abs() < 1e-12);
    }
}
