// Quantised types whose blocks are cut into planes (opencl/planes.py says how), built once for each
// as weights.cl is, with PLANES, the bits LEVEL_BITS, HIGH_BITS and SCALE_BITS of a unit's planes,
// BLOCK_UNITS, and REST_BYTES of a block.
//
// A column is its level, an int8, times a scale, less a minimum. The scale, and the minimum where
// there is one, are those of its 16 columns.

#ifdef PLANES

#define SIDE_ROW_BYTES(n_units)                                                                   \
  ROUND_UP((n_units) * (32 * HIGH_BITS + SCALE_BITS) / 8 + (n_units) / BLOCK_UNITS * REST_BYTES, 16)

// A unit's levels but for their higher bits.
FUNCTION uint4 KIND(load_unit)(Matrix m, long place) {
#if LEVEL_BITS == 4
  return load_stream(m.units + place);
#else
  return (uint4)(((__global const uint2 *)m.units)[place], 0, 0);
#endif
}

// What stands beside unit `unit` of a row; zeros unless it is `there`.
FUNCTION Side KIND(load_side)(Matrix m, int row, int unit, int there) {
  __global const uchar *plane =
      (__global const uchar *)m.scales + (long)row * SIDE_ROW_BYTES(m.n_units);
  const int block = unit / BLOCK_UNITS;
  Side side = {(uint2)(0), 0, 0, (uint2)(0), unit % BLOCK_UNITS};
  if (!there) return side;
#if HIGH_BITS == 2
  side.high = ((__global const uint2 *)plane)[unit];
#elif HIGH_BITS == 1
  side.high.x = ((__global const uint *)plane)[unit];
#endif
  plane += m.n_units * 4 * HIGH_BITS;
#if SCALE_BITS == 16
  side.scales = ((__global const ushort *)plane)[unit];
  plane += m.n_units * 2;
#endif
#if REST_BYTES == 8
  side.rest = ((__global const uint2 *)plane)[block];
#elif REST_BYTES == 4
  side.rest.x = ((__global const uint *)plane)[block];
#elif REST_BYTES == 2
  side.rest.x = ((__global const ushort *)plane)[block];
#else
  side.rest.x = plane[block];
#endif
#if SCALE_BITS == 12
  plane += m.n_units / BLOCK_UNITS * REST_BYTES;
  side.scales = plane[unit];
  side.more = plane[m.n_units + unit / 2];
#endif
  return side;
}

#if SCALE_BITS == 12
// Two numbers of 6 bits.
FUNCTION int2 KIND(six_bit_pair)(Side side) {
  const uint nibble = side.more >> 4 * (side.nth & 1) & 15;
  return (int2)(side.scales & 63, side.scales >> 6 | nibble << 2);
}
#endif

// The levels of the first and of the last 16 columns, four in a word.
FUNCTION void KIND(levels)(uint4 unit, Side side, uint4 *first, uint4 *last) {
#if defined(KIND_IQ4_XS) || defined(KIND_IQ4_NL) || defined(KIND_MXFP4)
#ifdef KIND_MXFP4
  const uint4 table = (uint4)(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
#else
  const uint4 table = (uint4)(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
#endif
  uint2 x = look_up(unit.x, table), y = look_up(unit.y, table);
  uint2 z = look_up(unit.z, table), w = look_up(unit.w, table);
  *first = (uint4)(x.x, y.x, z.x, w.x);
  *last = (uint4)(x.y, y.y, z.y, w.y);
#else
#if LEVEL_BITS == 4
  *first = unit & 0x0f0f0f0fu;
  *last = (unit >> 4) & 0x0f0f0f0fu;
#else
  *first = bit_pairs(unit.x);
  *last = bit_pairs(unit.y);
#endif
#if HIGH_BITS == 1
  *first |= single_bits(side.high.x) << LEVEL_BITS;
  *last |= single_bits(side.high.x >> 4) << LEVEL_BITS;
#elif HIGH_BITS == 2
  *first |= bit_pairs(side.high.x) << LEVEL_BITS;
  *last |= bit_pairs(side.high.y) << LEVEL_BITS;
#endif
#if defined(KIND_Q6_K)
  *first = less(*first, 32);
  *last = less(*last, 32);
#elif defined(KIND_Q5_0)
  *first = less(*first, 16);
  *last = less(*last, 16);
#elif defined(KIND_Q3_K)
  *first = less(*first, 4);
  *last = less(*last, 4);
#elif defined(KIND_TQ2_0) || defined(KIND_TQ1_0)
  *first = less(*first, 1);
  *last = less(*last, 1);
#endif
#endif
}

// The scales of the first and the last 16 columns, then their minimums.
FUNCTION float4 KIND(factors)(Side side) {
#if defined(KIND_Q4_K) || defined(KIND_Q5_K)
  float2 f = halves(side.rest.x) * convert_float2(KIND(six_bit_pair)(side));
  return (float4)(f.x, f.x, f.y, f.y);
#elif defined(KIND_Q6_K)
  const float d = half_bits((ushort)side.rest.x);
  char4 scales = as_char4(side.scales);
  return (float4)(d * (float)scales.x, d * (float)scales.y, 0.0f, 0.0f);
#elif defined(KIND_IQ4_XS)
  const uint low = side.rest.y >> 4 * side.nth & 15;
  const uint high = side.rest.x >> (16 + 2 * side.nth) & 3;
  const float scale = half_bits((ushort)side.rest.x) * (float)((int)(low | high << 4) - 32);
  return (float4)(scale, scale, 0.0f, 0.0f);
#elif defined(KIND_MXFP4)
  // 2^(e - 128): the levels are twice what E2M1 means. The two smallest are denormal.
  const uint e = side.rest.x;
  const float scale = as_float(e > 1 ? (e - 1) << 23 : 0x00200000u << e);
  return (float4)(scale, scale, 0.0f, 0.0f);
#elif defined(KIND_Q4_1) || defined(KIND_Q5_1)
  float2 d = halves(side.rest.x);
  return (float4)(d.x, d.x, -d.y, -d.y);
#elif defined(KIND_Q2_K)
  float2 d = halves(side.rest.x);
  const uint a = side.scales & 255, b = side.scales >> 8;
  return (float4)(d.x * (float)(a & 15), d.x * (float)(b & 15), d.y * (float)(a >> 4), d.y * (float)(b >> 4));
#elif defined(KIND_Q3_K)
  const float d = half_bits((ushort)side.rest.x);
  return (float4)(d * convert_float2(KIND(six_bit_pair)(side) - 32), 0.0f, 0.0f);
#else
  const float d = half_bits((ushort)side.rest.x);
  return (float4)(d, d, 0.0f, 0.0f);
#endif
}

// The 32 columns of a unit as floats.
FUNCTION void KIND(unpack_side)(uint4 unit, Side side, float *out) {
#pragma OPENCL FP_CONTRACT OFF
  uint4 levels[2];
  KIND(levels)(unit, side, levels, levels + 1);
  float4 factors = KIND(factors)(side);
  for (int half_of = 0; half_of < 2; half_of++) {
    const float scale = half_of ? factors.y : factors.x, minimum = half_of ? factors.w : factors.z;
    uint words[4] = {levels[half_of].x, levels[half_of].y, levels[half_of].z, levels[half_of].w};
    for (int i = 0; i < 4; i++) {
      float4 scaled = convert_float4(as_char4(words[i])) * scale;
      vstore4(scaled - minimum, 4 * half_of + i, out);
    }
  }
}

FUNCTION int KIND(dot16)(uint4 levels, int4 x) {
  int4 w = as_int4(levels);
  return dot4(w.x, x.x, dot4(w.y, x.y, dot4(w.z, x.z, dot4(w.w, x.w, 0))));
}

// The product of a unit with 32 columns of activations: their int8, `first` and `last`, their scale,
// and the scaled sum of all of them.
FUNCTION float KIND(dot_unit)(uint4 unit, Side side, int4 first, int4 last, float2 scale) {
  uint4 a, b;
  KIND(levels)(unit, side, &a, &b);
  float4 factors = KIND(factors)(side);
  float2 sums = (float2)(KIND(dot16)(a, first), KIND(dot16)(b, last));
#ifdef KIND_Q2_K
  const uint4 ones = (uint4)(0x01010101u);
  float2 totals = (float2)(KIND(dot16)(ones, first), KIND(dot16)(ones, last));
  return scale.x * (dot(factors.lo, sums) - dot(factors.hi, totals));
#else
  return scale.x * dot(factors.lo, sums) - factors.z * scale.y;
#endif
}

#endif
