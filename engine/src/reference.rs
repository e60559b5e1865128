//! The specification: every step of a block program in plain scalar Rust, correct by reading and never fast.
//!
//! Weights are dequantized to f32, sums are f64, the cache is f32. Every fast path is tested against this, block by block.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

use tandem_loader::Gguf;
use tandem_models::{Activation, Linear, Program, Reg, Rope, RopePairing, Step, Vector, Weight, WeightId};

use crate::backend::Hidden;
use crate::error::Result;
use crate::inputs::InputSquares;

/// Contents of the registers for one batch: `[n_tokens, width]`, row-major.
pub(crate) type RegisterFile = HashMap<Reg, Vec<f32>>;

/// A model held as f32, and its cache.
pub struct Reference {
    program: Program,
    weights: Vec<Vec<f32>>,
    /// Keys and values of each layer, `[n_positions, n_head_kv * head_dim]`.
    cache: Vec<(Vec<f32>, Vec<f32>)>,
    /// What has gone into the matrices.
    inputs: RefCell<InputSquares>,
}

impl Reference {
    /// Dequantizes all weights of `gguf` for `program`.
    pub fn new(program: &Program, gguf: &Gguf) -> Result<Reference> {
        let load = |w: &tandem_models::Weight| -> Result<Vec<f32>> {
            let missing = || tandem_models::Error::MissingTensor { tensor: w.tensor.clone() };
            Ok(gguf.dequantize(gguf.tensor(&w.tensor).ok_or_else(missing)?)?)
        };
        let weights = program.weights.iter().map(load).collect::<Result<_>>()?;
        let cache = vec![Default::default(); program.hparams.n_layer];
        let inputs = RefCell::new(InputSquares::new(program));
        Ok(Reference { program: program.clone(), weights, cache, inputs })
    }

    /// Sums of squares of everything that has gone into a matrix.
    pub fn inputs(&self) -> InputSquares {
        self.inputs.borrow().clone()
    }

    /// Evaluates `tokens` after what is in the cache; logits of every token, `[n_tokens, n_vocab]`.
    pub fn eval(&mut self, tokens: &[u32]) -> Vec<f32> {
        let mut hidden = Hidden::default();
        for block in 0..self.program.blocks.len() {
            self.block(block, tokens, &mut hidden);
        }
        hidden.logits
    }

    /// Runs one block: X in, X (or the logits of every token) out.
    pub fn block(&mut self, block: usize, tokens: &[u32], hidden: &mut Hidden) {
        let mut regs = RegisterFile::from([(Reg::X, std::mem::take(&mut hidden.x))]);
        for step in self.program.blocks[block].steps.clone() {
            self.step(&step, tokens, &mut regs, &mut hidden.logits);
        }
        hidden.x = regs.remove(&Reg::X).unwrap_or_default();
    }

    /// Runs one step. Positions are those after the step's layer's cache.
    pub(crate) fn step(&mut self, step: &Step, tokens: &[u32], regs: &mut RegisterFile, logits: &mut Vec<f32>) {
        match step {
            Step::Embed { table, scale } => {
                let n_embd = self.program.hparams.n_embd;
                let rows = tokens.iter().flat_map(|t| &self.weights[table.0][*t as usize * n_embd..][..n_embd]);
                regs.insert(Reg::X, rows.map(|w| w * scale).collect());
            }
            Step::Norm { norm, input, output, add } => {
                let normed = self.rms_norm(&regs[input], norm);
                write(regs, *output, normed, *add);
            }
            Step::Qkv { q, k, v } => {
                for (linear, reg) in [(q, Reg::Q), (k, Reg::K), (v, Reg::V)] {
                    let out = self.linear(linear, &regs[&Reg::H]);
                    regs.insert(reg, out);
                }
            }
            Step::HeadNorm { q, k } => {
                for (norm, reg) in [(q, Reg::Q), (k, Reg::K)] {
                    let out = self.rms_norm(&regs[&reg], norm);
                    regs.insert(reg, out);
                }
            }
            Step::Rope { rope } => {
                let (rope, head_dim) = (&self.program.ropes[*rope], self.program.hparams.head_dim);
                // The layer's keys are not stored yet, and all layers before it have stored this batch.
                let start = self.cache.iter().map(|c| c.0.len()).min().unwrap_or(0) / self.program.registers.n_kv;
                for reg in [Reg::Q, Reg::K] {
                    let width = self.program.registers.width(reg);
                    let values = regs.get_mut(&reg).into_iter().flat_map(|v| v.chunks_exact_mut(width).enumerate());
                    for (row, values) in values {
                        values.chunks_exact_mut(head_dim).for_each(|head| rotate(head, rope, start + row));
                    }
                }
            }
            Step::StoreKv { layer } => {
                self.cache[*layer].0.extend_from_slice(&regs[&Reg::K]);
                self.cache[*layer].1.extend_from_slice(&regs[&Reg::V]);
            }
            Step::Attend { layer, scale, window } => {
                let out = self.attend(*layer, &regs[&Reg::Q], tokens.len(), *scale, *window);
                regs.insert(Reg::A, out);
            }
            Step::Linear { linear, input, output, add } => {
                let out = self.linear(linear, &regs[input]);
                write(regs, *output, out, *add);
            }
            Step::Glu { gate, up, act } => {
                let gate = self.linear(gate, &regs[&Reg::H]);
                let up = self.linear(up, &regs[&Reg::H]);
                regs.insert(Reg::F, gate.iter().zip(&up).map(|(g, u)| activate(*act, *g) * u).collect());
            }
            Step::Route { router, normalize } => {
                let logits = self.linear(router, &regs[&Reg::H]);
                let hp = &self.program.hparams;
                let rows = logits.chunks_exact(hp.n_expert);
                regs.insert(Reg::R, rows.flat_map(|row| route(row, hp.n_expert_used, *normalize)).collect());
            }
            Step::ExpertGlu { gate, up, act } => {
                let out = self.expert_glu(*gate, *up, *act, regs);
                regs.insert(Reg::F, out);
            }
            Step::ExpertDown { down, output, add } => {
                let out = self.expert_down(*down, regs);
                write(regs, *output, out, *add);
            }
            Step::SigmoidGate { weight, n_ff } => {
                let weight = self.vector(*weight);
                let gates: Vec<f32> =
                    regs[&Reg::H].chunks_exact(weight.len()).flat_map(|x| product(weight, x)).collect();
                let hidden = regs.get_mut(&Reg::F).into_iter().flat_map(|f| f.chunks_exact_mut(*n_ff));
                for (row, gate) in hidden.zip(gates) {
                    row.iter_mut().for_each(|x| *x /= 1.0 + (-gate).exp());
                }
            }
            Step::Logits { linear, soft_cap } => {
                *logits = self.linear(linear, &regs[&Reg::H]);
                if let Some(cap) = soft_cap {
                    logits.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
                }
            }
        }
    }

    fn vector(&self, id: WeightId) -> &[f32] {
        &self.weights[id.0]
    }

    /// RMS norm of every group of as many elements as the norm has weights.
    fn rms_norm(&self, input: &[f32], norm: &Vector) -> Vec<f32> {
        let weight = self.vector(norm.weight);
        let mut out = Vec::new();
        for row in input.chunks_exact(weight.len()) {
            let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + f64::from(norm.eps)).sqrt();
            out.extend(row.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale) as f32 * w));
        }
        out
    }

    fn linear(&self, linear: &Linear, input: &[f32]) -> Vec<f32> {
        let shape = self.program.weight(linear.weight);
        let matrix = self.vector(linear.weight);
        let mut out = Vec::new();
        for x in input.chunks_exact(shape.n_in) {
            self.inputs.borrow_mut().add(linear.weight, 0, x);
            let bias = |r: usize| linear.bias.map_or(0.0, |b| self.vector(b)[r]);
            out.extend(product(matrix, x).enumerate().map(|(r, y)| y + bias(r)));
        }
        out
    }

    /// For each token, the hidden of the experts it has chosen, one after another.
    fn expert_glu(&self, gate: WeightId, up: WeightId, act: Activation, regs: &RegisterFile) -> Vec<f32> {
        let mut out = Vec::new();
        for (x, weights) in regs[&Reg::H].chunks_exact(self.program.hparams.n_embd).zip(self.routing(regs)) {
            for (e, _) in chosen(weights) {
                let (gate, up) = (self.expert(gate, e, x), self.expert(up, e, x));
                out.extend(gate.iter().zip(&up).map(|(g, u)| activate(act, *g) * u));
            }
        }
        out
    }

    /// For each token, the weighted sum of what its experts make of their hidden.
    fn expert_down(&self, down: WeightId, regs: &RegisterFile) -> Vec<f32> {
        let Weight { n_in, n_out, .. } = *self.program.weight(down);
        let mut hidden = regs[&Reg::F].chunks_exact(n_in);
        let mut out = Vec::new();
        for weights in self.routing(regs) {
            let mut sum = vec![0.0; n_out];
            for ((e, weight), hidden) in chosen(weights).zip(&mut hidden) {
                let y = self.expert(down, e, hidden);
                sum.iter_mut().zip(&y).for_each(|(sum, y)| *sum += f64::from(weight) * f64::from(*y));
            }
            out.extend(sum.iter().map(|y| *y as f32));
        }
        out
    }

    /// `W x` of one expert.
    fn expert(&self, weight: WeightId, expert: usize, x: &[f32]) -> Vec<f32> {
        self.inputs.borrow_mut().add(weight, expert, x);
        let size = x.len() * self.program.weight(weight).n_out;
        product(&self.vector(weight)[expert * size..][..size], x).collect()
    }

    /// The rows of register R.
    fn routing<'a>(&self, regs: &'a RegisterFile) -> std::slice::ChunksExact<'a, f32> {
        regs[&Reg::R].chunks_exact(self.program.hparams.n_expert)
    }

    fn attend(&self, layer: usize, q: &[f32], n_tokens: usize, scale: f32, window: Option<usize>) -> Vec<f32> {
        let hp = &self.program.hparams;
        let (hd, n_kv) = (hp.head_dim, self.program.registers.n_kv);
        let (keys, values) = &self.cache[layer];
        let start = keys.len() / n_kv - n_tokens;
        let mut out = Vec::new();
        for t in 0..n_tokens {
            let last = start + t;
            let first = window.map_or(0, |w| (last + 1).saturating_sub(w));
            for h in 0..hp.n_head {
                let query = &q[(t * hp.n_head + h) * hd..][..hd];
                let kv_head = h / (hp.n_head / hp.n_head_kv);
                let head = |cache: &[f32], p: usize| cache[p * n_kv + kv_head * hd..][..hd].to_vec();
                let dot = |k: Vec<f32>| k.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
                let scores: Vec<f64> = (first..=last).map(|p| dot(head(keys, p)) * f64::from(scale)).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut mix = vec![0.0; hd];
                for (p, w) in (first..=last).zip(&weights) {
                    mix.iter_mut().zip(head(values, p)).for_each(|(m, v)| *m += w / sum * f64::from(v));
                }
                out.extend(mix.iter().map(|m| *m as f32));
            }
        }
        out
    }
}

/// The rows of `W x`.
fn product<'a>(matrix: &'a [f32], x: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    let dot = move |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
    matrix.chunks_exact(x.len()).map(move |row| dot(row) as f32)
}

/// The weights of all experts for one token: softmax of the logits for those chosen, 0 for the others.
fn route(logits: &[f32], n_used: usize, normalize: bool) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // The sort keeps the order of equal ones. What is no number comes first, so that it shows in the result.
    let key = |e: usize| if logits[e].is_nan() { f32::INFINITY } else { logits[e] };
    order.sort_by(|a, b| key(*b).partial_cmp(&key(*a)).unwrap_or(Ordering::Equal));
    let chosen = &order[..n_used];
    let sum: f64 = if normalize { chosen.iter().map(|e| exps[*e]).sum() } else { exps.iter().sum() };
    let mut weights = vec![0.0; logits.len()];
    chosen.iter().for_each(|e| weights[*e] = (exps[*e] / sum) as f32);
    weights
}

/// The experts of a row of register R that have a weight, and their weights.
fn chosen(weights: &[f32]) -> impl Iterator<Item = (usize, f32)> {
    weights.iter().copied().enumerate().filter(|(_, weight)| *weight != 0.0)
}

fn write(regs: &mut RegisterFile, reg: Reg, values: Vec<f32>, add: bool) {
    match regs.get_mut(&reg) {
        Some(old) if add => old.iter_mut().zip(values).for_each(|(o, v)| *o += v),
        _ => {
            regs.insert(reg, values);
        }
    }
}

/// Turns the pairs of one head by their angles at `position`.
fn rotate(head: &mut [f32], rope: &Rope, position: usize) {
    let half = rope.freqs.len();
    for (i, freq) in rope.freqs.iter().enumerate() {
        let (a, b) = match rope.pairing {
            RopePairing::Normal => (2 * i, 2 * i + 1),
            RopePairing::NeoX => (i, i + half),
        };
        let (sin, cos) = (position as f64 * freq).sin_cos();
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        head[a] = (f64::from(rope.magnitude) * (x * cos - y * sin)) as f32;
        head[b] = (f64::from(rope.magnitude) * (x * sin + y * cos)) as f32;
    }
}

/// The nonlinearity of a gated linear unit.
fn activate(act: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    y as f32
}
