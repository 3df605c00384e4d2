// Rotary embeddings and the KV cache.
//
// The cache is (blocks, layers, KV heads) of BLOCK_TOKENS = LANES tokens: their keys as
// (HEAD_UNITS, tokens, 8), so that a lane computes the score of one token, and then their values
// as (tokens, HEAD_UNITS, 8). A head is padded with zeros to HEAD_UNITS * 8 numbers. In Q8_0 these
// are int8, and behind the keys, and behind the values, stand float16 scales for 32 numbers of a
// token, (HEAD_BLOCKS, tokens).

#ifdef KV_Q8_0
#define HEAD_BLOCKS ((HEAD_DIM + 31) / 32)
#define HEAD_UNITS (4 * HEAD_BLOCKS)
#define HEAD_STRIDE (8 * HEAD_UNITS)
#define PLANE (LANES * (HEAD_STRIDE + 2 * HEAD_BLOCKS))
#else
#define HEAD_UNITS ((HEAD_DIM + 7) / 8)
#define HEAD_STRIDE (8 * HEAD_UNITS)
#define PLANE (LANES * HEAD_STRIDE)  // the keys, or the values, of a head in a block
#endif

// stored8 gives eight `i` of the keys or of the values of a head in a block. It is of `token` and
// of 32 numbers of a head, `block`, which only Q8_0 asks for.
#ifdef KV_F32
typedef float Cached;
typedef float8 Eight;  // numbers as they are stored
FUNCTION Eight stored8(__global const Cached *plane, int i, int block, int token) {
  return vload8(i, plane);
}
FUNCTION Eight stored8_if(
    int there, __global const Cached *plane, int i, int block, int token) {
  return there ? vload8(i, plane) : (float8)(0.0f);
}
FUNCTION float8 opened8(Eight v) { return v; }
FUNCTION float2 cache_put(__global Cached *p, int i, float2 pair) {
  vstore2(pair, 0, p + i);
  return pair;
}
#elif defined(KV_Q8_0)
typedef char Cached;
typedef struct {
  uint2 levels;
  ushort scale;
} Eight;
FUNCTION long scale_place(int block, int token) {
  return LANES * HEAD_STRIDE + 2 * (block * LANES + token);
}
FUNCTION Eight stored8_if(
    int there, __global const Cached *plane, int i, int block, int token) {
  Eight eight = {(uint2)(0), 0};
  if (there) {
    eight.levels = ((__global const uint2 *)plane)[i];
    eight.scale = *(__global const ushort *)(plane + scale_place(block, token));
  }
  return eight;
}
FUNCTION Eight stored8(__global const Cached *plane, int i, int block, int token) {
  return stored8_if(1, plane, i, block, token);
}
FUNCTION float8 opened8(Eight v) {
  const float4 low = convert_float4(as_char4(v.levels.x)), high = convert_float4(as_char4(v.levels.y));
  return half_bits(v.scale) * (float8)(low, high);
}
// Numbers come to the cache 32 at a time, by put_block.
FUNCTION float2 cache_put(__global Cached *p, int i, float2 pair) { return pair; }

// Quantise 32 numbers of a token's key or value, put them into the cache, and leave in `v` what the
// cache keeps of them.
FUNCTION void put_block(__global Cached *plane, int is_value, int block, int token, float *v) {
  float largest = 0.0f;
  UNROLL_ON_GPU
  for (int i = 0; i < 32; i++) largest = fmax(largest, fabs(v[i]));
  // Numbers below 2^-100 count as zeros: 127 over them must not overflow.
  const float inverse = largest < 0x1p-100f ? 0.0f : 127.0f / largest;
  const ushort scale = (ushort)pack_halves(largest / 127.0f, 0.0f);
  UNROLL_ON_GPU
  for (int u = 0; u < 4; u++) {
    const int unit = 4 * block + u;
    const char8 levels = convert_char8_rte(vload8(u, v) * inverse);
    vstore8(levels, is_value ? token * HEAD_UNITS + unit : unit * LANES + token, plane);
    vstore8(half_bits(scale) * convert_float8(levels), u, v);
  }
  *(__global ushort *)(plane + scale_place(block, token)) = scale;
}
#else
typedef ushort Cached;
typedef uint4 Eight;
FUNCTION Eight stored8(__global const Cached *plane, int i, int block, int token) {
  return *(__global const uint4 *)(plane + 8 * i);
}
FUNCTION Eight stored8_if(
    int there, __global const Cached *plane, int i, int block, int token) {
  return load_stream_if(there, (__global const uint4 *)(plane + 8 * i));
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
  Expected expected;  // of qkv, and the stamp of parts and shares
} Attention;

FUNCTION __global Cached *head_in_block(Attention a, int block, int kv_head) {
  long head = ((long)block * a.n_layers + a.layer) * N_KV_HEADS + kv_head;
  return a.cache + head * 2 * PLANE;
}

// Turn pair i of a head by its position's angle.
FUNCTION float2 turned(float2 v, float2 turn) {
  return (float2)(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

FUNCTION float2 turn_of(Attention a, int position, int i) {
  return a.rope[position * (HEAD_DIM / 2) + i];
}

FUNCTION float2 rotated(Attention a, int position, __global const float *head, int i) {
  const float2 turn = turn_of(a, position, i);  // is on its way while the head is waited for
  return turned(load_expected2(head + 2 * i, a.expected), turn);
}

// Pair i of a row's key, turned, or of its value; zeros behind the head's end.
FUNCTION float2 key_pair(Attention a, int row, int position, int kv_head, int i) {
  __global const float *k = a.qkv + (long)row * QKV_STRIDE + Q_DIM + kv_head * HEAD_DIM;
  return 2 * i < HEAD_DIM ? rotated(a, position, k, i) : (float2)(0.0f);
}

FUNCTION float2 value_pair(Attention a, int row, int kv_head, int i) {
  __global const float *v = a.qkv + (long)row * QKV_STRIDE + Q_DIM + KV_DIM + kv_head * HEAD_DIM;
  if (2 * i >= HEAD_DIM) return (float2)(0.0f);
  return load_expected2(v + 2 * i, a.expected);
}

// Put pair i of a key, or of its value, into a head in a block, and return what the cache keeps.
FUNCTION float2 put_key(__global Cached *head, int slot, int i, float2 pair) {
  return cache_put(head, (i / 4 * LANES + slot) * 8 + 2 * i % 8, pair);
}

FUNCTION float2 put_value(__global Cached *head, int slot, int i, float2 pair) {
  return cache_put(head + PLANE, slot * HEAD_STRIDE + 2 * i, pair);
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
