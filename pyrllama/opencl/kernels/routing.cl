// Which experts a token takes, and what they gave it: whatever has nothing to do with how weights
// are stored. Models with experts have N_EXPERTS, of which a token takes N_USED, and NORMALISED if
// the weights of those sum up to 1.
//
// A pair is a token and one of its experts, token by token, the most probable expert first. The
// pairs of a batch are sorted by expert: each has a place among all, an expert's being a run.

#ifdef N_EXPERTS

#define ROUTER_STRIDE ROUND_UP(N_EXPERTS, 32)

// The softmax over a row of the router's logits, the experts with the greatest probabilities, and
// their weights. Of equal ones the first expert counts as the greater. A group for every token.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void choose_experts(
    __global const float *logits, __global int *chosen, __global float *weights) {
  __local float p[N_EXPERTS];
  __local float best[N_USED];
  const int row = get_group_id(0), id = get_local_id(0);
  logits += (long)row * ROUTER_STRIDE;
  float top = -INFINITY, total = 0.0f;
  for (int e = 0; e < N_EXPERTS; e++) top = fmax(top, logits[e]);
  for (int e = id; e < N_EXPERTS; e += GROUP) p[e] = exp(logits[e] - top);
  LOCAL_FENCE;
  for (int e = id; e < N_EXPERTS; e += GROUP) {
    int rank = 0;  // experts that come before this one
    for (int other = 0; other < N_EXPERTS; other++) {
      rank += other < e ? !(p[e] > p[other]) : p[other] > p[e];
    }
    if (rank >= N_USED) continue;
    best[rank] = p[e];
    chosen[row * N_USED + rank] = e;
  }
  LOCAL_FENCE;
#ifdef NORMALISED
  for (int slot = 0; slot < N_USED; slot++) total += best[slot];
#else
  for (int e = 0; e < N_EXPERTS; e++) total += p[e];
#endif
  for (int slot = id; slot < N_USED; slot += GROUP) {
    weights[row * N_USED + slot] = best[slot] / total;
  }
}

// Find the place of every pair and the token at every place. A group for every expert, each of
// whose work-items goes through as many of the pairs: runs gets the expert's first place and how
// many it has.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void sort_by_expert(
    __global const int *batch, __global const int *chosen, __global int2 *runs,
    __global int *places, __global int *tokens) {
  __local int own[GROUP], lower[GROUP];  // of a work-item's pairs: this expert's, and those before
  const int expert = get_group_id(0), id = get_local_id(0);
  const int n_pairs = batch[BATCH_N_TOKENS] * N_USED, share = (n_pairs + GROUP - 1) / GROUP;
  const int first = min(id * share, n_pairs), end = min(first + share, n_pairs);
  int n_own = 0, n_lower = 0;
  for (int pair = first; pair < end; pair++) {
    n_own += chosen[pair] == expert;
    n_lower += chosen[pair] < expert;
  }
  own[id] = n_own;
  lower[id] = n_lower;
  LOCAL_FENCE;
  int2 run = (int2)(0);
  int before = 0;
  for (int i = 0; i < GROUP; i++) {
    run.x += lower[i];
    run.y += own[i];
    before += i < id ? own[i] : 0;
  }
  int place = run.x + before;
  for (int pair = first; pair < end; pair++) {
    if (chosen[pair] != expert) continue;
    places[pair] = place;
    tokens[place++] = pair / N_USED;
  }
  if (id == 0) runs[expert] = run;
}

// Bring the activations of each place's token there. A group for every place.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void gather_rows(
    __global const uint4 *rows, __global const int *tokens, __global uint4 *out, int row_chunks) {
  const long place = get_group_id(0);
  const long from = tokens[place] * (long)row_chunks;
  for (int i = get_local_id(0); i < row_chunks; i += GROUP) {
    out[place * row_chunks + i] = rows[from + i];
  }
}

// x += what its experts gave each token, in their order, times their weights. The second dimension
// of the grid has a group for every GROUP columns. Of a token alone, results are not sorted.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void add_experts(
    __global float *x, __global const float *results, __global const float *weights,
    __global const int *places, int sorted, int n_cols, int stride) {
  const int row = get_group_id(0), column = get_group_id(1) * GROUP + get_local_id(0);
  if (column >= n_cols) return;
  float sum = x[(long)row * stride + column];
  for (int pair = row * N_USED; pair < (row + 1) * N_USED; pair++) {
    const long place = sorted ? places[pair] : pair;
    sum += weights[pair] * results[place * stride + column];
  }
  x[(long)row * stride + column] = sum;
}

#endif
