// NVIDIA's Tensor Cores through inline PTX: 16 by 8 products over 16 columns of float16.

#ifdef TENSOR

// Four 8 by 8 matrices of float16; lane l names row l % 8 of matrix l / 8.
FUNCTION uint4 load_fragments(__local const uint4 *row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"((uint)(size_t)row) : "memory");
  return v;
}

// The same, each of the four turned.
FUNCTION uint4 load_turned_fragments(__local const uint4 *row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"((uint)(size_t)row) : "memory");
  return v;
}

// sum (16, 8) += a (16, 16) * b (16, 8)
FUNCTION void tensor_product(float *sum, uint4 a, uint b0, uint b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Four bytes b as float16 of scale * (1024 + b - offset): bytes become the low bits of 1024.0.
FUNCTION uint2 scaled_bytes(uint bytes, ushort scale, int offset) {
  uint2 v;
  uint factors = (uint)scale * 0x10001u;
  uint offsets = offset == 1032 ? 0x64086408u : 0x64806480u;
  asm("{.reg .b32 low, high;"
      " prmt.b32 low, %2, 0x64646464, 0x4140; prmt.b32 high, %2, 0x64646464, 0x4342;"
      " sub.f16x2 low, low, %4; sub.f16x2 high, high, %4;"
      " mul.f16x2 %0, low, %3; mul.f16x2 %1, high, %3;}"
      : "=r"(v.x), "=r"(v.y) : "r"(bytes), "r"(factors), "r"(offsets));
  return v;
}

#endif
