// Matrix times one row of activations, for one storage type (see weights.cl and shares.cl).
//
// Two tasks are always on their way, so that memory never waits for arithmetic, the first ones before
// the activations are there.

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

// Ask for a lane's units [from, to) of a task; what lies behind the end of the team's run or of the
// segment is zeros.
FUNCTION void KIND(fetch)(Task *task, Matrix m, Place at, const int from, const int to) {
  #pragma unroll
  for (int j = from; j < to; j++) {
    const int there = j * LANES < at.n;
#ifdef PLANES
    task->unit[j] = there ? KIND(load_unit)(m, at.place + j * LANES) : (uint4)(0);
    task->side[j] = KIND(load_side)(m, at.row, at.unit + j * LANES, there);
#else
    task->unit[j] = load_stream_if(there, m.units + at.place + j * LANES);
#ifdef QUANTISED
    const int in_scales = j * (LANES / UNITS_A_BLOCK);
    task->scale[j] = load_scale_if(there, m.scales + at.place / UNITS_A_BLOCK + in_scales);
#endif
#endif
  }
}

// Ask for a team's first task of a round.
FUNCTION void KIND(first)(Begun *begun, Matrix m, Columns columns, Span span, const int pairs) {
  Cursor cursor = cursor_at(columns, span.begin);
  KIND(fetch)(&begun->first, m, next_place(m, columns, span, &cursor, span.begin), 0, LOADS);
  put_holders(begun, span, columns, pairs);
}

// Ask for a team's first task of a product.
FUNCTION void KIND(begin)(Begun *begun, Matrix m, const int pairs) {
  const Columns columns = columns_from(0, min(m.n_units, SEGMENT_UNITS));
  KIND(first)(begun, m, columns, span_of(m.rows, pairs, columns, 0), pairs);
}

// Find the second task of a round, and ask for SECOND_LOADS of its units. What all groups ask for at
// once stands before the results for which they wait, so this comes behind the request for those.
FUNCTION void KIND(second)(Begun *begun, Matrix m, Columns columns, Span span) {
  Cursor cursor = cursor_at(columns, span.begin);
  advance(&cursor, columns);
  begun->second_at = next_place(m, columns, span, &cursor, span.begin + 1);
  KIND(fetch)(&begun->second, m, begun->second_at, 0, SECOND_LOADS);
}

// The same for a product's first round.
FUNCTION void KIND(begin_second)(Begun *begun, Matrix m, const int pairs) {
  const Columns columns = columns_from(0, min(m.n_units, SEGMENT_UNITS));
  KIND(second)(begun, m, columns, span_of(m.rows, pairs, columns, 0));
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
#if defined(KIND_Q4_0) || defined(PLANES)
  // A unit's low nibbles are the first 16 columns of the block, its high ones the other 16.
  int word = 4 * (block + (part >> 1) * SEGMENT_BLOCKS) + 2 * (part & 1);
#else
  int word = 2 * quad;
#endif
  words[word] = low;
  words[word + 1] = high;
  if (part == 0) scales[block] = (float2)(scale, scale * sum);
}

// The dot product of a lane's unit j of a task, which is unit `unit` of the segment.
FUNCTION float KIND(dot)(const Task *task, int j, int unit, __local const uint4 *memory) {
  __local const int4 *x = (__local const int4 *)memory;
  __local const float2 *scales = (__local const float2 *)(memory + 2 * SEGMENT_BLOCKS);
  const int4 a = x[unit];
  const float2 scale = scales[unit / UNITS_A_BLOCK];
#ifdef PLANES
  return KIND(dot_unit)(task->unit[j], task->side[j], a, x[unit + SEGMENT_BLOCKS], scale);
#else
  const int4 w = as_int4(task->unit[j]);
#ifdef KIND_Q4_0
  const int4 b = x[unit + SEGMENT_BLOCKS];
  const int4 low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
  int sum = dot4(low.x, a.x, dot4(low.y, a.y, dot4(low.z, a.z, dot4(low.w, a.w, 0))));
  sum = dot4(high.x, b.x, dot4(high.y, b.y, dot4(high.z, b.z, dot4(high.w, b.w, sum))));
  return half_bits(task->scale[j]) * (scale.x * (float)sum - 8.0f * scale.y);
#else
  const int sum = dot4(w.x, a.x, dot4(w.y, a.y, dot4(w.z, a.z, dot4(w.w, a.w, 0))));
  return half_bits(task->scale[j]) * (scale.x * (float)sum);
#endif
#endif
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

FUNCTION float KIND(dot)(const Task *task, int j, int unit, __local const uint4 *memory) {
  __local const float4 *x = (__local const float4 *)memory;
  const uint4 w = task->unit[j];
  const float4 a = x[unit];
#ifdef KIND_F32
  const float4 v = as_float4(w);
  return v.x * a.x + v.y * a.y + v.z * a.z + v.w * a.w;
#else
  const float4 b = x[unit + SEGMENT_UNITS];
#ifdef KIND_F16
  const float2 v0 = halves(w.x), v1 = halves(w.y), v2 = halves(w.z), v3 = halves(w.w);
#else
  const float2 v0 = brain_halves(w.x), v1 = brain_halves(w.y);
  const float2 v2 = brain_halves(w.z), v3 = brain_halves(w.w);
#endif
  const float low = v0.x * a.x + v0.y * a.y + v1.x * a.z + v1.y * a.w;
  return low + (v2.x * b.x + v2.y * b.y + v3.x * b.z + v3.y * b.w);
#endif
}

#endif

// Bring columns [first, first + n) of a row of floats into local memory; returns the sum of the
// squares that the work-item has seen, of what the norm's weights have not yet scaled.
FUNCTION float KIND(load_row)(
    Begun *begun, Matrix m, const int pairs, Source source, int first, int n,
    __local uint4 *memory, __local float *scratch) {
  float squares = 0.0f;
  #pragma unroll 1
  for (int start = 0; start < n / 8; start += EIGHTS_AT_ONCE * GROUP) {
    float8 v[EIGHTS_AT_ONCE], weight[EIGHTS_AT_ONCE];
    UNROLL_ON_GPU
    for (int k = 0; k < EIGHTS_AT_ONCE; k++) {
      const int quad = min(start + k * GROUP + (int)get_local_id(0), n / 8 - 1);
      if (k && start + k * GROUP >= n / 8) continue;
      v[k] = load_shared8(source.x + first + 8 * quad);
      if (source.norm) weight[k] = load_float8(source.weight + first + 8 * quad);
    }
    if (first + start == 0) KIND(begin_second)(begun, m, pairs);
    UNROLL_ON_GPU
    for (int k = 0; k < EIGHTS_AT_ONCE; k++) {
      const int quad = start + k * GROUP + (int)get_local_id(0);
      if (k && start + k * GROUP >= n / 8) continue;
      const int there = min(quad, n / 8 - 1);
      v[k] = await8(v[k], source.x + first + 8 * there, source.expected);
      if (source.norm) {
        squares += quad < n / 8 ? sum8(v[k] * v[k]) : 0.0f;
        v[k] *= weight[k];
      }
      KIND(put)(quad, quad < n / 8, v[k], memory, scratch);
    }
  }
  return squares;
}

// Bring columns [first, first + n) of the source into local memory; n is a multiple of 32. The first
// ones asked for, some of m's second task is. With `measure` their squares are summed in SQUARES.
FUNCTION void KIND(load)(
    Begun *begun, Matrix m, const int pairs, Source source, int first, int n, const int measure,
    __local uint4 *memory, __local float *scratch) {
  LOCAL_FENCE;  // the products before are done with the memory
  if (source.shares) {
    __local float *factors = scratch + FACTORS;
    #pragma unroll 1
    for (int start = 0; start < n / 8; start += GROUP) {
      const int quad = start + (int)get_local_id(0), column = first + 8 * min(quad, n / 8 - 1);
      float8 parts[SPLITS];
      load_parts(source, column, parts);  // on their way while the factors come
      if (first + start == 0) KIND(begin_second)(begun, m, pairs);
      if (start == 0) {
        put_factors(source, factors);
        LOCAL_FENCE;
      }
      await_parts(source, column, parts);
      KIND(put)(quad, quad < n / 8, joined8(parts, column, factors), memory, scratch);
    }
  } else {
    const float squares = KIND(load_row)(begun, m, pairs, source, first, n, memory, scratch);
    if (measure) {
      const float of_team = team_sum(squares, scratch);
      if (lane_id() == 0) scratch[SQUARES + team_in_group()] = of_team;
    }
  }
  LOCAL_FENCE;
}

#if SEGMENTED
// Sum the squares of a row that may be too long to be in local memory at once.
FUNCTION void KIND(measure)(Source source, int n, __local float *scratch) {
  float squares = 0.0f;
  for (int i = get_local_id(0); i < n / 8; i += GROUP) {
    const float8 v = await8(load_shared8(source.x + 8 * i), source.x + 8 * i, source.expected);
    squares += sum8(v * v);
  }
  const float of_team = team_sum(squares, scratch);
  if (lane_id() == 0) scratch[SQUARES + team_in_group()] = of_team;
}
#endif

// --- the product ------------------------------------------------------------------------------

// Add the products of a task to what a team has of a row so far. At the row's or the run's end that
// goes to SUMS, or, where the row began with an earlier team, to CARRIES.
FUNCTION void KIND(add)(
    const Task *task, Columns columns, Span span, int nth, Cursor *at, int *target, float *total,
    __local const uint4 *memory, __local float *scratch) {
  #pragma unroll
  for (int j = 0; j < LOADS; j++) {
    // Behind the row's end the weights are zeros; the activations must be numbers too.
    const int unit = (at->column * LOADS + j) * LANES + lane_id();
    *total += KIND(dot)(task, j, min(unit, columns.n - 1), memory);
  }
  advance(at, columns);
  if (at->column == 0 || nth + 1 == span.end) {
    team_keep(*total, scratch + *target);
    *total = 0.0f;
    *target = SUMS + at->row * KEPT;
  }
}

// Ask for a task of a team's run if it has one, the one that the cursor is at. Asking for nothing
// would take its time behind the last task, where the whole group waits.
FUNCTION void KIND(ask_next)(
    Task *task, Matrix m, Columns columns, Span span, Cursor *ahead, int nth) {
  if (nth < span.end) {
    KIND(fetch)(task, m, next_place(m, columns, span, ahead, nth), 0, LOADS);
  }
}

// Compute a team's run of tasks, two by two: while one is computed, the other is on its way.
FUNCTION void KIND(run)(
    Begun *begun, Matrix m, Columns columns, Span span, __local const uint4 *memory,
    __local float *scratch) {
  Cursor at = cursor_at(columns, span.begin), ahead = at;
  advance(&ahead, columns);
  advance(&ahead, columns);
  int target = at.column ? CARRIES + team_in_group() * KEPT : SUMS + at.row * KEPT;
  float total = 0.0f;
  #pragma unroll 1
  for (int nth = span.begin; nth < span.end; nth += 2) {
    KIND(add)(&begun->first, columns, span, nth, &at, &target, &total, memory, scratch);
    if (nth + 1 == span.end) break;
    KIND(ask_next)(&begun->first, m, columns, span, &ahead, nth + 2);
    KIND(add)(&begun->second, columns, span, nth + 1, &at, &target, &total, memory, scratch);
    KIND(ask_next)(&begun->second, m, columns, span, &ahead, nth + 3);
  }
}

// Compute a group's rows of m up to where `finish` writes the last of them. `begun` is as `begin`
// leaves it.
FUNCTION void KIND(product)(
    Begun *begun, Matrix m, Source source, Target target, const int pairs, __local uint4 *memory,
    __local float *scratch) {
  const int n_rounds = rounds_of(m.rows, pairs);
#if SEGMENTED
  if (source.norm) KIND(measure)(source, m.n_units * UNIT_COLS, scratch);
  for (int first = 0; first < m.n_units; first += SEGMENT_UNITS)
#else
  const int first = 0;
#endif
  {
    const Columns columns = columns_from(first, min(m.n_units - first, SEGMENT_UNITS));
    KIND(load)(begun, m, pairs, source, first * UNIT_COLS, columns.n * UNIT_COLS,
               !SEGMENTED && source.norm, memory, scratch);
    MARK(LOADED)
    #pragma unroll 1
    for (int round = 0; round < n_rounds; round++) {
      const Span span = span_of(m.rows, pairs, columns, round);
      if (first || round) {
        KIND(first)(begun, m, columns, span, pairs);
        KIND(second)(begun, m, columns, span);
      }
      KIND(fetch)(&begun->second, m, begun->second_at, SECOND_LOADS, LOADS);
      const int goes_on = first + SEGMENT_UNITS < m.n_units;
      const Target part = part_of(target, first, goes_on);
      put_before(begun, span, part);
      KIND(run)(begun, m, columns, span, memory, scratch);
      MARK(COMPUTED)
      if (round + 1 < n_rounds || goes_on) {
        finish_round(begun, source, columns, span, part, pairs, scratch);
        LOCAL_FENCE;  // the sums are read
      }
    }
  }
}

// Write the results of the last round, once all teams have computed theirs.
//
// With `pairs` the rows are a half of gates and a half of ups, and the target gets silu(gate) * up.
FUNCTION void KIND(finish)(
    const Begun *begun, Matrix m, Source source, Target target, const int pairs,
    __local float *scratch) {
  const int first = SEGMENTED ? (m.n_units - 1) / SEGMENT_UNITS * SEGMENT_UNITS : 0;
  const Columns columns = columns_from(first, m.n_units - first);
  const Span span = span_of(m.rows, pairs, columns, rounds_of(m.rows, pairs) - 1);
  finish_round(begun, source, columns, span, part_of(target, first, 0), pairs, scratch);
}
