// RMS norm of whole rows: y = x / sqrt(mean(x^2) + eps) * weight, or added to y.
//
// Dispatch: x numbers the rows. The width is a multiple of 32 where results are quantized too.

struct Params {
    // First row.
    first: u32,
    width: u32,
    // Floats from one row of `x` to the next, and its first column.
    in_stride: u32,
    in_column: u32,
    // The same of `y`.
    out_stride: u32,
    out_column: u32,
    eps: f32,
    // 1: add to `y`.
    add: u32,
}

var<immediate> p: Params;

#if IN_PLACE
#else
@group(0) @binding(0) var<storage, read> x: array<f32>;
#endif
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

#include "sum.wgsl"
#if QUANTIZE
#include "quantize_quad.wgsl"
#endif

fn input(i: u32) -> f32 {
#if IN_PLACE
    return y[i];
#else
    return x[i];
#endif
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first + id.x;
    let source = row * p.in_stride + p.in_column;
    let to = row * p.out_stride + p.out_column;
    var squares = 0.0;
    for (var i = lane; i < p.width; i += THREADS) {
        let value = input(source + i);
        squares += value * value;
    }
    let mean = sum_all(squares, lane) / f32(p.width);
    let scale = 1.0 / sqrt(mean + p.eps);

#if QUANTIZE
    let groups = p.width / 32u;
    for (var start = 0u; start < 8u * groups; start += THREADS) {
        let quad = start + lane;
        let exists = quad < 8u * groups;
        var value = vec4(0.0);
        if exists {
            for (var i = 0u; i < 4u; i++) {
                let at = 4u * quad + i;
                value[i] = input(source + at) * scale * weight[at];
                y[to + at] = value[i];
            }
        }
        quantize_quad(value, row * groups + quad / 8u, lane, exists);
    }
#else
    for (var i = lane; i < p.width; i += THREADS) {
        var value = input(source + i) * scale * weight[i];
        if p.add != 0u {
            value += y[to + i];
        }
        y[to + i] = value;
    }
#endif
}
