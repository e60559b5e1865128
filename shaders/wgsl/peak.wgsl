// The largest absolute weight of a matrix: what the host chooses the power of two by that makes its weights fit f16.
//
// Each workgroup looks at every so many rows, and writes what it found to `y`: infinity or NaN where there is one.
//
// Dispatch: x workgroups.

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"

var<workgroup> peak: atomic<u32>;

// Bits of absolute values order as the values do, and put infinity and NaN on top.
fn peak4(w: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(w) & vec4(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

#if FLOATS
fn peak_of(w: Weights) -> u32 {
    return peak4(w);
}
#else
fn peak16(q: vec4<u32>, scale: f32, min: f32) -> u32 {
    var found = 0u;
    for (var i = 0u; i < 4u; i++) {
        found = max(found, peak4(scale * vec4<f32>(unpack4xI8(q[i])) + min));
    }
    return found;
}

fn peak_of(w: Weights) -> u32 {
    return max(peak16(w.low, w.scale.x, w.min.x), peak16(w.high, w.scale.y, w.min.y));
}
#endif

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if lane == 0u {
        atomicStore(&peak, 0u);
    }
    workgroupBarrier();
    var found = 0u;
    for (var row = id.x; row < p.n_rows; row += count.x) {
        for (var u = lane; u < units(); u += THREADS) {
            found = max(found, peak_of(load_weights(row * p.row_words + TABLE, u)));
        }
    }
    atomicMax(&peak, found);
    workgroupBarrier();
    if lane == 0u {
        y[id.x] = bitcast<f32>(atomicLoad(&peak));
    }
}
