// Y = W X for many tokens by cooperative matrices: a subgroup's threads together hold matrices of 16 x 16, and multiply f16
// into f32 sums. One workgroup computes a tile of 64 rows and 64 tokens. Step by step along k, its threads put a group of 32 of
// every row and token into workgroup memory as f16, then each of the first four subgroups multiplies a quarter of the tile:
// 32 rows with 32 tokens. A workgroup has four subgroups at least, whatever their size: `Kernel::coop_threads` sees to that.
//
// An f16 ends at 65504, and loses digits below 2^-14; both happen to activations. So the numbers are multiplied by powers of
// two, which costs no digit, and the sums by what undoes it: those of a token by one that takes its largest activation to
// 2^14 .. 2^15, those of a matrix by one that does so for its largest weight, which the host knows (`peak.wgsl`). What is 2^29
// times smaller than the largest still has all 11 digits of an f16. Sums are below 2^30 times the row's length: far from the end
// of f32.
//
// Dispatch: as `tile.wgsl` says.

enable f16;
enable wgpu_cooperative_matrix;

#include "product.wgsl"
#include "decode.wgsl"
#include "unit.wgsl"
#include "tile.wgsl"

// Vectors from one row (or token) to the next: 8 hold a group. With two more, which nothing is written to, 8 rows that are read
// together begin in different banks of workgroup memory, and at multiples of 16 bytes still, as Vulkan demands.
const STRIDE = 10u;
// Floats from one token's sums to the next's: 64, and 4 for the same reason.
const SUM_STRIDE = 68u;

// A group of each row, then of each token.
var<workgroup> halves: array<vec4<f16>, (ROWS + TOKENS) * STRIDE>;
// The bits of each token's largest absolute activation.
var<workgroup> peaks: array<atomic<u32>, TOKENS>;
// Sums of 16 tokens, on their way out.
var<workgroup> sums: array<f32, 16 * SUM_STRIDE>;

// 2 to a power from -126 to 127.
fn power_of_2(e: i32) -> f32 {
    return bitcast<f32>(u32(e + 127) << 23u);
}

// The power of two that takes a token's largest activation to 2^14 .. 2^15; 0 where it is not finite, for that must show.
fn act_exponent(token: u32) -> i32 {
    let e = atomicLoad(&peaks[token]) >> 23u;
    return select(min(141 - i32(e), 126), 0, e == 255u);
}

// All threads of the workgroup must call this together.
fn find_peaks(lane: u32, tile: Tile) {
    for (var token = lane; token < TOKENS; token += THREADS) {
        atomicStore(&peaks[token], 0u);
    }
    workgroupBarrier();
    // Eight threads share a token.
    for (var token = lane / 8u; token < TOKENS; token += THREADS / 8u) {
        let row = act_row(tile, token);
        var peak = 0u;
#if FLOATS
        for (var i = lane % 8u; i < 8u * p.groups; i += 8u) {
            let bits = bitcast<vec4<u32>>(load_acts(row, i)) & vec4(0x7fffffffu);
            peak = max(peak, max(max(bits.x, bits.y), max(bits.z, bits.w)));
        }
#else
        for (var g = lane % 8u; g < p.groups; g += 8u) {
            peak = max(peak, bitcast<u32>(127.0 * load_acts(row, g).scale.x) & 0x7fffffffu);
        }
#endif
        atomicMax(&peaks[token], peak);
    }
    workgroupBarrier();
}

#if FLOATS
fn fetch(lane: u32, tile: Tile, group: u32, w_scale: f32) {
    for (var i = lane; i < 8u * ROWS; i += THREADS) {
        let w = float4(weight_row(tile, i / 8u), 8u * group + i % 8u);
        halves[i / 8u * STRIDE + i % 8u] = vec4<f16>(w_scale * w);
    }
    for (var i = lane; i < 8u * TOKENS; i += THREADS) {
        let token = i / 8u;
        let a = load_acts(act_row(tile, token), 8u * group + i % 8u);
        halves[(ROWS + token) * STRIDE + i % 8u] = vec4<f16>(power_of_2(act_exponent(token)) * a);
    }
}
#else
fn four(q: u32, scale: f32, min: f32) -> vec4<f16> {
    return vec4<f16>(scale * vec4<f32>(unpack4xI8(q)) + min);
}

// A thread for each row, and one for each token.
fn fetch(lane: u32, tile: Tile, group: u32, w_scale: f32) {
    if lane >= ROWS + TOKENS {
        return;
    }
    var g: Group;
    var scale: f32;
    if lane < ROWS {
        g = decode(weight_row(tile, lane), group);
        scale = w_scale;
    } else {
        let token = lane - ROWS;
        let a = load_acts(act_row(tile, token), group);
        g = Group(a.low, a.high, vec2(a.scale.x), vec2(0.0));
        scale = power_of_2(act_exponent(token));
    }
    let scales = scale * g.scale;
    let mins = scale * g.min;
    let to = lane * STRIDE;
    halves[to] = four(g.low.x, scales.x, mins.x);
    halves[to + 1u] = four(g.low.y, scales.x, mins.x);
    halves[to + 2u] = four(g.low.z, scales.x, mins.x);
    halves[to + 3u] = four(g.low.w, scales.x, mins.x);
    halves[to + 4u] = four(g.high.x, scales.y, mins.y);
    halves[to + 5u] = four(g.high.y, scales.y, mins.y);
    halves[to + 6u] = four(g.high.z, scales.y, mins.y);
    halves[to + 7u] = four(g.high.w, scales.y, mins.y);
}
#endif

// A sum without the powers of two that its factors were multiplied by. In two steps, for one power may be beyond f32.
fn plain(sum: f32, exponent: i32) -> f32 {
    let half = exponent >> 1u;
    return sum * power_of_2(-half) * power_of_2(half - exponent);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
#if EXPERTS
    // Here and not in a function: a kernel must be seen to return by whole workgroups.
    if id.y >= tiles[0].x {
        return;
    }
    if tiles[id.y + 1u].x - p.first_expert >= p.n_experts {
        return;
    }
#endif
    let tile = tile_at(id.x, id.y);
    find_peaks(lane, tile);
    let w_exponent = weight_exponent();
    let w_scale = power_of_2(w_exponent);
    // The quarter of this subgroup. Those beyond the fourth do what another does, and drop it: all threads must multiply.
    let row = 32u * (subgroup % 2u);
    let token = 32u * (subgroup / 2u % 2u);
    let stores = subgroup < 4u;
    let w_at = row * STRIDE;
    let x_at = (ROWS + token) * STRIDE;
    // Rows 0..16 and 16..32 of the quarter, with tokens 0..16 and 16..32. Written out, for there are no arrays of them.
    var sum00 = coop_mat16x16<f32, C>();
    var sum01 = coop_mat16x16<f32, C>();
    var sum10 = coop_mat16x16<f32, C>();
    var sum11 = coop_mat16x16<f32, C>();
    for (var group = 0u; group < p.groups; group++) {
        fetch(lane, tile, group, w_scale);
        workgroupBarrier();
        for (var k = 0u; k < 8u; k += 4u) {
            // Weights lie row by row, [row][k]; activations column by column, [token][k].
            let w0 = coopLoadT<coop_mat16x16<f16, A>>(&halves[w_at + k], STRIDE);
            let w1 = coopLoadT<coop_mat16x16<f16, A>>(&halves[w_at + 16u * STRIDE + k], STRIDE);
            let x0 = coopLoad<coop_mat16x16<f16, B>>(&halves[x_at + k], STRIDE);
            let x1 = coopLoad<coop_mat16x16<f16, B>>(&halves[x_at + 16u * STRIDE + k], STRIDE);
            sum00 = coopMultiplyAdd(w0, x0, sum00);
            sum01 = coopMultiplyAdd(w0, x1, sum01);
            sum10 = coopMultiplyAdd(w1, x0, sum10);
            sum11 = coopMultiplyAdd(w1, x1, sum11);
        }
        workgroupBarrier();
    }
    // Where a thread's sums are is known to nobody: they go through workgroup memory, 16 tokens at a time.
    for (var strip = 0u; strip < TOKENS; strip += 16u) {
        if stores && strip == token {
            coopStore(sum00, &sums[row], SUM_STRIDE);
            coopStore(sum10, &sums[row + 16u], SUM_STRIDE);
        }
        if stores && strip == token + 16u {
            coopStore(sum01, &sums[row], SUM_STRIDE);
            coopStore(sum11, &sums[row + 16u], SUM_STRIDE);
        }
        workgroupBarrier();
        for (var i = lane; i < 16u * ROWS; i += THREADS) {
            let t = i / ROWS;
            let exponent = w_exponent + act_exponent(strip + t);
            finish_at(tile, i % ROWS, strip + t, plain(sums[t * SUM_STRIDE + i % ROWS], exponent));
        }
        workgroupBarrier();
    }
}
