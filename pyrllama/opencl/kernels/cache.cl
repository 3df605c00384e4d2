// Rotary embeddings and the KV cache.
//
// The cache is (blocks, layers, KV heads) of BLOCK_TOKENS = LANES tokens: their keys as
// (HEAD_UNITS, tokens, 8), so that a lane computes the score of one token, and then their values
// as (tokens, HEAD_UNITS, 8). A head is padded with zeros to HEAD_UNITS * 8 numbers.

#define HEAD_UNITS ((HEAD_DIM + 7) / 8)
#define HEAD_STRIDE (8 * HEAD_UNITS)
#define PLANE (LANES * HEAD_STRIDE)  // the keys, or the values, of a head in a block

#ifdef KV_F32
typedef float Cached;
typedef float8 Eight;  // numbers as they are stored
FUNCTION Eight stored8(__global const Cached *p) { return vload8(0, p); }
FUNCTION Eight stored8_if(int there, __global const Cached *p) {
  return there ? vload8(0, p) : (float8)(0.0f);
}
FUNCTION float8 opened8(Eight v) { return v; }
FUNCTION float2 cache_put(__global Cached *p, int i, float2 pair) {
  vstore2(pair, 0, p + i);
  return pair;
}
#else
typedef ushort Cached;
typedef uint4 Eight;
FUNCTION Eight stored8(__global const Cached *p) { return *(__global const uint4 *)p; }
FUNCTION Eight stored8_if(int there, __global const Cached *p) {
  return load_stream_if(there, (__global const uint4 *)p);
}
FUNCTION float8 opened8(Eight v) {
  return (float8)(halves(v.x), halves(v.y), halves(v.z), halves(v.w));
}
FUNCTION float2 cache_put(__global Cached *p, int i, float2 pair) {
  uint bits = pack_halves(pair.x, pair.y);
  *(__global uint *)(p + i) = bits;
  return halves(bits);
}
#endif

typedef struct {
  __global const float *qkv;   // (rows, QKV_STRIDE)
  __global const float2 *rope; // (positions, HEAD_DIM / 2): cosine and sine
  __global Cached *cache;
  __global const int *batch;
  __global float *parts;       // (rows, SPLITS, Q_STRIDE)
  __global float2 *shares;     // (rows, SPLITS, N_HEADS): greatest score, sum of powers
  int layer;
  int n_layers;
#ifdef HEAD_EXTRAS
  __global const float *extras;  // see heads.cl
#endif
} Attention;

FUNCTION __global Cached *head_in_block(Attention a, int block, int kv_head) {
  long head = ((long)block * a.n_layers + a.layer) * N_KV_HEADS + kv_head;
  return a.cache + head * 2 * PLANE;
}

// Turn pair i of a head by its position's angle.
FUNCTION float2 turned(Attention a, int position, int i, float even, float odd) {
  float2 turn = a.rope[position * (HEAD_DIM / 2) + i];
  return (float2)(even * turn.x - odd * turn.y, even * turn.y + odd * turn.x);
}

FUNCTION float2 rotated(Attention a, int position, __global const float *head, int i) {
  return turned(a, position, i, load_shared(head + 2 * i), load_shared(head + 2 * i + 1));
}

// Pair i of a row's key, turned, or of its value; zeros behind the head's end.
FUNCTION float2 key_pair(Attention a, int row, int position, int kv_head, int i) {
  __global const float *k = a.qkv + (long)row * QKV_STRIDE + Q_DIM + kv_head * HEAD_DIM;
  return 2 * i < HEAD_DIM ? rotated(a, position, k, i) : (float2)(0.0f);
}

FUNCTION float2 value_pair(Attention a, int row, int kv_head, int i) {
  __global const float *v = a.qkv + (long)row * QKV_STRIDE + Q_DIM + KV_DIM + kv_head * HEAD_DIM;
  if (2 * i >= HEAD_DIM) return (float2)(0.0f);
  return (float2)(load_shared(v + 2 * i), load_shared(v + 2 * i + 1));
}

// Put pair i of a row's key, or of its value, into the cache, and return what the cache keeps.
FUNCTION float2 put_key(Attention a, int row, int kv_head, int i, float2 pair) {
  const int position = a.batch[BATCH_POSITIONS + row], slot = position % LANES;
  __global const int *table = a.batch + BATCH_TABLES + a.batch[BATCH_TABLE_STARTS + row];
  __global Cached *keys = head_in_block(a, table[position / LANES], kv_head);
  return cache_put(keys, (i / 4 * LANES + slot) * 8 + 2 * i % 8, pair);
}

FUNCTION float2 put_value(Attention a, int row, int kv_head, int i, float2 pair) {
  const int position = a.batch[BATCH_POSITIONS + row], slot = position % LANES;
  __global const int *table = a.batch + BATCH_TABLES + a.batch[BATCH_TABLE_STARTS + row];
  __global Cached *keys = head_in_block(a, table[position / LANES], kv_head);
  return cache_put(keys + PLANE, slot * HEAD_STRIDE + 2 * i, pair);
}

// Put pair i of the key and the value of a row into the cache, and what the cache keeps of them
// into `kept`.
FUNCTION void store_pair(Attention a, int row, int kv_head, int i, float2 *kept) {
  const int position = a.batch[BATCH_POSITIONS + row];
  kept[0] = put_key(a, row, kv_head, i, key_pair(a, row, position, kv_head, i));
  kept[1] = put_value(a, row, kv_head, i, value_pair(a, row, kv_head, i));
}

#ifdef HEAD_EXTRAS
#define EXTRAS_PARAMETER , __global const float *extras
#define EXTRAS_ARGUMENT , extras
#else
#define EXTRAS_PARAMETER
#define EXTRAS_ARGUMENT
#endif
#define ATTENTION_PARAMETERS                                                                      \
  __global const float *qkv, __global const float2 *rope, __global Cached *cache,                 \
      __global const int *batch, __global float *parts, __global float2 *shares, int layer,       \
      int n_layers EXTRAS_PARAMETER
#define ATTENTION {qkv, rope, cache, batch, parts, shares, layer, n_layers EXTRAS_ARGUMENT}
