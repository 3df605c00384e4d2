// A whole step of one token as one kernel: the phases of decode.cl with a barrier across the grid
// after each. All groups must run at once; the host sizes the grid so that they do.
//
// Roles of matrices: QKV(name), ATTN_OUTPUT(name), GATE_UP(name), FFN_DOWN(name), OUTPUT(name)
// and EMBEDDING(name) give a kernel function of the type that the role's matrices have;
// QKV_UNITS and so on are the units of a row.

enum { ROLE_QKV, ROLE_ATTN_OUTPUT, ROLE_GATE_UP, ROLE_FFN_DOWN, ROLES };

#define WEIGHTS_PARAMETERS                                                                        \
  __global const uchar *w0, __global const uchar *w1, __global const uchar *w2,                   \
      __global const uchar *w3, __global const uchar *w4, __global const uchar *w5
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define PERSISTENT_BYTES                                                                          \
  ROUND_UP(LARGER(ACTIVATION_BYTES_MOST, 4 * LARGER(ATTEND_FLOATS, TOP_LOCAL)), 16)

// Where a matrix stands: its buffer, and the bytes before its units and before its scales.
FUNCTION Matrix matrix_at(
    WEIGHTS_PARAMETERS, __constant const long *places, int index, int rows, int n_units) {
  __constant const long *place = places + 3 * index;
  __global const uchar *base = w0;
#if N_BUFFERS > 1
  int buffer = (int)place[0];
  base = buffer == 0 ? w0 : buffer == 1 ? w1 : buffer == 2 ? w2 : buffer == 3 ? w3
       : buffer == 4 ? w4 : w5;
#endif
  Matrix m = {(__global const uint4 *)(base + place[1]),
              (__global const ushort *)(base + place[2]), rows, n_units};
  return m;
}

#define AT(index, rows, n_units) matrix_at(w0, w1, w2, w3, w4, w5, places, index, rows, n_units)
#define LAYER_AT(layer, role, rows, n_units) AT((layer) * ROLES + role, rows, n_units)

#ifdef PHASE_TIMES
// When a group came to a barrier and when it left it: (groups, barriers, 2) nanoseconds.
#define MEETINGS (EMBEDS + (ROLES + 1) * n_layers + 1)
#define NOTE(which)                                                                               \
  if (get_local_id(0) == 0) times[(group * MEETINGS + round) * 2 + which] = device_time();
#else
#define NOTE(which)
#endif
#define MEET                                                                                      \
  NOTE(0)                                                                                         \
  grid_barrier(words, round + 1);                                                                 \
  NOTE(1)                                                                                         \
  round++;

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void persistent_step(
    WEIGHTS_PARAMETERS, __constant const long *places, __global const float *norms,
    ATTENTION_PARAMETERS, __global float *x, __global float *qkv_out, __global float *hidden,
    __global float *logits, __global float *greatest, __global float2 *masses,
    __global uint *top, volatile __global int *words, float eps
#ifdef PHASE_TIMES
    , __global ulong *times
#endif
) {
  __local uint4 memory[PERSISTENT_BYTES / 16];
  __local float scratch[SCRATCH_FLOATS];
  const int group = get_group_id(0), n_groups = get_num_groups(0);
  int round = 0;
  Task task;
  Matrix m = LAYER_AT(0, ROLE_QKV, Q_DIM + 2 * KV_DIM, QKV_UNITS);
  QKV(begin)(&task, m, 0);

#if EMBEDS
  EMBEDDING(embed_row)(
      AT(n_layers * ROLES + 1, 0, EMBEDDING_UNITS), batch[BATCH_TOKENS], x,
      group * GROUP + (int)get_local_id(0), n_groups * GROUP);
  MEET
#endif

  for (layer = 0; layer < n_layers; layer++) {
    const Attention a = ATTENTION;
    __global const float *norm = norms + 2 * layer * NORM_STRIDE;
    Source source = {x, norm, 0, DIM, eps, 1};
    QKV(product)(&task, m, source, qkv_out, 0, 0, memory, scratch);
    // All of a sequence but its newest token is in the cache before the step begins.
    Item item = item_of(a, min(group, ITEMS - 1), 1);
    Slice slice;
    ask_slice(&slice, a, item, item.next);
    QKV(finish)(m, source, qkv_out, 0, 0, scratch);
    MEET

    #pragma unroll 1
    for (int index = group; index < ITEMS; index += n_groups) {
      if (index != group) {
        item = item_of(a, index, 1);
        ask_slice(&slice, a, item, item.next);
      }
      attend(a, item, &slice, 1, (__local float *)memory, scratch);
    }
    m = LAYER_AT(layer, ROLE_ATTN_OUTPUT, DIM, ATTN_OUTPUT_UNITS);
    ATTN_OUTPUT(begin)(&task, m, 0);
    MEET

    Source attended = {parts, 0, shares, 0, 0, 0};
    ATTN_OUTPUT(product)(&task, m, attended, x, 0, 1, memory, scratch);
    const Matrix output = m;
    m = LAYER_AT(layer, ROLE_GATE_UP, 2 * FFN_DIM, GATE_UP_UNITS);
    GATE_UP(begin)(&task, m, 1);
    ATTN_OUTPUT(finish)(output, attended, x, 0, 1, scratch);
    MEET

    source.weight = norm + NORM_STRIDE;
    GATE_UP(product)(&task, m, source, hidden, 1, 0, memory, scratch);
    const Matrix gate_up = m;
    m = LAYER_AT(layer, ROLE_FFN_DOWN, DIM, FFN_DOWN_UNITS);
    FFN_DOWN(begin)(&task, m, 0);
    GATE_UP(finish)(gate_up, source, hidden, 1, 0, scratch);
    MEET

    Source activated = {hidden, 0, 0, 0, 0, 0};
    FFN_DOWN(product)(&task, m, activated, x, 0, 1, memory, scratch);
    const Matrix down = m;
    if (layer + 1 < n_layers) {
      m = LAYER_AT(layer + 1, ROLE_QKV, Q_DIM + 2 * KV_DIM, QKV_UNITS);
      QKV(begin)(&task, m, 0);
    } else {
#if ENDS
      m = AT(n_layers * ROLES, VOCAB_SIZE, OUTPUT_UNITS);
      OUTPUT(begin)(&task, m, 0);
#endif
    }
    FFN_DOWN(finish)(down, activated, x, 0, 1, scratch);
    MEET
  }

#if ENDS
  Source last = {x, norms + 2 * n_layers * NORM_STRIDE, 0, DIM, eps, 1};
  OUTPUT(product)(&task, m, last, logits, 0, 0, memory, scratch);
  OUTPUT(finish)(m, last, logits, 0, 0, scratch);
  const int n_summed = batch[BATCH_TOP] ? VOCAB_SIZE : 0;
  GROUP_FENCE;
  sum_up_run(logits, n_summed, group, n_groups, greatest, masses, scratch);
#endif
  NOTE(0)
  // Behind the logits, or with the greatest of them, the host finds whether a group gave up waiting.
  const int leaves = leave_grid(words, scratch), gave_up = leaves == LEAVES_HURT;
  if (leaves != LEAVES_OTHERS && get_local_id(0) == 0) logits[VOCAB_SIZE] = (float)gave_up;
#if ENDS
  choose_top(
      logits, leaves == LEAVES_OTHERS ? 0 : n_summed, n_groups, batch[BATCH_TOP], greatest, masses,
      top, gave_up, (__local int *)memory, scratch);
#endif
}
