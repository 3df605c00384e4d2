// Matrix times one row of activations, for one storage type (see weights.cl).
//
// Teams take rows in turn. A task is LOADS units for each lane; the next task is always fetched
// before the present one is computed, so that memory never waits for arithmetic.

#undef SEGMENT_UNITS
#undef SEGMENTED
#undef ACTIVATION_BYTES
#ifdef QUANTISED
#define ACTIVATION_BYTES ROUND_UP(SEGMENT_BLOCKS * 40, 16)
#define SEGMENT_UNITS (SEGMENT_BLOCKS * UNITS_A_BLOCK)
#define SEGMENTED (LONGEST_ROW > 32 * SEGMENT_BLOCKS)
#else
#define ACTIVATION_BYTES (SEGMENT_FLOATS * 4)
#define SEGMENT_UNITS (SEGMENT_FLOATS / UNIT_COLS)
#define SEGMENTED (LONGEST_ROW > SEGMENT_FLOATS)
#endif

// Ask for a task's weights: units [first, first + n_units) of a row are the segment that it is in.
// What lies behind the segment's or the matrix's end is zeros.
FUNCTION void KIND(fetch)(Task *task, Matrix m, int row, int first, int n_units, int chunk) {
  #pragma unroll
  for (int j = 0; j < LOADS; j++) {
    int unit = (chunk * LOADS + j) * LANES + lane_id();
    int there = row < m.rows && unit < n_units;
    long place = (long)row * m.n_units + first + unit;
    task->unit[j] = there ? load_stream(m.units + place) : (uint4)(0);
#ifdef QUANTISED
    task->scale[j] = there ? load_scale(m.scales + place / UNITS_A_BLOCK) : (ushort)0;
#endif
  }
}

// Ask for a team's first task of a product.
FUNCTION void KIND(begin)(Task *task, Matrix m) {
  KIND(fetch)(task, m, team_in_grid(), 0, min(m.n_units, SEGMENT_UNITS), 0);
}

// --- activations in local memory --------------------------------------------------------------
//
// Float types keep them as float32, quantised types as int8 with a scale for 32 columns. Vectors
// that one unit needs lie SEGMENT_UNITS apart, so that neighbouring lanes read neighbouring ones.

#ifdef QUANTISED

// Quantise 8 columns together with the 3 work-items that have the rest of the block of 32.
FUNCTION void KIND(put)(
    int quad, int active, float8 v, __local uint4 *memory, __local float *scratch) {
  __local int *words = (__local int *)memory;
  __local float2 *scales = (__local float2 *)(memory + 2 * SEGMENT_BLOCKS);
  float8 size = fabs(v);
  float4 pairs = fmax(size.lo, size.hi);
  float largest = quad_max(fmax(fmax(pairs.x, pairs.y), fmax(pairs.z, pairs.w)), scratch);
  // A block below 2^-100 counts as zeros: 127 over it must not overflow.
  float inverse = largest < 0x1p-100f ? 0.0f : 127.0f / largest;
  float scale = largest < 0x1p-100f ? 0.0f : largest / 127.0f;
  int low = as_int(convert_char4_rte(v.lo * inverse));
  int high = as_int(convert_char4_rte(v.hi * inverse));
  float sum = quad_sum((float)dot4(low, 0x01010101, dot4(high, 0x01010101, 0)), scratch);
  if (!active) return;
  int block = quad >> 2, part = quad & 3;
#ifdef KIND_Q4_0
  // A unit's low nibbles are the first 16 columns of the block, its high ones the other 16.
  int word = 4 * (block + (part >> 1) * SEGMENT_BLOCKS) + 2 * (part & 1);
#else
  int word = 2 * quad;
#endif
  words[word] = low;
  words[word + 1] = high;
  if (part == 0) scales[block] = (float2)(scale, scale * sum);
}

FUNCTION float KIND(dot)(const Task *task, int chunk, int n_units, __local const uint4 *memory) {
  __local const int4 *x = (__local const int4 *)memory;
  __local const float2 *scales = (__local const float2 *)(memory + 2 * SEGMENT_BLOCKS);
  float total = 0.0f;
  #pragma unroll
  for (int j = 0; j < LOADS; j++) {
    int unit = (chunk * LOADS + j) * LANES + lane_id();
    if (unit >= n_units) continue;
    int4 w = as_int4(task->unit[j]);
    float2 scale = scales[unit / UNITS_A_BLOCK];
    int sum = 0;
    int4 a = x[unit];
#ifdef KIND_Q4_0
    int4 b = x[unit + SEGMENT_BLOCKS];
    int4 low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
    sum = dot4(low.x, a.x, dot4(low.y, a.y, dot4(low.z, a.z, dot4(low.w, a.w, sum))));
    sum = dot4(high.x, b.x, dot4(high.y, b.y, dot4(high.z, b.z, dot4(high.w, b.w, sum))));
    total += half_bits(task->scale[j]) * (scale.x * (float)sum - 8.0f * scale.y);
#else
    sum = dot4(w.x, a.x, dot4(w.y, a.y, dot4(w.z, a.z, dot4(w.w, a.w, sum))));
    total += half_bits(task->scale[j]) * (scale.x * (float)sum);
#endif
  }
  return total;
}

#else

FUNCTION void KIND(put)(
    int quad, int active, float8 v, __local uint4 *memory, __local float *scratch) {
  __local float4 *x = (__local float4 *)memory;
  if (!active) return;
#ifdef KIND_F32
  x[2 * quad] = v.lo;
  x[2 * quad + 1] = v.hi;
#else
  x[quad] = v.lo;
  x[quad + SEGMENT_UNITS] = v.hi;
#endif
}

FUNCTION float KIND(dot)(const Task *task, int chunk, int n_units, __local const uint4 *memory) {
  __local const float4 *x = (__local const float4 *)memory;
  float total = 0.0f;
  #pragma unroll
  for (int j = 0; j < LOADS; j++) {
    int unit = (chunk * LOADS + j) * LANES + lane_id();
    if (unit >= n_units) continue;
    uint4 w = task->unit[j];
    float4 a = x[unit];
#ifdef KIND_F32
    float4 v = as_float4(w);
    total += v.x * a.x + v.y * a.y + v.z * a.z + v.w * a.w;
#else
    float4 b = x[unit + SEGMENT_UNITS];
#ifdef KIND_F16
    float2 v0 = halves(w.x), v1 = halves(w.y), v2 = halves(w.z), v3 = halves(w.w);
#else
    float2 v0 = brain_halves(w.x), v1 = brain_halves(w.y);
    float2 v2 = brain_halves(w.z), v3 = brain_halves(w.w);
#endif
    total += v0.x * a.x + v0.y * a.y + v1.x * a.z + v1.y * a.w;
    total += v2.x * b.x + v2.y * b.y + v3.x * b.z + v3.y * b.w;
#endif
  }
  return total;
}

#endif

// Bring columns [first, first + n) of the source into local memory; n is a multiple of 32.
// Returns the sum of the squares of what the norm's weights have not yet scaled.
FUNCTION float KIND(load)(
    Source source, int first, int n, __local uint4 *memory, __local float *scratch) {
  float squares = 0.0f;
  LOCAL_FENCE;  // the products before are done with the memory
  for (int start = 0; start < n / 8; start += GROUP) {
    int quad = start + (int)get_local_id(0);
    int active = quad < n / 8;
    float8 v = (float8)(0.0f);
    if (active) v = activations(source, first + 8 * quad, &squares);
    KIND(put)(quad, active, v, memory, scratch);
  }
  LOCAL_FENCE;
  return squares;
}

// --- the product ------------------------------------------------------------------------------

#if SEGMENTED
// The factor of RMSNorm where the row may be too long to be in local memory at once.
FUNCTION float KIND(norm_of_long_row)(Source source, int n, __local float *scratch) {
  float squares = 0.0f;
  for (int i = get_local_id(0); i < n / 8; i += GROUP) activations(source, 8 * i, &squares);
  return rsqrt(group_sum(squares, scratch) / source.n + source.eps);
}
#endif

// Compute the rows of m that are this group's. `task` holds its teams' first tasks, as `begin`
// leaves them.
//
// With `pairs` the rows are a half of gates and a half of ups, and out gets silu(gate) * up.
// With `add` the product is added to out, the residual stream.
FUNCTION void KIND(product)(
    Task *task, Matrix m, Source source, __global float *out, const int pairs, const int add,
    __local uint4 *memory, __local float *scratch) {
  const int results = pairs ? m.rows / 2 : m.rows;
  const int n_teams = TEAMS * (int)get_num_groups(0);
  const int team = team_in_grid();
  float factor = 1.0f;
#if SEGMENTED
  if (source.norm) factor = KIND(norm_of_long_row)(source, m.n_units * UNIT_COLS, scratch);
  for (int first = 0; first < m.n_units; first += SEGMENT_UNITS)
#else
  const int first = 0;
#endif
  {
    const int n_units = min(m.n_units - first, SEGMENT_UNITS);
    const int n_chunks = (n_units + LANES * LOADS - 1) / (LANES * LOADS);
    float squares = KIND(load)(source, first * UNIT_COLS, n_units * UNIT_COLS, memory, scratch);
#if !SEGMENTED
    if (source.norm) factor = rsqrt(group_sum(squares, scratch) / source.n + source.eps);
#endif
    if (first) KIND(fetch)(task, m, team, first, n_units, 0);
    for (int base = 0; base < results; base += n_teams) {
      const int result = base + team;
      float gate = 0.0f;
      for (int part = 0; part <= pairs; part++) {
        const int row = result < results ? result + part * results : m.rows;
        const int following = part < pairs ? row + results : result + n_teams;
        const int next_row = part < pairs || following < results ? following : m.rows;
        float total = 0.0f;
        for (int chunk = 0; chunk < n_chunks; chunk++) {
          const Task present = *task;
          const int last = chunk + 1 == n_chunks;
          KIND(fetch)(task, m, last ? next_row : row, first, n_units, last ? 0 : chunk + 1);
          total += KIND(dot)(&present, chunk, n_units, memory);
        }
        total = team_sum(total, scratch) * factor;
        if (part < pairs) {
          gate = total;
        } else if (lane_id() == 0 && result < results) {
          if (pairs) total *= gate / (1.0f + exp(-gate));
          out[result] = add || first ? out[result] + total : total;
        }
      }
    }
  }
}
