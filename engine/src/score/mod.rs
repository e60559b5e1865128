//! How well a model predicts a text, and how far two models are apart, in what they predict and in their weights. All
//! sums are f64.
//!
//! The method is llama-perplexity's, so that figures can be compared: [`Windows`] says which tokens are scored,
//! [`Perplexity`] adds up their negative log likelihoods, [`Divergence`] the differences of two models. [`WeightError`] compares tensors.

mod divergence;
mod perplexity;
mod weights;
mod windows;

pub use divergence::{Divergence, Summary, TokenScore, compare};
pub use perplexity::{Perplexity, negative_log_likelihoods};
pub use weights::{Blocks, WeightError};
pub use windows::{MIN_WINDOW, Windows};

use std::num::NonZero;

/// `ln(sum(exp(logits)))`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if !max.is_finite() {
        // No probabilities can be had of these: NaN where there is no largest logit, or several infinite ones.
        return logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    }
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// Index of the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> usize {
    let largest = |best: (usize, f32), (i, x): (usize, &f32)| if *x > best.1 { (i, *x) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), largest).0
}

/// `f(0)..f(n)`, each thread computing a stretch of them: rows of a large vocabulary take as long as the model itself.
fn parallel<T: Send>(n: usize, threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = NonZero::new(threads.min(n)).map_or(1, NonZero::get);
    let stretch = n.div_ceil(threads);
    let f = &f;
    std::thread::scope(|scope| {
        let work = |t: usize| move || (n.min(t * stretch)..n.min((t + 1) * stretch)).map(f).collect::<Vec<T>>();
        let others: Vec<_> = (1..threads).map(|t| scope.spawn(work(t))).collect();
        let mut out = work(0)();
        for other in others {
            match other.join() {
                Ok(part) => out.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_of_known_values() {
        assert!((log_sum_exp(&[0.0; 8]) - 8f64.ln()).abs() < 1e-15);
        // No overflow, and nothing lost to a large common part.
        assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-11);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 3.0]), 3.0);
        assert!(log_sum_exp(&[f32::NAN, f32::NAN]).is_nan());
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(argmax(&[1.0, 5.0, 5.0, f32::NAN, 2.0]), 1);
    }

    #[test]
    fn parallel_results_are_in_order() {
        for threads in [0, 1, 2, 3, 7, 50] {
            for n in [0, 1, 2, 5, 20] {
                assert_eq!(parallel(n, threads, |i| i * i), (0..n).map(|i| i * i).collect::<Vec<_>>());
            }
        }
    }
}
