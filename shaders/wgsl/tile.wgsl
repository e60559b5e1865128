// Tiles of a product with many tokens: what the matrix-matrix kernels share. A workgroup computes ROWS rows of 16 (WIDE: 64)
// tokens.
//
// Of experts, a tile's tokens are (token, expert) pairs of one expert, as `group.wgsl` sorted them.
//
// Dispatch: x numbers the tiles of rows, y those of tokens.

const ROWS = 64u;
#if WIDE
const TOKENS = 64u;
#else
const TOKENS = 16u;
#endif

// What a workgroup computes.
struct Tile {
    // Its first row, and the first row of the matrix in the buffer.
    row: u32,
    matrix: u32,
    // Its first token, or the first place in `order`; and how many there are, up to TOKENS.
    token: u32,
    n_tokens: u32,
}

// The word where the weights of a row begin. Rows beyond the end repeat the last one; their results are not written.
fn weight_row(tile: Tile, row: u32) -> u32 {
    return (tile.matrix + min(tile.row + row, p.n_rows - 1u)) * p.row_words + TABLE;
}

// The row of `y` that a token's results go to; those beyond the end repeat the last one.
fn out_row(tile: Tile, token: u32) -> u32 {
    let at = tile.token + min(token, tile.n_tokens - 1u);
#if EXPERTS
    return order[at];
#else
    return at;
#endif
}

// The row of `acts` that a token's activations are in.
fn act_row(tile: Tile, token: u32) -> u32 {
#if EXPERTS
    return out_row(tile, token) / p.pairs_per_row;
#else
    return out_row(tile, token);
#endif
}

// The tile of a workgroup; of experts, one that `tiles` has, of an expert in this buffer.
fn tile_at(x: u32, y: u32) -> Tile {
#if EXPERTS
    let place = tiles[y + 1u];
    return Tile(x * ROWS, (place.x - p.first_expert) * p.n_rows, place.y, place.z);
#else
    return Tile(x * ROWS, 0u, y * TOKENS, min(TOKENS, p.n_tokens - y * TOKENS));
#endif
}

// Writes the result of a tile's row and token, if they exist.
fn finish_at(tile: Tile, row: u32, token: u32, sum: f32) {
    if token < tile.n_tokens && tile.row + row < p.n_rows {
        finish(tile.row + row, out_row(tile, token), sum);
    }
}
