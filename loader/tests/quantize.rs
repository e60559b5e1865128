//! What must hold for every type that can be encoded.

#![allow(clippy::unwrap_used)] // helpers of tests fail by unwrap, as tests do

use proptest::prelude::*;
use tandem_loader::quantize::{Method, encode_fn, measure};
use tandem_loader::{GgmlType, TypeClass, quant};

/// Blocks of all types divide this many weights.
const N: usize = 512;

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| encode_fn(*ty).is_some())
}

fn quantized() -> impl Iterator<Item = GgmlType> {
    types().filter(|ty| ty.class() == TypeClass::Quantized)
}

fn encode(ty: GgmlType, x: &[f32], w: &[f32], method: Method) -> Vec<u8> {
    let mut out = vec![0xa5; ty.row_bytes(x.len()).unwrap()];
    encode_fn(ty).unwrap()(x, w, method, &mut out);
    out
}

fn decode(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_size()];
    quant::decode_fn(ty).unwrap()(bytes, &mut out);
    out
}

/// Weights as models have them, and as they do not: normal, with outliers, zeros, constants, tiny and large runs.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    scaled_by(prop_oneof![6 => Just(0.02f32), 1 => Just(1e-7), 1 => Just(0.0), 1 => Just(300.0), 1 => Just(1e-12)])
}

/// The same with parts times one of these.
fn scaled_by(scale: impl Strategy<Value = f32>) -> impl Strategy<Value = Vec<f32>> {
    let normal = (-1.0f32..1.0, -1.0f32..1.0, -1.0f32..1.0).prop_map(|(a, b, c)| a + b + c);
    let weight = prop_oneof![20 => normal, 1 => -30.0f32..30.0, 1 => Just(0.0), 1 => Just(0.25)];
    let run = prop::collection::vec(weight, 64);
    let part = (run, scale, -2.0f32..2.0, 0..6u8).prop_map(|(run, scale, shift, kind)| {
        let shift = if kind == 0 { shift } else { 0.0 };
        run.into_iter().map(|x| scale * (x + shift)).collect::<Vec<f32>>()
    });
    prop::collection::vec(part, N / 64).prop_map(|parts| parts.concat())
}

/// Importances over several orders of magnitude.
fn importances() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![4 => 0.01f32..2.0, 1 => 2.0f32..50.0, 1 => Just(1e-6f32)], N)
}

/// Random blocks of a type, with scales between 2^-7 and 2^-2. (Where a minimum is a million times the scale, adding it
/// rounds the weights' places on the grid away.)
fn blocks(ty: GgmlType) -> impl Strategy<Value = Vec<u8>> {
    let n = ty.row_bytes(N).unwrap();
    (prop::collection::vec(any::<u8>(), n), prop::collection::vec((0x2000u16..0x3400, any::<bool>()), 2 * n)).prop_map(
        move |(mut bytes, scales)| {
            let mut scales = scales.into_iter();
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                for (at, sign) in scale_fields(ty) {
                    let (scale, negative) = scales.next().unwrap();
                    let scale = scale | u16::from(negative && *sign) << 15;
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            bytes.chunks_exact_mut(ty.block_bytes()).for_each(|block| make_possible(ty, block));
            bytes
        },
    )
}

/// Changes what no encoder of the type writes, or has no meaning.
fn make_possible(ty: GgmlType, block: &mut [u8]) {
    match ty {
        // Exponents of scales as weights have them; 255 is NaN.
        GgmlType::MXFP4 => block[0] = 100 + block[0] % 30,
        // 127 is NaN, the eighth bit unused.
        GgmlType::NVFP4 => block[..4].iter_mut().for_each(|d| *d %= 127),
        // Quants of 3 are not ternary.
        GgmlType::TQ2_0 => block[..64].iter_mut().for_each(|q| *q &= !(*q >> 1 & *q & 0x55)),
        // The scale's four nibbles, highest last: 2^-7 and more.
        GgmlType::IQ1_M => {
            block[53] = block[53] & 0x0f | 0x40;
            block[55] = block[55] & 0x0f | 0x20;
        }
        _ => {}
    }
}

/// Byte offsets of a block's half-precision numbers, and whether they may be negative.
fn scale_fields(ty: GgmlType) -> &'static [(usize, bool)] {
    use GgmlType::*;
    match ty {
        Q4_0 | Q5_0 | Q8_0 | Q1_0 | Q2_0 | IQ4_NL | IQ4_XS => &[(0, true)],
        MXFP4 | NVFP4 => &[],
        TQ1_0 => &[(52, false)],
        TQ2_0 => &[(64, false)],
        Q4_1 | Q5_1 => &[(0, false), (2, true)],
        Q2_K => &[(80, false), (82, false)],
        Q4_K | Q5_K => &[(0, false), (2, false)],
        Q3_K => &[(108, true)],
        Q6_K => &[(208, true)],
        IQ1_S | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S => &[(0, false)],
        // In pieces: made by `make_possible`.
        IQ1_M => &[],
        _ => panic!("{ty} is not in this table"),
    }
}

fn loss(x: &[f32], y: &[f32], w: &[f32]) -> f64 {
    measure(x, y, w).weighted
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn searching_is_never_worse_than_not_searching(x in weights(), w in importances()) {
        for ty in quantized() {
            let loss = |method| loss(&x, &decode(ty, &encode(ty, &x, &w, method)), &w);
            let search = loss(Method::Search);
            for plain in [Method::AbsMax, Method::MinMax] {
                // The search sums in f32, so blocks with equal losses may be taken for each other.
                prop_assert!(search <= loss(plain) * (1.0 + 1e-5) + 1e-25, "{ty} {plain:?}: {search} {}", loss(plain));
            }
        }
    }

    #[test]
    fn what_was_decoded_is_encoded_to_the_same_weights(blocks in quantized().map(blocks).collect::<Vec<_>>(), w in importances()) {
        for (ty, blocks) in quantized().zip(blocks) {
            let x = decode(ty, &blocks);
            let again = decode(ty, &encode(ty, &x, &w, Method::Search));
            for (i, (x, y)) in x.iter().zip(&again).enumerate() {
                prop_assert!(x == y, "{ty}: weight {i} was {x} and became {y}");
            }
        }
    }

    #[test]
    // Not for scales below 2^-14, where half precision has few digits: weights there need not lie on a grid again.
    fn encoding_twice_changes_nothing(
        x in scaled_by(prop_oneof![6 => Just(0.02f32), 1 => Just(0.0), 1 => Just(300.0)]),
        w in importances(),
    ) {
        for ty in types() {
            let once = encode(ty, &x, &w, Method::Search);
            let y = decode(ty, &once);
            let twice = decode(ty, &encode(ty, &y, &w, Method::Search));
            for (i, (x, y)) in y.iter().zip(&twice).enumerate() {
                prop_assert!(x == y, "{ty}: weight {i} was {x} and became {y}");
            }
        }
    }

    #[test]
    fn blocks_do_not_depend_on_their_neighbours(x in weights(), w in importances()) {
        for ty in types() {
            let whole = encode(ty, &x, &w, Method::Search);
            let n = ty.block_size().max(16);
            let parts: Vec<u8> =
                x.chunks(n).zip(w.chunks(n)).flat_map(|(x, w)| encode(ty, x, w, Method::Search)).collect();
            prop_assert!(whole == parts, "{ty}");
        }
    }
}
