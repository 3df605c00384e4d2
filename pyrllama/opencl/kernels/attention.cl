// Attention of single rows, split over their positions.

#define KV_SHARED (N_HEADS / N_KV_HEADS)
#define HEAD_GROUPS (N_HEADS / HEADS_AT_ONCE)
#define ITEMS (HEAD_GROUPS * SPLITS)  // of a row; see item_of

// A team attends to SLICE_TOKENS tokens at a time, so few that it has about 4 loads of 16 bytes for
// their keys and 4 for their values in each lane.
#define SLICE_TOKENS (HEAD_UNITS >= 16 ? 8 : HEAD_UNITS >= 8 ? 16 : 32)
#define SLICES (LANES / SLICE_TOKENS)  // in a block
#define PASS_UNITS (LANES / SLICE_TOKENS)  // units of keys that a team reads at a time
#define PASS_TOKENS (LANES / HEAD_UNITS)  // tokens whose values a team reads at a time
#define KEY_LOADS ((HEAD_UNITS + PASS_UNITS - 1) / PASS_UNITS)
#define VALUE_LOADS ((SLICE_TOKENS + PASS_TOKENS - 1) / PASS_TOKENS)
#define LOG2_E 1.44269504f
#define LEAST_TOP -0x1p126f  // what is left of infinity where no key was seen: it can be stamped

// Whether a row is all that a batch has of its sequence.
FUNCTION int is_alone(__global const int *batch, int row) {
  __global const int *start = batch + BATCH_TABLE_STARTS + row;
  int follows = row > 0 && start[-1] == start[0];
  return !follows && !(row + 1 < batch[BATCH_N_TOKENS] && start[1] == start[0]);
}

// What a lane asks for of a slice at a time.
typedef struct {
  Eight keys[KEY_LOADS];
  Eight values[VALUE_LOADS];
} Slice;

#ifdef WINDOW
// Whether a row at `position` still sees a key before it; its own is one of the WINDOW that it sees.
FUNCTION int in_window(int position, int key) { return key > position - WINDOW; }
FUNCTION int first_in_window(int position) { return max(position - WINDOW + 1, 0); }
// What powers are taken to: a row may see none of the keys of the first blocks.
FUNCTION float base_of(float top) { return top == -INFINITY ? 0.0f : top; }
#else
FUNCTION int in_window(int position, int key) { return 1; }
FUNCTION int first_in_window(int position) { return 0; }
FUNCTION float base_of(float top) { return top; }
#endif

// What a group attends to: `heads` of a row, and the slices of its team, every TEAMS-th from `next`.
typedef struct {
  int row;
  int first_head;
  int split;
  int n_tokens;  // of the sequence that are in the cache
  int next;
  int end;
  __global const int *table;
  int position;  // of the row
} Item;

// An item is (row, heads, split). `fresh` rows are not in the cache yet; whoever attends to the
// last split puts them there.
FUNCTION Item item_of(Attention a, int index, const int fresh) {
  const int row = index / ITEMS, rest = index % ITEMS;
  const int split = rest % SPLITS;
  const int position = a.batch[BATCH_POSITIONS + row], n_tokens = position + !fresh;
  const int first = first_in_window(position) / SLICE_TOKENS;
  const int n_slices = (n_tokens + SLICE_TOKENS - 1) / SLICE_TOKENS - first;
  Item item = {row, rest / SPLITS * HEADS_AT_ONCE, split, n_tokens,
               first + cut(n_slices, SPLITS, split) + team_in_group(),
               first + cut(n_slices, SPLITS, split + 1),
               a.batch + BATCH_TABLES + a.batch[BATCH_TABLE_STARTS + row], position};
  return item;
}

// Ask for the keys and the values of slice `index`; those of no token are zeros.
FUNCTION void ask_slice(Slice *slice, Attention a, Item item, int index) {
  const int lane = lane_id(), slot = index % SLICES * SLICE_TOKENS;
  const int n = index < item.end ? min(item.n_tokens - index * SLICE_TOKENS, SLICE_TOKENS) : 0;
  const int block = n > 0 ? item.table[index / SLICES] : 0;
  __global const Cached *keys = head_in_block(a, block, item.first_head / KV_SHARED);
  #pragma unroll
  for (int j = 0; j < KEY_LOADS; j++) {
    const int token = lane % SLICE_TOKENS, unit = lane / SLICE_TOKENS + j * PASS_UNITS;
    slice->keys[j] = stored8_if(
        token < n && unit < HEAD_UNITS, keys, unit * LANES + slot + token, unit / 4, slot + token);
  }
  #pragma unroll
  for (int j = 0; j < VALUE_LOADS; j++) {
    const int token = lane / HEAD_UNITS + j * PASS_TOKENS, unit = lane % HEAD_UNITS;
    slice->values[j] = stored8_if(
        lane < PASS_TOKENS * HEAD_UNITS && token < n, keys + PLANE,
        (slot + token) * HEAD_UNITS + unit, unit / 4, slot + token);
  }
}

// Work-items that add up a column of what teams gathered, each from every GATHER_SHARES-th team;
// GATHER_PITCH is such that they read from banks of their own.
#if defined(NVIDIA) && TEAMS % 4 == 0
#define GATHER_SHARES 4
#else
#define GATHER_SHARES 1
#endif
#define GATHER_PITCH (LANES * 8 + 8)

// A group's local memory while it attends.
#define ATTEND_QUERIES 0                                                 // (heads, HEAD_STRIDE)
#define ATTEND_FRESH (ATTEND_QUERIES + HEADS_AT_ONCE * HEAD_STRIDE)      // (2, HEAD_STRIDE)
#define ATTEND_TOPS (ATTEND_FRESH + 2 * HEAD_STRIDE)                     // (teams, heads)
#define ATTEND_SUMS (ATTEND_TOPS + TEAMS * HEADS_AT_ONCE)                // (teams, heads)
#define ATTEND_WEIGHTS (ATTEND_SUMS + TEAMS * HEADS_AT_ONCE)             // (teams, heads, slice)
#define ATTEND_GATHER (ATTEND_WEIGHTS + TEAMS * HEADS_AT_ONCE * SLICE_TOKENS)  // (teams, pitch)
#define ATTEND_FLOATS (ATTEND_GATHER + TEAMS * GATHER_PITCH)

// What a team has gathered from HEADS_AT_ONCE heads: the greatest score, the sum of powers to it,
// in lanes, and the values, 8 columns in each lane, so weighted.
typedef struct {
  float top[HEADS_AT_ONCE];
  float sum[HEADS_AT_ONCE];
  float8 values[HEADS_AT_ONCE];
} Gathered;

// Let the top be at least a score.
FUNCTION void raise_top(Gathered *g, int h, float score) {
  const float top = fmax(g->top[h], score);
  const float shrink = g->top[h] == -INFINITY ? 0.0f : exp2(g->top[h] - top);
  g->top[h] = top;
  g->sum[h] *= shrink;
  g->values[h] *= shrink;
}

// Attend to slice `index`, whose keys and values are in `slice`.
FUNCTION void attend_slice(
    Gathered *g, const Slice *slice, Item item, int index, __local float *memory,
    __local float *scratch) {
  const int lane = lane_id();
  const int key = index * SLICE_TOKENS + lane % SLICE_TOKENS;
  const int there = index < item.end && key < item.n_tokens && in_window(item.position, key);
  __local const float *queries = memory + ATTEND_QUERIES;
  __local float *weights =
      memory + ATTEND_WEIGHTS + team_in_group() * HEADS_AT_ONCE * SLICE_TOKENS;
  float score[HEADS_AT_ONCE];
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) score[h] = 0.0f;
  #pragma unroll
  for (int j = 0; j < KEY_LOADS; j++) {
    const int unit = min(lane / SLICE_TOKENS + j * PASS_UNITS, HEAD_UNITS - 1);
    const float8 key = opened8(slice->keys[j]);
    UNROLL_ON_GPU
    for (int h = 0; h < HEADS_AT_ONCE; h++) {
      score[h] += sum8(key * vload8(unit, queries + h * HEAD_STRIDE));
    }
  }
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    score[h] = apart_sum(score[h], SLICE_TOKENS, scratch);
    if (!there) score[h] = -INFINITY;
    raise_top(g, h, near_max(score[h], SLICE_TOKENS, scratch));
    if (lane < SLICE_TOKENS) {
      const float weight = there ? exp2(score[h] - g->top[h]) : 0.0f;
      g->sum[h] += weight;
      weights[h * SLICE_TOKENS + lane] = weight;
    }
  }
  team_fence();
  #pragma unroll
  for (int j = 0; j < VALUE_LOADS; j++) {
    const int token = min(lane / HEAD_UNITS + j * PASS_TOKENS, SLICE_TOKENS - 1);
    const float8 value = opened8(slice->values[j]);
    UNROLL_ON_GPU
    for (int h = 0; h < HEADS_AT_ONCE; h++) g->values[h] += weights[h * SLICE_TOKENS + token] * value;
  }
  team_fence();
}

// Attend to the row's own token, which stands in local memory.
FUNCTION void attend_fresh_token(
    Gathered *g, int attends, __local float *memory, __local float *scratch) {
  const int lane = lane_id();
  __local const float *fresh = memory + ATTEND_FRESH;
  const float8 value = vload8(lane % HEAD_UNITS, fresh + HEAD_STRIDE);
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    float score = 0.0f;
    if (lane < HEAD_UNITS) {
      score = sum8(vload8(lane, fresh) * vload8(lane, memory + ATTEND_QUERIES + h * HEAD_STRIDE));
    }
    score = team_sum(score, scratch);
    if (!attends) continue;
    raise_top(g, h, score);
    const float weight = exp2(score - g->top[h]);
    if (lane == 0) g->sum[h] += weight;
    if (lane < HEAD_UNITS) g->values[h] += weight * value;
  }
}

// Join what the teams gathered, head by head.
FUNCTION void put_gathered(
    Attention a, Item item, Gathered *g, __local float *memory, __local float *scratch) {
  __local float *tops = memory + ATTEND_TOPS, *sums = memory + ATTEND_SUMS;
  __local float *gather = memory + ATTEND_GATHER;
  const long part = (long)item.row * SPLITS + item.split;
  const int stamp = a.expected.stamp;
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    const float of_team = team_sum(g->sum[h], scratch);
    if (lane_id() == 0) {
      tops[team_in_group() * HEADS_AT_ONCE + h] = g->top[h];
      sums[team_in_group() * HEADS_AT_ONCE + h] = of_team;
    }
  }
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    if (h) LOCAL_FENCE;  // the head before is read
    vstore8(g->values[h], lane_id(), gather + team_in_group() * GATHER_PITCH);
    LOCAL_FENCE;
    MARK(MET)
    float greatest = -INFINITY;
    for (int t = 0; t < TEAMS; t++) greatest = fmax(greatest, tops[t * HEADS_AT_ONCE + h]);
    const float base = greatest == -INFINITY ? 0.0f : greatest;
    for (int i = get_local_id(0); i < HEAD_UNITS * 8 * GATHER_SHARES; i += GROUP) {
      const int d = i / (8 * GATHER_SHARES) * 8 + i % 8, share = i / 8 % GATHER_SHARES;
      float value = 0.0f, total = 0.0f;
      for (int t = share; t < TEAMS; t += GATHER_SHARES) {
        const float weight = exp2(tops[t * HEADS_AT_ONCE + h] - base);
        float of_team = 0.0f;
        for (int pass = 0; pass < PASS_TOKENS; pass++) {
          of_team += gather[t * GATHER_PITCH + pass * HEAD_UNITS * 8 + d];
        }
        value += weight * of_team;
        total += weight * sums[t * HEADS_AT_ONCE + h];
      }
#if GATHER_SHARES > 1
      value = apart_sum(value, 8, scratch);
      total = apart_sum(total, 8, scratch);
#endif
      if (share == 0 && d < HEAD_DIM) {
        put_stamped(
            a.parts + part * Q_STRIDE + (item.first_head + h) * HEAD_DIM + d, value, stamp);
      }
      if (i == 0) {
        __global float *share = (__global float *)(a.shares + part * N_HEADS + item.first_head + h);
        put_stamped(share, fmax(greatest, LEAST_TOP), stamp);
        put_stamped(share + 1, total, stamp);
      }
    }
  }
}

// Where the cache keeps the key and the value of an item's row.
FUNCTION __global Cached *own_head(Attention a, Item item) {
  return head_in_block(a, item.table[item.position / LANES], item.first_head / KV_SHARED);
}

// Put the queries of an item into local memory, turned and scaled, and with `with_fresh` the key and
// the value of its row, which go into the cache, too.
FUNCTION void put_heads(Attention a, Item item, int with_fresh, __local float *memory) {
  const int kv_head = item.first_head / KV_SHARED, position = item.position, slot = position % LANES;
  __global Cached *head = own_head(a, item);
  for (int i = get_local_id(0); i < (HEADS_AT_ONCE + with_fresh) * HEAD_STRIDE / 2; i += GROUP) {
    const int h = i / (HEAD_STRIDE / 2), pair = i % (HEAD_STRIDE / 2);
    if (h < HEADS_AT_ONCE) {
      __global const float *q =
          a.qkv + (long)item.row * QKV_STRIDE + (item.first_head + h) * HEAD_DIM;
      float2 v = 2 * pair < HEAD_DIM ? rotated(a, position, q, pair) : (float2)(0.0f);
      vstore2(v * (LOG2_E * rsqrt((float)HEAD_DIM)), i, memory + ATTEND_QUERIES);
    } else {
      const float2 key = key_pair(a, item.row, position, kv_head, pair);
      const float2 value = value_pair(a, item.row, kv_head, pair);
      vstore2(put_key(head, slot, pair, key), pair, memory + ATTEND_FRESH);
      vstore2(put_value(head, slot, pair, value), pair, memory + ATTEND_FRESH + HEAD_STRIDE);
    }
  }
}

#ifdef HEAD_EXTRAS
// The same of a row whose heads are as the product left them: a team has a head at a time.
FUNCTION void put_raw_heads(
    Attention a, Item item, int with_fresh, __local float *memory, __local float *scratch) {
  const int kv_head = item.first_head / KV_SHARED, n_heads = HEADS_AT_ONCE + 2 * with_fresh;
  const int slot = item.position % LANES;
  __global Cached *own = own_head(a, item);
  for (int first = 0; first < n_heads; first += TEAMS) {
    const int h = min(first + team_in_group(), n_heads - 1), kept = h - HEADS_AT_ONCE;
    const int head = kept < 0 ? item.first_head + h : N_HEADS + kept * N_KV_HEADS + kv_head;
    const float factor = head_factor(a, item.row, head, scratch);
    if (first + team_in_group() >= n_heads) continue;
    for (int pair = lane_id(); pair < HEAD_STRIDE / 2; pair += LANES) {
      float2 v = finished_pair(a, item.row, head, pair, factor);
      if (kept < 1 && 2 * pair < HEAD_DIM) v = turned(v, turn_of(a, item.position, pair));
      if (kept < 0) v *= LOG2_E * rsqrt((float)HEAD_DIM);
      if (kept == 0) v = put_key(own, slot, pair, v);
      if (kept == 1) v = put_value(own, slot, pair, v);
      vstore2(v, h * (HEAD_STRIDE / 2) + pair, memory + ATTEND_QUERIES);
    }
  }
}
#endif

#ifdef KV_Q8_0
// Put the key and the value that stand in local memory into the cache, and in their place what the
// cache keeps of them.
FUNCTION void keep_fresh(Attention a, Item item, __local float *memory) {
  const int slot = item.position % LANES;
  __global Cached *keys = own_head(a, item);
  for (int i = get_local_id(0); i < 2 * HEAD_BLOCKS; i += GROUP) {
    const int is_value = i / HEAD_BLOCKS, block = i % HEAD_BLOCKS;
    __local float *place = memory + ATTEND_FRESH + is_value * HEAD_STRIDE + 32 * block;
    float v[32];
    UNROLL_ON_GPU
    for (int u = 0; u < 4; u++) vstore8(vload8(u, place), u, v);
    put_block(keys + is_value * PLANE, is_value, block, slot, v);
    UNROLL_ON_GPU
    for (int u = 0; u < 4; u++) vstore8(vload8(u, v), u, place);
  }
}
#endif

// Attend to an item. `slice` is the team's first, which has been asked for.
FUNCTION void attend(
    Attention a, Item item, Slice *slice, const int fresh, __local float *memory,
    __local float *scratch) {
  const int team = team_in_group(), with_fresh = fresh && item.split == SPLITS - 1;
  LOCAL_FENCE;  // others may still read what stood in the memory
#ifdef HEAD_EXTRAS
  if (fresh) put_raw_heads(a, item, with_fresh, memory, scratch);
  else put_heads(a, item, with_fresh, memory);
#else
  put_heads(a, item, with_fresh, memory);
#endif
  LOCAL_FENCE;
#ifdef KV_Q8_0
  if (with_fresh) keep_fresh(a, item, memory);
  LOCAL_FENCE;
#endif
  MARK(LOADED)

  Gathered g;
  UNROLL_ON_GPU
  for (int h = 0; h < HEADS_AT_ONCE; h++) {
    g.top[h] = -INFINITY;
    g.sum[h] = 0.0f;
    g.values[h] = (float8)(0.0f);
  }
  for (int index = item.next; index - team < item.end; index += TEAMS) {
    const Slice present = *slice;
    ask_slice(slice, a, item, index + TEAMS);
    attend_slice(&g, &present, item, index, memory, scratch);
  }
  // The last team has fewer slices than the others, if any has.
  if (with_fresh) attend_fresh_token(&g, team == TEAMS - 1, memory, scratch);
  MARK(COMPUTED)
  put_gathered(a, item, &g, memory, scratch);
}

FUNCTION void attend_item(
    Attention a, int index, const int fresh, __local float *memory, __local float *scratch) {
  Item item = item_of(a, index, fresh);
  Slice slice;
  ask_slice(&slice, a, item, item.next);
  attend(a, item, &slice, fresh, memory, scratch);
}

// A group for every item: rows of sequences that attention_tiles.cl does not take.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void attend_rows(ATTENTION_PARAMETERS) {
  __local float memory[ATTEND_FLOATS];
  __local float scratch[ATTEND_SCRATCH];
  Attention a = ATTENTION;
#if ATTENTION_ROWS > 0
  if (!is_alone(batch, get_group_id(0) / ITEMS)) return;
#endif
  attend_item(a, get_group_id(0), 0, memory, scratch);
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void attend_fresh(ATTENTION_PARAMETERS) {
  __local float memory[ATTEND_FLOATS];
  __local float scratch[ATTEND_SCRATCH];
  Attention a = ATTENTION;
  attend_item(a, get_group_id(0), 1, memory, scratch);
}
