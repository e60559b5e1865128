//! The moments of inputs in the form that rounding wants: factors in an order of columns that keeps blocks together.

use tandem_loader::imatrix;

use super::Options;
use super::hessian::{Factors, Hessian};
use crate::cpu::outer::Outer;
use crate::error::Result;

/// What the inputs of some matrices say, in the form that rounding wants.
pub(super) struct Moments<'a> {
    pub(super) hessian: &'a Hessian,
    /// How much the weights of each column count: the mean squares of inputs, all alike where nothing was seen.
    pub(super) squares: Vec<f32>,
    /// Weights of the blocks that these are for; 0: none yet.
    block: usize,
    pub(super) order: Vec<usize>,
    pub(super) factors: Factors,
}

impl<'a> Moments<'a> {
    pub(super) fn new(hessian: &'a Hessian) -> Moments<'a> {
        let squares = imatrix::positive(&hessian.mean_squares());
        Moments { hessian, squares, block: 0, order: Vec::new(), factors: Factors::default() }
    }

    /// Factors for types with blocks of this size: matrices with the same input mostly have the same type.
    pub(super) fn factor(&mut self, block: usize, options: &Options, outer: Outer) -> Result<()> {
        if self.block != block {
            self.factors = Factors::default();
            self.order = order(&self.squares, block, options.act_order);
            self.factors = self.hessian.copy()?.factor(&self.order, options.damping, outer);
            self.block = block;
        }
        Ok(())
    }
}

/// The order in which columns are rounded: as they are, or those with the largest inputs first, of blocks that are kept
/// together: first the block with the largest sum, and within it the largest column.
pub(super) fn order(squares: &[f32], block: usize, act_order: bool) -> Vec<usize> {
    let mut blocks: Vec<Vec<usize>> =
        (0..squares.len() / block).map(|b| (b * block..(b + 1) * block).collect()).collect();
    if act_order {
        let sum = |columns: &[usize]| columns.iter().map(|c| squares[*c]).sum::<f32>();
        for columns in &mut blocks {
            columns.sort_by(|a, b| squares[*b].total_cmp(&squares[*a]));
        }
        blocks.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    }
    blocks.concat()
}
