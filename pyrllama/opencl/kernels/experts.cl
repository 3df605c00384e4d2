// Products with the matrices of experts, for one storage type; see routing.cl. The experts of a
// layer are rows of one matrix, as many of each, and the second dimension of a grid goes through
// those that are wanted.

#ifdef N_EXPERTS

// The rows of one expert. Nothing of another one's is read.
FUNCTION Matrix KIND(expert_in)(Matrix all, int expert) {
  const int rows = all.rows / N_EXPERTS;
  const long first = (long)expert * rows;
  Matrix m = {all.units, all.scales, rows, all.n_units};
#if defined(PLANES) && LEVEL_BITS == 2
  m.units = (__global const uint4 *)((__global const uint2 *)m.units + first * m.n_units);
#else
  m.units += first * m.n_units;
#endif
#if defined(PLANES)
  m.scales += first * (SIDE_ROW_BYTES(m.n_units) / 2);
#elif defined(QUANTISED)
  m.scales += first * (m.n_units / UNITS_A_BLOCK);
#endif
  return m;
}

// The matrix of an expert that a token alone has chosen.
FUNCTION Matrix KIND(chosen_expert)(
    __global const uint4 *units, __global const ushort *scales, int rows, int n_units,
    __global const int *chosen) {
  const Matrix all = {units, scales, rows, n_units};
  return KIND(expert_in)(all, chosen[get_group_id(1)]);
}

// For each expert of a token, out = silu(gate * RMSNorm(x)) * (up * RMSNorm(x)), its matrix being
// gate and then up.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(expert_swiglu_product)(
    __global const uint4 *units, __global const ushort *scales, int rows, int n_units,
    __global const int *chosen, __global const float *x, __global const float *weight, int n,
    float eps, __global float *out, int out_stride) {
  __local uint4 memory[ACTIVATION_BYTES / 16];
  __local float scratch[SCRATCH_FLOATS];
  const Matrix m = KIND(chosen_expert)(units, scales, rows, n_units, chosen);
  Source source = {x, weight, 0, n, eps, 1};
  Target target = {out + get_group_id(1) * out_stride, 0, UNSTAMPED};
  Begun begun;
  KIND(begin)(&begun, m, 1);
  KIND(product)(&begun, m, source, target, 1, memory, scratch);
  KIND(finish)(&begun, m, source, target, 1, scratch);
}

// For each expert of a token, out = matrix * its row of x.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(expert_product)(
    __global const uint4 *units, __global const ushort *scales, int rows, int n_units,
    __global const int *chosen, __global const float *x, int x_stride, __global float *out,
    int out_stride) {
  __local uint4 memory[ACTIVATION_BYTES / 16];
  __local float scratch[SCRATCH_FLOATS];
  const Matrix m = KIND(chosen_expert)(units, scales, rows, n_units, chosen);
  Source source = {x + get_group_id(1) * x_stride, 0, 0, 0, 0, 0};
  Target target = {out + get_group_id(1) * out_stride, 0, UNSTAMPED};
  Begun begun;
  KIND(begin)(&begun, m, 0);
  KIND(product)(&begun, m, source, target, 0, memory, scratch);
  KIND(finish)(&begun, m, source, target, 0, scratch);
}

// For each expert, a tile product with its run of the rows of x, which stand sorted; out gets them
// at the same places. The grid has tiles for all tokens of the batch, as an expert may be chosen by
// all of them: most have nothing to do.
__kernel __attribute__((reqd_work_group_size(TILE_GROUP, 1, 1))) void KIND(expert_tiles)(
    __global const uint4 *units, __global const ushort *scales, int rows, int n_units,
    __global const uint4 *x, __global const int *batch, __global const int2 *runs,
    __global float *out, int out_first, int out_stride) {
  __local uint4 weights[2 * TILE_BYTES(TILE_ROWS) / 16];
  __local uint4 tokens[2 * TILE_BYTES(TILE_TOKENS) / 16];
  const int expert = get_group_id(1);
  const int2 run = runs[expert];
  const int token_tiles = (batch[BATCH_N_TOKENS] + TILE_TOKENS - 1) / TILE_TOKENS;
  const int row0 = get_group_id(0) / token_tiles * TILE_ROWS;
  const int token0 = get_group_id(0) % token_tiles * TILE_TOKENS;
  if (token0 >= run.y) return;
  const Matrix all = {units, scales, rows, n_units};
  const long row_chunks = wide_stride(n_units * UNIT_COLS) / TILE_COLS * CHUNKS;
  KIND(tile)(
      KIND(expert_in)(all, expert), x + run.x * row_chunks, run.y, row0, token0,
      out + (long)run.x * out_stride, out_first, out_stride, 0, weights, tokens);
}

#if defined(TENSOR) && !defined(KIND_F32) && !defined(PLANES)

// The same for a batch of few tokens, each weight read once; with `pair`, an expert's SwiGLU in
// float16 comes out. See few.cl.
#define EXPERT_FEW_KERNEL(name, blocks)                                                           \
  __kernel __attribute__((reqd_work_group_size(FEW_GROUP, 1, 1))) void name(                      \
      __global const uint4 *units, __global const ushort *scales, int rows, int n_units,          \
      __global const uint4 *x, __global const int2 *runs, __global float *out, int out_first,     \
      int out_stride, int pair) {                                                                 \
    __local float parts[FEW_WARPS * 8 * blocks * FEW_PITCH];                                      \
    const int expert = get_group_id(1);                                                           \
    const int2 run = runs[expert];                                                                \
    if (run.y == 0) return;                                                                       \
    const Matrix all = {units, scales, rows, n_units};                                            \
    const long row_chunks = wide_stride(n_units * UNIT_COLS) / 8;                                 \
    KIND(few)(                                                                                    \
        KIND(expert_in)(all, expert), x + run.x * row_chunks, run.y,                              \
        out + (long)run.x * (pair ? out_stride / 2 : out_stride), out_first, out_stride, 0, pair, \
        parts, blocks);                                                                           \
  }

EXPERT_FEW_KERNEL(KIND(expert_few_8), 1)
EXPERT_FEW_KERNEL(KIND(expert_few_16), 2)
EXPERT_FEW_KERNEL(KIND(expert_few_32), 4)

#endif

#endif
