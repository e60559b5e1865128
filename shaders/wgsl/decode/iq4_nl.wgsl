// IQ4_NL: w = d v[q]. Planes: nibbles, d.

#include "decode/common.wgsl"
#include "decode/values.wgsl"
#include "decode/iq4_values.wgsl"

fn decode(row: u32, g: u32) -> Group {
    let n = nibbles(row, g);
    let d = half_at(row + p.planes.x, g);
    return Group(all_values_of(low_nibbles(n), IQ4), all_values_of(high_nibbles(n), IQ4), vec2(d), vec2(0.0));
}
