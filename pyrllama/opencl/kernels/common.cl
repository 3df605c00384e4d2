// What kernels hand to each other. Sizes of the model and of the batch come as defines:
// GROUP, HEAD_DIM, N_HEADS, N_KV_HEADS, SPLITS, MAX_TOKENS, LOADS, SEGMENT_BLOCKS,
// SEGMENT_FLOATS, LONGEST_ROW (of activations, in columns).

// A batch: words of int, written by the host before a step, or by the step before.
#define BATCH_N_TOKENS 0
#define BATCH_N_OUTPUTS 1
#define BATCH_TOP 2  // how many of the greatest logits of a row are wanted; 0 for all
#define BATCH_GOES_ON 3  // whether its one token's greatest logit makes the next batch; see choice.cl
#define BATCH_SLOT 4  // the row of results at which those of its greatest logits begin
#define BATCH_TOKENS 8
#define BATCH_POSITIONS (BATCH_TOKENS + MAX_TOKENS)
#define BATCH_TABLE_STARTS (BATCH_POSITIONS + MAX_TOKENS)
#define BATCH_OUTPUTS (BATCH_TABLE_STARTS + MAX_TOKENS)
#define BATCH_TILES (BATCH_OUTPUTS + MAX_TOKENS)
#define BATCH_TABLES (BATCH_TILES + 2 * MAX_TOKENS)

#define ROUND_UP(n, multiple) (((n) + (multiple) - 1) / (multiple) * (multiple))
#define Q_DIM (N_HEADS * HEAD_DIM)
#define KV_DIM (N_KV_HEADS * HEAD_DIM)
#define QKV_STRIDE ROUND_UP(Q_DIM + 2 * KV_DIM, 32)
#define Q_STRIDE ROUND_UP(Q_DIM, 32)

// A matrix in the layout of weights.cl; `scales` is unused by types without blocks.
typedef struct {
  __global const uint4 *units;
  __global const ushort *scales;
  int rows;
  int n_units;  // of a row
} Matrix;

// Where a lane's units of a task stand; the j-th is there if j * LANES < n.
typedef struct {
  uint place;
  int row;
  int unit;
  int n;
} Place;

// What a lane has asked for of a task.
typedef struct {
  uint4 unit[LOADS];
  ushort scale[LOADS];
  Side side[LOADS];  // of types that are cut into planes
} Task;

// Of a product that begins: the team's first two tasks, and where they stand.
typedef struct {
  Task first, second;
  Place second_at;
  uint holders;  // of what the work-item finishes, and what it is added to; see shares.cl
  float before;
} Begun;

// Where a product's activations come from: a row of floats, or the parts that attention left.
typedef struct {
  __global const float *x;
  __global const float *weight;   // of the norm, if there is one
  __global const float2 *shares;  // of the parts: x is (SPLITS, Q_STRIDE) if this is not null
  float n;                        // columns, without padding
  float eps;
  int norm;
  Expected expected;
} Source;

// Where a product's results go: `add` adds them to what stands there.
typedef struct {
  __global float *out;
  int add;
  int stamp;
} Target;

FUNCTION float swiglu(float gate, float up) { return gate * logistic(gate) * up; }

FUNCTION float8 load_float8(__global const float *p) {
  __global const float4 *fours = (__global const float4 *)p;
  return (float8)(fours[0], fours[1]);
}

FUNCTION float sum8(float8 v) {
  const float4 four = v.lo + v.hi;
  return (four.x + four.y) + (four.z + four.w);
}

// A split's greatest score of a head, and behind it the sum of powers to that.
FUNCTION __global const float *share_of(Source source, int s, int head) {
  return (__global const float *)(source.shares + s * N_HEADS + head);
}

// Join what the splits of one row gathered for the head of a column, in powers of two.
FUNCTION float joined(Source source, int column) {
  int head = min(column / HEAD_DIM, N_HEADS - 1);
  float top = -INFINITY, sum = 0.0f, value = 0.0f;
  for (int s = 0; s < SPLITS; s++) top = fmax(top, load_shared(share_of(source, s, head)));
  for (int s = 0; s < SPLITS; s++) {
    __global const float *share = share_of(source, s, head);
    float weight = exp2(load_shared(share) - top);
    sum += weight * load_shared(share + 1);
    value += weight * load_shared(source.x + s * Q_STRIDE + column);
  }
  return value / sum;
}

// What each split's part of each head counts in what they give together: (SPLITS, N_HEADS). A group
// works it out once: the shares are few, and every work-item of all groups would read the same ones.
FUNCTION void put_factors(Source source, __local float *factors) {
  for (int head = get_local_id(0); head < N_HEADS; head += GROUP) {
    float top = -INFINITY, sum = 0.0f;
    float tops[SPLITS], sums[SPLITS];
    UNROLL_ON_GPU
    for (int s = 0; s < SPLITS; s++) {
      __global const float *share = share_of(source, s, head);
      tops[s] = load_shared(share);
      sums[s] = load_shared(share + 1);
    }
    UNROLL_ON_GPU
    for (int s = 0; s < SPLITS; s++) {
      __global const float *share = share_of(source, s, head);
      tops[s] = await_one(tops[s], share, source.expected);
      sums[s] = await_one(sums[s], share + 1, source.expected);
    }
    UNROLL_ON_GPU
    for (int s = 0; s < SPLITS; s++) top = fmax(top, tops[s]);
    UNROLL_ON_GPU
    for (int s = 0; s < SPLITS; s++) {
      tops[s] = exp2(tops[s] - top);
      sum += tops[s] * sums[s];
    }
    UNROLL_ON_GPU
    for (int s = 0; s < SPLITS; s++) factors[s * N_HEADS + head] = tops[s] / sum;
  }
}

// The factor of split s for the head of a column.
FUNCTION float factor_of(__local const float *factors, int s, int column) {
  return factors[s * N_HEADS + min(column / HEAD_DIM, N_HEADS - 1)];
}

// Eight columns of what the splits have of a row, and their sum, each counted by its factor.
FUNCTION void load_parts(Source source, int column, float8 *parts) {
  #pragma unroll
  for (int s = 0; s < SPLITS; s++) parts[s] = load_shared8(source.x + s * Q_STRIDE + column);
}

FUNCTION void await_parts(Source source, int column, float8 *parts) {
  #pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    parts[s] = await8(parts[s], source.x + s * Q_STRIDE + column, source.expected);
  }
}

FUNCTION float8 joined8(const float8 *parts, int column, __local const float *factors) {
  float8 value = (float8)(0.0f);
  #pragma unroll
  for (int s = 0; s < SPLITS; s++) {
#if HEAD_DIM % 8 == 0
    value += factor_of(factors, s, column) * parts[s];
#else
    const float8 factor = (float8)(
        factor_of(factors, s, column), factor_of(factors, s, column + 1),
        factor_of(factors, s, column + 2), factor_of(factors, s, column + 3),
        factor_of(factors, s, column + 4), factor_of(factors, s, column + 5),
        factor_of(factors, s, column + 6), factor_of(factors, s, column + 7));
    value += factor * parts[s];
#endif
  }
  return value;
}
