// Matrix times many rows of activations on Hopper's Tensor Cores, for one storage type: tiles of
// 128 or 192 rows of the matrix by 128 tokens, 32 columns a stage. The weights go from global memory
// to the registers that the products read; the activations are copied to local memory in bulk.
//
// A work-item loads whole units of weights, so the columns of a product come in another order than
// in memory. Who makes the activations puts them there in that order, and in tiles as they are
// copied: see wide_place.

#if defined(WARPGROUP) && !defined(KIND_F32) && !defined(PLANES)

#undef RAW_STAGES
#undef WIDE_RAW
#if UNIT_COLS == 8
#define WIDE_RAW 4  // of the stages' weights are on their way
#else
#define WIDE_RAW 2
#endif
#define RAW_STAGES (4 * UNIT_COLS / WIDE_COLS)  // that a work-item's unit of a row lasts

typedef struct {
  uint4 unit[2];  // of rows r and r + 8 of a warp's 16
  ushort scale[2];
} KIND(Raw);

typedef struct {
  int first[2];  // units of the matrix before the rows
  int n_units;
} KIND(Place);

// Ask for a work-item's weights of RAW_STAGES stages from one on; behind the end of a row, where
// the activations are zeros, for its last ones. Nothing here may depend on a condition: the wait
// for the loads would come with it.
FUNCTION void KIND(ask_wide)(KIND(Raw) *raw, Matrix m, const KIND(Place) *place, int stage) {
  const int unit = min(stage / RAW_STAGES * 4 + (lane_id() & 3), place->n_units - 1);
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    int at = place->first[r] + unit;
    raw->unit[r] = load_ahead(m.units + at);
#ifdef QUANTISED
    raw->scale[r] = load_scale(m.scales + at / UNITS_A_BLOCK);
#else
    raw->scale[r] = 0;
#endif
  }
}

// Unpack the weights of a stage, the `part`-th of those that were asked for together. `nothing` is
// 0, which the compiler cannot know: plain copies it would make, and wait for, as soon as it can.
FUNCTION void KIND(open)(uint *fragments, const KIND(Raw) *raw, int part, uint nothing) {
  #pragma unroll
  for (int step = 0; step < WIDE_STEPS; step++) {
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      uint2 words = KIND(opened)(raw->unit[r], raw->scale[r], part * WIDE_STEPS + step);
      fragments[4 * step + r] = words.x ^ nothing;
      fragments[4 * step + 2 + r] = words.y ^ nothing;
    }
  }
}

// The sums of a work-item: those of 16 tokens a row, for rows r and r + 8 of a warp's 16. The warp
// after those of the products fills the slots again, as soon as all of them have read one.
FUNCTION void KIND(sum_tile)(
    float *sums, Matrix m, const KIND(Place) *place, __global const uchar *x, int n_stages,
    __local uint4 *slots, __local ulong *barriers, const int warps) {
  const uint first_slot = local_address(slots);
  const uint filled = local_address(barriers), emptied = filled + 8 * WIDE_SLOTS;
  if (get_local_id(0) == 0) make_slots(filled, emptied, warps);
  LOCAL_FENCE;
  if (team_in_group() == warps) {
    if (lane_id() == 0) fill_slots(first_slot, filled, emptied, x, n_stages);
    return;
  }
  KIND(Raw) raw[WIDE_RAW];
  uint fragments[2][4 * WIDE_STEPS];
  #pragma unroll
  for (int i = 0; i < 64; i++) sums[i] = 0.0f;
  #pragma unroll
  for (int i = 0; i < WIDE_RAW; i++) KIND(ask_wide)(raw + i, m, place, i * RAW_STAGES);
  const uint nothing = (uint)m.rows >> 31;
  int slot = 0, before = WIDE_SLOTS - 1, parity = 0;
  for (int first = 0; first < n_stages; first += WIDE_UNROLL) {
    #pragma unroll
    for (int i = 0; i < WIDE_UNROLL; i++) {
      const int stage = first + i;
      KIND(Raw) *of_stage = raw + i / RAW_STAGES % WIDE_RAW;
      KIND(open)(fragments[i % 2], of_stage, i % RAW_STAGES, nothing);
      wait_for(filled + 8 * slot, parity);
      products_fence();
      #pragma unroll
      for (int step = 0; step < WIDE_STEPS; step++) {
        ulong rows = local_operand(first_slot + slot * WIDE_BYTES + 32 * step);
        warpgroup_product(sums, fragments[i % 2] + 4 * step, rows);
      }
      products_commit();
      PRODUCTS_WAIT(1);  // those of the stage before have read its slot and their fragments
      if ((i + 1) % RAW_STAGES == 0) {
        KIND(ask_wide)(of_stage, m, place, stage + 1 + (WIDE_RAW - 1) * RAW_STAGES);
      }
      if (stage > 0 && lane_id() == 0) arrive(emptied + 8 * before);
      before = slot;
      slot = slot == WIDE_SLOTS - 1 ? 0 : slot + 1;
      parity ^= slot == 0;
    }
  }
  PRODUCTS_WAIT(0);
}

FUNCTION void KIND(wide)(
    Matrix m, __global const uchar *x, int n_tokens, __global float *out, int out_first,
    int out_stride, int add, int pair, int order, __local uint4 *slots, __local ulong *barriers,
    const int warps) {
  const int token_tiles = (n_tokens + WIDE_TOKENS - 1) / WIDE_TOKENS;
  const int tile = get_group_id(0) / token_tiles, token_tile = get_group_id(0) % token_tiles;
  const int warp_row = (tile * warps + team_in_group()) * (pair ? 8 : 16);
  const int row = warp_row + (lane_id() >> 2), second = row + (pair ? pair : 8);
  const int n_stages = wide_stride(m.n_units * UNIT_COLS) / WIDE_COLS;
  KIND(Place) place = {
      {min(row, m.rows - 1) * m.n_units, min(second, m.rows - 1) * m.n_units}, m.n_units};
  x += (long)token_tile * n_stages * WIDE_BYTES;
  float sums[64];
  KIND(sum_tile)(sums, m, &place, x, n_stages, slots, barriers, warps);
  if (team_in_group() == warps) return;
  const int token0 = token_tile * WIDE_TOKENS + (lane_id() & 3) * 2;
  #pragma unroll
  for (int i = 0; i < 64; i += 4) {
    int token = token0 + 2 * i;
    if (pair) {
      put_swiglu(
          (__global uint *)out, sums + i, token, row, pair, n_tokens, out_stride, order);
      continue;
    }
    #pragma unroll
    for (int j = 0; j < 4; j++) {
      int of = j < 2 ? row : second;
      if (of >= m.rows || token + (j & 1) >= n_tokens) continue;
      long at = (long)(token + (j & 1)) * out_stride + out_first + of;
      out[at] = add ? out[at] + sums[i + j] : sums[i + j];
    }
  }
}

// A group for every tile of 16 rows a warp; those of the same rows are neighbours. With `pair` the
// matrix has that many rows of gates and as many of ups: a warp takes 8 of each, and what comes out
// is their SwiGLU, as the next product reads it in `order`. Else see tile_product.
#define WIDE_KERNEL(name, warps)                                                                  \
  __kernel __attribute__((reqd_work_group_size((warps + 1) * LANES, 1, 1))) void name(            \
      __global const uint4 *units, __global const ushort *scales, int rows, int n_units,          \
      __global const uchar *x, __global const int *batch, int count_at, __global float *out,      \
      int out_first, int out_stride, int add, int pair, int order) {                              \
    __local uint4 slots[WIDE_SLOTS * WIDE_BYTES / 16] __attribute__((aligned(1024)));             \
    __local ulong barriers[2 * WIDE_SLOTS];                                                       \
    Matrix m = {units, scales, rows, n_units};                                                    \
    KIND(wide)(                                                                                   \
        m, x, batch[count_at], out, out_first, out_stride, add, pair, order, slots, barriers,     \
        warps);                                                                                   \
  }

WIDE_KERNEL(KIND(wide_product_128), 8)
WIDE_KERNEL(KIND(wide_product_192), 12)

#endif
