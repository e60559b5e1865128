// KV cache of 32-bit floats. Keys: [head][position / 32][QUADS][32 positions] of 4 elements, so that threads that look at
// neighbouring positions read neighbouring vectors. Values: [head][position][QUADS].

alias Quad = vec4<f32>;
#include "kv/plain.wgsl"

fn unpack(quad: Quad) -> vec4<f32> {
    return quad;
}

fn pack(x: vec4<f32>) -> Quad {
    return x;
}
