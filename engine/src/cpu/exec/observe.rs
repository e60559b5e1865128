//! Sums the squares of what goes into matrices, for importance matrices: before a step, from the registers it will read.

use std::ops::Range;

use tandem_models::{Linear, Reg, Step, WeightId};

use super::super::team::{Member, Shared};
use super::Exec;
use super::scratch::slot;
use crate::inputs::InputSquares;

/// Columns that a member claims at a time: their sums fill some cache lines.
const STRIPE: usize = 64;

/// The sums, as members see them.
pub(super) struct Observed {
    /// Sums and counts by [`WeightId`].
    matrices: Vec<Option<(Shared<f64>, Shared<u64>)>>,
}

impl Observed {
    /// Borrows the sums for one pass.
    pub(super) fn new(inputs: &mut InputSquares) -> Observed {
        let share = |matrix: &mut Option<crate::inputs::MatrixInputs>| {
            matrix.as_mut().map(|matrix| (Shared::new(&mut matrix.sums), Shared::new(&mut matrix.counts)))
        };
        Observed { matrices: inputs.by_weight().iter_mut().map(share).collect() }
    }
}

// SAFETY of the `Shared` accesses below: members claim disjoint columns, whose sums only they touch; counts are written by
// the member that has the first column; registers are not written in these phases.
impl Exec<'_> {
    /// Adds the inputs of all matrices that a step multiplies.
    pub(super) fn observe(&self, observed: &Observed, step: &Step, m: &Member<'_>) {
        let all = 0..self.n();
        let linears = |linears: &[&Linear], input: Reg, rows: Range<usize>| {
            for linear in linears {
                let n_in = self.matrix(linear).n_in;
                self.add_squares(observed, linear.weight, n_in, m, |add| add(0, input, &mut rows.clone()));
            }
        };
        match step {
            Step::Qkv { q, k, v } => linears(&[q, k, v], Reg::H, all),
            Step::Linear { linear, input, .. } => linears(&[linear], *input, all),
            Step::Glu { gate, up, .. } => linears(&[gate, up], Reg::H, all),
            Step::Route { router, .. } => linears(&[router], Reg::H, all),
            Step::Logits { linear, .. } => linears(&[linear], Reg::H, self.batch.output_rows()),
            Step::ExpertGlu { gate, up, .. } => {
                for id in [gate, up] {
                    self.add_squares(observed, *id, self.matrices(*id).n_in, m, |add| {
                        for (expert, tokens, _) in self.expert_rows() {
                            add(expert, Reg::H, &mut tokens.iter().map(|t| *t as usize));
                        }
                    });
                }
            }
            Step::ExpertDown { down, .. } => {
                self.add_squares(observed, *down, self.matrices(*down).n_in, m, |add| {
                    for (expert, _, rows) in self.expert_rows() {
                        add(expert, Reg::F, &mut rows.iter().map(|row| *row as usize));
                    }
                });
            }
            Step::Embed { .. }
            | Step::Norm { .. }
            | Step::HeadNorm { .. }
            | Step::Rope { .. }
            | Step::StoreKv { .. }
            | Step::Attend { .. }
            | Step::SigmoidGate { .. } => {}
        }
    }

    /// One phase: members claim columns, and add those of the rows that `visit` tells them, expert by expert.
    fn add_squares(
        &self,
        observed: &Observed,
        id: WeightId,
        n_in: usize,
        m: &Member<'_>,
        visit: impl Fn(&mut dyn FnMut(usize, Reg, &mut dyn Iterator<Item = usize>)),
    ) {
        let Some((sums, counts)) = &observed.matrices[id.0] else { return };
        m.phase_even(n_in.div_ceil(STRIPE), |stripes| {
            let columns = stripes.start * STRIPE..n_in.min(stripes.end * STRIPE);
            visit(&mut |expert, input, rows| {
                // SAFETY: this member's columns.
                let sums = unsafe { sums.get_mut(expert * n_in + columns.start..expert * n_in + columns.end) };
                let mut n = 0;
                for row in rows {
                    let at = row * n_in;
                    // SAFETY: nobody writes the register in this phase.
                    let x = unsafe { self.registers[slot(input)].get(at + columns.start..at + columns.end) };
                    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
                    n += 1;
                }
                if columns.start == 0 {
                    // SAFETY: only one member has the first column.
                    let count = unsafe { counts.get_mut(expert..expert + 1) };
                    count[0] += n;
                }
            });
        });
    }
}
