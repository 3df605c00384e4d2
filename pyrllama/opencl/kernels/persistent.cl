// A whole step of one token as one kernel: the phases of decode.cl with a barrier across the grid
// after each. All groups must run at once; the host sizes the grid so that they do.
//
// All products are one piece of code, which runs over the phases: a copy for each of them would
// fall out of the instruction cache from layer to layer. BY_KIND(kind, CALL) expands CALL with the
// name of a storage type; EMBEDDING(name) gives a kernel function of the embedding's type.

enum { ROLE_QKV, ROLE_ATTN_OUTPUT, ROLE_GATE_UP, ROLE_FFN_DOWN, ROLE_OUTPUT, PHASES_A_LAYER = 5 };

#define WEIGHTS_PARAMETERS                                                                        \
  __global const uchar *w0, __global const uchar *w1, __global const uchar *w2,                   \
      __global const uchar *w3, __global const uchar *w4, __global const uchar *w5
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define PERSISTENT_BYTES                                                                          \
  ROUND_UP(LARGER(ACTIVATION_BYTES_MOST, 4 * LARGER(ATTEND_FLOATS, TOP_LOCAL)), 16)

// A matrix of the table: its buffer, the bytes before its units and before its scales, its rows, the
// units of a row, its kind, its role, and the row of what it makes at which its own begin.
enum { PLACE_BUFFER, PLACE_UNITS, PLACE_SCALES, PLACE_ROWS, PLACE_ROW_UNITS, PLACE_KIND, PLACE_ROLE,
       PLACE_OUT, PLACE_WORDS };
FUNCTION Matrix matrix_at(WEIGHTS_PARAMETERS, __constant const long *places, int index) {
  __constant const long *place = places + PLACE_WORDS * index;
  __global const uchar *base = w0;
#if N_BUFFERS > 1
  int buffer = (int)place[PLACE_BUFFER];
  base = buffer == 0 ? w0 : buffer == 1 ? w1 : buffer == 2 ? w2 : buffer == 3 ? w3
       : buffer == 4 ? w4 : w5;
#endif
  Matrix m = {(__global const uint4 *)(base + place[PLACE_UNITS]),
              (__global const ushort *)(base + place[PLACE_SCALES]), (int)place[PLACE_ROWS],
              (int)place[PLACE_ROW_UNITS]};
  return m;
}

#define AT(index) matrix_at(w0, w1, w2, w3, w4, w5, places, index)
#define WORD_AT(index, word) ((int)places[PLACE_WORDS * (index) + (word)])
#define KIND_AT(index) WORD_AT(index, PLACE_KIND)
#define BEGIN(kind) begin_##kind(&task, m, pairs)
#define COMPUTE(kind) product_##kind(&task, m, source, out, pairs, add, memory, scratch)
#define FINISH(kind) finish_##kind(before, source, out, had_pairs, add, scratch)

#ifdef PHASE_TIMES
// When a group came to a barrier and when it left it: (groups, barriers, 2) nanoseconds.
#define MEETINGS (EMBEDS + PHASES_A_LAYER * n_layers + 1)
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
  int round = 0, role = ROLE_QKV, pairs = 0;
  Task task;
  Item item;
  Slice slice;
  Matrix m = AT(0);
  BY_KIND(KIND_AT(0), BEGIN);

#if EMBEDS
  EMBEDDING(embed_row)(
      AT(N_PRODUCTS), batch[BATCH_TOKENS], x, group * GROUP + (int)get_local_id(0),
      n_groups * GROUP);
  MEET
#endif

  layer = 0;
  #pragma unroll 1
  for (int nth = 0; nth < N_PRODUCTS; nth++) {
    const int kind = KIND_AT(nth), normalised = 2 * layer + (role == ROLE_GATE_UP);
    const int add = role == ROLE_ATTN_OUTPUT || role == ROLE_FFN_DOWN;
    const Attention a = ATTENTION;
    Source source = {x, norms + normalised * NORM_STRIDE, 0, DIM, eps, !add};
    __global float *out = x;
    if (role == ROLE_QKV) out = qkv_out + WORD_AT(nth, PLACE_OUT);
    if (role == ROLE_ATTN_OUTPUT) source.x = parts, source.shares = shares;
    if (role == ROLE_GATE_UP) out = hidden;
    if (role == ROLE_FFN_DOWN) source.x = hidden;
    if (role == ROLE_OUTPUT) out = logits;

    if (role == ROLE_ATTN_OUTPUT) {
      #pragma unroll 1
      for (int index = group; index < ITEMS; index += n_groups) {
        if (index != group) {
          item = item_of(a, index, 1);
          ask_slice(&slice, a, item, item.next);
        }
        attend(a, item, &slice, 1, (__local float *)memory, scratch);
      }
      BY_KIND(kind, BEGIN);
      MEET
    }
    BY_KIND(kind, COMPUTE);

    // What the next phase reads first is asked for before it can begin: weights, or of the cache, where
    // all of a sequence but its newest token stands since before the step.
    const Matrix before = m;
    const int had_pairs = pairs, had_role = role;
    if (nth + 1 < N_PRODUCTS) {
      m = AT(nth + 1);
      role = WORD_AT(nth + 1, PLACE_ROLE);
      pairs = role == ROLE_GATE_UP;
      if (role == ROLE_ATTN_OUTPUT) {
        item = item_of(a, min(group, ITEMS - 1), 1);
        ask_slice(&slice, a, item, item.next);
      } else {
        BY_KIND(KIND_AT(nth + 1), BEGIN);
      }
    }
    BY_KIND(kind, FINISH);
    layer += had_role == ROLE_FFN_DOWN;
    // Parts of a layer's queries, keys and values in several types do not wait for each other.
    if (had_role != ROLE_OUTPUT && (role != had_role || nth + 1 == N_PRODUCTS)) {
      MEET
    }
  }

#if ENDS
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
