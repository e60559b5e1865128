//! The kernels of the CPU backend one by one, on one thread: `cargo bench -p tandem-engine`.
//!
//! Words after `--` choose by name, as in `-- gemm` or `-- "gemv.*Q4_K"`. GEMV shows bytes of weights per second, the
//! others elements or operations (additions and multiplications) per second.

use std::fmt;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use tandem_engine::KvType;
use tandem_engine::cpu::IsaLevel;
use tandem_engine::cpu::bench_support::{
    Attention, Glu, Norm, Product, Quantize, Rotation, instruction_sets, weight_types,
};
use tandem_loader::GgmlType;
use tandem_models::{Activation, RopePairing};

/// Row length of matrices: a multiple of every block size.
const N_IN: usize = 2048;
/// Rows and columns: with them, weights and activations fit the L2 cache.
const N_OUT: usize = 64;
const N_COLS: usize = 96;
/// Elements of a row in the small kernels.
const ROW: usize = 2048;
const HEAD_DIM: usize = 64;

/// An instruction set and what varies besides it, shown as `avx2 Q4_K`.
#[derive(Clone, Copy)]
struct Case<T>(IsaLevel, T);

impl<T: fmt::Display> fmt::Display for Case<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.name(), self.1)
    }
}

/// All instruction sets with each of some things.
fn cases<T: Copy>(things: impl IntoIterator<Item = T>) -> Vec<Case<T>> {
    let with_each = |thing| instruction_sets().into_iter().map(move |isa| Case(isa, thing));
    things.into_iter().flat_map(with_each).collect()
}

/// A thing with a name.
#[derive(Clone, Copy)]
struct Named<T>(&'static str, T);

impl<T> fmt::Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn product(case: Case<GgmlType>, n_cols: usize) -> Product {
    let product = Product::new(case.0, case.1, N_IN, N_OUT, n_cols);
    product.unwrap_or_else(|| unreachable!("weight_types() gives types that have kernels"))
}

#[divan::bench(args = cases(weight_types()), max_time = 0.1)]
fn gemv(bencher: Bencher<'_, '_>, case: Case<GgmlType>) {
    let mut product = product(case, 1);
    bencher.counter(BytesCount::new(product.bytes())).bench_local(|| product.run());
}

#[divan::bench(args = cases(weight_types()), max_time = 0.1)]
fn gemm(bencher: Bencher<'_, '_>, case: Case<GgmlType>) {
    let mut product = product(case, N_COLS);
    bencher.counter(ItemsCount::new(product.ops())).bench_local(|| product.run());
}

#[divan::bench(args = cases([ROW]), max_time = 0.1)]
fn quantize_activations(bencher: Bencher<'_, '_>, case: Case<usize>) {
    let mut quantize = Quantize::new(case.0, case.1);
    bencher.counter(ItemsCount::new(case.1)).bench_local(|| quantize.run());
}

/// So many queries over a cache of a type.
#[derive(Clone, Copy)]
struct Queries(KvType, usize);

impl fmt::Display for Queries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} at once", self.0.name(), self.1)
    }
}

/// One query (generation), some (short prompts), and as many as share a chunk (prompts).
fn attention_cases() -> Vec<Case<Queries>> {
    cases(KvType::ALL.into_iter().flat_map(|kv_type| [1, 8, Attention::MAX_QUERIES].map(|n| Queries(kv_type, n))))
}

#[divan::bench(args = attention_cases(), max_time = 0.1)]
fn attention_chunk(bencher: Bencher<'_, '_>, case: Case<Queries>) {
    let Case(isa, Queries(kv_type, n)) = case;
    let mut attention = Attention::new(isa, kv_type, HEAD_DIM, n).expect("a chunk of cache is small");
    bencher.counter(ItemsCount::new(attention.ops())).bench_local(|| attention.run());
}

#[divan::bench(args = cases([ROW]), max_time = 0.1)]
fn rms_norm(bencher: Bencher<'_, '_>, case: Case<usize>) {
    let mut norm = Norm::new(case.0, case.1);
    bencher.counter(ItemsCount::new(case.1)).bench_local(|| norm.run());
}

#[divan::bench(args = [Named("normal", RopePairing::Normal), Named("neox", RopePairing::NeoX)], max_time = 0.1)]
fn rope(bencher: Bencher<'_, '_>, pairing: Named<RopePairing>) {
    let mut rotation = Rotation::new(pairing.1, HEAD_DIM);
    bencher.counter(ItemsCount::new(HEAD_DIM)).bench_local(|| rotation.run());
}

#[divan::bench(
    args = cases([Named("silu", Activation::Silu), Named("gelu", Activation::GeluTanh)]),
    max_time = 0.1,
)]
fn glu(bencher: Bencher<'_, '_>, case: Case<Named<Activation>>) {
    let mut glu = Glu::new(case.0, case.1.1, ROW);
    bencher.counter(ItemsCount::new(ROW)).bench_local(|| glu.run());
}

fn main() {
    divan::main();
}
