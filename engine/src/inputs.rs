//! What goes into a model's matrices: sums of squared inputs, of which importance matrices are made.

use tandem_models::{Program, WeightId, WeightRole};

/// The inputs that a matrix, or each of an expert tensor's matrices, has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixInputs {
    /// Name of the tensor.
    pub tensor: String,
    /// Columns of the matrix: floats of an input.
    pub n_in: usize,
    /// Inputs seen, `[n_expert]`; one where the tensor is a single matrix.
    pub counts: Vec<u64>,
    /// Sum over the inputs of the square of each element, `[n_expert, n_in]`.
    pub sums: Vec<f64>,
}

/// Sums of squared inputs of all matrices of a program. A backend that is given them (see
/// [`crate::LoadOptions::inputs`]) adds every input that it multiplies.
#[derive(Debug, Clone)]
pub struct InputSquares {
    /// By [`WeightId`]; none for weights that are no matrix.
    matrices: Vec<Option<MatrixInputs>>,
}

impl InputSquares {
    /// Nothing seen yet.
    pub fn new(program: &Program) -> InputSquares {
        let matrix = |weight: &tandem_models::Weight| {
            let n = match weight.role {
                WeightRole::Matrix => 1,
                WeightRole::Experts { n_expert } => n_expert,
                WeightRole::Table | WeightRole::Vector => return None,
            };
            let (tensor, n_in) = (weight.tensor.clone(), weight.n_in);
            Some(MatrixInputs { tensor, n_in, counts: vec![0; n], sums: vec![0.0; n * n_in] })
        };
        InputSquares { matrices: program.weights.iter().map(matrix).collect() }
    }

    /// All matrices, also those that have seen nothing.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixInputs> {
        self.matrices.iter().flatten()
    }

    /// All matrices, to go on from sums made before.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut MatrixInputs> {
        self.matrices.iter_mut().flatten()
    }

    /// That of a weight.
    pub fn get(&self, id: WeightId) -> Option<&MatrixInputs> {
        self.matrices.get(id.0)?.as_ref()
    }

    /// Adds an input of a matrix, of an expert's where there are experts; inputs of other weights are ignored.
    pub(crate) fn add(&mut self, id: WeightId, expert: usize, x: &[f32]) {
        if let Some(matrix) = &mut self.matrices[id.0] {
            matrix.counts[expert] += 1;
            let sums = &mut matrix.sums[expert * matrix.n_in..(expert + 1) * matrix.n_in];
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    }

    /// By [`WeightId`].
    pub(crate) fn by_weight(&mut self) -> &mut [Option<MatrixInputs>] {
        &mut self.matrices
    }
}
