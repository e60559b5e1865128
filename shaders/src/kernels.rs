//! The kernels: which sources and settings each variant is made of, and what is bound to it.

use tandem_loader::GgmlType;

use crate::compose::{ComposeError, Define, compose};
use crate::formats::{Decode, Format};

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../wgsl/", $name)))),*] };
}

/// All sources: kernels, and what they include.
pub static SOURCES: &[(&str, &str)] = sources![
    "attend.wgsl",
    "best/collect.wgsl",
    "best/common.wgsl",
    "best/slices.wgsl",
    "best/sort.wgsl",
    "best/threshold.wgsl",
    "combine.wgsl",
    "coopmat.wgsl",
    "decode/bf16.wgsl",
    "decode/common.wgsl",
    "decode/e2m1.wgsl",
    "decode/f16.wgsl",
    "decode/f32.wgsl",
    "decode/grid.wgsl",
    "decode/iq1.wgsl",
    "decode/iq1_m.wgsl",
    "decode/iq1_s.wgsl",
    "decode/iq2_s.wgsl",
    "decode/iq2_xs.wgsl",
    "decode/iq2_xxs.wgsl",
    "decode/iq3_s.wgsl",
    "decode/iq3_xxs.wgsl",
    "decode/iq4_nl.wgsl",
    "decode/iq4_values.wgsl",
    "decode/iq4_xs.wgsl",
    "decode/k_scales.wgsl",
    "decode/mxfp4.wgsl",
    "decode/nvfp4.wgsl",
    "decode/q1_0.wgsl",
    "decode/q2_0.wgsl",
    "decode/q2_k.wgsl",
    "decode/q3_k.wgsl",
    "decode/q4_0.wgsl",
    "decode/q4_1.wgsl",
    "decode/q4_k.wgsl",
    "decode/q5_0.wgsl",
    "decode/q5_1.wgsl",
    "decode/q5_k.wgsl",
    "decode/q6_k.wgsl",
    "decode/q8_0.wgsl",
    "decode/tq1_0.wgsl",
    "decode/tq2_0.wgsl",
    "decode/values.wgsl",
    "glu.wgsl",
    "group.wgsl",
    "heads.wgsl",
    "kv/f16.wgsl",
    "kv/f32.wgsl",
    "kv/plain.wgsl",
    "kv/q4_0.wgsl",
    "kv/q8_0.wgsl",
    "kv/quantized.wgsl",
    "matmat.wgsl",
    "matvec.wgsl",
    "merge.wgsl",
    "norm.wgsl",
    "peak.wgsl",
    "product.wgsl",
    "quantize.wgsl",
    "quantize_quad.wgsl",
    "route.wgsl",
    "sigmoid_gate.wgsl",
    "sum.wgsl",
    "tile.wgsl",
    "unit.wgsl",
];

/// Sizes of attention heads, and threads that work on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Elements of a head, at most 1024.
    pub head_dim: u32,
    /// Query heads per KV head.
    pub group: u32,
}

impl HeadShape {
    /// Elements of a head in fours.
    pub fn quads(self) -> u32 {
        self.head_dim.div_ceil(4)
    }

    /// Threads of a workgroup: one for each four elements at least.
    pub fn threads(self) -> u32 {
        self.quads().next_power_of_two().max(64)
    }

    /// Most queries of a workgroup: those and their scores stay within 16 KiB of workgroup memory.
    pub fn max_rows(self) -> u32 {
        (512 / self.quads().next_power_of_two()).clamp(1, 16)
    }
}

/// Element type of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cache {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers, a scale per 32.
    Q8_0,
    /// 4-bit integers, a scale per 32.
    Q4_0,
}

impl Cache {
    /// All types.
    pub const ALL: [Cache; 4] = [Cache::F32, Cache::F16, Cache::Q8_0, Cache::Q4_0];

    fn snippet(self) -> &'static str {
        match self {
            Cache::F32 => "kv/f32.wgsl",
            Cache::F16 => "kv/f16.wgsl",
            Cache::Q8_0 => "kv/q8_0.wgsl",
            Cache::Q4_0 => "kv/q4_0.wgsl",
        }
    }
}

/// How rotated elements of a head pair up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Neighbours.
    Normal,
    /// Halves.
    NeoX,
}

/// What a product's weights and activations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operands {
    /// Type of the weights, one of [`crate::FORMATS`].
    pub ty: GgmlType,
    /// Activations.
    pub acts: Acts,
}

impl Operands {
    /// Whether [`Kernel::CoopMat`] multiplies them: plain numbers, or quantized weights with activations in int8 once. Of what
    /// int8 twice is more exact by, f16 would leave little.
    pub fn fit_coop(self) -> bool {
        let quantized = Format::of(self.ty).is_some_and(|format| format.decode == Decode::Quants);
        match self.acts {
            Acts::F32 => !quantized,
            Acts::Int8 => quantized,
            Acts::Int8Twice => false,
        }
    }
}

/// How a product reads its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Acts {
    /// 32-bit floats.
    F32,
    /// 8-bit integers, a scale per 32; with quantized weights only.
    Int8,
    /// The same, and beside each group what it leaves over, as such a group again.
    Int8Twice,
}

impl Acts {
    /// Bytes of a group of 32: quants, and their scale and sums.
    pub fn group_bytes(self) -> usize {
        match self {
            Acts::F32 => 128,
            Acts::Int8 => 48,
            Acts::Int8Twice => 96,
        }
    }

    fn is_int8(self) -> bool {
        match self {
            Acts::F32 => false,
            Acts::Int8 | Acts::Int8Twice => true,
        }
    }
}

/// The kernels that find the most likely tokens, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BestStep {
    /// The largest logit of each slice of the vocabulary.
    Slices,
    /// The smallest logit that may be among the best.
    Threshold,
    /// All that are not smaller.
    Collect,
    /// Their order.
    Sort,
}

impl BestStep {
    /// All steps, in order.
    pub const ALL: [BestStep; 4] = [BestStep::Slices, BestStep::Threshold, BestStep::Collect, BestStep::Sort];
    /// Most tokens that are found.
    pub const MAX_K: usize = 256;
    /// Most slices.
    pub const MAX_SLICES: usize = 1024;
    /// Most logits that are collected and sorted.
    pub const MAX_COLLECTED: usize = 1024;
}

/// A variant of a kernel: what becomes one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// RMS norm of rows.
    Norm {
        /// Input and output are the same.
        in_place: bool,
        /// How results are written for a product.
        acts: Acts,
    },
    /// Rows to int8.
    Quantize {
        /// And what that leaves over.
        twice: bool,
    },
    /// Gated activation.
    Glu {
        /// GELU's tanh approximation, and not SiLU.
        gelu: bool,
        /// Results are also written as int8.
        quantize: bool,
    },
    /// Norm, rotation and storing of heads.
    Heads {
        /// Sizes.
        shape: HeadShape,
        /// Norm of Q and K.
        norm: bool,
        /// Rotation of Q and K.
        rope: Option<Pairing>,
        /// Storing of K and V.
        store: Option<Cache>,
    },
    /// Attention.
    Attend {
        /// Sizes.
        shape: HeadShape,
        /// Type of the cache.
        cache: Cache,
        /// Queries of a workgroup, a power of two.
        rows: u32,
        /// Workgroups share out the positions.
        shares: bool,
        /// Results are also written as int8, which is for merging to do where there are shares. Heads are whole groups of 32.
        quantize: bool,
    },
    /// Merging of shares.
    Merge {
        /// Sizes.
        shape: HeadShape,
        /// Results are also written as int8. Heads are whole groups of 32.
        quantize: bool,
    },
    /// Finding the most likely tokens, in four steps.
    Best(BestStep),
    /// Choosing of experts.
    Route {
        /// How many there are.
        n_expert: u32,
    },
    /// Sorting of (token, expert) pairs by expert.
    Group {
        /// How many experts there are.
        n_expert: u32,
    },
    /// Weighted sum over a token's experts.
    Combine,
    /// Scaling of rows by a sigmoid.
    SigmoidGate,
    /// Product with few tokens.
    MatVec {
        /// Types.
        operands: Operands,
        /// Threads of a workgroup, a power of two, 4 or more.
        threads: u32,
        /// Tokens of a workgroup.
        cols: u32,
        /// Sums through subgroups, and not through workgroup memory.
        subgroups: bool,
        /// Each token has its own matrices; `cols` is 1.
        experts: bool,
    },
    /// Product with many tokens.
    MatMat {
        /// Types.
        operands: Operands,
        /// Tiles of 64 tokens, and not of 16.
        wide: bool,
        /// Each tile has its own matrix.
        experts: bool,
    },
    /// Product with many tokens by cooperative matrices: tiles of 64 tokens.
    CoopMat {
        /// Types; see [`Operands::fit_coop`].
        operands: Operands,
        /// Threads of a workgroup: see [`Kernel::coop_threads`].
        threads: u32,
        /// Each tile has its own matrix.
        experts: bool,
    },
    /// Finding the largest absolute weight.
    Peak {
        /// Type of the weights, one of [`crate::FORMATS`].
        ty: GgmlType,
    },
}

/// A binding: its number, and whether kernels only read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Number in group 0.
    pub number: u32,
    /// Kernels do not write it.
    pub read_only: bool,
}

fn bindings(list: &[(u32, bool)]) -> Vec<Binding> {
    list.iter().map(|&(number, read_only)| Binding { number, read_only }).collect()
}

impl Kernel {
    /// The file its entry point `main` is in.
    pub fn file(&self) -> &'static str {
        match self {
            Kernel::Norm { .. } => "norm.wgsl",
            Kernel::Quantize { .. } => "quantize.wgsl",
            Kernel::Glu { .. } => "glu.wgsl",
            Kernel::Heads { .. } => "heads.wgsl",
            Kernel::Attend { .. } => "attend.wgsl",
            Kernel::Merge { .. } => "merge.wgsl",
            Kernel::Best(BestStep::Slices) => "best/slices.wgsl",
            Kernel::Best(BestStep::Threshold) => "best/threshold.wgsl",
            Kernel::Best(BestStep::Collect) => "best/collect.wgsl",
            Kernel::Best(BestStep::Sort) => "best/sort.wgsl",
            Kernel::Route { .. } => "route.wgsl",
            Kernel::Group { .. } => "group.wgsl",
            Kernel::Combine => "combine.wgsl",
            Kernel::SigmoidGate => "sigmoid_gate.wgsl",
            Kernel::MatVec { .. } => "matvec.wgsl",
            Kernel::MatMat { .. } => "matmat.wgsl",
            Kernel::CoopMat { .. } => "coopmat.wgsl",
            Kernel::Peak { .. } => "peak.wgsl",
        }
    }

    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        match self {
            Kernel::Norm { .. } | Kernel::MatMat { .. } | Kernel::Group { .. } | Kernel::SigmoidGate => 256,
            Kernel::Quantize { .. } | Kernel::Glu { .. } | Kernel::Route { .. } | Kernel::Combine => 64,
            Kernel::Heads { .. } | Kernel::Merge { .. } => 64,
            Kernel::Attend { shape, .. } => shape.threads(),
            Kernel::Best(BestStep::Slices) => 64,
            Kernel::Best(BestStep::Threshold | BestStep::Collect | BestStep::Sort) => 256,
            Kernel::MatVec { threads, .. } | Kernel::CoopMat { threads, .. } => *threads,
            Kernel::Peak { .. } => 64,
        }
    }

    /// Threads that [`Kernel::CoopMat`] takes where subgroups have up to `subgroup` of them: no fewer than four subgroups, and
    /// a thread for each row and each token of a tile. A multiple of all sizes of subgroups, so that all are full.
    pub fn coop_threads(subgroup: u32) -> u32 {
        (4 * subgroup.min(1024).next_power_of_two()).max(128)
    }

    /// What is bound, all storage buffers of group 0.
    pub fn bindings(&self) -> Vec<Binding> {
        match self {
            Kernel::Norm { in_place, acts } => {
                let mut list = vec![(1, true), (2, false)];
                list.extend((!in_place).then_some((0, true)));
                list.extend(acts.is_int8().then_some((3, false)));
                bindings(&list)
            }
            Kernel::Quantize { .. } => bindings(&[(0, true), (3, false)]),
            Kernel::Glu { quantize, .. } => {
                let mut list = vec![(0, true), (1, false)];
                list.extend(quantize.then_some((3, false)));
                bindings(&list)
            }
            Kernel::Heads { norm, rope, store, .. } => {
                let mut list = vec![(0, false)];
                list.extend(norm.then_some([(1, true), (2, true)]).into_iter().flatten());
                list.extend(rope.map(|_| (3, true)));
                list.extend(store.map(|_| [(4, false), (5, false)]).into_iter().flatten());
                bindings(&list)
            }
            Kernel::Attend { quantize, .. } => {
                let mut list = vec![(0, true), (1, true), (2, true), (4, false)];
                list.extend(quantize.then_some((3, false)));
                bindings(&list)
            }
            Kernel::Merge { quantize, .. } => {
                let mut list = vec![(0, true), (1, false)];
                list.extend(quantize.then_some((3, false)));
                bindings(&list)
            }
            Kernel::Best(BestStep::Slices | BestStep::Threshold) => bindings(&[(0, true), (1, false)]),
            Kernel::Best(BestStep::Collect) => bindings(&[(0, true), (1, false), (2, false)]),
            Kernel::Best(BestStep::Sort) => bindings(&[(0, true), (1, true), (2, false)]),
            Kernel::Route { .. } => bindings(&[(0, false), (1, false)]),
            Kernel::Group { .. } => bindings(&[(0, true), (1, false), (2, false)]),
            Kernel::Combine | Kernel::SigmoidGate => bindings(&[(0, true), (1, true), (2, false)]),
            Kernel::Peak { .. } => bindings(&[(0, true), (1, true), (2, true), (5, false)]),
            Kernel::MatVec { experts, .. } | Kernel::MatMat { experts, .. } | Kernel::CoopMat { experts, .. } => {
                let mut list = vec![(0, true), (1, true), (2, true), (3, true), (5, false)];
                // Experts have no biases.
                list.push(if *experts { (6, true) } else { (4, true) });
                list.extend(experts.then_some([(7, true), (8, true)]).into_iter().flatten());
                bindings(&list)
            }
        }
    }

    /// Its WGSL text.
    ///
    /// # Errors
    /// Those of [`compose`], which the tests rule out for every variant.
    pub fn source(&self) -> Result<String, ComposeError> {
        let mut settings = Settings::new(self.threads());
        match self {
            Kernel::Norm { in_place, acts } => {
                settings.flag("IN_PLACE", *in_place);
                settings.flag("QUANTIZE", acts.is_int8());
                settings.flag("TWICE", *acts == Acts::Int8Twice);
            }
            Kernel::Quantize { twice } => settings.flag("TWICE", *twice),
            Kernel::Glu { gelu, quantize } => {
                settings.flag("GELU", *gelu);
                settings.flag("QUANTIZE", *quantize);
                settings.flag("TWICE", false);
            }
            Kernel::Heads { shape, norm, rope, store } => {
                settings.shape(*shape);
                settings.flag("NORM", *norm);
                settings.flag("ROPE", rope.is_some());
                settings.flag("NEOX", *rope == Some(Pairing::NeoX));
                settings.flag("STORE", store.is_some());
                settings.include("kv.wgsl", store.unwrap_or(Cache::F32).snippet());
            }
            Kernel::Attend { shape, cache, rows, shares, quantize } => {
                settings.shape(*shape);
                settings.number("ROWS", *rows);
                settings.flag("SHARES", *shares);
                settings.flag("QUANTIZE", *quantize);
                settings.flag("TWICE", false);
                settings.flag("STORE", false);
                settings.include("kv.wgsl", cache.snippet());
            }
            Kernel::Merge { shape, quantize } => {
                settings.shape(*shape);
                settings.flag("QUANTIZE", *quantize);
                settings.flag("TWICE", false);
            }
            Kernel::Route { n_expert } | Kernel::Group { n_expert } => settings.number("EXPERTS", *n_expert),
            Kernel::Combine | Kernel::SigmoidGate | Kernel::Best(_) => {}
            Kernel::MatVec { operands, threads: _, cols, subgroups, experts } => {
                settings.operands(*operands);
                settings.flag("EXPERTS", *experts);
                settings.number("COLS", *cols);
                settings.flag("SUBGROUPS", *subgroups);
            }
            Kernel::MatMat { operands, wide, experts } => {
                settings.operands(*operands);
                settings.flag("EXPERTS", *experts);
                settings.flag("WIDE", *wide);
            }
            Kernel::CoopMat { operands, threads: _, experts } => {
                settings.operands(*operands);
                settings.flag("EXPERTS", *experts);
                settings.flag("WIDE", true);
            }
            Kernel::Peak { ty } => {
                settings.operands(Operands { ty: *ty, acts: Acts::F32 });
                settings.flag("EXPERTS", false);
            }
        }
        settings.compose(self.file())
    }
}

/// The settings of a variant, gathered for [`compose`].
#[derive(Default)]
struct Settings {
    flags: Vec<(&'static str, bool)>,
    numbers: Vec<(&'static str, String)>,
    /// Names that stand for another source.
    includes: Vec<(&'static str, &'static str)>,
}

impl Settings {
    fn new(threads: u32) -> Settings {
        let mut settings = Settings::default();
        settings.number("THREADS", threads);
        settings
    }

    fn flag(&mut self, name: &'static str, on: bool) {
        self.flags.push((name, on));
    }

    fn number(&mut self, name: &'static str, value: u32) {
        self.numbers.push((name, format!("{value}u")));
    }

    fn include(&mut self, name: &'static str, source: &'static str) {
        self.includes.push((name, source));
    }

    fn shape(&mut self, shape: HeadShape) {
        self.number("HEAD_DIM", shape.head_dim);
        self.number("QUADS", shape.quads());
        self.number("GROUP", shape.group);
    }

    fn operands(&mut self, operands: Operands) {
        // A type without a format leaves its include unresolved, which compose reports.
        if let Some(format) = Format::of(operands.ty) {
            self.include("decode.wgsl", format.snippet);
            self.flag("FLOATS", format.decode == Decode::Floats);
            self.number("TABLE", format.table_words() as u32);
        }
        self.flag("INT8", operands.acts.is_int8());
        self.flag("TWICE", operands.acts == Acts::Int8Twice);
    }

    fn compose(&self, file: &str) -> Result<String, ComposeError> {
        let mut sources = SOURCES.to_vec();
        for (name, source) in &self.includes {
            let text = SOURCES.iter().find(|(n, _)| n == source).map_or("", |(_, text)| text);
            sources.push((name, text));
        }
        let flags = self.flags.iter().map(|(name, on)| Define::Flag(name, *on));
        let numbers = self.numbers.iter().map(|(name, value)| Define::Const(name, value));
        compose(file, &sources, &flags.chain(numbers).collect::<Vec<_>>())
    }
}
