// The sum over a workgroup's threads, by halves, in a fixed order.

var<workgroup> sums: array<f32, THREADS>;

fn sum_all(value: f32, lane: u32) -> f32 {
    sums[lane] = value;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}
