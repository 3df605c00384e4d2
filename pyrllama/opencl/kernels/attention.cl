// Rotary embeddings, the KV cache, and attention of single rows, split over their positions.
//
// The cache is (blocks, layers, KV heads) of BLOCK_TOKENS = LANES tokens: their keys as
// (HEAD_UNITS, tokens, 8), so that a lane computes the score of one token, and then their values
// as (tokens, HEAD_UNITS, 8). A head is padded with zeros to HEAD_UNITS * 8 numbers.

#define HEAD_UNITS ((HEAD_DIM + 7) / 8)
#define HEAD_STRIDE (8 * HEAD_UNITS)
#define PLANE (LANES * HEAD_STRIDE)  // the keys, or the values, of a head in a block
#define KV_SHARED (N_HEADS / N_KV_HEADS)
#define HEAD_GROUPS (N_HEADS / HEADS_AT_ONCE)
#define PASS_TOKENS (LANES / HEAD_UNITS)  // tokens whose values a team reads at a time
#define LOG2_E 1.44269504f

#ifdef KV_F32
typedef float Cached;
typedef float8 Eight;  // numbers as they are stored
FUNCTION Eight stored8(__global const Cached *p) { return vload8(0, p); }
FUNCTION float8 opened8(Eight v) { return v; }
FUNCTION void cache_put(__global Cached *p, int i, float2 pair) { vstore2(pair, 0, p + i); }
#else
typedef ushort Cached;
typedef uint4 Eight;
FUNCTION Eight stored8(__global const Cached *p) { return *(__global const uint4 *)p; }
FUNCTION float8 opened8(Eight v) {
  return (float8)(halves(v.x), halves(v.y), halves(v.z), halves(v.w));
}
FUNCTION void cache_put(__global Cached *p, int i, float2 pair) {
  *(__global uint *)(p + i) = pack_halves(pair.x, pair.y);
}
#endif

FUNCTION float8 cached8(__global const Cached *p) { return opened8(stored8(p)); }

typedef struct {
  __global const float *qkv;   // (rows, QKV_STRIDE)
  __global const float2 *rope; // (positions, HEAD_DIM / 2): cosine and sine
  __global Cached *cache;
  __global const int *batch;
  __global float *parts;       // (rows, SPLITS, Q_STRIDE)
  __global float2 *shares;     // (rows, SPLITS, N_HEADS): greatest score, sum of powers
  int layer;
  int n_layers;
} Attention;

FUNCTION __global Cached *head_in_block(Attention a, int block, int kv_head) {
  long head = ((long)block * a.n_layers + a.layer) * N_KV_HEADS + kv_head;
  return a.cache + head * 2 * PLANE;
}

// Turn pair i of a head by its position's angle.
FUNCTION float2 rotated(Attention a, int position, __global const float *head, int i) {
  float2 turn = a.rope[position * (HEAD_DIM / 2) + i];
  float even = load_shared(head + 2 * i), odd = load_shared(head + 2 * i + 1);
  return (float2)(even * turn.x - odd * turn.y, even * turn.y + odd * turn.x);
}

// Whether a row is all that a batch has of its sequence.
FUNCTION int is_alone(__global const int *batch, int row) {
  __global const int *start = batch + BATCH_TABLE_STARTS + row;
  int follows = row > 0 && start[-1] == start[0];
  return !follows && !(row + 1 < batch[BATCH_N_TOKENS] && start[1] == start[0]);
}

// Put the key and the value of a row into the cache.
FUNCTION void store_key_value(Attention a, int row, int kv_head) {
  int position = a.batch[BATCH_POSITIONS + row];
  __global const int *table = a.batch + BATCH_TABLES + a.batch[BATCH_TABLE_STARTS + row];
  __global Cached *keys = head_in_block(a, table[position / LANES], kv_head);
  __global Cached *values = keys + PLANE;
  __global const float *k = a.qkv + (long)row * QKV_STRIDE + Q_DIM + kv_head * HEAD_DIM;
  __global const float *v = k + KV_DIM;
  int slot = position % LANES;
  for (int i = get_local_id(0); i < HEAD_STRIDE / 2; i += GROUP) {
    int there = 2 * i < HEAD_DIM;
    float2 key = there ? rotated(a, position, k, i) : (float2)(0.0f);
    float2 value = (float2)(0.0f);
    if (there) value = (float2)(load_shared(v + 2 * i), load_shared(v + 2 * i + 1));
    cache_put(keys, (i / 4 * LANES + slot) * 8 + 2 * i % 8, key);
    cache_put(values, slot * HEAD_STRIDE + 2 * i, value);
  }
}

// Attend from HEADS_AT_ONCE heads of a row to one of SPLITS runs of its positions. `fresh` rows
// are not in the cache yet: whoever attends to the last position stores it first. Memory needed:
// ATTEND_FLOATS floats.
#define WEIGHTS_FLOATS (TEAMS * HEADS_AT_ONCE * LANES)
#define GATHER_FLOATS (TEAMS * LANES * 8)
#define WORK_FLOATS (WEIGHTS_FLOATS > GATHER_FLOATS ? WEIGHTS_FLOATS : GATHER_FLOATS)
#define ATTEND_FLOATS (HEADS_AT_ONCE * HEAD_STRIDE + 2 * TEAMS * HEADS_AT_ONCE + WORK_FLOATS)

FUNCTION void attend(
    Attention a, int row, int heads, int split, const int fresh,
    __local float *memory, __local float *scratch) {
  __local float *queries = memory;                             // (heads, HEAD_STRIDE)
  __local float *tops = queries + HEADS_AT_ONCE * HEAD_STRIDE; // (teams, heads)
  __local float *sums = tops + TEAMS * HEADS_AT_ONCE;          // (teams, heads)
  __local float *work = sums + TEAMS * HEADS_AT_ONCE;
  const int lane = lane_id(), team = team_in_group();
  const int first_head = heads * HEADS_AT_ONCE, kv_head = first_head / KV_SHARED;
  const int position = a.batch[BATCH_POSITIONS + row];
  __global const int *table = a.batch + BATCH_TABLES + a.batch[BATCH_TABLE_STARTS + row];
  const int n_blocks = position / LANES + 1;
  const int first = n_blocks * split / SPLITS, last = n_blocks * (split + 1) / SPLITS;

  LOCAL_FENCE;  // others may still read what stood in the memory
  for (int i = get_local_id(0); i < HEADS_AT_ONCE * HEAD_STRIDE / 2; i += GROUP) {
    int h = i / (HEAD_STRIDE / 2), pair = i % (HEAD_STRIDE / 2);
    __global const float *q = a.qkv + (long)row * QKV_STRIDE + (first_head + h) * HEAD_DIM;
    float2 turned = 2 * pair < HEAD_DIM ? rotated(a, position, q, pair) : (float2)(0.0f);
    vstore2(turned * (LOG2_E * rsqrt((float)HEAD_DIM)), i, queries);
  }
  if (fresh && last == n_blocks) store_key_value(a, row, kv_head);
  GROUP_FENCE;

  float top[HEADS_AT_ONCE], sum[HEADS_AT_ONCE];
  float8 gathered[HEADS_AT_ONCE];
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    top[h] = -INFINITY;
    sum[h] = 0.0f;
    gathered[h] = (float8)(0.0f);
  }
  for (int base = first; base < last; base += TEAMS) {
    const int index = base + team;
    const int there = index < last;
    const int n_visible = there ? min(position - index * LANES + 1, LANES) : 0;
    __global const Cached *keys = head_in_block(a, there ? table[index] : 0, kv_head);
    __global const Cached *values = keys + PLANE;
    float score[HEADS_AT_ONCE];
    UNROLL_ON_GPU
    for (int h = 0; h < HEADS_AT_ONCE; h++) score[h] = 0.0f;
    if (there) {
      #pragma unroll
      for (int unit = 0; unit < HEAD_UNITS; unit++) {
        float8 key = cached8(keys + (unit * LANES + lane) * 8);
        UNROLL_ON_GPU
        for (int h = 0; h < HEADS_AT_ONCE; h++) {
          float8 product = key * vload8(unit, queries + h * HEAD_STRIDE);
          float4 four = product.lo + product.hi;
          score[h] += (four.x + four.y) + (four.z + four.w);
        }
      }
    }
    UNROLL_ON_GPU
    for (int h = 0; h < HEADS_AT_ONCE; h++) {
      if (lane >= n_visible) score[h] = -INFINITY;
      float new_top = fmax(top[h], team_max(score[h], scratch));
      float weight = lane < n_visible ? exp2(score[h] - new_top) : 0.0f;
      float shrink = top[h] == -INFINITY ? 0.0f : exp2(top[h] - new_top);
      top[h] = new_top;
      sum[h] = sum[h] * shrink + weight;
      gathered[h] *= shrink;
      work[(team * HEADS_AT_ONCE + h) * LANES + lane] = weight;
    }
    team_fence();
    if (lane < PASS_TOKENS * HEAD_UNITS) {
      #pragma unroll 4
      for (int t = lane / HEAD_UNITS; t < n_visible; t += PASS_TOKENS) {
        float8 value = cached8(values + (t * HEAD_UNITS + lane % HEAD_UNITS) * 8);
        UNROLL_ON_GPU
        for (int h = 0; h < HEADS_AT_ONCE; h++) {
          gathered[h] += work[(team * HEADS_AT_ONCE + h) * LANES + t] * value;
        }
      }
    }
    team_fence();
  }

  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    float team_total = team_sum(sum[h], scratch);
    if (lane == 0) {
      tops[team * HEADS_AT_ONCE + h] = top[h];
      sums[team * HEADS_AT_ONCE + h] = team_total;
    }
  }
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    LOCAL_FENCE;
    vstore8(gathered[h], team * LANES + lane, work);
    LOCAL_FENCE;
    float greatest = -INFINITY;
    for (int t = 0; t < TEAMS; t++) greatest = fmax(greatest, tops[t * HEADS_AT_ONCE + h]);
    const long part = (long)row * SPLITS + split;
    for (int d = get_local_id(0); d < HEAD_DIM; d += GROUP) {
      float total = 0.0f;
      for (int t = 0; t < TEAMS; t++) {
        float team_top = tops[t * HEADS_AT_ONCE + h];
        if (team_top == -INFINITY) continue;
        float of_team = 0.0f;
        for (int pass = 0; pass < PASS_TOKENS; pass++) {
          of_team += work[(t * LANES + pass * HEAD_UNITS) * 8 + d];
        }
        total += exp2(team_top - greatest) * of_team;
      }
      a.parts[part * Q_STRIDE + (first_head + h) * HEAD_DIM + d] = total;
    }
    if (get_local_id(0) == 0) {
      float total = 0.0f;
      for (int t = 0; t < TEAMS; t++) {
        float team_top = tops[t * HEADS_AT_ONCE + h];
        if (team_top != -INFINITY) total += exp2(team_top - greatest) * sums[t * HEADS_AT_ONCE + h];
      }
      a.shares[part * N_HEADS + first_head + h] = (float2)(greatest, total);
    }
  }
}

#define ATTENTION_PARAMETERS                                                                      \
  __global const float *qkv, __global const float2 *rope, __global Cached *cache,                 \
      __global const int *batch, __global float *parts, __global float2 *shares, int layer,       \
      int n_layers
#define ATTENTION {qkv, rope, cache, batch, parts, shares, layer, n_layers}

// A group for every (row, KV head).
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void store_rows(ATTENTION_PARAMETERS) {
  Attention a = ATTENTION;
  store_key_value(a, get_group_id(0) / N_KV_HEADS, get_group_id(0) % N_KV_HEADS);
}

// A group for every (row, heads, split).
FUNCTION void attend_item(
    Attention a, int item, const int fresh, __local float *memory, __local float *scratch) {
  int row = item / (HEAD_GROUPS * SPLITS), rest = item % (HEAD_GROUPS * SPLITS);
  attend(a, row, rest / SPLITS, rest % SPLITS, fresh, memory, scratch);
}

// Rows of sequences that attention_tiles.cl does not take.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void attend_rows(ATTENTION_PARAMETERS) {
  __local float memory[ATTEND_FLOATS];
  __local float scratch[GROUP];
  Attention a = ATTENTION;
#if ATTENTION_ROWS > 0
  if (!is_alone(batch, get_group_id(0) / (HEAD_GROUPS * SPLITS))) return;
#endif
  attend_item(a, get_group_id(0), 0, memory, scratch);
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void attend_fresh(ATTENTION_PARAMETERS) {
  __local float memory[ATTEND_FLOATS];
  __local float scratch[GROUP];
  Attention a = ATTENTION;
  attend_item(a, get_group_id(0), 1, memory, scratch);
}
