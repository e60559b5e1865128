// Rows of activations to int8.
//
// Dispatch: x numbers THREADS quads (4 elements) of a row, y the rows.

struct Params {
    // First row.
    first: u32,
    // Groups of 32 in a row.
    groups: u32,
    // Vectors from one row of `x` to the next.
    in_stride: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

#include "quantize_quad.wgsl"

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first + id.y;
    let quad = id.x * THREADS + lane;
    let exists = quad < 8u * p.groups;
    var value = vec4(0.0);
    if exists {
        value = x[row * p.in_stride + quad];
    }
    quantize_quad(value, row * p.groups + quad / 8u, lane, exists);
}
