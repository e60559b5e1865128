//! The values given with each dispatch: the `Params` of every kernel's WGSL, field by field the same. A test compares
//! their sizes and names with the shaders'.

use bytemuck::{Pod, Zeroable};

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
        #[repr(C)]
        #[allow(missing_docs)] // the shader says what each field is
        pub struct $name { $(pub $field: $ty),* }

        impl $name {
            /// Names of the fields, in order.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

params! {
    /// Of `product.wgsl`: matrix products.
    ProductParams {
        planes: [u32; 4],
        row_words: u32,
        groups: u32,
        n_rows: u32,
        column: u32,
        first: u32,
        n_tokens: u32,
        act_stride: u32,
        out_stride: u32,
        out_first: u32,
        flags: u32,
        bias_first: u32,
        cap: f32,
        first_expert: u32,
        n_experts: u32,
        pairs_per_row: u32,
        scale_first: u32,
    }
}

/// [`ProductParams::flags`]: results are added.
pub const ADD: u32 = 1;
/// [`ProductParams::flags`]: there is a bias.
pub const BIAS: u32 = 2;
/// [`ProductParams::flags`]: rows have scales.
pub const SCALE: u32 = 4;

/// [`ProductParams::flags`]: the power of two, from -126 to 126, that [`Kernel::CoopMat`](crate::Kernel::CoopMat) multiplies
/// weights by so that they fit f16; other kernels do not look at it.
pub fn weight_exponent(e: i32) -> u32 {
    (e as u32) << 16
}

params! {
    /// Of `quantize.wgsl`.
    QuantizeParams { first: u32, groups: u32, in_stride: u32 }
}

params! {
    /// Of `glu.wgsl`.
    GluParams { first: u32, n_ff: u32, in_stride: u32, out_stride: u32 }
}

params! {
    /// Of `norm.wgsl`.
    NormParams {
        first: u32,
        width: u32,
        in_stride: u32,
        in_column: u32,
        out_stride: u32,
        out_column: u32,
        eps: f32,
        add: u32,
    }
}

params! {
    /// Of `heads.wgsl`.
    HeadsParams {
        stride: u32,
        n_head: u32,
        n_head_kv: u32,
        q_heads: u32,
        kv_first: u32,
        kv_heads: u32,
        start: u32,
        tiles: u32,
        n_pairs: u32,
        angle: u32,
        q_eps: f32,
        k_eps: f32,
    }
}

params! {
    /// Of `attend.wgsl`.
    AttendParams {
        start: u32,
        n_tokens: u32,
        q_stride: u32,
        a_stride: u32,
        kv_first: u32,
        tiles: u32,
        window: u32,
        origin: u32,
        share: u32,
        n_shares: u32,
        scale: f32,
    }
}

params! {
    /// Of the kernels in `best/`.
    BestParams { n_vocab: u32, k: u32, n_slices: u32 }
}

params! {
    /// Of `route.wgsl`.
    RouteParams { n_used: u32, normalize: u32 }
}

params! {
    /// Of `group.wgsl`.
    GroupParams { n_pairs: u32, tokens: u32 }
}

params! {
    /// Of `combine.wgsl`.
    CombineParams { n_used: u32, width: u32, in_stride: u32, out_stride: u32, out_column: u32, add: u32 }
}

params! {
    /// Of `sigmoid_gate.wgsl`.
    SigmoidGateParams { width: u32, in_stride: u32, n_ff: u32, out_stride: u32 }
}

params! {
    /// Of `merge.wgsl`.
    MergeParams { n_queries: u32, n_shares: u32, a_stride: u32 }
}
