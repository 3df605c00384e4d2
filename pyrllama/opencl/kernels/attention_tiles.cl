// Attention of consecutive rows of a sequence, for a head: a tile of ATTENTION_ROWS rows reads
// every block of keys and values once for all its rows. The softmax of a row goes on from block
// to block in float32; a block that a row does not see leaves it as it is, to the bit, so a
// row's result depends neither on its tile nor on the rows beside it.

#if ATTENTION_ROWS > 0

#define COL_LANES 16  // work-items side by side in a tile
#define ROW_LANES (ATTENTION_GROUP / COL_LANES)
#define ROWS_EACH (ATTENTION_ROWS / ROW_LANES)
#define KEYS_EACH (LANES / COL_LANES)
#define HEAD_QUADS (HEAD_STRIDE / 4)
#define QUADS_EACH ((HEAD_QUADS + COL_LANES - 1) / COL_LANES)
// Floats from a row to the next: whole float4, and eight neighbours in different banks.
#define HEAD_PITCH (HEAD_STRIDE + 4)
#define KEY_PITCH (LANES + 4)
#define EIGHTS (LANES * HEAD_UNITS)  // of the keys, or the values, of a block
#define EIGHTS_EACH ((EIGHTS + ATTENTION_GROUP - 1) / ATTENTION_GROUP)
#define PART_KEYS (LANES / 4)  // keys of a row whose weights a work-item computes

typedef __local const float4 *LocalQuads;

typedef struct {
  __local float *queries;  // (ATTENTION_ROWS, HEAD_PITCH)
  __local float *block;    // (LANES, HEAD_PITCH): keys, then values
  __local float *weights;  // (ATTENTION_ROWS, KEY_PITCH): scores, then their powers
  __local float *shrinks;  // (ATTENTION_ROWS): what a block makes of the results before it
  __local float *sums;     // (ATTENTION_ROWS)
} TileMemory;

// Four by eight neighbours share the rows and columns of a warp: few banks, many broadcasts.
FUNCTION int row_lane(void) {
  int id = (int)get_local_id(0);
  return (id >> 3 & 3) + 4 * (id >> 5 & 1);
}

FUNCTION int col_lane(void) {
  int id = (int)get_local_id(0);
  return (id & 7) + 8 * (id >> 6);
}

FUNCTION void put_eight(__local float *place, float8 v) {
  ((__local float4 *)place)[0] = v.lo;
  ((__local float4 *)place)[1] = v.hi;
}

// Rotate and scale the queries of a run; rows behind its end are zeros.
FUNCTION void tile_queries(Attention a, Run run, int head, TileMemory m) {
  for (int i = get_local_id(0); i < ATTENTION_ROWS * HEAD_STRIDE / 2; i += ATTENTION_GROUP) {
    int row = i / (HEAD_STRIDE / 2), pair = i % (HEAD_STRIDE / 2);
    float2 turned = (float2)(0.0f);
    if (row < run.n_rows && 2 * pair < HEAD_DIM) {
      __global const float *q = a.qkv + (long)(run.row + row) * QKV_STRIDE + head * HEAD_DIM;
      turned = rotated(a, run.position + row, q, pair) * (LOG2_E * rsqrt((float)HEAD_DIM));
    }
    vstore2(turned, 0, m.queries + row * HEAD_PITCH + 2 * pair);
  }
}

// Ask for the keys or the values of a block; they are on their way while others are multiplied.
FUNCTION void ask_keys(Eight *eights, __global const Cached *keys) {
  UNROLL_ON_GPU
  for (int j = 0; j < EIGHTS_EACH; j++) {
    int i = min(j * ATTENTION_GROUP + (int)get_local_id(0), EIGHTS - 1);
    eights[j] = stored8(keys, i, i / LANES / 4, i % LANES);
  }
}

FUNCTION void ask_values(Eight *eights, __global const Cached *keys) {
  UNROLL_ON_GPU
  for (int j = 0; j < EIGHTS_EACH; j++) {
    int i = min(j * ATTENTION_GROUP + (int)get_local_id(0), EIGHTS - 1);
    eights[j] = stored8(keys + PLANE, i, i % HEAD_UNITS / 4, i / HEAD_UNITS);
  }
}

FUNCTION void put_keys(const Eight *eights, TileMemory m) {
  UNROLL_ON_GPU
  for (int j = 0; j < EIGHTS_EACH; j++) {
    int i = j * ATTENTION_GROUP + (int)get_local_id(0);
    if (i >= EIGHTS) continue;
    put_eight(m.block + i % LANES * HEAD_PITCH + i / LANES * 8, opened8(eights[j]));
  }
}

// Values behind the last row's position are what another sequence left: zeros take their place.
FUNCTION void put_values(const Eight *eights, int n_visible, TileMemory m) {
  UNROLL_ON_GPU
  for (int j = 0; j < EIGHTS_EACH; j++) {
    int i = j * ATTENTION_GROUP + (int)get_local_id(0);
    if (i >= EIGHTS) continue;
    int token = i / HEAD_UNITS;
    float8 value = token < n_visible ? opened8(eights[j]) : (float8)(0.0f);
    put_eight(m.block + token * HEAD_PITCH + i % HEAD_UNITS * 8, value);
  }
}

// The scores of all rows and the keys of a block that begins at `position`.
FUNCTION void tile_scores(Run run, int position, TileMemory m) {
  float scores[ROWS_EACH * KEYS_EACH];
  UNROLL_ON_GPU
  for (int i = 0; i < ROWS_EACH * KEYS_EACH; i++) scores[i] = 0.0f;
  #pragma unroll 2
  for (int quad = 0; quad < HEAD_QUADS; quad++) {
    float4 keys[KEYS_EACH];
    UNROLL_ON_GPU
    for (int k = 0; k < KEYS_EACH; k++) {
      keys[k] = ((LocalQuads)(m.block + (col_lane() + COL_LANES * k) * HEAD_PITCH))[quad];
    }
    UNROLL_ON_GPU
    for (int r = 0; r < ROWS_EACH; r++) {
      float4 query = ((LocalQuads)(m.queries + (row_lane() + ROW_LANES * r) * HEAD_PITCH))[quad];
      UNROLL_ON_GPU
      for (int k = 0; k < KEYS_EACH; k++) {
        float score = scores[r * KEYS_EACH + k];
        score += query.x * keys[k].x;
        score += query.y * keys[k].y;
        score += query.z * keys[k].z;
        score += query.w * keys[k].w;
        scores[r * KEYS_EACH + k] = score;
      }
    }
  }
  UNROLL_ON_GPU
  for (int i = 0; i < ROWS_EACH * KEYS_EACH; i++) {
    int row = row_lane() + ROW_LANES * (i / KEYS_EACH);
    int key = col_lane() + COL_LANES * (i % KEYS_EACH);
    const int query = run.position + row;
    int visible = position + key <= query && in_window(query, position + key);
    m.weights[row * KEY_PITCH + key] = visible ? scores[i] : -INFINITY;
  }
}

// Turn scores into weights, four work-items a row. `top` and `sum` are the row's so far; what
// work-items behind the last row get is used nowhere, but they must take part in the barriers.
FUNCTION void tile_softmax(float *top, float *sum, TileMemory m, __local float *scratch) {
  const int row = min((int)get_local_id(0) / 4, ATTENTION_ROWS - 1), part = get_local_id(0) % 4;
  const int writes = (int)get_local_id(0) / 4 < ATTENTION_ROWS;
  __local float *scores = m.weights + row * KEY_PITCH + part * PART_KEYS;
  float4 low = ((LocalQuads)scores)[0], high = ((LocalQuads)scores)[1];
  float4 four = fmax(low, high);
  float greatest = fmax(fmax(four.x, four.y), fmax(four.z, four.w));
  float new_top = fmax(*top, quad_max(greatest, scratch));
  const float base = base_of(new_top);
  low = exp2(low - base);
  high = exp2(high - base);
  four = low + high;
  float shrink = exp2(*top - base);
  *sum = *sum * shrink + quad_sum((four.x + four.y) + (four.z + four.w), scratch);
  *top = new_top;
  if (writes) {
    ((__local float4 *)scores)[0] = low;
    ((__local float4 *)scores)[1] = high;
    if (part == 0) m.shrinks[row] = shrink;
    if (part == 0) m.sums[row] = *sum;
  }
}

FUNCTION void tile_gather(float4 *results, TileMemory m) {
  UNROLL_ON_GPU
  for (int i = 0; i < ROWS_EACH * QUADS_EACH; i++) {
    results[i] *= m.shrinks[row_lane() + ROW_LANES * (i / QUADS_EACH)];
  }
  #pragma unroll 4
  for (int key = 0; key < LANES; key++) {
    float weights[ROWS_EACH];
    UNROLL_ON_GPU
    for (int r = 0; r < ROWS_EACH; r++) {
      weights[r] = m.weights[(row_lane() + ROW_LANES * r) * KEY_PITCH + key];
    }
    UNROLL_ON_GPU
    for (int q = 0; q < QUADS_EACH; q++) {
      int quad = min(col_lane() + COL_LANES * q, HEAD_QUADS - 1);
      float4 value = ((LocalQuads)(m.block + key * HEAD_PITCH))[quad];
      UNROLL_ON_GPU
      for (int r = 0; r < ROWS_EACH; r++) results[r * QUADS_EACH + q] += weights[r] * value;
    }
  }
}

FUNCTION void put_tile(
    const float4 *results, Run run, int head, TileMemory m, __global uint *out, int order) {
  UNROLL_ON_GPU
  for (int i = 0; i < ROWS_EACH * QUADS_EACH; i++) {
    int row = row_lane() + ROW_LANES * (i / QUADS_EACH);
    int col = 4 * (col_lane() + COL_LANES * (i % QUADS_EACH));
    if (row >= run.n_rows) continue;
    float4 v = results[i] / m.sums[row];
    const int token = run.row + row, column = head * HEAD_DIM + col;
    if (col < HEAD_DIM) put_pair(out, token, column, ATTENDED_STRIDE, v.lo, order);
    if (col + 2 < HEAD_DIM) put_pair(out, token, column + 2, ATTENDED_STRIDE, v.hi, order);
  }
}

FUNCTION void attend_run(
    Attention a, Run run, int head, TileMemory m, __local float *scratch, __global uint *out,
    int order) {
  const int last = run.position + run.n_rows - 1, kv_head = head / KV_SHARED;
  const int first_block = first_in_window(run.position) / LANES;
  float top = -INFINITY, sum = 0.0f;
  float4 results[ROWS_EACH * QUADS_EACH];
  UNROLL_ON_GPU
  for (int i = 0; i < ROWS_EACH * QUADS_EACH; i++) results[i] = (float4)(0.0f);
  Eight eights[EIGHTS_EACH];
  LOCAL_FENCE;  // others may still read what the run before left
  tile_queries(a, run, head, m);
  ask_keys(eights, head_in_block(a, run.table[first_block], kv_head));
  for (int index = first_block; index <= last / LANES; index++) {
    LOCAL_FENCE;
    put_keys(eights, m);
    LOCAL_FENCE;
    ask_values(eights, head_in_block(a, run.table[index], kv_head));
    tile_scores(run, index * LANES, m);
    LOCAL_FENCE;
    put_values(eights, last + 1 - index * LANES, m);
    tile_softmax(&top, &sum, m, scratch);
    LOCAL_FENCE;
    int next = min(index + 1, last / LANES);
    ask_keys(eights, head_in_block(a, run.table[next], kv_head));
    tile_gather(results, m);
  }
  put_tile(results, run, head, m, out, order);
}

// A group for every (rows from a multiple of ATTENTION_ROWS on, head); a row that is all that a
// batch has of its sequence is left to attend_rows. The last rows, which see most, begin first.
__kernel __attribute__((reqd_work_group_size(ATTENTION_GROUP, 1, 1))) void attend_tiles(
    ATTENTION_PARAMETERS, __global uint *out, int order) {
  __local float4 queries[ATTENTION_ROWS * HEAD_PITCH / 4], block[LANES * HEAD_PITCH / 4];
  __local float4 weights[ATTENTION_ROWS * KEY_PITCH / 4];
  __local float shrinks[ATTENTION_ROWS], sums[ATTENTION_ROWS], scratch[ATTENTION_GROUP];
  TileMemory m = {
      (__local float *)queries, (__local float *)block, (__local float *)weights, shrinks, sums};
  Attention a = ATTENTION;
  const int head = get_group_id(0) % N_HEADS;
  const int tile = ((int)get_num_groups(0) - 1 - (int)get_group_id(0)) / N_HEADS;
  int row = tile * ATTENTION_ROWS;
  const int end = min(row + ATTENTION_ROWS, batch[BATCH_N_TOKENS]);
  while (row < end) {
    Run run = next_run(batch, row, end);
    if (!is_alone(batch, row)) attend_run(a, run, head, m, scratch, out, order);
    row += run.n_rows;
  }
  if (head == N_HEADS - 1) pad_attended(tile * ATTENTION_ROWS, end, out, order);
}

#endif
