// The unit of a product's inner loop: some weights of a row, the activations they meet, and their dot product.
//
// * Plain numbers: 4 weights, 4 activations.
// * Quantized weights with f32 activations: a group of 32.
// * Quantized weights with int8 activations: a group of 32; each half's integers are summed exactly, then scaled.

#if FLOATS
alias Weights = vec4<f32>;
alias Acts = vec4<f32>;
@group(0) @binding(3) var<storage, read> acts: array<vec4<f32>>;

fn units() -> u32 {
    return 8u * p.groups;
}

fn load_weights(row: u32, u: u32) -> Weights {
    return float4(row, u);
}

fn load_acts(token: u32, u: u32) -> Acts {
    return acts[(p.first + token) * p.act_stride + u];
}

fn dot_unit(w: Weights, a: Acts) -> f32 {
    return dot(w, a);
}
#else
alias Weights = Group;

fn units() -> u32 {
    return p.groups;
}

fn load_weights(row: u32, u: u32) -> Weights {
    return decode(row, u);
}

#if INT8
// Three vectors per group: quants 0..16, quants 16..32, and as f32: scale, scale times the sum of each half's quants.
@group(0) @binding(3) var<storage, read> acts: array<vec4<u32>>;

struct Acts {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec4<f32>,
}

fn load_acts(token: u32, u: u32) -> Acts {
    let at = (p.first + token) * p.act_stride + 3u * u;
    return Acts(acts[at], acts[at + 1u], bitcast<vec4<f32>>(acts[at + 2u]));
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w));
}

fn dot_unit(w: Weights, a: Acts) -> f32 {
    let both = w.scale.x * dot16(w.low, a.low) + w.scale.y * dot16(w.high, a.high);
    return a.scale.x * both + w.min.x * a.scale.y + w.min.y * a.scale.z;
}
#else
@group(0) @binding(3) var<storage, read> acts: array<vec4<f32>>;

struct Acts {
    x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>,
    x4: vec4<f32>, x5: vec4<f32>, x6: vec4<f32>, x7: vec4<f32>,
    // Sum of each half.
    sum: vec2<f32>,
}

fn load_acts(token: u32, u: u32) -> Acts {
    let at = (p.first + token) * p.act_stride + 8u * u;
    let x0 = acts[at];
    let x1 = acts[at + 1u];
    let x2 = acts[at + 2u];
    let x3 = acts[at + 3u];
    let x4 = acts[at + 4u];
    let x5 = acts[at + 5u];
    let x6 = acts[at + 6u];
    let x7 = acts[at + 7u];
    let one = vec4(1.0);
    return Acts(x0, x1, x2, x3, x4, x5, x6, x7, vec2(dot(x0 + x1 + x2 + x3, one), dot(x4 + x5 + x6 + x7, one)));
}

fn dot4(q: u32, x: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack4xI8(q)), x);
}

fn dot_unit(w: Weights, a: Acts) -> f32 {
    let low = dot4(w.low.x, a.x0) + dot4(w.low.y, a.x1) + dot4(w.low.z, a.x2) + dot4(w.low.w, a.x3);
    let high = dot4(w.high.x, a.x4) + dot4(w.high.y, a.x5) + dot4(w.high.z, a.x6) + dot4(w.high.w, a.x7);
    return w.scale.x * low + w.scale.y * high + w.min.x * a.sum.x + w.min.y * a.sum.y;
}
#endif
#endif
