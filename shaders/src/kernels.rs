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
    "decode/bf16.wgsl",
    "decode/common.wgsl",
    "decode/f16.wgsl",
    "decode/f32.wgsl",
    "decode/k_scales.wgsl",
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
    "glu.wgsl",
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
    "product.wgsl",
    "quantize.wgsl",
    "quantize_quad.wgsl",
    "sum.wgsl",
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
    /// Activations are int8 (quantized types only), and not f32.
    pub int8: bool,
}

/// A variant of a kernel: what becomes one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// RMS norm of rows.
    Norm {
        /// Input and output are the same.
        in_place: bool,
        /// Results are also written as int8.
        quantize: bool,
    },
    /// Rows to int8.
    Quantize,
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
    },
    /// Merging of shares.
    Merge {
        /// Sizes.
        shape: HeadShape,
    },
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
    },
    /// Product with many tokens.
    MatMat {
        /// Types.
        operands: Operands,
        /// Tokens of a tile, a multiple of 16.
        tokens: u32,
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
            Kernel::Quantize => "quantize.wgsl",
            Kernel::Glu { .. } => "glu.wgsl",
            Kernel::Heads { .. } => "heads.wgsl",
            Kernel::Attend { .. } => "attend.wgsl",
            Kernel::Merge { .. } => "merge.wgsl",
            Kernel::MatVec { .. } => "matvec.wgsl",
            Kernel::MatMat { .. } => "matmat.wgsl",
        }
    }

    /// Threads of a workgroup.
    pub fn threads(&self) -> u32 {
        match self {
            Kernel::Norm { .. } | Kernel::MatMat { .. } => 256,
            Kernel::Quantize | Kernel::Glu { .. } => 64,
            Kernel::Heads { .. } | Kernel::Merge { .. } => 64,
            Kernel::Attend { shape, .. } => shape.threads(),
            Kernel::MatVec { threads, .. } => *threads,
        }
    }

    /// What is bound, all storage buffers of group 0.
    pub fn bindings(&self) -> Vec<Binding> {
        match self {
            Kernel::Norm { in_place, quantize } => {
                let mut list = vec![(1, true), (2, false)];
                list.extend((!in_place).then_some((0, true)));
                list.extend(quantize.then_some((3, false)));
                bindings(&list)
            }
            Kernel::Quantize => bindings(&[(0, true), (3, false)]),
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
            Kernel::Attend { .. } => bindings(&[(0, true), (1, true), (2, true), (3, false)]),
            Kernel::Merge { .. } => bindings(&[(0, true), (1, false)]),
            Kernel::MatVec { .. } | Kernel::MatMat { .. } => {
                bindings(&[(0, true), (1, true), (2, true), (3, true), (4, true), (5, false)])
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
            Kernel::Norm { in_place, quantize } => {
                settings.flag("IN_PLACE", *in_place);
                settings.flag("QUANTIZE", *quantize);
            }
            Kernel::Quantize => {}
            Kernel::Glu { gelu, quantize } => {
                settings.flag("GELU", *gelu);
                settings.flag("QUANTIZE", *quantize);
            }
            Kernel::Heads { shape, norm, rope, store } => {
                settings.shape(*shape);
                settings.flag("NORM", *norm);
                settings.flag("ROPE", rope.is_some());
                settings.flag("NEOX", *rope == Some(Pairing::NeoX));
                settings.flag("STORE", store.is_some());
                settings.include("kv.wgsl", store.unwrap_or(Cache::F32).snippet());
            }
            Kernel::Attend { shape, cache, rows, shares } => {
                settings.shape(*shape);
                settings.number("ROWS", *rows);
                settings.flag("SHARES", *shares);
                settings.flag("STORE", false);
                settings.include("kv.wgsl", cache.snippet());
            }
            Kernel::Merge { shape } => settings.shape(*shape),
            Kernel::MatVec { operands, threads: _, cols, subgroups } => {
                settings.operands(*operands);
                settings.number("COLS", *cols);
                settings.flag("SUBGROUPS", *subgroups);
            }
            Kernel::MatMat { operands, tokens } => {
                settings.operands(*operands);
                settings.number("TOKENS", *tokens);
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
        }
        self.flag("INT8", operands.int8);
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
