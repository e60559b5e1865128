//! The squares of what goes into matrices, against the reference executor's.

use std::sync::{Arc, Mutex};

use tandem_engine::cpu::IsaLevel;
use tandem_engine::reference::Reference;
use tandem_engine::{InputSquares, LoadOptions, MatrixInputs, Model, Precision, Session};
use tandem_loader::Gguf;
use tandem_models::Program;

use super::file::{Random, Shape};
use super::open;

/// All matrices' sums after evaluating tokens with the logits of every one.
fn observed(gguf: &Arc<Gguf>, isa: IsaLevel, threads: usize, batch: usize, tokens: &[u32]) -> Vec<MatrixInputs> {
    let inputs = Arc::new(Mutex::new(InputSquares::new(&Program::from_gguf(gguf).unwrap())));
    let options = LoadOptions {
        threads: Some(threads),
        n_ctx: Some(tokens.len()),
        precision: Precision::Exact,
        isa: Some(isa),
        inputs: Some(inputs.clone()),
        ..LoadOptions::default()
    };
    let mut session = Session::new(Model::load(gguf.clone(), &options, &mut |_, _| ()).unwrap());
    session.set_batch(batch);
    session.eval_all(tokens, |_| ()).unwrap();
    let inputs = inputs.lock().unwrap();
    inputs.matrices().cloned().collect()
}

fn check(shape: &Shape, seed: u64) {
    let mut random = Random::new(seed);
    let gguf = open(shape, &mut random);
    let program = Program::from_gguf(&gguf).unwrap();
    let tokens: Vec<u32> = (0..1 + random.below(50)).map(|_| random.below(shape.n_vocab) as u32).collect();
    let mut reference = Reference::new(&program, &gguf).unwrap();
    reference.eval(&tokens);
    let expected = reference.inputs();
    for isa in IsaLevel::ALL.into_iter().filter(|isa| isa.is_available()) {
        let what = format!("seed {seed}, {isa:?}, {shape:?}");
        let got = observed(&gguf, isa, 2, 512, &tokens);
        assert_eq!(got.len(), expected.matrices().count());
        for (got, want) in got.iter().zip(expected.matrices()) {
            assert_eq!((&got.tensor, got.n_in, &got.counts), (&want.tensor, want.n_in, &want.counts), "{what}");
            let per_matrix =
                tokens.len() as u64 * if want.counts.len() > 1 { shape.experts.unwrap().1 as u64 } else { 1 };
            assert_eq!(want.counts.iter().sum::<u64>(), per_matrix, "{}: {what}", want.tensor);
            for (got, want) in got.sums.iter().zip(&want.sums) {
                // Inputs are f32 with an error of some units in the last place.
                assert!((got - want).abs() <= 1e-4 * want + 1e-9, "{got} {want}: {what}");
            }
        }
        // Neither threads nor batches show.
        assert!(got == observed(&gguf, isa, 1, 7, &tokens), "{what}");
        assert!(got == observed(&gguf, isa, 3, 1, &tokens), "{what}");
    }
}

#[test]
fn inputs_of_matrices_are_those_of_the_reference() {
    for seed in 0..8 {
        let mut random = Random::new(5000 + seed);
        let shape = Shape::random(&mut random);
        check(&shape, seed);
        check(&Shape::random_experts(&mut random), seed);
    }
}
