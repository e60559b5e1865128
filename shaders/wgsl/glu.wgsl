// F = act(gate) * up, elementwise; gate and up lie side by side in the rows of one buffer.
//
// Dispatch: x numbers THREADS quads (4 elements) of a row, y the rows.

struct Params {
    // First row.
    first: u32,
    // Elements of gate, and of up.
    n_ff: u32,
    // Floats from one row of `gate_up` to the next.
    in_stride: u32,
    // Vectors from one row of `f` to the next.
    out_stride: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> gate_up: array<f32>;
@group(0) @binding(1) var<storage, read_write> f: array<vec4<f32>>;

#if QUANTIZE
#include "quantize_quad.wgsl"
#endif

fn act(x: f32) -> f32 {
#if GELU
    // The tanh approximation; beyond 15, tanh is 1 in f32, and some drivers' overflows.
    let inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    return 0.5 * x * (1.0 + tanh(clamp(inner, -15.0, 15.0)));
#else
    return x / (1.0 + exp(-x));
#endif
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first + id.y;
    let quad = id.x * THREADS + lane;
    let groups = (p.n_ff + 31u) / 32u;
    let exists = quad < 8u * groups;
    var value = vec4(0.0);
    // Elements beyond the last are zeros, up to a whole group: products read whole groups.
    for (var i = 0u; i < 4u; i++) {
        let column = 4u * quad + i;
        if column < p.n_ff {
            let gate = row * p.in_stride + column;
            value[i] = act(gate_up[gate]) * gate_up[gate + p.n_ff];
        }
    }
    if exists {
        f[row * p.out_stride + quad] = value;
    }
#if QUANTIZE
    quantize_quad(value, row * groups + quad / 8u, lane, exists);
#endif
}
