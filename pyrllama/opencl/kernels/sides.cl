// What stands beside the units of types that are cut into planes (see planes.cl), and the
// operations on their levels: four int8 in a word.

typedef struct {
  uint2 rest;   // of the unit's block: d, and whatever goes with it
  uint scales;  // of the unit
  uint more;    // of them, where they have a nibble beside a byte: that byte of two units' nibbles
  uint2 high;   // the levels' higher bits
  int nth;      // which of the block's units it is
} Side;

// Bytes of a and b, 0 to 7, that the four lowest nibbles of a selector choose, each under 8.
FUNCTION uint permute(uint a, uint b, uint selector) {
#ifdef NVIDIA
  uint chosen;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(chosen) : "r"(a), "r"(b), "r"(selector));
  return chosen;
#else
  uchar4 places = (uchar4)(selector & 7, selector >> 4 & 7, selector >> 8 & 7, selector >> 12 & 7);
  return as_uint(shuffle(as_uchar8((uint2)(a, b)), places));
#endif
}

// What a table of 16 int8 has for the low nibbles of a word's bytes, and for the high ones.
FUNCTION uint2 look_up(uint word, uint4 table) {
  uint index = word & 0x77777777u;
  // Of the lower and the upper half of the table, the highest bit of a nibble chooses.
  uint half_of = 0x32103210u | (word & 0x88888888u) >> 1;
  uint first = permute(permute(table.x, table.y, index), permute(table.z, table.w, index), half_of);
  uint last = permute(
      permute(table.x, table.y, index >> 16), permute(table.z, table.w, index >> 16),
      half_of >> 16);
  return (uint2)(permute(first, last, 0x6420u), permute(first, last, 0x7531u));
}

// Take a number from each of a word's bytes, which all have values under 128.
FUNCTION uint4 less(uint4 levels, uint number) {
  return ((levels | 0x80808080u) - number * 0x01010101u) ^ 0x80808080u;
}

// Fields of one or two bits in the bytes of a word: the first, second, third, fourth of each byte.
FUNCTION uint4 single_bits(uint word) {
  return (uint4)(word, word >> 1, word >> 2, word >> 3) & 0x01010101u;
}

FUNCTION uint4 bit_pairs(uint word) {
  return (uint4)(word, word >> 2, word >> 4, word >> 6) & 0x03030303u;
}
