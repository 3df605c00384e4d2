// Products of a warpgroup - 128 work-items, four warps - on the Tensor Cores of NVIDIA's Hopper, and
// copies that go past the registers. Sums and weights stand in registers; the other operand stands
// in local memory, in rows of 32 float16.

#ifdef WARPGROUP

// Begins a line of PTX that is a comment until program.py names a target that has the instruction:
// NVIDIA's compiler of OpenCL C builds for sm_90, which lacks what only sm_90a has.
#define HOPPER "//sm_90a "

FUNCTION uint local_address(__local const void *p) { return (uint)(size_t)p; }

// Barriers of local memory that count what arrives there: `count` work-items, and bytes of copies.
// Each completes again and again; who waits names the parity of the turn.
FUNCTION void make_barrier(uint barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Let copies and all work-items see new barriers; a barrier of the group must follow.
FUNCTION void publish_barriers(void) {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

FUNCTION void arrive(uint barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

FUNCTION void wait_for(uint barrier, int parity) {
  int done = 0;
  while (!done) {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  }
}

// Arrive, and copy bytes to local memory without the work-item's help; the barrier counts both.
FUNCTION void copy_bulk(uint to, __global const void *from, int n_bytes, uint barrier) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(to), "l"(from), "r"(n_bytes), "r"(barrier) : "memory");
}

// Load 16 bytes of weights, of whose row more will be wanted soon.
FUNCTION uint4 load_ahead(__global const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// Registers written before this may be read by the products after it.
FUNCTION void products_fence(void) { asm volatile(HOPPER "wgmma.fence.sync.aligned;" ::: "memory"); }
FUNCTION void products_commit(void) { asm volatile(HOPPER "wgmma.commit_group.sync.aligned;" ::: "memory"); }
#define PRODUCTS_WAIT(left) asm volatile(HOPPER "wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory")

// Names 16 columns of a tile of rows of 32 float16, swizzled as wide_place says: 8 rows are 512
// bytes from the next 8, swizzled over 64 bytes.
FUNCTION ulong local_operand(uint address) {
  return (ulong)(address >> 4 & 0x3fff) | (ulong)1 << 16 | (ulong)32 << 32 | (ulong)2 << 62;
}

// sums (64, 128) += a (64, 16) * b (128, 16) transposed, asynchronously: warp w of a warpgroup has
// rows 16 w to 16 w + 15 of a and of the sums, laid out as for tensor_product.
FUNCTION void warpgroup_product(float *s, const uint *a, ulong b) {
  asm volatile(
      HOPPER "{.reg .pred p; setp.eq.u32 p, 0, 0;"
      " wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 0;}"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]),
        "+f"(s[5]), "+f"(s[6]), "+f"(s[7]), "+f"(s[8]), "+f"(s[9]),
        "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]), "+f"(s[14]),
        "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]),
        "+f"(s[20]), "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]),
        "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]),
        "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]),
        "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]),
        "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]),
        "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]), "+f"(s[49]),
        "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]),
        "+f"(s[55]), "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]),
        "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), "+f"(s[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Sizes of wide.cl.
#define WIDE_STEPS (WIDE_COLS / 16)
#define WIDE_BYTES (WIDE_TOKENS * WIDE_COLS * 2)  // of a stage
#define WIDE_SLOTS 5  // of stages in local memory
#define WIDE_UNROLL (ROW_ALIGN / WIDE_COLS)

// Barriers of the slots for stages: filled by a copy, emptied when all warps have read them.
FUNCTION void make_slots(uint filled, uint emptied, int warps) {
  for (int slot = 0; slot < WIDE_SLOTS; slot++) {
    make_barrier(filled + 8 * slot, 1);
    make_barrier(emptied + 8 * slot, warps);
  }
  publish_barriers();
}

// Copy all stages, each into the slot that is the next to be empty.
FUNCTION void fill_slots(
    uint first_slot, uint filled, uint emptied, __global const uchar *x, int n_stages) {
  int slot = 0, parity = 1;
  for (int stage = 0; stage < n_stages; stage++) {
    if (stage >= WIDE_SLOTS) wait_for(emptied + 8 * slot, parity);
    copy_bulk(
        first_slot + slot * WIDE_BYTES, x + (long)stage * WIDE_BYTES, WIDE_BYTES, filled + 8 * slot);
    slot = slot == WIDE_SLOTS - 1 ? 0 : slot + 1;
    parity ^= slot == 0;
  }
}

#endif
