// The most likely tokens, found on the device so that few numbers are read back. Four kernels, one after the other:
//
// 1. `slices.wgsl`: the largest logit of each of up to 1024 slices of the vocabulary.
// 2. `threshold.wgsl`: the `k`-th largest of those. No logit below it is among the `k` largest of all.
// 3. `collect.wgsl`: all logits that are not below it: a few more than `k`.
// 4. `sort.wgsl`: their order, most likely first, of equal ones the lowest id; and the first `k` of them.

struct Params {
    n_vocab: u32,
    // How many are wanted, at most 256.
    k: u32,
    // Slices; token `t` is in slice `t % n_slices`.
    n_slices: u32,
}

var<immediate> p: Params;

// Most logits that are collected and sorted. Where more are as large as the threshold, the host reads all logits.
const MAX_COLLECTED = 1024u;
const MAX_SLICES = 1024u;

// Numbers that order as logits do. NaN is lowest, then negative infinity; both zeros are equal.
fn order_of(x: f32) -> u32 {
    let bits = bitcast<u32>(select(x, 0.0, x == 0.0));
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// Of negative infinity: what cannot be chosen.
const IMPOSSIBLE = 0x007fffffu;

fn logit_of(order: u32) -> u32 {
    return select(~order, order & 0x7fffffffu, (order >> 31u) == 1u);
}
