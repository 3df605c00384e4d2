// Matrix times many rows of activations, for one storage type: tiles of TILE_ROWS rows of the
// matrix by TILE_TOKENS tokens, over TILE_COLS columns at a time. The weights are unpacked into
// local memory; the next columns are on their way while the present ones are multiplied.
//
// With TENSOR the tiles are float16 and multiplied by mma.sync with float32 sums; else, and for
// float32 weights always, they are float32 and multiplied by 4 by 4 for each work-item.

#undef TENSOR_TILE
#undef TILE_GROUP
#undef TILE_ROWS
#undef TILE_TOKENS
#undef TILE_COLS
#undef UNITS_A_TILE_ROW
#undef WEIGHT_LOADS
#undef ROW_LOADS
#undef CHUNKS
#undef TILE_SUMS
#undef TILE_BYTES
#define TILE_COLS 32
#if defined(TENSOR) && !defined(KIND_F32)
#define TENSOR_TILE
#define TILE_GROUP TENSOR_GROUP
#define TILE_ROWS TENSOR_ROWS
#define TILE_TOKENS TENSOR_TOKENS
#define WARPS_DOWN (TENSOR_ROWS / WARP_ROWS)
#define TILE_SUMS (WARP_ROWS / 16 * (WARP_TOKENS / 8) * 4)
#define CHUNKS (TILE_COLS / 8)  // of 16 bytes in a tile's row
#define TILE_BYTES(rows) ((rows) * TILE_COLS * 2)
#else
#define TILE_GROUP 64
#define TILE_ROWS 32
#define TILE_TOKENS 32
#define TILE_SUMS 16
#define CHUNKS (TILE_COLS / 4)
#define TILE_STRIDE (TILE_COLS + 1)
#define TILE_BYTES(rows) ((rows) * TILE_STRIDE * 4)
#endif
#define UNITS_A_TILE_ROW (TILE_COLS / UNIT_COLS)
#define WEIGHT_LOADS ((TILE_ROWS * UNITS_A_TILE_ROW + TILE_GROUP - 1) / TILE_GROUP)
#define ROW_LOADS ((TILE_TOKENS * CHUNKS + TILE_GROUP - 1) / TILE_GROUP)

#ifdef TENSOR_TILE

// Chunk c of a tile's row, so that 8 rows of the same chunk lie in different banks.
FUNCTION int KIND(chunk_place)(int row, int c) { return row * CHUNKS + (c ^ ((row >> 1) & 3)); }

#ifndef PLANES
FUNCTION void KIND(put_weights)(__local uint4 *tile, int row, int unit, uint4 bits, ushort scale) {
#if defined(KIND_F16)
  tile[KIND(chunk_place)(row, unit)] = bits;
#elif defined(KIND_BF16)
  float v[UNIT_COLS];
  KIND(unpack)(bits, 0, v);
  uint4 packed = (uint4)(pack_halves(v[0], v[1]), pack_halves(v[2], v[3]),
                         pack_halves(v[4], v[5]), pack_halves(v[6], v[7]));
  tile[KIND(chunk_place)(row, unit)] = packed;
#elif defined(KIND_Q8_0)
  uint4 u = bits ^ 0x80808080u;
  uint4 low = (uint4)(scaled_bytes(u.x, scale, 1152), scaled_bytes(u.y, scale, 1152));
  tile[KIND(chunk_place)(row, 2 * unit)] = low;
  uint4 high = (uint4)(scaled_bytes(u.z, scale, 1152), scaled_bytes(u.w, scale, 1152));
  tile[KIND(chunk_place)(row, 2 * unit + 1)] = high;
#else
  for (int nibble = 0; nibble < 2; nibble++) {
    uint4 u = (bits >> (4 * nibble)) & 0x0f0f0f0fu;
    uint4 low = (uint4)(scaled_bytes(u.x, scale, 1032), scaled_bytes(u.y, scale, 1032));
    uint4 high = (uint4)(scaled_bytes(u.z, scale, 1032), scaled_bytes(u.w, scale, 1032));
    tile[KIND(chunk_place)(row, 4 * unit + 2 * nibble)] = low;
    tile[KIND(chunk_place)(row, 4 * unit + 2 * nibble + 1)] = high;
  }
#endif
}
#else
FUNCTION void KIND(put_unit)(__local uint4 *tile, int row, uint4 unit, Side side) {
  float v[UNIT_COLS];
  KIND(unpack_side)(unit, side, v);
  #pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    uint4 packed = (uint4)(pack_halves(v[8 * c], v[8 * c + 1]), pack_halves(v[8 * c + 2], v[8 * c + 3]),
                           pack_halves(v[8 * c + 4], v[8 * c + 5]), pack_halves(v[8 * c + 6], v[8 * c + 7]));
    tile[KIND(chunk_place)(row, c)] = packed;
  }
}
#endif

FUNCTION void KIND(put_row)(__local uint4 *tile, int token, int chunk, uint4 bits) {
  tile[KIND(chunk_place)(token, chunk)] = bits;
}

FUNCTION void KIND(multiply)(
    float *sums, __local const uint4 *weights, __local const uint4 *rows) {
  const int lane = lane_id(), warp = team_in_group();
  const int row0 = warp % WARPS_DOWN * WARP_ROWS, token0 = warp / WARPS_DOWN * WARP_TOKENS;
  #pragma unroll
  for (int k = 0; k < TILE_COLS / 8; k += 2) {
    uint4 a[WARP_ROWS / 16], b[WARP_TOKENS / 16];
    #pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++) {
      int row = row0 + 16 * i + (lane & 15);
      a[i] = load_fragments(weights + KIND(chunk_place)(row, k + (lane >> 4)));
    }
    #pragma unroll
    for (int j = 0; j < WARP_TOKENS / 16; j++) {
      int token = token0 + 16 * j + (lane & 7) + (lane >> 4 << 3);
      b[j] = load_fragments(rows + KIND(chunk_place)(token, k + (lane >> 3 & 1)));
    }
    #pragma unroll
    for (int i = 0; i < WARP_ROWS / 16; i++) {
      #pragma unroll
      for (int j = 0; j < WARP_TOKENS / 16; j++) {
        float *sum = sums + (i * (WARP_TOKENS / 8) + 2 * j) * 4;
        tensor_product(sum, a[i], b[j].x, b[j].y);
        tensor_product(sum + 4, a[i], b[j].z, b[j].w);
      }
    }
  }
}

FUNCTION int KIND(sum_row)(int i) {
  int row0 = team_in_group() % WARPS_DOWN * WARP_ROWS;
  return row0 + i / (WARP_TOKENS / 8 * 4) * 16 + (i >> 1 & 1) * 8 + (lane_id() >> 2);
}

FUNCTION int KIND(sum_token)(int i) {
  int token0 = team_in_group() / WARPS_DOWN * WARP_TOKENS;
  return token0 + i / 4 % (WARP_TOKENS / 8) * 8 + (lane_id() & 3) * 2 + (i & 1);
}

#else

#ifdef PLANES
FUNCTION void KIND(put_unit)(__local uint4 *tile, int row, uint4 unit, Side side) {
  __local float *place = (__local float *)tile + row * TILE_STRIDE;
  float values[UNIT_COLS];
  KIND(unpack_side)(unit, side, values);
  for (int c = 0; c < UNIT_COLS; c++) place[c] = values[c];
}
#else
FUNCTION void KIND(put_weights)(__local uint4 *tile, int row, int unit, uint4 bits, ushort scale) {
  __local float *place = (__local float *)tile + row * TILE_STRIDE + unit * UNIT_COLS;
  float values[UNIT_COLS];
  KIND(unpack)(bits, scale, values);
  for (int c = 0; c < UNIT_COLS; c++) place[c] = values[c];
}
#endif

FUNCTION void KIND(put_row)(__local uint4 *tile, int token, int chunk, uint4 bits) {
  __local float *place = (__local float *)tile + token * TILE_STRIDE + chunk * 4;
  vstore4(as_float4(bits), 0, place);
}

FUNCTION void KIND(multiply)(
    float *sums, __local const uint4 *weights, __local const uint4 *rows) {
  __local const float *a = (__local const float *)weights + (get_local_id(0) & 7) * TILE_STRIDE;
  __local const float *b = (__local const float *)rows + (get_local_id(0) >> 3) * TILE_STRIDE;
  for (int k = 0; k < TILE_COLS; k++) {
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      #pragma unroll
      for (int j = 0; j < 4; j++) {
        sums[4 * i + j] += a[8 * i * TILE_STRIDE + k] * b[8 * j * TILE_STRIDE + k];
      }
    }
  }
}

FUNCTION int KIND(sum_row)(int i) { return (i >> 2) * 8 + ((int)get_local_id(0) & 7); }
FUNCTION int KIND(sum_token)(int i) { return (i & 3) * 8 + ((int)get_local_id(0) >> 3); }

#endif

typedef struct {
  uint4 weights[WEIGHT_LOADS];
#ifdef PLANES
  Side sides[WEIGHT_LOADS];
#else
  ushort scales[WEIGHT_LOADS];
#endif
  uint4 rows[ROW_LOADS];
} KIND(Stage);

// Ask for the tiles' columns from `column` on.
FUNCTION void KIND(ask)(
    KIND(Stage) *s, Matrix m, __global const uint4 *x, int row0, int token0, int n_tokens,
    int column) {
  #pragma unroll
  for (int j = 0; j < WEIGHT_LOADS; j++) {
    int i = j * TILE_GROUP + (int)get_local_id(0);
    int row = row0 + i / UNITS_A_TILE_ROW, unit = i % UNITS_A_TILE_ROW;
    int there = row < m.rows && i < TILE_ROWS * UNITS_A_TILE_ROW;
    long place = (long)row * m.n_units + column / UNIT_COLS + unit;
#ifdef PLANES
    s->weights[j] = there ? KIND(load_unit)(m, place) : (uint4)(0);
    s->sides[j] = KIND(load_side)(m, row, column / UNIT_COLS + unit, there);
#else
    s->weights[j] = there ? load_stream(m.units + place) : (uint4)(0);
#ifdef QUANTISED
    s->scales[j] = there ? load_scale(m.scales + place / UNITS_A_BLOCK) : (ushort)0;
#else
    s->scales[j] = 0;
#endif
#endif
  }
  const int row_chunks = wide_stride(m.n_units * UNIT_COLS) / TILE_COLS * CHUNKS;
  #pragma unroll
  for (int j = 0; j < ROW_LOADS; j++) {
    int i = j * TILE_GROUP + (int)get_local_id(0);
    int token = token0 + i / CHUNKS;
    int there = token < n_tokens && i < TILE_TOKENS * CHUNKS;
    long place = (long)token * row_chunks + column / TILE_COLS * CHUNKS + i % CHUNKS;
    s->rows[j] = there ? x[place] : (uint4)(0);
  }
}

FUNCTION void KIND(take)(const KIND(Stage) *s, __local uint4 *weights, __local uint4 *rows) {
  #pragma unroll
  for (int j = 0; j < WEIGHT_LOADS; j++) {
    int i = j * TILE_GROUP + (int)get_local_id(0);
    if (i < TILE_ROWS * UNITS_A_TILE_ROW) {
#ifdef PLANES
      KIND(put_unit)(weights, i, s->weights[j], s->sides[j]);
#else
      KIND(put_weights)(
          weights, i / UNITS_A_TILE_ROW, i % UNITS_A_TILE_ROW, s->weights[j], s->scales[j]);
#endif
    }
  }
  #pragma unroll
  for (int j = 0; j < ROW_LOADS; j++) {
    int i = j * TILE_GROUP + (int)get_local_id(0);
    if (i < TILE_TOKENS * CHUNKS) KIND(put_row)(rows, i / CHUNKS, i % CHUNKS, s->rows[j]);
  }
}

// One tile: the matrix's rows from row0 on and the tokens from token0 on.
FUNCTION void KIND(tile)(
    Matrix m, __global const uint4 *x, int n_tokens, int row0, int token0, __global float *out,
    int out_first, int out_stride, int add, __local uint4 *weights, __local uint4 *tokens) {
  const int weights_half = TILE_BYTES(TILE_ROWS) / 16, tokens_half = TILE_BYTES(TILE_TOKENS) / 16;
  const int n_cols = m.n_units * UNIT_COLS;
  KIND(Stage) stage;
  float sums[TILE_SUMS];
  #pragma unroll
  for (int i = 0; i < TILE_SUMS; i++) sums[i] = 0.0f;
  KIND(ask)(&stage, m, x, row0, token0, n_tokens, 0);
  KIND(take)(&stage, weights, tokens);
  LOCAL_FENCE;
  int buffer = 0;
  for (int column = TILE_COLS; column <= n_cols; column += TILE_COLS) {
    if (column < n_cols) KIND(ask)(&stage, m, x, row0, token0, n_tokens, column);
    KIND(multiply)(sums, weights + buffer * weights_half, tokens + buffer * tokens_half);
    buffer ^= 1;
    if (column < n_cols) {
      KIND(take)(&stage, weights + buffer * weights_half, tokens + buffer * tokens_half);
    }
    LOCAL_FENCE;
  }
  #pragma unroll
  for (int i = 0; i < TILE_SUMS; i++) {
    int row = row0 + KIND(sum_row)(i), token = token0 + KIND(sum_token)(i);
    if (row < m.rows && token < n_tokens) {
      long place = (long)token * out_stride + out_first + row;
      out[place] = add ? out[place] + sums[i] : sums[i];
    }
  }
}

// A group for every tile; those of the same rows are neighbours, so that weights are read once.
// `x` is (tokens, padded columns), of which the batch's word `count_at` says how many. `out` is
// (tokens, out_stride) float, rows from `out_first` on; with `add` the product is added to it.
__kernel __attribute__((reqd_work_group_size(TILE_GROUP, 1, 1))) void KIND(tile_product)(
    __global const uint4 *units, __global const ushort *scales, int rows, int n_units,
    __global const uint4 *x, __global const int *batch, int count_at, __global float *out,
    int out_first, int out_stride, int add) {
  __local uint4 weights[2 * TILE_BYTES(TILE_ROWS) / 16];
  __local uint4 tokens[2 * TILE_BYTES(TILE_TOKENS) / 16];
  const int n_tokens = batch[count_at];
  const int token_tiles = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
  const int row0 = get_group_id(0) / token_tiles * TILE_ROWS;
  const int token0 = get_group_id(0) % token_tiles * TILE_TOKENS;
  Matrix m = {units, scales, rows, n_units};
  KIND(tile)(
      m, x, n_tokens, row0, token0, out, out_first, out_stride, add, weights, tokens);
}
