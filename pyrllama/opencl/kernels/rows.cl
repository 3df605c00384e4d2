// What stands between the products of a batch: every kernel turns float rows into the rows of
// activations that the next product reads, float16 or, where `as_half` is 0, float32.

// Tiles of activations as wide.cl copies them.
#define WIDE_TOKENS 128
#define WIDE_COLS 32

// In which order the columns of a row stand for the product that reads them.
#define AS_FLOATS 0  // float32, one after the other
#define AS_HALVES 1  // float16, one after the other
// Others: float16 as wide_place says, for weights of that many columns a unit.

#define ROW_ALIGN 256  // columns to which rows of activations are padded

#define ATTENDED_STRIDE ROUND_UP(Q_DIM, ROW_ALIGN)

FUNCTION int wide_stride(int cols) { return ROUND_UP(cols, ROW_ALIGN); }

// Where columns `column` and the next of a token stand for wide.cl, in float16: tiles of
// WIDE_TOKENS by WIDE_COLS, whose chunks of 16 bytes are swizzled so that 8 rows of a chunk lie in
// different banks. Of each quad of units, those of unit q are the columns 2q, 2q + 1, 2q + 8 and
// 2q + 9 of a product's step.
FUNCTION long wide_place(int token, int column, int stride, int unit_cols) {
  int in_quad = column % (4 * unit_cols), in_unit = in_quad % unit_cols;
  int at = column - in_quad + in_unit / 4 * 16 + (in_unit >> 1 & 1) * 8 + in_quad / unit_cols * 2;
  int row = token % WIDE_TOKENS, chunk = at % WIDE_COLS / 8 ^ (row >> 1 & 3);
  long tile = (long)(token / WIDE_TOKENS) * (stride / WIDE_COLS) + at / WIDE_COLS;
  return (tile * WIDE_TOKENS + row) * WIDE_COLS + chunk * 8 + at % 8;
}

FUNCTION void put_pair(
    __global uint *out, int token, int column, int stride, float2 v, int order) {
  long place = (long)token * stride + column;
  if (order == AS_FLOATS) {
    out[place] = as_uint(v.x);
    out[place + 1] = as_uint(v.y);
    return;
  }
  if (order != AS_HALVES) place = wide_place(token, column, stride, order);
  out[place / 2] = pack_halves(v.x, v.y);
}

#ifdef WARPGROUP

// Gates and ups of a row and two tokens, as tensor_product leaves them: neighbouring rows change
// one of theirs, so that each work-item writes two columns of one token. Rows from n_rows on pad.
FUNCTION void put_swiglu(
    __global uint *out, const float *sums, int token, int row, int n_rows, int n_tokens, int stride,
    int order) {
  const int odd = row & 1;
  float first = row < n_rows ? swiglu(sums[0], sums[2]) : 0.0f;
  float second = row < n_rows ? swiglu(sums[1], sums[3]) : 0.0f;
  float other = exchange(odd ? first : second, 4);
  float2 v = odd ? (float2)(other, second) : (float2)(first, other);
  if (row < stride && token + odd < n_tokens) {
    put_pair(out, token + odd, row - odd, stride, v, order);
  }
}

#endif

#ifdef TENSOR

// Sizes of few.cl.
#define FEW_GROUP 256
#define FEW_WARPS (FEW_GROUP / LANES)
#define FEW_ROWS 32
#define FEW_PITCH (FEW_ROWS + 1)  // floats from a token's sums to the next's
#define FEW_BLOCKS 4              // of 8 tokens at most

// Add up what the warps found, (warps, 8 * blocks, FEW_PITCH), and write it.
FUNCTION void put_few(
    __local const float *parts, int n_rows, int n_tokens, __global float *out, int row0,
    int out_first, int out_stride, int add, int pair, const int blocks) {
  const int lane = lane_id();
  for (int token = team_in_group(); token < n_tokens; token += FEW_WARPS) {
    float sum = 0.0f;
    for (int warp = 0; warp < FEW_WARPS; warp++) {
      sum += parts[(warp * 8 * blocks + token) * FEW_PITCH + lane];
    }
    if (pair) {
      float up = exchange(sum, 16), v = row0 + lane < pair ? swiglu(sum, up) : 0.0f;
      float second = exchange(v, 1);
      if (lane < 16 && lane % 2 == 0 && row0 + lane < out_stride) {
        float2 both = (float2)(v, second);
        put_pair((__global uint *)out, token, row0 + lane, out_stride, both, AS_HALVES);
      }
    } else if (row0 + lane < n_rows) {
      long at = (long)token * out_stride + out_first + row0 + lane;
      out[at] = add ? out[at] + sum : sum;
    }
  }
}

#endif

// RMSNorm of a row; with `gather` that of the token whose logits come out at this place.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void normalise_rows(
    __global const float *x, __global const float *weight, __global const int *batch,
    __global uint *out, int n, int stride, int out_stride, float eps, int order, int gather) {
  __local float scratch[GROUP];
  int row = get_group_id(0);
  __global const float *source = x + (long)(gather ? batch[BATCH_OUTPUTS + row] : row) * stride;
  float squares = 0.0f;
  for (int i = get_local_id(0); i < stride / 4; i += GROUP) {
    float4 v = vload4(i, source), square = v * v;
    squares += (square.x + square.y) + (square.z + square.w);
  }
  float factor = rsqrt(group_sum(squares, scratch) / (float)n + eps);
  for (int i = get_local_id(0); i < out_stride / 4; i += GROUP) {
    float4 v = (float4)(0.0f);
    if (4 * i < stride) v = vload4(i, source) * vload4(i, weight) * factor;
    put_pair(out, row, 4 * i, out_stride, v.lo, order);
    put_pair(out, row, 4 * i + 2, out_stride, v.hi, order);
  }
}

// silu(gate) * up of rows of gates and then ups, `half_row` of each, padded to `stride`.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void swiglu_rows(
    __global const float *gate_up, __global uint *out, int half_row, int in_stride, int stride,
    int order) {
  __global const float *gates = gate_up + (long)get_group_id(0) * in_stride;
  for (int i = get_local_id(0); i < stride / 2; i += GROUP) {
    float v[2];
    for (int j = 0; j < 2; j++) {
      int c = 2 * i + j;
      float gate = c < half_row ? gates[c] : 0.0f;
      v[j] = c < half_row ? swiglu(gate, gates[half_row + c]) : 0.0f;
    }
    put_pair(out, get_group_id(0), 2 * i, stride, (float2)(v[0], v[1]), order);
  }
}

// Join the splits of every row's attention.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void join_rows(
    __global const float *parts, __global const float2 *shares, __global uint *out, int order) {
  long row = get_group_id(0);
  Source source = {parts + row * SPLITS * Q_STRIDE, 0, shares + row * SPLITS * N_HEADS, Q_DIM, 0, 0};
  for (int i = get_local_id(0); i < ATTENDED_STRIDE / 2; i += GROUP) {
    float2 v = (float2)(0.0f);
    if (2 * i < Q_STRIDE) v = (float2)(joined(source, 2 * i), joined(source, 2 * i + 1));
    put_pair(out, row, 2 * i, ATTENDED_STRIDE, v, order);
  }
}

// Rows [row, row + n_rows) of a batch: one sequence from `position` on.
typedef struct {
  int row;
  int n_rows;
  int position;
  __global const int *table;
} Run;

// The run from a row on, as far as `end`.
FUNCTION Run next_run(__global const int *batch, int row, int end) {
  const int start = batch[BATCH_TABLE_STARTS + row];
  int next = row + 1;
  while (next < end && batch[BATCH_TABLE_STARTS + next] == start) next++;
  Run run = {row, next - row, batch[BATCH_POSITIONS + row], batch + BATCH_TABLES + start};
  return run;
}

// Zeros behind the attended columns of rows [row, end).
FUNCTION void pad_attended(int row, int end, __global uint *out, int order) {
  const int pairs = (ATTENDED_STRIDE - Q_DIM) / 2;
  if (pairs == 0) return;
  for (int i = get_local_id(0); i < (end - row) * pairs; i += get_local_size(0)) {
    put_pair(
        out, row + i / pairs, Q_DIM + 2 * (i % pairs), ATTENDED_STRIDE, (float2)(0.0f), order);
  }
}

// Put the keys and values of all rows into the cache, a group for every row.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void store_batch(ATTENTION_PARAMETERS) {
  Attention a = ATTENTION;
  const int row = get_group_id(0), position = batch[BATCH_POSITIONS + row];
  __global const int *table = batch + BATCH_TABLES + batch[BATCH_TABLE_STARTS + row];
  const int block = table[position / LANES], slot = position % LANES;
#ifdef KV_Q8_0
  for (int i = get_local_id(0); i < 2 * N_KV_HEADS * HEAD_BLOCKS; i += GROUP) {
    const int in_head = i % HEAD_BLOCKS, kv_head = i / HEAD_BLOCKS % N_KV_HEADS;
    const int is_value = i / HEAD_BLOCKS / N_KV_HEADS;
    float v[32];
    UNROLL_ON_GPU
    for (int p = 0; p < 16; p++) {
      const int pair = 16 * in_head + p;
      vstore2(is_value ? value_pair(a, row, kv_head, pair)
                       : key_pair(a, row, position, kv_head, pair), p, v);
    }
    put_block(
        head_in_block(a, block, kv_head) + is_value * PLANE, is_value, in_head, slot, v);
  }
#else
  for (int i = get_local_id(0); i < N_KV_HEADS * HEAD_STRIDE / 2; i += GROUP) {
    const int kv_head = i / (HEAD_STRIDE / 2), pair = i % (HEAD_STRIDE / 2);
    __global Cached *keys = head_in_block(a, block, kv_head);
    __global const float *k = qkv + (long)row * QKV_STRIDE + Q_DIM + kv_head * HEAD_DIM;
    const int there = 2 * pair < HEAD_DIM;
    float2 value = there ? vload2(pair, k + KV_DIM) : (float2)(0.0f);
    cache_put(
        keys, (pair / 4 * LANES + slot) * 8 + 2 * pair % 8,
        there ? rotated(a, position, k, pair) : (float2)(0.0f));
    cache_put(keys + PLANE, slot * HEAD_STRIDE + 2 * pair, value);
  }
#endif
}
