// The few operations that differ between devices, each in portable OpenCL C and, where the
// program is built with NVIDIA defined, in inline PTX. Nothing else knows which one it runs on.
//
// A work-group of GROUP work-items is GROUP / LANES teams; a team of LANES work-items shares the
// work of a row. Where a function takes `scratch`, that is GROUP floats of local memory, and all
// work-items of the group must call it together.

// Compilers may not leave calls: barriers and whole tasks in registers are behind them.
#define FUNCTION static inline __attribute__((always_inline))
#define LANES 32
#define TEAMS (GROUP / LANES)
// Where it is known when kernels are built, as for a step in one kernel, much is worked out then.
#ifdef GROUPS
#define N_GROUPS GROUPS
#else
#define N_GROUPS ((int)get_num_groups(0))
#endif
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define LOCAL_FENCE barrier(CLK_LOCAL_MEM_FENCE)

FUNCTION int lane_id(void) { return (int)get_local_id(0) & (LANES - 1); }
FUNCTION int team_in_group(void) { return (int)get_local_id(0) / LANES; }

#ifdef NVIDIA

// A barrier of a group orders what it does to global memory, too; a fence besides would wait for
// weights that are on their way.
#define GROUP_FENCE                                                                               \
  LOCAL_FENCE;                                                                                    \
  asm volatile("" ::: "memory")

// Loops over private arrays must be unrolled to keep them in registers; elsewhere, unrolling
// loops with barriers makes compilers (PoCL's) take minutes.
#define UNROLL_ON_GPU _Pragma("unroll")
#define EIGHTS_AT_ONCE 3  // 8 columns of activations that a work-item loads before it puts one down

FUNCTION float exchange(float value, int mask) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(other) : "f"(value), "r"(mask));
  return other;
}

FUNCTION float team_sum(float value, __local float *scratch) {
  for (int mask = LANES / 2; mask; mask >>= 1) value += exchange(value, mask);
  return value;
}

FUNCTION float team_max(float value, __local float *scratch) {
  for (int mask = LANES / 2; mask; mask >>= 1) value = fmax(value, exchange(value, mask));
  return value;
}

// Sum and maximum over four neighbouring work-items.
FUNCTION float quad_sum(float value, __local float *scratch) {
  value += exchange(value, 1);
  return value + exchange(value, 2);
}

FUNCTION float quad_max(float value, __local float *scratch) {
  value = fmax(value, exchange(value, 1));
  return fmax(value, exchange(value, 2));
}

// The maximum over `width` neighbouring work-items, and the sum over those `width` apart, of a team.
FUNCTION float near_max(float value, const int width, __local float *scratch) {
  for (int mask = width / 2; mask; mask >>= 1) value = fmax(value, exchange(value, mask));
  return value;
}

FUNCTION float apart_sum(float value, const int width, __local float *scratch) {
  for (int mask = width; mask < LANES; mask <<= 1) value += exchange(value, mask);
  return value;
}

// Keep the sum of a value over a team in KEPT floats of local memory, which may stand in code that
// not all teams come to.
#define KEPT 1
#define ROUND_RESULTS GROUP
FUNCTION void team_keep(float value, __local float *kept) {
  value = team_sum(value, kept);
  if (lane_id() == 0) *kept = value;
}

FUNCTION float kept_sum(__local const float *kept) { return *kept; }

// What a team wrote to local memory is there for the whole team.
FUNCTION void team_fence(void) { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// c plus the dot product of four int8 of a and four of b.
FUNCTION int dot4(int a, int b, int c) {
  int sum;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// Weights are read once: they go past the first cache, which the kernel never writes through.
FUNCTION uint4 load_stream(__global const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

FUNCTION ushort load_scale(__global const ushort *p) {
  ushort v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
  return v;
}

// The same, zeros for what is not there: a predicate keeps loads together, as a branch would not.
FUNCTION uint4 load_stream_if(int there, __global const uint4 *p) {
  uint4 v = (uint4)(0);
  asm volatile("{.reg .pred there; setp.ne.s32 there, %5, 0; "
               "@there ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(p), "r"(there));
  return v;
}

FUNCTION ushort load_scale_if(int there, __global const ushort *p) {
  ushort v = 0;
  asm volatile("{.reg .pred there; setp.ne.s32 there, %2, 0; @there ld.global.nc.u16 %0, [%1];}"
               : "+h"(v) : "l"(p), "r"(there));
  return v;
}

// What other groups wrote earlier in the same kernel is read past the first cache.
FUNCTION float4 load_shared4(__global const float *p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
  return v;
}

FUNCTION float load_shared(__global const float *p) {
  float v;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}

FUNCTION void put_shared(__global float *p, float value) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory");
}

FUNCTION float2 halves(uint bits) {
  float2 v;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
      : "=f"(v.x), "=f"(v.y) : "r"(bits));
  return v;
}

FUNCTION float half_bits(ushort bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

// Two floats as float16, to nearest even, those beyond its range as its greatest.
FUNCTION uint pack_halves(float low, float high) {
  uint bits;
  low = clamp(low, -65504.0f, 65504.0f);
  high = clamp(high, -65504.0f, 65504.0f);
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

FUNCTION int add_release(volatile __global int *p, int value) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before) : "l"(p), "r"(value) : "memory");
  return before;
}

// Nanoseconds of a clock that all groups share, modulo 2^32.
FUNCTION uint device_time(void) {
  uint time;
  asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(time)::"memory");
  return time;
}

FUNCTION uint cycles(void) {
  uint now;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(now)::"memory");
  return now;
}

FUNCTION void spend(uint n) {
  const uint begin = cycles();
  while (cycles() - begin < n) {}
}

FUNCTION void arrive_release(volatile __global int *p) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(1) : "memory");
}

FUNCTION void arrive_relaxed(volatile __global int *p) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(1) : "memory");
}

// A word that other groups write, as the second cache has it. Nothing is made to forget what it
// read before, as an acquiring load would: the first cache holds no words that groups share.
FUNCTION int look_at(volatile __global int *p) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

// Compilers forget what they know of a number or of a pointer: what it follows from is worked out
// before this, and what follows from it behind.
#define FORGET(v) asm volatile("" : "+r"(v))
#define FORGET_POINTER(p) asm volatile("" : "+l"(p))
#define FORGET_FLOAT(v) asm volatile("" : "+f"(v))

// Bring what will be read soon into the first cache.
FUNCTION void touch(__constant const long *p) {
  uint v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
}

FUNCTION float reciprocal(float v) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(v));
  return inverse;
}

// 1 / (1 + e^-v), to a few units in the last place.
FUNCTION float logistic(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * v));
  return reciprocal(1.0f + power);
}

// Bring what will be read a phase later into the second cache.
FUNCTION void ask_ahead(__global const float *p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

#else

#define GROUP_FENCE barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#define UNROLL_ON_GPU
#define EIGHTS_AT_ONCE 1

// Two barriers and a walk: barriers cost more than reading `width` floats that neighbours share.
FUNCTION float fold(float value, __local float *scratch, const int width, const int take_max) {
  const int id = (int)get_local_id(0);
  LOCAL_FENCE;  // others may still read what an earlier call left
  scratch[id] = value;
  LOCAL_FENCE;
  __local const float *all = scratch + (id & ~(width - 1));
  float result = all[0];
  for (int i = 1; i < width; i++) result = take_max ? fmax(result, all[i]) : result + all[i];
  return result;
}

FUNCTION float team_sum(float value, __local float *scratch) { return fold(value, scratch, LANES, 0); }
FUNCTION float team_max(float value, __local float *scratch) { return fold(value, scratch, LANES, 1); }
FUNCTION float quad_sum(float value, __local float *scratch) { return fold(value, scratch, 4, 0); }
FUNCTION float quad_max(float value, __local float *scratch) { return fold(value, scratch, 4, 1); }
FUNCTION void team_fence(void) { LOCAL_FENCE; }

FUNCTION float near_max(float value, const int width, __local float *scratch) {
  return fold(value, scratch, width, 1);
}

FUNCTION float apart_sum(float value, const int width, __local float *scratch) {
  const int id = (int)get_local_id(0);
  LOCAL_FENCE;
  scratch[id] = value;
  LOCAL_FENCE;
  __local const float *all = scratch + (id & ~(LANES - 1)) + id % width;
  float sum = 0.0f;
  for (int i = 0; i < LANES; i += width) sum += all[i];
  return sum;
}

#define KEPT LANES
#define ROUND_RESULTS LANES
FUNCTION void team_keep(float value, __local float *kept) { kept[lane_id()] = value; }

FUNCTION float kept_sum(__local const float *kept) {
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; lane++) sum += kept[lane];
  return sum;
}

FUNCTION int dot4(int a, int b, int c) {
#ifdef INTEGER_DOT
  return c + dot_4x8packed_ss_int(as_uint(a), as_uint(b));
#else
  int4 product = convert_int4(as_char4(a)) * convert_int4(as_char4(b));
  return c + product.x + product.y + product.z + product.w;
#endif
}

FUNCTION uint4 load_stream(__global const uint4 *p) { return *p; }
FUNCTION ushort load_scale(__global const ushort *p) { return *p; }

FUNCTION uint4 load_stream_if(int there, __global const uint4 *p) {
  return there ? *p : (uint4)(0);
}

FUNCTION ushort load_scale_if(int there, __global const ushort *p) {
  return there ? *p : (ushort)0;
}

FUNCTION float4 load_shared4(__global const float *p) {
  return *(volatile __global const float4 *)p;
}
FUNCTION float load_shared(__global const float *p) { return *(volatile __global const float *)p; }
FUNCTION void put_shared(__global float *p, float value) { *(volatile __global float *)p = value; }
FUNCTION float2 halves(uint bits) { return vload_half2(0, (const half *)&bits); }
FUNCTION float half_bits(ushort bits) { return vload_half(0, (const half *)&bits); }

FUNCTION uint pack_halves(float low, float high) {
  uint bits;
  vstore_half2_rte(clamp((float2)(low, high), -65504.0f, 65504.0f), 0, (half *)&bits);
  return bits;
}

FUNCTION int add_release(volatile __global int *p, int value) {
  mem_fence(CLK_GLOBAL_MEM_FENCE);
  int before = atomic_add(p, value);
  mem_fence(CLK_GLOBAL_MEM_FENCE);
  return before;
}

FUNCTION void spend(uint n) {}
FUNCTION void arrive_release(volatile __global int *p) { add_release(p, 1); }
FUNCTION void arrive_relaxed(volatile __global int *p) { atomic_add(p, 1); }

FUNCTION int look_at(volatile __global int *p) {
  int value = atomic_add(p, 0);
  mem_fence(CLK_GLOBAL_MEM_FENCE);
  return value;
}

#define FORGET(v)
#define FORGET_POINTER(p)
#define FORGET_FLOAT(v)
FUNCTION void touch(__constant const long *p) {}
FUNCTION float reciprocal(float v) { return 1.0f / v; }
FUNCTION float logistic(float v) { return 1.0f / (1.0f + exp(-v)); }
FUNCTION void ask_ahead(__global const float *p) {}

#endif

FUNCTION float2 brain_halves(uint bits) {
  return (float2)(as_float(bits << 16), as_float(bits & 0xffff0000u));
}

// A value summed up over all work-items of the group, in the same order in each of them, or its
// maximum.
FUNCTION float fold_group(float value, __local float *scratch, const int take_max) {
#ifdef NVIDIA
  const float of_team = take_max ? team_max(value, scratch) : team_sum(value, scratch);
  LOCAL_FENCE;
  if (lane_id() == 0) scratch[team_in_group()] = of_team;
  LOCAL_FENCE;
  float result = scratch[0];
  for (int team = 1; team < TEAMS; team++) {
    result = take_max ? fmax(result, scratch[team]) : result + scratch[team];
  }
  return result;
#else
  return fold(value, scratch, GROUP, take_max);
#endif
}

FUNCTION float group_sum(float value, __local float *scratch) { return fold_group(value, scratch, 0); }
FUNCTION float group_max(float value, __local float *scratch) { return fold_group(value, scratch, 1); }
