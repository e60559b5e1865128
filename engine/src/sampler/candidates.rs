//! The tokens that may come next, with their logits.
//!
//! A vocabulary can have 262,144 tokens and most samplers look at a few dozen. So the logits start as a plain array
//! that is cheap to copy and to edit by id, and become a list of candidates when the first sampler narrows them.

use std::cmp::Ordering;

/// Logits tested together against the threshold of [`Candidates::keep_best`]: a few vector registers' worth.
const SCAN: usize = 32;

/// A token that may come next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Its logit: never NaN, never negative infinity, possibly positive infinity.
    pub logit: f32,
}

impl Candidate {
    /// Most likely first; equal logits by id. A total order, because logits are never NaN.
    fn rank(&self, other: &Candidate) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

/// The tokens that may come next. Buffers are kept from token to token.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Logits by id, shape `[n_vocab]`; NaN is replaced by negative infinity.
    logits: Vec<f32>,
    /// The candidates, once `listed`.
    list: Vec<Candidate>,
    listed: bool,
}

impl Candidates {
    /// Starts over with the logits of the next token, shape `[n_vocab]`. NaN counts as impossible.
    pub fn load(&mut self, logits: &[f32]) {
        self.listed = false;
        self.list.clear();
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&l| if l.is_nan() { f32::NEG_INFINITY } else { l }));
    }

    /// Starts over with the most likely of the next tokens only; see [`super::SamplerChain::enough`]. What is NaN or
    /// negative infinity is left out.
    pub fn load_best(&mut self, best: &[Candidate]) {
        self.listed = true;
        self.logits.clear();
        self.list.clear();
        self.list.extend(best.iter().filter(|c| c.logit > f32::NEG_INFINITY));
    }

    /// Changes the logit of one token, if it is (still) a candidate.
    pub fn edit(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        if self.listed {
            if let Some(at) = self.list.iter().position(|c| c.id == id) {
                let logit = change(self.list[at].logit);
                if logit > f32::NEG_INFINITY {
                    self.list[at].logit = logit;
                } else {
                    self.list.remove(at);
                }
            }
        } else if let Some(logit) = self.logits.get_mut(id as usize)
            && *logit > f32::NEG_INFINITY
        {
            let changed = change(*logit);
            *logit = if changed.is_nan() { f32::NEG_INFINITY } else { changed };
        }
    }

    /// The candidates as a list: in id order before a sampler narrowed them, most likely first afterwards.
    pub fn list(&mut self) -> &mut Vec<Candidate> {
        if !self.listed {
            self.listed = true;
            let all = self.logits.iter().enumerate().map(|(id, &logit)| Candidate { id: id as u32, logit });
            self.list.extend(all.filter(|c| c.logit > f32::NEG_INFINITY));
        }
        &mut self.list
    }

    /// The largest logit, or negative infinity where there is no candidate.
    pub fn max_logit(&mut self) -> f32 {
        self.list().iter().fold(f32::NEG_INFINITY, |max, c| if c.logit > max { c.logit } else { max })
    }

    /// Keeps the `k` most likely candidates, most likely first; the lowest ids of those that are equal.
    pub fn keep_best(&mut self, k: usize) {
        if !self.listed && k < self.logits.len() {
            self.listed = true;
            scan_best(&self.logits, k, &mut self.list);
        }
        let list = self.list();
        shrink_to_best(list, k);
        list.sort_unstable_by(Candidate::rank);
    }

    /// Sorts just enough of the candidates (most likely first) to find how many `enough` wants, and keeps those.
    ///
    /// `enough` is called with a sorted prefix of the candidates and returns how many of them are enough, or `None`
    /// for a longer prefix. Where it always returns `None`, all stay, sorted.
    pub fn keep_prefix(&mut self, mut enough: impl FnMut(&[Candidate]) -> Option<usize>) {
        let list = self.list();
        let mut sorted = 0;
        while sorted < list.len() {
            // The sorted prefix grows 8-fold: a flat distribution costs little more than one full sort.
            let next = if sorted == 0 { 128 } else { sorted.saturating_mul(8) };
            if next < list.len() {
                list[sorted..].select_nth_unstable_by(next - 1 - sorted, Candidate::rank);
            }
            let next = next.min(list.len());
            list[sorted..next].sort_unstable_by(Candidate::rank);
            sorted = next;
            if let Some(n) = enough(&list[..sorted]) {
                list.truncate(n);
                return;
            }
        }
    }
}

/// The weight of a logit against the largest one, `exp(logit - max)`: 1 for the largest even where it is infinite.
pub(super) fn weight(logit: f32, max: f32) -> f64 {
    if logit == max { 1.0 } else { (f64::from(logit) - f64::from(max)).exp() }
}

/// Appends to `list` a superset of the `k` best of `logits`, at most `2 k` long.
///
/// One pass with a rising threshold: after the first few hundred tokens of a vocabulary hardly any logit beats the k-th
/// best so far, and the comparison of a whole run of logits with it is a few vector instructions. Ids rise, so a later
/// logit that only equals the threshold loses against those already kept.
fn scan_best(logits: &[f32], k: usize, list: &mut Vec<Candidate>) {
    let full = 2 * k.max(SCAN);
    let mut threshold = f32::NEG_INFINITY;
    for (run_no, run) in logits.chunks(SCAN).enumerate() {
        if !run.iter().fold(false, |any, &l| any | (l > threshold)) {
            continue;
        }
        for (i, &logit) in run.iter().enumerate() {
            if logit > threshold {
                list.push(Candidate { id: (run_no * SCAN + i) as u32, logit });
            }
        }
        if list.len() + SCAN > full {
            shrink_to_best(list, k);
            threshold = list.iter().fold(f32::INFINITY, |min, c| if c.logit < min { c.logit } else { min });
        }
    }
}

/// Keeps the `k` best of `list`, in no particular order.
fn shrink_to_best(list: &mut Vec<Candidate>, k: usize) {
    if k == 0 {
        list.clear();
    } else if k < list.len() {
        list.select_nth_unstable_by(k - 1, Candidate::rank);
        list.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logit_is_edited_before_and_after_the_candidates_are_narrowed() {
        for narrowed in [false, true] {
            let mut candidates = Candidates::default();
            candidates.load(&[1.0, 4.0, f32::NAN, 3.0, 2.0]);
            if narrowed {
                candidates.keep_best(3);
            }
            candidates.edit(3, |l| l + 10.0);
            candidates.edit(4, |_| f32::NEG_INFINITY);
            candidates.edit(1, |_| f32::NAN);
            candidates.edit(0, |l| l * 2.0);
            candidates.edit(2, |_| 99.0); // impossible tokens stay so
            candidates.edit(77, |_| 99.0);
            candidates.keep_best(5);
            let got: Vec<(u32, f32)> = candidates.list().iter().map(|c| (c.id, c.logit)).collect();
            let expected: &[(u32, f32)] = if narrowed { &[(3, 13.0)] } else { &[(3, 13.0), (0, 2.0)] };
            assert_eq!(got, expected);
        }
    }
}
