//! From one type to another, some rows at a time, on all threads.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::{Encode, Method, encodable_types, encode_fn};
use crate::error::{Error, Result};
use crate::ggml_type::GgmlType;
use crate::gguf::TensorInfo;
use crate::quant::{self, Decode};

/// Largest magnitude of a weight that becomes anything but F32 or BF16: that of half precision, in which blocks keep
/// their scales.
const LARGEST_F16: f32 = 65_504.0;

/// What encoding cost, summed over weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Sum of `(x - y)^2`.
    pub squares: f64,
    /// Sum of `w (x - y)^2`.
    pub weighted: f64,
    /// Sum of `w`.
    pub weight: f64,
    /// Sum of `x^2`.
    pub energy: f64,
    /// Number of weights.
    pub n: u64,
}

impl Loss {
    /// The sum over both.
    #[must_use]
    pub fn and(self, other: Loss) -> Loss {
        Loss {
            squares: self.squares + other.squares,
            weighted: self.weighted + other.weighted,
            weight: self.weight + other.weight,
            energy: self.energy + other.energy,
            n: self.n + other.n,
        }
    }

    /// Root of the mean square error, in units of the weights.
    pub fn rmse(&self) -> f64 {
        (self.squares / self.n.max(1) as f64).sqrt()
    }

    /// Root of the mean square error, each weight counted by its importance.
    pub fn weighted_rmse(&self) -> f64 {
        if self.weight > 0.0 { (self.weighted / self.weight).sqrt() } else { 0.0 }
    }

    /// Signal to noise in dB: `10 log10(sum of x^2 / sum of (x - y)^2)`; infinite without loss.
    pub fn sqnr(&self) -> f64 {
        10.0 * (self.energy / self.squares).log10()
    }
}

/// Turns the rows of one tensor into another type, or copies them; looks at each weight either way.
#[derive(Debug)]
pub struct Recode<'a> {
    tensor: &'a TensorInfo,
    ty: GgmlType,
    /// `None` for types that hold no weights, or none that this version can read: such rows are only copied.
    decode: Option<Decode>,
    /// How to encode, and how to decode that again; `None` for a copy.
    encode: Option<(Encode, Decode)>,
    method: Method,
}

/// A weight that cannot be encoded: its index in the rows given, and its value.
struct Bad {
    index: usize,
    value: f32,
}

/// Work memory of a thread.
struct Scratch {
    x: Vec<f32>,
    y: Vec<f32>,
    /// Importance, and what the weights' own magnitude makes of it.
    w: Vec<f32>,
}

impl<'a> Recode<'a> {
    /// For a tensor, and the type it is to have.
    ///
    /// # Errors
    /// One of the types has no decoder or encoder, or rows do not divide into blocks.
    pub fn new(tensor: &'a TensorInfo, ty: GgmlType, method: Method) -> Result<Recode<'a>> {
        let cannot = |message: String| Error::Encode { tensor: tensor.name.clone(), message };
        let (Some(encode), Some(decode_back)) = (encode_fn(ty), quant::decode_fn(ty)) else {
            let message = format!("cannot be made {ty} by this version of tandem; possible: {}", encodable_types());
            return Err(cannot(message));
        };
        if !tensor.row_len().is_multiple_of(ty.block_size()) {
            let (row_len, block) = (tensor.row_len(), ty.block_size());
            let message = format!("rows of {row_len} weights do not divide into the blocks of {block} that {ty} has");
            return Err(cannot(message));
        }
        let decode = Some(quant::decoder(tensor)?);
        Ok(Recode { tensor, ty, decode, encode: Some((encode, decode_back)), method })
    }

    /// For a tensor that keeps its type.
    pub fn copy(tensor: &'a TensorInfo) -> Recode<'a> {
        let decode = quant::decode_fn(tensor.ty);
        Recode { tensor, ty: tensor.ty, decode, encode: None, method: Method::Search }
    }

    /// Bytes of a row before, and after.
    pub fn row_bytes(&self) -> (usize, usize) {
        let n = self.tensor.row_len();
        // Both row lengths were checked to be whole blocks.
        let bytes = |ty: GgmlType| n / ty.block_size() * ty.block_bytes();
        (bytes(self.tensor.ty), bytes(self.ty))
    }

    /// Encodes rows, of which the first is row `first` of the tensor. `bytes` and `out` hold them before and after;
    /// `importance` has one positive number for each weight of a row; without it all count alike. Stops early when
    /// `stop` is set; what `out` and the result hold then is of no use.
    ///
    /// # Errors
    /// A weight that is not finite, or too large for the type; the message has its index.
    pub fn rows(
        &self,
        first: usize,
        bytes: &[u8],
        importance: Option<&[f32]>,
        out: &mut [u8],
        stop: &AtomicBool,
    ) -> Result<Loss> {
        let n = self.tensor.row_len();
        let mean_squares = mean_squares(self.ty, importance.is_some());
        let alike = if importance.is_none() { vec![1.0; n] } else { Vec::new() };
        let importance = importance.unwrap_or(&alike);
        let (from, to) = self.row_bytes();
        let rows: Vec<std::result::Result<Loss, Bad>> = bytes
            .par_chunks_exact(from)
            .zip(out.par_chunks_exact_mut(to))
            .map_init(
                || Scratch { x: vec![0.0; n], y: vec![0.0; n], w: vec![0.0; n] },
                |scratch, (bytes, out)| match stop.load(Ordering::Relaxed) {
                    true => Ok(Loss::default()),
                    false => self.row(bytes, importance, mean_squares, out, scratch),
                },
            )
            .collect();
        let mut total = Loss::default();
        // In order, so that the sum does not depend on the threads.
        for (row, loss) in rows.into_iter().enumerate() {
            total = total.and(loss.map_err(|bad| self.bad_weight((first + row) * n + bad.index, bad.value))?);
        }
        Ok(total)
    }

    /// Decodes row `row` of the tensor, whose blocks are `bytes`.
    ///
    /// # Errors
    /// As for [`rows`](Recode::rows).
    pub fn weights(&self, row: usize, bytes: &[u8], x: &mut [f32]) -> Result<()> {
        let n = self.tensor.row_len();
        self.load(bytes, x).map_err(|bad| self.bad_weight(row * n + bad.index, bad.value))
    }

    /// Decodes a row, where there is a decoder, and looks at each weight.
    fn load(&self, bytes: &[u8], x: &mut [f32]) -> std::result::Result<(), Bad> {
        if let Some(decode) = self.decode {
            decode(bytes, x);
        }
        let holds_all = self.encode.is_none() || [GgmlType::F32, GgmlType::BF16].contains(&self.ty);
        let limit = if holds_all { f32::MAX } else { LARGEST_F16 };
        match x.iter().position(|x| x.is_nan() || x.abs() > limit) {
            Some(index) => Err(Bad { index, value: x[index] }),
            None => Ok(()),
        }
    }

    fn row(
        &self,
        bytes: &[u8],
        importance: &[f32],
        mean_squares: f32,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> std::result::Result<Loss, Bad> {
        let Scratch { x, y, w } = scratch;
        self.load(bytes, x)?;
        match self.encode {
            Some((encode, decode_back)) => {
                if self.ty == GgmlType::Q1_0 {
                    // One bit leaves only the scale to choose: a mean of magnitudes, which `weigh` would make too large.
                    w.copy_from_slice(importance);
                } else {
                    weigh(x, importance, mean_squares, w);
                }
                encode(x, w, self.method, out);
                decode_back(out, y);
                Ok(measure(x, y, importance))
            }
            None => {
                out.copy_from_slice(bytes);
                Ok(Loss { n: x.len() as u64, ..Loss::default() })
            }
        }
    }

    fn bad_weight(&self, index: usize, value: f32) -> Error {
        let ty = self.ty;
        let why = if value.is_finite() {
            format!("is too large for {ty} (at most {LARGEST_F16}); F32 and BF16 can hold it")
        } else {
            "is not a finite number, so the tensor cannot be quantized; the file is damaged or was trained badly"
                .to_owned()
        };
        Error::Encode { tensor: self.tensor.name.clone(), message: format!("weight {index} ({value}) {why}") }
    }
}

/// How many times the mean square [`weigh`] takes: the more, the more weights of a row count alike. docs/quantization.md has
/// the figures it was chosen by.
fn mean_squares(ty: GgmlType, importance: bool) -> f32 {
    let has_one_bit = [GgmlType::IQ1_S, GgmlType::IQ1_M].contains(&ty);
    if importance || has_one_bit {
        // An importance says by itself what counts, and one bit cuts large weights off in any case.
        4.0
    } else if [GgmlType::Q4_1, GgmlType::IQ2_S].contains(&ty) {
        // Q4_1 holds the ends of a block's range exactly, if it is asked to.
        0.25
    } else {
        1.0
    }
}

/// Importance times the root of (`mean_squares` times the mean square of the row + the weight's square): large weights count
/// somewhat more than small ones. That loses a little in mean square error and gains in KL divergence.
pub fn weigh(x: &[f32], importance: &[f32], mean_squares: f32, w: &mut [f32]) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        return w.copy_from_slice(importance);
    }
    // Relative to the largest, so that squares neither vanish nor overflow.
    let square = |x: f32| (x / largest) * (x / largest);
    let mean = mean_squares * x.iter().map(|x| square(*x)).sum::<f32>() / x.len() as f32;
    for ((w, x), importance) in w.iter_mut().zip(x).zip(importance) {
        *w = importance * (mean + square(*x)).sqrt();
    }
}

/// The loss of a row `x` that became `y`.
pub fn measure(x: &[f32], y: &[f32], importance: &[f32]) -> Loss {
    let mut loss = Loss { n: x.len() as u64, ..Loss::default() };
    for ((x, y), w) in x.iter().zip(y).zip(importance) {
        let (x, w) = (f64::from(*x), f64::from(*w));
        let e = x - f64::from(*y);
        loss.squares += e * e;
        loss.weighted += w * e * e;
        loss.weight += w;
        loss.energy += x * x;
    }
    loss
}
