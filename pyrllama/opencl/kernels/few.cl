// Matrix times few rows of activations on Tensor Cores, for one storage type: a group has FEW_ROWS
// rows of the matrix and all tokens, its warps every FEW_WARPS-th quad of units, so each weight is
// read once. The sums of the warps meet in local memory, always in the same order.

#if defined(TENSOR) && !defined(KIND_F32) && !defined(PLANES)

#undef UNIT_PARTS
#define UNIT_PARTS (UNIT_COLS / 8)  // of a work-item's columns, 16 bytes of activations each

typedef struct {
  uint4 unit[FEW_ROWS / 8];
  ushort scale[FEW_ROWS / 8];
  uint4 rows[UNIT_PARTS];  // activations of the first 8 tokens
} KIND(Few);

// Ask for a quad of units; behind the end of a row, where the activations are zeros, for its last.
FUNCTION void KIND(ask_few)(
    KIND(Few) *raw, Matrix m, const int *first, __global const uint4 *rows, int quad) {
  const int place = min(4 * quad + (lane_id() & 3), ROUND_UP(m.n_units, 4) - 1);
  const int unit = min(place, m.n_units - 1);
  #pragma unroll
  for (int part = 0; part < UNIT_PARTS; part++) raw->rows[part] = rows[place * UNIT_PARTS + part];
  #pragma unroll
  for (int r = 0; r < FEW_ROWS / 8; r++) {
    raw->unit[r] = load_stream(m.units + first[r] + unit);
#ifdef QUANTISED
    raw->scale[r] = load_scale(m.scales + (first[r] + unit) / UNITS_A_BLOCK);
#else
    raw->scale[r] = 0;
#endif
  }
}

// sums (FEW_ROWS, 8 * blocks) += a quad of units times the activations from `x` on, one row of
// them for each block of 8 tokens.
FUNCTION void KIND(multiply_few)(
    float *sums, const KIND(Few) *raw, __global const uint4 *const *x, int place, const int blocks) {
  #pragma unroll
  for (int part = 0; part < UNIT_PARTS; part++) {
    uint4 rows[FEW_BLOCKS];
    #pragma unroll
    for (int b = 0; b < FEW_BLOCKS; b++) {
      if (b < blocks) rows[b] = b ? x[b][place + part] : raw->rows[part];
    }
    #pragma unroll
    for (int step = 2 * part; step < 2 * part + 2; step++) {
      #pragma unroll
      for (int t = 0; t < FEW_ROWS / 16; t++) {
        uint2 low = KIND(opened)(raw->unit[2 * t], raw->scale[2 * t], step);
        uint2 high = KIND(opened)(raw->unit[2 * t + 1], raw->scale[2 * t + 1], step);
        uint4 a = (uint4)(low.x, high.x, low.y, high.y);
        #pragma unroll
        for (int b = 0; b < FEW_BLOCKS; b++) {
          if (b >= blocks) continue;
          uint2 pair = step % 2 ? rows[b].zw : rows[b].xy;
          tensor_product(sums + 4 * (t * FEW_BLOCKS + b), a, pair.x, pair.y);
        }
      }
    }
  }
}

FUNCTION void KIND(few)(
    Matrix m, __global const uint4 *x, int n_tokens, __global float *out, int out_first,
    int out_stride, int add, int pair, __local float *parts, const int blocks) {
  const int lane = lane_id(), row0 = get_group_id(0) * (pair ? FEW_ROWS / 2 : FEW_ROWS);
  const int row_chunks = wide_stride(m.n_units * UNIT_COLS) / 8;
  int first[FEW_ROWS / 8];
  #pragma unroll
  for (int r = 0; r < FEW_ROWS / 8; r++) {
    int row = row0 + 8 * r + (lane >> 2);
    if (pair && r >= FEW_ROWS / 16) row += pair - FEW_ROWS / 2;
    first[r] = min(row, m.rows - 1) * m.n_units;
  }
  __global const uint4 *rows[FEW_BLOCKS];
  #pragma unroll
  for (int b = 0; b < FEW_BLOCKS; b++) {
    rows[b] = x + min(8 * b + (lane >> 2), n_tokens - 1) * row_chunks;
  }
  float sums[FEW_ROWS / 16 * FEW_BLOCKS * 4];
  #pragma unroll
  for (int i = 0; i < FEW_ROWS / 16 * FEW_BLOCKS * 4; i++) sums[i] = 0.0f;
  const int n_quads = (m.n_units + 3) / 4;
  KIND(Few) raw[2];
  int quad = team_in_group();
  KIND(ask_few)(raw, m, first, rows[0], quad);
  for (; quad < n_quads; quad += 2 * FEW_WARPS) {
    #pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = quad + i * FEW_WARPS;
      KIND(ask_few)(raw + 1 - i, m, first, rows[0], at + FEW_WARPS);
      if (at < n_quads) {
        KIND(multiply_few)(sums, raw + i, rows, (4 * at + (lane & 3)) * UNIT_PARTS, blocks);
      }
    }
  }
  __local float *part = parts + team_in_group() * 8 * blocks * FEW_PITCH;
  #pragma unroll
  for (int t = 0; t < FEW_ROWS / 16; t++) {
    #pragma unroll
    for (int i = 0; i < 4 * FEW_BLOCKS; i++) {
      if (i >= 4 * blocks) continue;
      int token = i / 4 * 8 + 2 * (lane & 3) + (i & 1);
      int row = 16 * t + 8 * (i >> 1 & 1) + (lane >> 2);
      part[token * FEW_PITCH + row] = sums[4 * t * FEW_BLOCKS + i];
    }
  }
  LOCAL_FENCE;
  put_few(parts, m.rows, n_tokens, out, row0, out_first, out_stride, add, pair, blocks);
}

#define FEW_KERNEL(name, blocks)                                                                  \
  __kernel __attribute__((reqd_work_group_size(FEW_GROUP, 1, 1))) void name(                      \
      __global const uint4 *units, __global const ushort *scales, int rows, int n_units,          \
      __global const uint4 *x, __global const int *batch, int count_at, __global float *out,      \
      int out_first, int out_stride, int add, int pair) {                                         \
    __local float parts[FEW_WARPS * 8 * blocks * FEW_PITCH];                                      \
    Matrix m = {units, scales, rows, n_units};                                                    \
    KIND(few)(m, x, batch[count_at], out, out_first, out_stride, add, pair, parts, blocks);       \
  }

// One for each number of tokens; see tile_product, and wide_product for `pair`.
FEW_KERNEL(KIND(few_product_8), 1)
FEW_KERNEL(KIND(few_product_16), 2)
FEW_KERNEL(KIND(few_product_32), 4)

#endif
