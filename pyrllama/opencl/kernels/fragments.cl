// A unit of weights as Tensor Cores read it, for one storage type. A work-item holds whole units,
// its columns four by four those of consecutive steps: in step s, the product's columns 2q, 2q + 1,
// 2q + 8 and 2q + 9 are the unit's 4s to 4s + 3, q being the work-item's place in its quad.

#if defined(TENSOR) && !defined(KIND_F32) && !defined(PLANES)

FUNCTION uint2 KIND(opened)(uint4 unit, ushort scale, int step) {
#if defined(KIND_F16)
  return step ? unit.zw : unit.xy;
#elif defined(KIND_BF16)
  uint2 pair = step ? unit.zw : unit.xy;
  float2 first = brain_halves(pair.x), second = brain_halves(pair.y);
  return (uint2)(pack_halves(first.x, first.y), pack_halves(second.x, second.y));
#else
  uint2 pair = step % 4 < 2 ? unit.xy : unit.zw;
  uint word = step % 2 ? pair.y : pair.x;
#ifdef KIND_Q8_0
  return scaled_bytes(word ^ 0x80808080u, scale, 1152);
#else
  return scaled_bytes(word >> step / 4 * 4 & 0x0f0f0f0fu, scale, 1032);
#endif
#endif
}

#endif
