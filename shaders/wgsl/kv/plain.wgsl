// What the caches of plain numbers share: where an element's quad is. The including file says what a quad is.

#if STORE
@group(0) @binding(4) var<storage, read_write> keys: array<Quad>;
@group(0) @binding(5) var<storage, read_write> values: array<Quad>;
#else
@group(0) @binding(1) var<storage, read> keys: array<Quad>;
@group(0) @binding(2) var<storage, read> values: array<Quad>;
#endif

// Elements 4 j .. 4 j + 4 of the key at a position.
fn key_index(head: u32, position: u32, j: u32) -> u32 {
    return ((head * p.tiles + position / 32u) * QUADS + j) * 32u + position % 32u;
}

fn value_index(head: u32, position: u32, j: u32) -> u32 {
    return (head * p.tiles * 32u + position) * QUADS + j;
}

fn key(head: u32, position: u32, j: u32) -> vec4<f32> {
    return unpack(keys[key_index(head, position, j)]);
}

fn value(head: u32, position: u32, j: u32) -> vec4<f32> {
    return unpack(values[value_index(head, position, j)]);
}

#if STORE
// Stores the head's elements in `elements`, all threads together.
fn store(head: u32, position: u32, is_key: bool, lane: u32) {
    for (var j = lane; j < QUADS; j += THREADS) {
        let at = 4u * j;
        let quad = pack(vec4(elements[at], elements[at + 1u], elements[at + 2u], elements[at + 3u]));
        if is_key {
            keys[key_index(head, position, j)] = quad;
        } else {
            values[value_index(head, position, j)] = quad;
        }
    }
}
#endif
