// What groups of one kernel hand to each other while it runs: a barrier across the grid, and numbers
// that tell by themselves whether they are there.

// Words of a barrier across the grid: groups that arrived since the kernel began, groups that
// left it, and whether one gave up waiting.
#define ARRIVED 0
#define LEFT 1
#define GAVE_UP 2
#define WAIT_LIMIT (1 << 22)  // looks, each of about a microsecond
#define LOOK_GAP 350  // cycles
#define LOOKS_BETWEEN (1 << 10)  // for another group that gave up, each as long as one for arrivals

// Whether a wait that has looked so often ends without what it waits for, as groups do not all run at
// once; the host finds GAVE_UP set then.
FUNCTION int gives_up(volatile __global int *words, int looks) {
  if (looks % LOOKS_BETWEEN) return 0;
  if (looks == WAIT_LIMIT) words[GAVE_UP] = 1;
  return words[GAVE_UP];
}

// Look until so many groups have arrived since the kernel began. Two looks are on their way, the second
// half a look's time behind the first, so that what happened is seen sooner.
FUNCTION void look_for(volatile __global int *words, int arrived) {
  int first = look_at(words + ARRIVED);
  spend(LOOK_GAP);
  for (int looks = 1;; looks++) {
    const int second = look_at(words + ARRIVED);
    if (first >= arrived || gives_up(words, looks)) return;
    first = look_at(words + ARRIVED);
    if (second >= arrived) return;
  }
}

// A barrier across the grid has two halves, between which a group may ask for what it needs next: it
// lets the others know that its results are there,
FUNCTION void join_grid(volatile __global int *words) {
  GROUP_FENCE;
  if (get_local_id(0) == 0) arrive_release(words + ARRIVED);
}

// and waits until all groups have arrived `round` times, for some seconds at most.
FUNCTION void await_grid(volatile __global int *words, int round) {
  if (get_local_id(0) == 0) look_for(words, round * N_GROUPS);
  GROUP_FENCE;
}

FUNCTION void grid_barrier(volatile __global int *words, int round) {
  join_grid(words);
  await_grid(words, round);
}

// The same without any order: what a group wrote need not be there yet when it is seen to have come,
// and the others go on when all but EARLY are.
#ifndef EARLY
#define EARLY 0
#endif
FUNCTION void come(volatile __global int *words) {
  if (get_local_id(0) == 0) arrive_relaxed(words + ARRIVED);
}

FUNCTION void await_most(volatile __global int *words, int round) {
  if (get_local_id(0) == 0) look_for(words, round * N_GROUPS - EARLY);
  LOCAL_FENCE;
}

// What leave_grid says of a group.
#define LEAVES_OTHERS 0
#define LEAVES_LAST 1
#define LEAVES_HURT 2  // last, and some group gave up waiting

// The last group to leave may read all that the others wrote, and makes the words ready for the
// next kernel.
FUNCTION int leave_grid(volatile __global int *words, __local float *scratch) {
  GROUP_FENCE;
  if (get_local_id(0) == 0) {
    int leaves = LEAVES_OTHERS;
    if (add_release(words + LEFT, 1) + 1 == N_GROUPS) {
      leaves = words[GAVE_UP] ? LEAVES_HURT : LEAVES_LAST;
      words[ARRIVED] = 0;
      words[LEFT] = 0;
      words[GAVE_UP] = 0;
    }
    scratch[0] = (float)leaves;
  }
  LOCAL_FENCE;
  const int leaves = (int)scratch[0];
  LOCAL_FENCE;  // the scratch is free again
  return leaves;
}

// --- stamps -------------------------------------------------------------------------------------
//
// Where results are STAMPED, no order is kept between products: the lowest bit of each number is its
// stamp, which changes from one use of its place to the next, and whoever reads a number looks at it
// again until it has the stamp of the number that is wanted. A barrier would wait until what a group
// wrote has reached the second cache before it says so; here one says so at once, and the others read
// when most have. (All of them looking at the numbers alone from the first is too much reading: an
// H200 took 5 % longer so for a step of the 7B shape in F16 than with barriers, and 2 % less this
// way.) The stamp changes a number by a unit in its last place at most.
//
// A place must not be written again before all have read it. They have: nobody writes a phase's results
// without all of the phase before, and no group gave those, of which each has some, before it had
// read what came earlier.

#define UNSTAMPED 0
#define STAMP(bit) (2 | ((bit) & 1))

// What the reader of numbers that groups exchange needs to know; nothing if `stamp` is UNSTAMPED.
typedef struct {
  int stamp;
  volatile __global int *words;
} Expected;

FUNCTION float stamped(float v, int stamp) {
  return stamp == UNSTAMPED ? v : as_float((as_uint(v) & ~1u) | ((uint)stamp & 1u));
}

FUNCTION void put_stamped(__global float *p, float v, int stamp) { put_shared(p, stamped(v, stamp)); }

// Not 0 if it is not the one that is expected.
FUNCTION uint is_old(float v, Expected e) { return (as_uint(v) ^ (uint)e.stamp) & 1u; }

FUNCTION uint is_any_old(float8 v, Expected e) {
  const uint8 bits = as_uint8(v) ^ (uint8)((uint)e.stamp);
  return (bits.s0 | bits.s1 | bits.s2 | bits.s3 | bits.s4 | bits.s5 | bits.s6 | bits.s7) & 1u;
}

FUNCTION float8 load_shared8(__global const float *p) {
  return (float8)(load_shared4(p), load_shared4(p + 4));
}

// Eight numbers that stand at p, once they are those expected; `v` is what was found there.
FUNCTION float8 await8(float8 v, __global const float *p, Expected e) {
  if (e.stamp == UNSTAMPED) return v;
  for (int looks = 1; is_any_old(v, e) && !gives_up(e.words, looks); looks++) v = load_shared8(p);
  return v;
}

FUNCTION float await_one(float v, __global const float *p, Expected e) {
  if (e.stamp == UNSTAMPED) return v;
  for (int looks = 1; is_old(v, e) && !gives_up(e.words, looks); looks++) v = load_shared(p);
  return v;
}

FUNCTION float2 load_expected2(__global const float *p, Expected e) {
  float2 v = (float2)(load_shared(p), load_shared(p + 1));
  return (float2)(await_one(v.x, p, e), await_one(v.y, p + 1, e));
}
