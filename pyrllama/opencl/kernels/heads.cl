// What some models do to heads before they are turned: biases of queries, keys and values (BIASED),
// and an RMSNorm of each head of queries and keys (HEAD_NORMS, with the norms' eps HEAD_EPS).
//
// A batch's rows are finished in place, by a launch behind the product. Of a single token, whoever
// attends finishes the heads that it reads: in the persistent kernel that takes no barrier more.

#ifdef HEAD_EXTRAS

// What a layer has in `extras`: biases of all heads, then the norm of queries and that of keys.
#ifdef BIASED
#define N_BIASES (Q_DIM + 2 * KV_DIM)
#define FINISHED_HEADS (N_HEADS + 2 * N_KV_HEADS)
#else
#define N_BIASES 0
#define FINISHED_HEADS (N_HEADS + N_KV_HEADS)
#endif
#ifdef HEAD_NORMS
#define LAYER_EXTRAS (N_BIASES + 2 * HEAD_DIM)
#else
#define LAYER_EXTRAS N_BIASES
#endif

// Pair i of a head of a row, with its bias; zeros behind the head's end. Heads are counted from the
// first of queries on to the last of values.
FUNCTION float2 biased_pair(Attention a, int row, int head, int i) {
  if (2 * i >= HEAD_DIM) return (float2)(0.0f);
  __global const float *from = a.qkv + (long)row * QKV_STRIDE + head * HEAD_DIM;
  float2 v = load_expected2(from + 2 * i, a.expected);
#ifdef BIASED
  v += vload2(i, a.extras + (long)a.layer * LAYER_EXTRAS + head * HEAD_DIM);
#endif
  return v;
}

// What a head is multiplied by to be normed; the team that has the head calls it together.
FUNCTION float head_factor(Attention a, int row, int head, __local float *scratch) {
#ifdef HEAD_NORMS
  float squares = 0.0f;
  for (int i = lane_id(); i < HEAD_DIM / 2; i += LANES) {
    const float2 v = biased_pair(a, row, head, i);
    squares += v.x * v.x + v.y * v.y;
  }
  return rsqrt(team_sum(squares, scratch) / (float)HEAD_DIM + HEAD_EPS);
#else
  return 1.0f;
#endif
}

FUNCTION float2 finished_pair(Attention a, int row, int head, int i, float factor) {
  float2 v = biased_pair(a, row, head, i);
#ifdef HEAD_NORMS
  if (head < N_HEADS + N_KV_HEADS && 2 * i < HEAD_DIM) {  // values are not normed
    const int norm = N_BIASES + (head >= N_HEADS) * HEAD_DIM;
    v *= factor * vload2(i, a.extras + (long)a.layer * LAYER_EXTRAS + norm);
  }
#endif
  return v;
}

// A group for every row.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void finish_heads(
    ATTENTION_PARAMETERS, __global float *out) {
  __local float scratch[GROUP];
  Attention a = ATTENTION;
  const int row = get_group_id(0);
  for (int first = 0; first < FINISHED_HEADS; first += TEAMS) {
    const int head = min(first + team_in_group(), FINISHED_HEADS - 1);
    const float factor = head_factor(a, row, head, scratch);
    if (first + team_in_group() >= FINISHED_HEADS) continue;
    for (int i = lane_id(); i < HEAD_DIM / 2; i += LANES) {
      const float2 v = finished_pair(a, row, head, i, factor);
      vstore2(v, i, out + (long)row * QKV_STRIDE + head * HEAD_DIM);
    }
  }
}

#endif
