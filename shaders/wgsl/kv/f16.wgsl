// KV cache of 16-bit floats, placed as those of 32 bits.

alias Quad = vec2<u32>;
#include "kv/plain.wgsl"

fn unpack(quad: Quad) -> vec4<f32> {
    return vec4(unpack2x16float(quad.x), unpack2x16float(quad.y));
}

fn pack(x: vec4<f32>) -> Quad {
    return vec2(pack2x16float(x.xy), pack2x16float(x.zw));
}
