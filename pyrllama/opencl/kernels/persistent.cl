// A whole step of one token as one kernel: the phases of decode.cl with a barrier across the grid
// after each. All groups must run at once; the host sizes the grid so that they do.
//
// What it does of each product is in step.cl. Where layers are of few forms, there is a copy of that
// for each product of a form, its sizes known: working them out would be a long chain of operations
// before the first load. FORMS has the form of every layer. Elsewhere one copy runs over a table of
// all products. START and STEPS are what persistent_source.py puts there: asking for the first
// weights, and all products. BY_KIND(kind, CALL) expands CALL with the name of a storage type;
// EMBEDDING(name) gives a kernel function of the embedding's type.

enum { ROLE_QKV, ROLE_ATTN_OUTPUT, ROLE_GATE_UP, ROLE_FFN_DOWN, ROLE_OUTPUT, ROLE_ATTENTION,
       PHASES_A_LAYER = 5 };

#define WEIGHTS_PARAMETERS                                                                        \
  __global const uchar *w0, __global const uchar *w1, __global const uchar *w2,                   \
      __global const uchar *w3, __global const uchar *w4, __global const uchar *w5
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
#define BEGIN(kind) begin_##kind(&begun, m, 0)
#define BEGIN_PAIRS(kind) begin_##kind(&begun, m, 1)
#define COMPUTE(kind) product_##kind(&begun, m, source, target, pairs, memory, scratch)
#define FINISH(kind) finish_##kind(&begun, m, source, target, pairs, scratch)

// Ask for what a phase reads first, before it can begin: weights, or of the cache, where all of a
// sequence but its newest token stands since before the step. CALL calls a function of the type.
#define ASK(index, role, n_rows, n_row_units, CALL)                                               \
  m = AT(index);                                                                                  \
  m.rows = n_rows, m.n_units = n_row_units;                                                       \
  if (role == ROLE_ATTN_OUTPUT) {                                                                 \
    const Attention of_layer = ATTENTION;                                                         \
    item = item_of(of_layer, min(group, ITEMS - 1), 1);                                           \
    ask_slice(&slice, of_layer, item, item.next);                                                 \
  } else if (role == ROLE_GATE_UP) {                                                              \
    CALL(BEGIN_PAIRS);                                                                            \
  } else {                                                                                        \
    CALL(BEGIN);                                                                                  \
  }

// What products read and write at is the same in each layer, and compilers would work all of it out
// before the first one. Where WORKED_OUT_ANEW that is more than there are registers for, and what
// stands in memory instead comes back behind weights that are on their way.
#ifdef WORKED_OUT_ANEW
#define ANEW(p) FORGET_POINTER(p);
#else
#define ANEW(p)
#endif
#define ATTENTION_ANEW(a)                                                                         \
  ANEW(a.qkv) ANEW(a.rope) ANEW(a.cache) ANEW(a.batch) ANEW(a.parts) ANEW(a.shares)

#ifdef PHASE_TIMES
// The marks of a phase, when a group came to the barrier behind it, and when it left that:
// (groups, barriers, marks + 2) nanoseconds.
#define MEETINGS (EMBEDS + PHASES_A_LAYER * n_layers + 1)
#define TIME(which) times[(group * MEETINGS + round) * (N_MARKS + 2) + which]
#define NOTE_CAME                                                                                 \
  if (get_local_id(0) == 0) {                                                                     \
    TIME(N_MARKS) = device_time();                                                                \
    for (int i = 0; i < N_MARKS; i++) TIME(i) = ((__local uint *)scratch)[MARKS + i];             \
  }
#define NOTE_LEFT                                                                                 \
  if (get_local_id(0) == 0) TIME(N_MARKS + 1) = device_time();
#else
#define NOTE_CAME
#define NOTE_LEFT
#endif
// Whether all groups meet behind a product. Where they need not, they do so but on NVIDIA's GPUs:
// PoCL takes minutes for what follows a barrier under a condition, as it compiles that twice.
#ifdef NVIDIA
#define MEETS(needed) (needed)
#else
#define MEETS(needed) 1
#endif
// Where results are stamped, nobody waits between products but for the numbers themselves. The
// residual stream changes its stamp twice a layer, all else once.
#ifdef STAMPED
#define STAMP_OF_LAYER STAMP(layer)
#define STAMP_ATTENDED STAMP(0)
#define STAMP_WHOLE STAMP(1)
#define STAMP_BEFORE STAMP(1)  // of all places before the first layer
#define COME come(words)
// Attention looks at few numbers, and for them alone.
#define LOOK(role)                                                                                \
  if (role != ROLE_QKV) await_most(words, round + 1)
#else
#define STAMP_OF_LAYER UNSTAMPED
#define STAMP_ATTENDED UNSTAMPED
#define STAMP_WHOLE UNSTAMPED
#define COME join_grid(words)
#define LOOK(role) await_grid(words, round + 1)
#endif
#define ARRIVE                                                                                    \
  NOTE_CAME                                                                                       \
  COME;
#define AWAIT(role)                                                                               \
  LOOK(role);                                                                                     \
  NOTE_LEFT                                                                                       \
  round++;

// Stamp n numbers anew, of all groups' work-items this one's.
FUNCTION void stamp_anew(__global float *numbers, int n, int stamp) {
  const int all = N_GROUPS * GROUP;
  for (int i = get_group_id(0) * GROUP + get_local_id(0); i < n; i += all) {
    put_stamped(numbers + i, load_shared(numbers + i), stamp);
  }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void persistent_step(
    WEIGHTS_PARAMETERS, __constant const long *places, __global const float *norms,
    ATTENTION_PARAMETERS, __global float *x, __global float *qkv_out, __global float *hidden,
    __global float *logits, __global float *greatest, __global float2 *masses,
    __global uint *top, volatile __global int *words
#ifdef PHASE_TIMES
    , __global uint *times
#endif
) {
  __local uint4 memory[PERSISTENT_BYTES / 16];
  __local float scratch[SCRATCH_FLOATS];
  const int group = get_group_id(0), n_groups = N_GROUPS;
  int round = 0, nth = 0;
  Begun begun;
  Item item;
  Slice slice;
  Matrix m = AT(0);
  layer = 0;
  START

#if EMBEDS
  EMBEDDING(embed_row)(
      AT(N_PRODUCTS), batch[BATCH_TOKENS], x, group * GROUP + (int)get_local_id(0),
      n_groups * GROUP, STAMP_WHOLE);
#elif defined(STAMPED)
  stamp_anew(x, DIM, STAMP_BEFORE);
#endif
#ifdef STAMPED
  stamp_anew(qkv_out, QKV_STRIDE, STAMP_BEFORE);
  stamp_anew(hidden, FFN_DIM, STAMP_BEFORE);
  stamp_anew(parts, SPLITS * Q_STRIDE, STAMP_BEFORE);
  stamp_anew((__global float *)shares, 2 * SPLITS * N_HEADS, STAMP_BEFORE);
#endif
#if EMBEDS
  NOTE_CAME
  grid_barrier(words, 1);
  NOTE_LEFT
  round++;
#elif defined(STAMPED)
  grid_barrier(words, 1);
#endif

  STEPS

#if ENDS
  const int n_summed = batch[BATCH_TOP] ? VOCAB_SIZE : 0;
  GROUP_FENCE;
  sum_up_run(logits, n_summed, group, n_groups, greatest, masses, scratch);
#endif
  NOTE_CAME
  // Behind the logits, or with the greatest of them, the host finds whether a group gave up waiting.
  const int leaves = leave_grid(words, scratch), gave_up = leaves == LEAVES_HURT;
  if (leaves != LEAVES_OTHERS && get_local_id(0) == 0) logits[VOCAB_SIZE] = (float)gave_up;
#if ENDS
  choose_top(
      logits, leaves == LEAVES_OTHERS ? 0 : n_summed, n_groups, (__global int *)batch, greatest,
      masses, top, gave_up, (__local int *)memory, scratch);
#endif
}
