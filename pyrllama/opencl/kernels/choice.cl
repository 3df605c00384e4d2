// The greatest logits of a row, so that the host need not read all of them.
//
// A row is cut into runs, one for each group that computes it, and a run into parts of TOP_PART
// logits. A run gives the greatest logit of each of its parts and a sum of powers. One group then
// finds a bound that k parts reach, and hardly more, and writes down all logits that reach it. It
// does so in no order: which ones they are is the same every time, and the host sorts them.
//
// NaN or infinity anywhere make the mass NaN.
//
// Where a batch is one token, of whose followers the likeliest is wanted, the words of the batch can
// become those of that one: the next step may begin before the host has seen this one's result.
//
// Of a row of no logits nothing is written. All groups take the same way to the end then, too: no
// fence stands under a condition, which would make PoCL compile all that follows it twice.

#define TOP_ROOM 512
// A row's result: words. More logits than TOP_ROOM are counted, but not all are there.
#define TOP_COUNT 0
#define TOP_GAVE_UP 1
#define TOP_FIRST 3  // of the tokens that reach the bound, that of the lowest number
#define TOP_MASS 2  // float: the sum of e^(x - greatest) over the row
#define TOP_LOGITS 4  // (TOP_ROOM, 2): a logit and its token
#define TOP_WORDS (TOP_LOGITS + 2 * TOP_ROOM)

#define BISECTIONS 24
#define TOP_LOCAL (TOP_ROOM + 3)  // ints of local memory: a list, two counts and the first token

// Parts of every run, the last of which may be empty.
FUNCTION int parts_of_run(int n, int n_runs) { return (n / n_runs + TOP_PART) / TOP_PART; }

// e^(x - top), where there may be nothing yet of which `top` is the greatest.
FUNCTION float power_to(float x, float top) { return exp(x - (top == -INFINITY ? 0.0f : top)); }

// Sum up run `run` of a row of n logits, which the group itself has written: the greatest of each
// part, and what it adds to the mass, as its greatest and the sum of powers to that.
FUNCTION void sum_up_run(
    __global const float *logits, int n, int run, int n_runs, __global float *greatest,
    __global float2 *masses, __local float *scratch) {
  const int begin = cut(n, n_runs, run), end = cut(n, n_runs, run + 1);
  const int n_parts = parts_of_run(n, n_runs);
  float top = -INFINITY, sum = 0.0f;
  for (int first = 0; first < n_parts; first += TEAMS) {  // all teams meet the same fences
    const int part = first + team_in_group(), start = begin + part * TOP_PART;
    const int stop = min(start + TOP_PART, end);
    float of_part = -INFINITY;
    for (int i = start + lane_id(); i < stop; i += LANES) {
      of_part = fmax(of_part, load_shared(logits + i));
    }
    of_part = team_max(of_part, scratch);
    if (lane_id() == 0 && part < n_parts) greatest[run * n_parts + part] = of_part;
    const float higher = fmax(top, of_part);
    sum *= power_to(top, higher);
    for (int i = start + lane_id(); i < stop; i += LANES) {
      sum += power_to(load_shared(logits + i), higher);
    }
    top = higher;
  }
  const float of_run = group_max(top, scratch);
  sum = group_sum(sum * power_to(top, of_run), scratch);
  if (get_local_id(0) == 0) masses[run] = (float2)(of_run, sum);
}

// How many of n numbers reach a bound.
FUNCTION int count_reaching(
    __global const float *numbers, int n, float bound, __local float *scratch) {
  float reach = 0.0f;
  for (int i = get_local_id(0); i < n; i += GROUP) reach += load_shared(numbers + i) >= bound;
  return (int)group_sum(reach, scratch);
}

// A bound that k of n numbers reach, and hardly more as a rule; the least finite one where fewer do.
FUNCTION float bound_of(
    __global const float *numbers, int n, int k, float top, __local float *scratch) {
  int found = count_reaching(numbers, n, top, scratch) >= k || n == 0;
  float low = INFINITY, high = top;
  for (int i = get_local_id(0); i < n; i += GROUP) {
    const float number = load_shared(numbers + i);
    if (number > -INFINITY) low = fmin(low, number);
  }
  low = -group_max(-low, scratch);
  if (found) low = top;
  for (int i = 0; i < BISECTIONS && !found; i++) {
    const float middle = 0.5f * low + 0.5f * high;
    const int reach = count_reaching(numbers, n, middle, scratch);
    if (reach < k) high = middle;
    else low = middle;
    found = reach >= k && reach <= k + k / 2 + 8;
  }
  return low;
}

// The sum of powers to the greatest logit of a row, from its runs'.
FUNCTION float mass_of(
    __global const float2 *masses, int n_runs, float top, __local float *scratch) {
  float mass = 0.0f;
  for (int run = get_local_id(0); run < n_runs; run += GROUP) {
    __global const float *of_run = (__global const float *)(masses + run);
    mass += load_shared(of_run + 1) * exp(load_shared(of_run) - top);
  }
  return group_sum(mass, scratch);
}

// Write down the logits of a row that reach a bound; returns in `counts` how many parts and how
// many logits do, and the first token of them.
FUNCTION void gather_reaching(
    __global const float *logits, int n, int n_runs, int n_parts, __global const float *greatest,
    float bound, __global uint *out, volatile __local int *counts, __local int *listed) {
  const int of_run = parts_of_run(n, n_runs);
  for (int i = get_local_id(0); i < n_parts; i += GROUP) {
    if (load_shared(greatest + i) < bound) continue;
    const int at = atomic_inc(counts);
    if (at < TOP_ROOM) listed[at] = i;
  }
  LOCAL_FENCE;
  const int n_listed = min(counts[0], TOP_ROOM);
  for (int i = team_in_group(); i < n_listed; i += TEAMS) {
    const int run = listed[i] / of_run;
    const int start = cut(n, n_runs, run) + listed[i] % of_run * TOP_PART;
    const int stop = min(start + TOP_PART, cut(n, n_runs, run + 1));
    for (int token = start + lane_id(); token < stop; token += LANES) {
      const float logit = load_shared(logits + token);
      if (!(logit >= bound)) continue;
      atomic_min(counts + 2, token);
      const int at = atomic_inc(counts + 1);
      if (at < TOP_ROOM) vstore2((uint2)(as_uint(logit), (uint)token), at, out + TOP_LOGITS);
    }
  }
  LOCAL_FENCE;
}

// Make the words of a batch of one token those of the next, whose result is not to stand where the
// host may still read this one's.
FUNCTION void go_on(__global int *batch, int token) {
  batch[BATCH_SLOT] ^= 1;
  batch[BATCH_TOKENS] = token;
  batch[BATCH_POSITIONS]++;
}

// Find the k greatest logits of a row from what its runs gave, k being a word of the batch.
FUNCTION void choose_top(
    __global const float *logits, int n, int n_runs, __global int *batch,
    __global const float *greatest, __global const float2 *masses, __global uint *out, int gave_up,
    __local int *memory, __local float *scratch) {
  const int n_parts = n ? parts_of_run(n, n_runs) * n_runs : 0;
  float top = -INFINITY;
  out += batch[BATCH_SLOT] * TOP_WORDS;
  for (int i = get_local_id(0); i < n_parts; i += GROUP) {
    top = fmax(top, load_shared(greatest + i));
  }
  top = group_max(top, scratch);
  const float mass = mass_of(masses, n ? n_runs : 0, top, scratch);
  const float bound = bound_of(greatest, n_parts, batch[BATCH_TOP], top, scratch);
  volatile __local int *counts = memory + TOP_ROOM;
  if (get_local_id(0) < 3) counts[get_local_id(0)] = get_local_id(0) < 2 ? 0 : n;
  LOCAL_FENCE;
  gather_reaching(logits, n, n_runs, n_parts, greatest, bound, out, counts, memory);
  if (n == 0 || get_local_id(0) != 0) return;
  out[TOP_COUNT] = counts[0] > TOP_ROOM ? counts[0] : counts[1];
  out[TOP_GAVE_UP] = gave_up;
  out[TOP_MASS] = as_uint(mass);
  out[TOP_FIRST] = counts[2];
  if (batch[BATCH_GOES_ON] && counts[2] < n) go_on(batch, counts[2]);
}

// A group for every (row, run).
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void sum_up_logits(
    __global const float *logits, int n, int n_runs, __global float *greatest,
    __global float2 *masses) {
  __local float scratch[GROUP];
  const int row = get_group_id(0) / n_runs, run = get_group_id(0) % n_runs;
  sum_up_run(
      logits + (long)row * n, n, run, n_runs, greatest + row * n_runs * parts_of_run(n, n_runs),
      masses + row * n_runs, scratch);
}

// A group for every row.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void choose_logits(
    __global const float *logits, int n, int n_runs, __global const float *greatest,
    __global const float2 *masses, __global int *batch, __global uint *top) {
  __local int memory[TOP_LOCAL];
  __local float scratch[GROUP];
  const int row = get_group_id(0);
  choose_top(
      logits + (long)row * n, n, n_runs, batch,
      greatest + row * n_runs * parts_of_run(n, n_runs), masses + row * n_runs,
      top + row * TOP_WORDS, 0, memory, scratch);
}
