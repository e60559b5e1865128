// Sorts (token, expert) pairs by expert and cuts each expert's into tiles: what a product of many tokens needs so that each
// tile reads one expert's weights. Where a pair comes among its expert's does not matter to any result.
//
// Dispatch: one workgroup.

struct Params {
    n_pairs: u32,
    // Pairs of a tile.
    tokens: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> chosen: array<vec2<u32>>;
// Pairs, expert by expert.
@group(0) @binding(1) var<storage, read_write> order: array<u32>;
// First the number of tiles; then of each tile: its expert, its first place in `order`, its pairs.
@group(0) @binding(2) var<storage, read_write> tiles: array<vec4<u32>>;

// How many pairs each expert has; then where the next of them goes.
var<workgroup> counts: array<atomic<u32>, EXPERTS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < EXPERTS; e += THREADS) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var i = lane; i < p.n_pairs; i += THREADS) {
        atomicAdd(&counts[chosen[i].x], 1u);
    }
    workgroupBarrier();
    if lane == 0u {
        var n_tiles = 0u;
        var first = 0u;
        for (var e = 0u; e < EXPERTS; e++) {
            let count = atomicLoad(&counts[e]);
            atomicStore(&counts[e], first);
            for (var at = 0u; at < count; at += p.tokens) {
                n_tiles++;
                tiles[n_tiles] = vec4(e, first + at, min(p.tokens, count - at), 0u);
            }
            first += count;
        }
        tiles[0] = vec4(n_tiles, 0u, 0u, 0u);
    }
    workgroupBarrier();
    for (var i = lane; i < p.n_pairs; i += THREADS) {
        order[atomicAdd(&counts[chosen[i].x], 1u)] = i;
    }
}
