// Attention of consecutive rows of a sequence on Tensor Cores, for a head: a warp has 16 rows, a
// group TENSOR_ATTENTION_ROWS. Blocks of the cache are copied to local memory as they are, the next
// while the present one is multiplied. As in attention_tiles.cl, the softmax goes on from block to
// block, and a row's result depends neither on its tile nor on the rows beside it.

#if TENSOR_ATTENTION

#define TENSOR_ATTENTION_ROWS (ATTENTION_GROUP / LANES * 16)
#define HEAD_STEPS ((HEAD_UNITS + 1) / 2)  // of 16 numbers
#define VALUE_PITCH (HEAD_UNITS | 1)       // chunks: 8 tokens lie in different banks
#define KEY_CHUNKS (LANES * HEAD_UNITS)
#define BLOCK_CHUNKS (KEY_CHUNKS + LANES * VALUE_PITCH)
#define SCORE_BLOCKS (LANES / 8)

FUNCTION void copy_or_zero(__local uint4 *to, __global const Cached *from, int there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint)(size_t)to), "l"(from),
               "r"(there ? 16 : 0) : "memory");
}

// Copy keys and values of a block; those behind the last row's position become zeros.
FUNCTION void copy_block(__local uint4 *block, __global const Cached *keys, int n_visible) {
  for (int i = get_local_id(0); i < KEY_CHUNKS; i += ATTENTION_GROUP) {
    copy_or_zero(block + i, keys + 8 * i, i % LANES < n_visible);
  }
  __local uint4 *values = block + KEY_CHUNKS;
  for (int i = get_local_id(0); i < KEY_CHUNKS; i += ATTENTION_GROUP) {
    int token = i / HEAD_UNITS;
    __local uint4 *to = values + token * VALUE_PITCH + i % HEAD_UNITS;
    copy_or_zero(to, keys + PLANE + 8 * i, token < n_visible);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

FUNCTION uint query_pair(Attention a, Run run, int row, int head, int pair) {
  if (2 * pair >= HEAD_DIM) return 0;
  row = min(row, run.n_rows - 1);
  __global const float *q = a.qkv + (long)(run.row + row) * QKV_STRIDE + head * HEAD_DIM;
  float2 turned = rotated(a, run.position + row, q, pair) * (LOG2_E * rsqrt((float)HEAD_DIM));
  return pack_halves(turned.x, turned.y);
}

// The scores (16, 32) of a warp's rows for the keys of a block, in powers of two.
FUNCTION void score_block(float *scores, const uint4 *queries, __local const uint4 *keys) {
  const int lane = lane_id();
  #pragma unroll
  for (int i = 0; i < 4 * SCORE_BLOCKS; i++) scores[i] = 0.0f;
  #pragma unroll
  for (int step = 0; step < HEAD_STEPS; step++) {
    int unit = min(2 * step + (lane >> 3 & 1), HEAD_UNITS - 1);
    #pragma unroll
    for (int b = 0; b < SCORE_BLOCKS; b += 2) {
      uint4 key = load_fragments(keys + unit * LANES + 8 * (b + (lane >> 4)) + (lane & 7));
      tensor_product(scores + 4 * b, queries[step], key.x, key.y);
      tensor_product(scores + 4 * b + 4, queries[step], key.z, key.w);
    }
  }
}

// Turn scores into weights; `top` and `sum` of rows r and r + 8 go on, the results shrink.
FUNCTION void weigh(float *scores, float *top, float *sum, float *results) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    float greatest = top[r];
    #pragma unroll
    for (int b = 0; b < SCORE_BLOCKS; b++) {
      greatest = fmax(greatest, fmax(scores[4 * b + 2 * r], scores[4 * b + 2 * r + 1]));
    }
    greatest = quad_max(greatest, 0);
    const float base = base_of(greatest);
    float shrink = exp2(top[r] - base), added = 0.0f;
    top[r] = greatest;
    #pragma unroll
    for (int b = 0; b < SCORE_BLOCKS; b++) {
      #pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; e++) {
        scores[4 * b + e] = exp2(scores[4 * b + e] - base);
        added += scores[4 * b + e];
      }
    }
    sum[r] = sum[r] * shrink + added;
    #pragma unroll
    for (int i = 0; i < 2 * HEAD_STEPS; i++) {
      results[4 * i + 2 * r] *= shrink;
      results[4 * i + 2 * r + 1] *= shrink;
    }
  }
}

// results (16, head) += weights (16, 32) * values (32, head)
FUNCTION void gather_block(float *results, const float *weights, __local const uint4 *values) {
  const int lane = lane_id();
  #pragma unroll
  for (int step = 0; step < LANES / 16; step++) {
    const float *w = weights + 8 * step;
    uint4 a = (uint4)(pack_halves(w[0], w[1]), pack_halves(w[2], w[3]),
                      pack_halves(w[4], w[5]), pack_halves(w[6], w[7]));
    __local const uint4 *row = values + (16 * step + (lane & 15)) * VALUE_PITCH;
    #pragma unroll
    for (int i = 0; i < HEAD_STEPS; i++) {
      uint4 v = load_turned_fragments(row + min(2 * i + (lane >> 4), HEAD_UNITS - 1));
      tensor_product(results + 8 * i, a, v.x, v.y);
      tensor_product(results + 8 * i + 4, a, v.z, v.w);
    }
  }
}

FUNCTION void put_results(
    const float *results, const float *sum, Run run, int row, int head, __global uint *out,
    int order) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    float factor = 1.0f / quad_sum(sum[r], 0);
    #pragma unroll
    for (int i = 0; i < HEAD_UNITS; i++) {
      int col = 8 * i + 2 * (lane_id() & 3);
      float2 v = (float2)(results[4 * i + 2 * r], results[4 * i + 2 * r + 1]) * factor;
      if (row + 8 * r >= run.n_rows || col >= HEAD_DIM) continue;
      put_pair(out, run.row + row + 8 * r, head * HEAD_DIM + col, ATTENDED_STRIDE, v, order);
    }
  }
}

FUNCTION void attend_run_on_tensor_cores(
    Attention a, Run run, int head, __local uint4 *blocks, __global uint *out, int order) {
  const int row = 16 * team_in_group() + (lane_id() >> 2);  // and the eighth after it
  const int last = run.position + run.n_rows - 1, kv_head = head / KV_SHARED;
  const int first_block = first_in_window(run.position) / LANES, last_block = last / LANES;
  const int warp_first = run.position + 16 * team_in_group(), warp_last = warp_first + 15;
  uint4 queries[HEAD_STEPS];
  float results[8 * HEAD_STEPS], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  LOCAL_FENCE;  // others may still read what the run before left
  copy_block(
      blocks + first_block % 2 * BLOCK_CHUNKS, head_in_block(a, run.table[first_block], kv_head),
      last + 1 - first_block * LANES);
  #pragma unroll
  for (int step = 0; step < HEAD_STEPS; step++) {
    int pair = 8 * step + (lane_id() & 3);
    queries[step] = (uint4)(
        query_pair(a, run, row, head, pair), query_pair(a, run, row + 8, head, pair),
        query_pair(a, run, row, head, pair + 4), query_pair(a, run, row + 8, head, pair + 4));
  }
  #pragma unroll
  for (int i = 0; i < 8 * HEAD_STEPS; i++) results[i] = 0.0f;
  for (int index = first_block; index <= last_block; index++) {
    __local uint4 *block = blocks + index % 2 * BLOCK_CHUNKS;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    LOCAL_FENCE;
    if (index < last_block) {
      copy_block(
          blocks + (index + 1) % 2 * BLOCK_CHUNKS, head_in_block(a, run.table[index + 1], kv_head),
          last + 1 - (index + 1) * LANES);
    }
    if (index * LANES > warp_last) continue;  // no row of the warp sees it
    if (!in_window(warp_first, index * LANES + LANES - 1)) continue;
    float scores[4 * SCORE_BLOCKS];
    score_block(scores, queries, block);
    #pragma unroll
    for (int i = 0; i < 4 * SCORE_BLOCKS; i++) {
      int key = index * LANES + i / 4 * 8 + 2 * (lane_id() & 3) + (i & 1);
      int query = run.position + row + 8 * (i >> 1 & 1);
      if (key > query || !in_window(query, key)) scores[i] = -INFINITY;
    }
    weigh(scores, top, sum, results);
    gather_block(results, scores, block + KEY_CHUNKS);
  }
  put_results(results, sum, run, row, head, out, order);
}

// A group for every (rows from a multiple of TENSOR_ATTENTION_ROWS on, head); see attend_tiles.
__kernel __attribute__((reqd_work_group_size(ATTENTION_GROUP, 1, 1))) void attend_tensor_tiles(
    ATTENTION_PARAMETERS, __global uint *out, int order) {
  __local uint4 blocks[2 * BLOCK_CHUNKS];
  Attention a = ATTENTION;
  const int head = get_group_id(0) % N_HEADS;
  const int tile = ((int)get_num_groups(0) - 1 - (int)get_group_id(0)) / N_HEADS;
  int row = tile * TENSOR_ATTENTION_ROWS;
  const int end = min(row + TENSOR_ATTENTION_ROWS, batch[BATCH_N_TOKENS]);
  while (row < end) {
    Run run = next_run(batch, row, end);
    if (!is_alone(batch, row)) attend_run_on_tensor_cores(a, run, head, blocks, out, order);
    row += run.n_rows;
  }
  if (head == N_HEADS - 1) pad_attended(tile * TENSOR_ATTENTION_ROWS, end, out, order);
}

#endif
