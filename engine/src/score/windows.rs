//! Which tokens of a text are scored, and after which context.

use std::ops::Range;

use crate::error::{Error, Result};

/// The shortest window in which a token is scored.
pub const MIN_WINDOW: usize = 3;

/// A text cut into windows of `n_ctx` tokens, each evaluated by itself.
///
/// In a window the first half is context only; from its middle on each token is scored after all those before it. The
/// incomplete rest of the text is dropped. Where the model wants a BOS token, it takes the place of each window's first
/// token.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<u32>,
    n_ctx: usize,
    bos: Option<u32>,
    n: usize,
}

impl Windows {
    /// Windows of `n_ctx` tokens (at least [`MIN_WINDOW`]), at most `limit` of them. `n_vocab` is that of the logits.
    ///
    /// # Errors
    /// A token without a logit.
    pub fn new(
        tokens: Vec<u32>,
        n_ctx: usize,
        bos: Option<u32>,
        limit: Option<usize>,
        n_vocab: usize,
    ) -> Result<Windows> {
        if let Some(&token) = tokens.iter().chain(&bos).find(|t| **t as usize >= n_vocab) {
            return Err(Error::BadToken { token, n_vocab });
        }
        let n_ctx = n_ctx.max(MIN_WINDOW);
        let n = (tokens.len() / n_ctx).min(limit.unwrap_or(usize::MAX));
        Ok(Windows { tokens, n_ctx, bos, n })
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether the text is too short for one.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Tokens of a window.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Tokens of the whole text.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Window `i` as it is evaluated, `[n_ctx]`.
    pub fn tokens(&self, i: usize) -> Vec<u32> {
        let mut window = self.tokens[i * self.n_ctx..(i + 1) * self.n_ctx].to_vec();
        if let Some(bos) = self.bos {
            window[0] = bos;
        }
        window
    }

    /// Rows of a window whose logits are scored: row `r` predicts token `r + 1`.
    pub fn scored(&self) -> Range<usize> {
        self.n_ctx / 2..self.n_ctx - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_windows_only_and_bos_in_front() {
        let windows = Windows::new((10..27).collect(), 8, Some(1), None, 100).unwrap();
        assert_eq!((windows.len(), windows.n_tokens()), (2, 17));
        assert_eq!(windows.tokens(0), [1, 11, 12, 13, 14, 15, 16, 17]);
        assert_eq!(windows.tokens(1), [1, 19, 20, 21, 22, 23, 24, 25]);
        assert_eq!(windows.scored(), 4..7);
        let limited = Windows::new((10..27).collect(), 8, None, Some(1), 100).unwrap();
        assert_eq!((limited.len(), limited.tokens(0)[0]), (1, 10));
        assert!(Windows::new((0..7).collect(), 8, None, None, 100).unwrap().is_empty());
    }

    #[test]
    fn the_shortest_window_scores_one_token() {
        assert_eq!(Windows::new(vec![0; 3], MIN_WINDOW, None, None, 1).unwrap().scored(), 1..2);
    }

    #[test]
    fn tokens_without_logits_are_refused() {
        assert!(matches!(Windows::new(vec![1, 7, 2], 3, None, None, 7), Err(Error::BadToken { token: 7, n_vocab: 7 })));
        assert!(Windows::new(vec![1, 6, 2], 3, Some(7), None, 7).is_err());
    }
}
