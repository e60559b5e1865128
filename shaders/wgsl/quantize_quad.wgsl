// Activations as int8: groups of 32 share a scale, d = absmax / 127, q = round(x / d), ties to even.
//
// A group takes 12 words: 8 of quants, then as f32: d, d times the sum of the first 16 quants, of the last 16, and 0.

@group(0) @binding(3) var<storage, read_write> quantized: array<u32>;

// Groups below this are zeros: the inverse of their scale would not be finite.
const TINY = 1e-30;
const NOT_FINITE = 0x7f800000u;

// Of each thread's four values: the largest absolute value's bits (which order as the values do, and put infinity and NaN
// on top), and the sum of the quants.
var<workgroup> peaks: array<u32, THREADS>;
var<workgroup> totals: array<i32, THREADS>;

// Quantizes `x`, one of the 8 quads of a group; the other 7 are those of the threads `lane & 7` apart. All threads of the
// workgroup must call this together; those whose group does not exist with `exists` false.
fn quantize_quad(x: vec4<f32>, group: u32, lane: u32, exists: bool) {
    let bits = bitcast<vec4<u32>>(x) & vec4(0x7fffffffu);
    peaks[lane] = max(max(bits.x, bits.y), max(bits.z, bits.w));
    workgroupBarrier();
    let first = lane & ~7u;
    var peak = peaks[first];
    for (var i = 1u; i < 8u; i++) {
        peak = max(peak, peaks[first + i]);
    }
    let absmax = bitcast<f32>(peak);
    var q = vec4(0i);
    var scale = 0.0;
    if peak >= NOT_FINITE {
        // A NaN made of infinity's or NaN's own bits: broken numbers must reach the logits and be seen there.
        scale = bitcast<f32>(peak | 0x7fc00000u);
    } else if absmax > TINY {
        q = vec4<i32>(round(x * (127.0 / absmax)));
        scale = absmax / 127.0;
    }
    totals[lane] = q.x + q.y + q.z + q.w;
    workgroupBarrier();
    if exists {
        let at = 12u * group;
        let part = lane & 7u;
        quantized[at + part] = pack4xI8(q);
        if part < 4u {
            var value = scale;
            if part == 1u || part == 2u {
                let half = first + 4u * (part - 1u);
                value = scale * f32(totals[half] + totals[half + 1u] + totals[half + 2u] + totals[half + 3u]);
            } else if part == 3u {
                value = 0.0;
            }
            quantized[at + 8u + part] = bitcast<u32>(value);
        }
    }
}
