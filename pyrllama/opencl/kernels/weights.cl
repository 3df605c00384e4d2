// One storage type of weights: built once for each type that a model has, with KIND(name) giving
// the names and one of KIND_F32, KIND_F16, KIND_BF16, KIND_Q8_0, KIND_Q4_0 and those of planes.cl
// defined.
//
// A matrix is rows of units of 16 bytes, UNIT_COLS columns each, the stored bits as they are.
// Quantised types keep the float16 scales of their blocks of 32 columns apart, row by row.

#undef UNIT_COLS
#undef UNITS_A_BLOCK
#undef QUANTISED
#if defined(KIND_F32)
#define UNIT_COLS 4
#elif defined(KIND_F16) || defined(KIND_BF16)
#define UNIT_COLS 8
#elif defined(KIND_Q8_0)
#define UNIT_COLS 16
#define UNITS_A_BLOCK 2
#define QUANTISED
#elif defined(KIND_Q4_0)
#define UNIT_COLS 32
#define UNITS_A_BLOCK 1
#define QUANTISED
#elif defined(PLANES)
#define UNIT_COLS 32
#define UNITS_A_BLOCK 1
#define QUANTISED
#endif

#ifndef PLANES
// The columns of a unit as floats, scaled: `out` has UNIT_COLS.
FUNCTION void KIND(unpack)(uint4 unit, ushort scale_bits, float *out) {
  uint words[4] = {unit.x, unit.y, unit.z, unit.w};
#ifdef QUANTISED
  float scale = half_bits(scale_bits);
#endif
  for (int i = 0; i < 4; i++) {
#if defined(KIND_F32)
    out[i] = as_float(words[i]);
#elif defined(KIND_F16)
    vstore2(halves(words[i]), i, out);
#elif defined(KIND_BF16)
    vstore2(brain_halves(words[i]), i, out);
#elif defined(KIND_Q8_0)
    vstore4(convert_float4(as_char4(words[i])) * scale, i, out);
#elif defined(KIND_Q4_0)
    vstore4((convert_float4(as_uchar4(words[i] & 0x0f0f0f0fu)) - 8.0f) * scale, i, out);
    vstore4((convert_float4(as_uchar4((words[i] >> 4) & 0x0f0f0f0fu)) - 8.0f) * scale, i + 4, out);
#endif
  }
}
#endif

// Unpack a token's row of the embedding: this work-item's units are every `stride`-th from `first`.
FUNCTION void KIND(embed_row)(
    Matrix m, int token, __global float *x, int first, int stride, int stamp) {
  for (int u = first; u < m.n_units; u += stride) {
    float values[UNIT_COLS];
    long place = (long)token * m.n_units + u;
#if defined(PLANES)
    KIND(unpack_side)(KIND(load_unit)(m, place), KIND(load_side)(m, token, u, 1), values);
#elif defined(QUANTISED)
    KIND(unpack)(m.units[place], m.scales[place / UNITS_A_BLOCK], values);
#else
    KIND(unpack)(m.units[place], 0, values);
#endif
    for (int c = 0; c < UNIT_COLS; c++) put_stamped(x + u * UNIT_COLS + c, values[c], stamp);
  }
}

// A group for every token of a batch.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(embed)(
    __global const uint4 *units, __global const ushort *scales, int n_units,
    __global const int *batch, __global float *x, int stride) {
  const int row = get_group_id(0);
  Matrix m = {units, scales, 0, n_units};
  KIND(embed_row)(
      m, batch[BATCH_TOKENS + row], x + (long)row * stride, get_local_id(0), GROUP, UNSTAMPED);
}
