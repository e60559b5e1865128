// MXFP4: w = 2^(e - 128) v[q]. Planes: nibbles, e.

#include "decode/common.wgsl"
#include "decode/values.wgsl"
#include "decode/e2m1.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let e = byte_at(row + p.planes.x, g);
    // The two smallest are below the normal numbers.
    let scale = bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << e, e < 2u));
    return Group(all_values_of(low_nibbles(n), E2M1), all_values_of(high_nibbles(n), E2M1), vec2(scale), vec2(0.0));
}
