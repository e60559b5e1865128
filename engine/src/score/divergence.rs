//! How far the predictions of two models are apart, token by token.

use super::{Perplexity, argmax, log_sum_exp, parallel};

/// The predictions of two models, A and B, for one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// `KL(A || B)` of the two distributions over the vocabulary, in nats.
    pub kl: f64,
    /// `-ln p(token)` of A and of B.
    pub nll: [f64; 2],
    /// Whether both find the same token most likely.
    pub same_top: bool,
}

impl TokenScore {
    /// What B thinks of the token's probability less what A does.
    pub fn probability_change(&self) -> f64 {
        (-self.nll[1]).exp() - (-self.nll[0]).exp()
    }
}

/// Compares rows of logits `[n_rows, n_vocab]` of A and B, row-major, with one target token each, by `threads` threads.
pub fn compare(a: &[f32], b: &[f32], targets: &[u32], threads: usize) -> Vec<TokenScore> {
    let n_vocab = a.len() / targets.len().max(1);
    parallel(targets.len(), threads, |i| {
        let row = i * n_vocab..(i + 1) * n_vocab;
        compare_row(&a[row.clone()], &b[row], targets[i] as usize)
    })
}

fn compare_row(a: &[f32], b: &[f32], target: usize) -> TokenScore {
    let sums = [log_sum_exp(a), log_sum_exp(b)];
    let mut kl = 0.0;
    for (x, y) in a.iter().zip(b) {
        let ln_p = f64::from(*x) - sums[0];
        let p = ln_p.exp();
        // What has no probability counts nothing, also where B's is 0 too.
        if p > 0.0 || p.is_nan() {
            kl += p * (ln_p - (f64::from(*y) - sums[1]));
        }
    }
    TokenScore {
        // Below 0 by rounding only. NaN stays.
        kl: if kl < 0.0 { 0.0 } else { kl },
        nll: [sums[0] - f64::from(a[target]), sums[1] - f64::from(b[target])],
        same_top: argmax(a) == argmax(b),
    }
}

/// The comparison of two models over a text.
#[derive(Debug, Clone, Default)]
pub struct Divergence {
    scores: Vec<TokenScore>,
    perplexity: [Perplexity; 2],
}

/// The figures of a comparison. Errors are standard errors of the means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Tokens scored.
    pub n: usize,
    /// Perplexity of A and of B.
    pub ppl: [f64; 2],
    /// Their standard errors.
    pub ppl_error: [f64; 2],
    /// `ln(PPL(B) / PPL(A))`, and its standard error: the two go up and down together, so it is much smaller than those
    /// of the perplexities.
    pub ln_ratio: (f64, f64),
    /// `KL(A || B)` in nats: mean and its standard error.
    pub kl_mean: (f64, f64),
    /// Median.
    pub kl_median: f64,
    /// What 99 % of the tokens stay below.
    pub kl_p99: f64,
    /// What 99.9 % of the tokens stay below.
    pub kl_p999: f64,
    /// Largest.
    pub kl_max: f64,
    /// Share of tokens for which both models find the same token most likely.
    pub top1: f64,
    /// Root of the mean square of the change of the token's probability.
    pub rms_dp: f64,
}

impl Divergence {
    /// Adds a token's.
    pub fn add(&mut self, score: TokenScore) {
        for (sum, nll) in self.perplexity.iter_mut().zip(score.nll) {
            sum.add(nll);
        }
        self.scores.push(score);
    }

    /// All tokens, in the order they were added.
    pub fn scores(&self) -> &[TokenScore] {
        &self.scores
    }

    /// Perplexity so far of A and of B.
    pub fn perplexity(&self) -> &[Perplexity; 2] {
        &self.perplexity
    }

    /// The figures; `None` without tokens.
    pub fn summary(&self) -> Option<Summary> {
        let n = self.scores.len();
        if n == 0 {
            return None;
        }
        let mut sorted: Vec<f64> = self.scores.iter().map(|score| score.kl).collect();
        sorted.sort_by(f64::total_cmp);
        let mean = |value: fn(&TokenScore) -> f64| self.scores.iter().map(value).sum::<f64>() / n as f64;
        let [a, b] = self.perplexity;
        Some(Summary {
            n,
            ppl: [a.value(), b.value()],
            ppl_error: [a.error(), b.error()],
            ln_ratio: mean_and_error(self.scores.iter().map(|score| score.nll[1] - score.nll[0])),
            kl_mean: mean_and_error(self.scores.iter().map(|score| score.kl)),
            kl_median: quantile(&sorted, 0.5),
            kl_p99: quantile(&sorted, 0.99),
            kl_p999: quantile(&sorted, 0.999),
            kl_max: sorted[n - 1],
            top1: mean(|score| f64::from(u8::from(score.same_top))),
            rms_dp: mean(|score| score.probability_change().powi(2)).sqrt(),
        })
    }
}

/// Mean and its standard error.
fn mean_and_error(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut sums = Perplexity::default();
    values.for_each(|value| sums.add(value));
    (sums.mean(), sums.mean_error())
}

/// Linear between the two nearest of sorted values.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_does_not_differ_from_itself() {
        let a = [0.3, -2.0, 7.5, 1e-3, -80.0, 7.5];
        let score = compare_row(&a, &a, 3);
        assert_eq!((score.kl, score.same_top, score.probability_change()), (0.0, true, 0.0));
        // A common shift of the logits changes no probability.
        let shifted = a.map(|x| x + 4.0);
        assert!(compare_row(&a, &shifted, 3).kl < 1e-12);
    }

    #[test]
    fn divergence_of_known_distributions() {
        // A: 3/4 and 1/4; B: 1/4 and 3/4. KL = 3/4 ln 3 - 1/4 ln 3.
        let (a, b) = ([3f32.ln(), 0.0], [0.0, 3f32.ln()]);
        let score = compare_row(&a, &b, 0);
        assert!((score.kl - 0.5 * 3f64.ln()).abs() < 1e-7);
        assert!((score.probability_change() + 0.5).abs() < 1e-7);
        assert!(!score.same_top);
        // What B holds for impossible and A does not is infinitely far; the other way round it is not.
        let never = [f32::NEG_INFINITY, 0.0];
        assert_eq!(compare_row(&a, &never, 1).kl, f64::INFINITY);
        assert!((compare_row(&never, &a, 1).kl - 4f64.ln()).abs() < 1e-7);
        assert!(compare_row(&[f32::NAN, 0.0], &a, 1).kl.is_nan());
    }

    #[test]
    fn the_summary_of_a_few_tokens() {
        let mut divergence = Divergence::default();
        assert!(divergence.summary().is_none());
        for i in 0..101 {
            let nll = if i % 2 == 0 { [1.0, 1.5] } else { [1.0, 0.5] };
            divergence.add(TokenScore { kl: f64::from(100 - i), nll, same_top: i % 4 != 0 });
        }
        let summary = divergence.summary().unwrap();
        assert_eq!((summary.n, summary.kl_median, summary.kl_max), (101, 50.0, 100.0));
        assert!((summary.kl_p99 - 99.0).abs() < 1e-9 && (summary.kl_p999 - 99.9).abs() < 1e-9);
        assert!((summary.kl_mean.0 - 50.0).abs() < 1e-12);
        // Variance of 0..=100 is 850; over n - 1.
        assert!((summary.kl_mean.1 - 8.5f64.sqrt()).abs() < 1e-9);
        assert!((summary.ln_ratio.0 - 0.5 / 101.0).abs() < 1e-12);
        assert!((summary.ppl[0] - 1f64.exp()).abs() < 1e-12 && summary.ppl_error[0] < 1e-7);
        assert!((summary.top1 - 75.0 / 101.0).abs() < 1e-12);
        let change = |nll: f64| ((-nll).exp() - (-1f64).exp()).powi(2);
        let rms = ((51.0 * change(1.5) + 50.0 * change(0.5)) / 101.0).sqrt();
        assert!((summary.rms_dp - rms).abs() < 1e-12);
    }

    #[test]
    fn rows_are_compared_with_their_own_targets() {
        let a = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0];
        let scores = compare(&a, &a, &[0, 2], 2);
        assert!((scores[0].nll[0] - scores[1].nll[0] - 2.0).abs() < 1e-12);
    }
}
