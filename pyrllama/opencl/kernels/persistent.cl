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
#define LINE 128
#define PERSISTENT_BYTES                                                                          \
  (ACTIVATION_BYTES_MOST > 4 * ATTEND_FLOATS ? ACTIVATION_BYTES_MOST : 4 * ATTEND_FLOATS)

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

// Bring what teams read after their first tasks of a product towards them, PREFETCH rounds of a
// line for each lane, while they wait for the product before it.
FUNCTION void prefetch_rows(Matrix m, const int pairs, const int units_a_block) {
  const int results = pairs ? m.rows / 2 : m.rows;
  const int n_teams = TEAMS * (int)get_num_groups(0);
  const int row_bytes = 16 * m.n_units;
  #pragma unroll
  for (int round = 0; round < PREFETCH; round++) {
    int ahead = LOADS * LANES * 16 + (round * LANES + lane_id()) * LINE;
    int nth = ahead / row_bytes, within = ahead % row_bytes;
    int result = team_in_grid() + (pairs ? nth >> 1 : nth) * n_teams;
    if (result >= results) continue;
    long row = result + (pairs ? (nth & 1) * results : 0);
    prefetch_line((__global const uchar *)m.units + row * row_bytes + within);
    if (units_a_block) {
      long block = (row * m.n_units + within / 16) / units_a_block;
      prefetch_line((__global const uchar *)(m.scales + block));
    }
  }
}

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void persistent_step(
    WEIGHTS_PARAMETERS, __constant const long *places, __global const float *norms,
    ATTENTION_PARAMETERS, __global float *x, __global float *qkv_out, __global float *hidden,
    __global float *logits, volatile __global int *words, float eps) {
  __local uint4 memory[PERSISTENT_BYTES / 16];
  __local float scratch[GROUP];
  const int group = get_group_id(0), n_groups = get_num_groups(0);
  int round = 0;
  Task task;
  Matrix m = LAYER_AT(0, ROLE_QKV, Q_DIM + 2 * KV_DIM, QKV_UNITS);
  QKV(begin)(&task, m);

#if EMBEDS
  EMBEDDING(embed_row)(
      AT(n_layers * ROLES + 1, 0, EMBEDDING_UNITS), batch[BATCH_TOKENS], x,
      team_in_grid() * LANES + lane_id(), n_groups * GROUP);
  grid_barrier(words, ++round);
#endif

  for (layer = 0; layer < n_layers; layer++) {
    Attention a = ATTENTION;
    __global const float *norm = norms + 2 * layer * NORM_STRIDE;
    Source normed = {x, norm, 0, DIM, eps, 1};
    QKV(product)(&task, m, normed, qkv_out, 0, 0, memory, scratch);
    m = LAYER_AT(layer, ROLE_ATTN_OUTPUT, DIM, ATTN_OUTPUT_UNITS);
    prefetch_rows(m, 0, ATTN_OUTPUT_BLOCK);
    grid_barrier(words, ++round);

    for (int item = group; item < HEAD_GROUPS * SPLITS; item += n_groups) {
      attend_item(a, item, 1, (__local float *)memory, scratch);
    }
    ATTN_OUTPUT(begin)(&task, m);
    grid_barrier(words, ++round);

    Source attended = {parts, 0, shares, 0, 0, 0};
    ATTN_OUTPUT(product)(&task, m, attended, x, 0, 1, memory, scratch);
    m = LAYER_AT(layer, ROLE_GATE_UP, 2 * FFN_DIM, GATE_UP_UNITS);
    GATE_UP(begin)(&task, m);
    prefetch_rows(m, 1, GATE_UP_BLOCK);
    grid_barrier(words, ++round);

    normed.weight = norm + NORM_STRIDE;
    GATE_UP(product)(&task, m, normed, hidden, 1, 0, memory, scratch);
    m = LAYER_AT(layer, ROLE_FFN_DOWN, DIM, FFN_DOWN_UNITS);
    FFN_DOWN(begin)(&task, m);
    prefetch_rows(m, 0, FFN_DOWN_BLOCK);
    grid_barrier(words, ++round);

    Source activated = {hidden, 0, 0, 0, 0, 0};
    FFN_DOWN(product)(&task, m, activated, x, 0, 1, memory, scratch);
    if (layer + 1 < n_layers) {
      m = LAYER_AT(layer + 1, ROLE_QKV, Q_DIM + 2 * KV_DIM, QKV_UNITS);
      QKV(begin)(&task, m);
      prefetch_rows(m, 0, QKV_BLOCK);
    } else {
#if ENDS
      m = AT(n_layers * ROLES, VOCAB_SIZE, OUTPUT_UNITS);
      OUTPUT(begin)(&task, m);
      prefetch_rows(m, 0, OUTPUT_BLOCK);
#endif
    }
    grid_barrier(words, ++round);
  }

#if ENDS
  Source last = {x, norms + 2 * n_layers * NORM_STRIDE, 0, DIM, eps, 1};
  OUTPUT(product)(&task, m, last, logits, 0, 0, memory, scratch);
#endif
  // Behind the logits the host finds whether a group gave up waiting.
  if (leave_grid(words)) logits[VOCAB_SIZE] = (float)words[GAVE_UP];
}
