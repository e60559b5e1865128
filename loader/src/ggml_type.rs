//! Every tensor type id of the format, with its name and block size.

use std::fmt;

/// What a type is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeClass {
    /// Plain numbers that a weight can be stored in (F32, F16, BF16).
    Float,
    /// A block format that a weight can be stored in.
    Quantized,
    /// A format of intermediate results, never of a stored weight (Q8_1, Q8_K).
    Activation,
    /// Integers and F64: data that is not multiplied.
    Data,
}

macro_rules! ggml_types {
    ($($name:ident = $id:literal, $class:ident, $block:literal, $bytes:literal;)*) => {
        /// A tensor's element type. Discriminants are the format's type ids.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType { $($name = $id),* }

        impl GgmlType {
            /// All types, in id order.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$name),*];

            /// `(name, class, weights per block, bytes per block)`
            const fn row(self) -> (&'static str, TypeClass, usize, usize) {
                match self { $(GgmlType::$name => (stringify!($name), TypeClass::$class, $block, $bytes)),* }
            }
        }
    };
}

// id, class, weights per block, bytes per block
ggml_types! {
    F32 = 0, Float, 1, 4;
    F16 = 1, Float, 1, 2;
    Q4_0 = 2, Quantized, 32, 18;
    Q4_1 = 3, Quantized, 32, 20;
    Q5_0 = 6, Quantized, 32, 22;
    Q5_1 = 7, Quantized, 32, 24;
    Q8_0 = 8, Quantized, 32, 34;
    Q8_1 = 9, Activation, 32, 36;
    Q2_K = 10, Quantized, 256, 84;
    Q3_K = 11, Quantized, 256, 110;
    Q4_K = 12, Quantized, 256, 144;
    Q5_K = 13, Quantized, 256, 176;
    Q6_K = 14, Quantized, 256, 210;
    Q8_K = 15, Activation, 256, 292;
    IQ2_XXS = 16, Quantized, 256, 66;
    IQ2_XS = 17, Quantized, 256, 74;
    IQ3_XXS = 18, Quantized, 256, 98;
    IQ1_S = 19, Quantized, 256, 50;
    IQ4_NL = 20, Quantized, 32, 18;
    IQ3_S = 21, Quantized, 256, 110;
    IQ2_S = 22, Quantized, 256, 82;
    IQ4_XS = 23, Quantized, 256, 136;
    I8 = 24, Data, 1, 1;
    I16 = 25, Data, 1, 2;
    I32 = 26, Data, 1, 4;
    I64 = 27, Data, 1, 8;
    F64 = 28, Data, 1, 8;
    IQ1_M = 29, Quantized, 256, 56;
    BF16 = 30, Float, 1, 2;
    TQ1_0 = 34, Quantized, 256, 54;
    TQ2_0 = 35, Quantized, 256, 66;
    MXFP4 = 39, Quantized, 32, 17;
    NVFP4 = 40, Quantized, 64, 36;
    Q1_0 = 41, Quantized, 128, 18;
    Q2_0 = 42, Quantized, 64, 18;
}

/// Ids that once had a meaning, with the name they had and what became of it.
const REMOVED: &[(u32, &str, &str)] = &[
    (4, "Q4_2", "removed in 2023"),
    (5, "Q4_3", "removed in 2023"),
    (31, "Q4_0_4_4", "replaced by repacking Q4_0 at load"),
    (32, "Q4_0_4_8", "replaced by repacking Q4_0 at load"),
    (33, "Q4_0_8_8", "replaced by repacking Q4_0 at load"),
    (36, "IQ4_NL_4_4", "replaced by repacking IQ4_NL at load"),
    (37, "IQ4_NL_4_8", "replaced by repacking IQ4_NL at load"),
    (38, "IQ4_NL_8_8", "replaced by repacking IQ4_NL at load"),
];

/// Why a type id cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TypeIdError {
    /// The id belonged to a format that no longer exists.
    #[error("type {id} ({name}) was removed from the format ({why}); convert or quantize the model again")]
    Removed {
        /// The id.
        id: u32,
        /// The name it had.
        name: &'static str,
        /// What became of it.
        why: &'static str,
    },
    /// The id never had a meaning.
    #[error("type id {0} is unknown (known: 0 to 42); the file is damaged or newer than this version of tandem")]
    Unknown(u32),
}

impl GgmlType {
    /// The type with the format's id.
    pub fn from_id(id: u32) -> Result<GgmlType, TypeIdError> {
        if let Some(ty) = GgmlType::ALL.iter().find(|ty| **ty as u32 == id) {
            return Ok(*ty);
        }
        match REMOVED.iter().find(|row| row.0 == id) {
            Some(&(id, name, why)) => Err(TypeIdError::Removed { id, name, why }),
            None => Err(TypeIdError::Unknown(id)),
        }
    }

    /// The format's id.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The name users know, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// What the type is for.
    pub fn class(self) -> TypeClass {
        self.row().1
    }

    /// Weights per block; a row's length is a multiple of it.
    pub fn block_size(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of a row of `n` weights, or `None` where `n` is no multiple of the block size or the result overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_size()) {
            return None;
        }
        (n / self.block_size()).checked_mul(self.block_bytes())
    }

    /// Mean bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_size() as f64
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_up_to_42_has_a_name() {
        for id in 0..=42 {
            match GgmlType::from_id(id) {
                Ok(ty) => assert_eq!(ty.id(), id),
                Err(TypeIdError::Removed { id: got, name, .. }) => {
                    assert_eq!(got, id);
                    assert!(!name.is_empty());
                }
                Err(TypeIdError::Unknown(_)) => panic!("id {id} has no name"),
            }
        }
        assert_eq!(GgmlType::from_id(43), Err(TypeIdError::Unknown(43)));
    }
}
