// How a product of one row is shared out, for all storage types.
//
// A task is LOADS units for each lane of a team; a row has a whole number of tasks, the last perhaps
// in part. A group has a run of results, and each of its teams as long a run of their tasks as
// the others, wherever rows end, so that all teams end together. What teams have of a row meets
// in local memory. Results that are too many for that are computed in rounds.

// Of a group's scratch: a sum for every row of a round, one for every team whose first row began
// with an earlier team, and the teams' sums of squares for a norm.
#define SUMS 0
#define CARRIES (2 * ROUND_RESULTS * KEPT)
#define SQUARES (CARRIES + TEAMS * KEPT)
#define SCRATCH_FLOATS (SQUARES + TEAMS)

// The columns of a matrix that are in local memory: units [first, first + n) of its rows.
typedef struct {
  int first;
  int n;
  int tasks;  // of a row
} Columns;

// A group's run of results in a round, and its team's run of the tasks of their rows, counted
// from the first of them. Of pairs, first come the gates' rows and then the ups'.
typedef struct {
  int first;
  int n;
  int to_ups;  // rows from behind the run's gates to its ups
  int begin;
  int end;
} Span;

// A task of a span.
typedef struct {
  int row;
  int column;
} Cursor;

FUNCTION Columns columns_from(int first, int n) {
  Columns columns = {first, n, (n + LANES * LOADS - 1) / (LANES * LOADS)};
  return columns;
}

FUNCTION Cursor cursor_at(Columns columns, int nth) {
  Cursor cursor = {nth / columns.tasks, nth % columns.tasks};
  return cursor;
}

FUNCTION void advance(Cursor *cursor, Columns columns) {
  const int at_end = cursor->column + 1 == columns.tasks;
  cursor->column = at_end ? 0 : cursor->column + 1;
  cursor->row += at_end;
}

// Where part `index` of n things begins, when `parts` parts differ by one at most.
FUNCTION int cut(int n, int parts, int index) {
  return n / parts * index + min(index, n % parts);
}

// The same for every group, so that all of them meet the same fences.
FUNCTION int rounds_of(int rows, const int pairs) {
  const int most = rows / (1 + pairs) / (int)get_num_groups(0) + 1;
  return (most + ROUND_RESULTS - 1) / ROUND_RESULTS;
}

FUNCTION Span span_of(int rows, const int pairs, Columns columns, int round) {
  const int results = rows / (1 + pairs), n_rounds = rounds_of(rows, pairs);
  const int group = get_group_id(0), n_groups = get_num_groups(0), team = team_in_group();
  const int low = cut(results, n_groups, group), n = cut(results, n_groups, group + 1) - low;
  const int first = low + cut(n, n_rounds, round);
  const int here = low + cut(n, n_rounds, round + 1) - first;
  const int all = (here << pairs) * columns.tasks;
  Span span = {first, here, results - here, cut(all, TEAMS, team), cut(all, TEAMS, team + 1)};
  return span;
}

// The row of the matrix that a row of a span is.
FUNCTION int row_of(Span span, int row) {
  return span.first + row + (row < span.n ? 0 : span.to_ups);
}

// The unit with which the columns of a row of a span begin.
FUNCTION uint place_of(Matrix m, Columns columns, Span span, int row) {
  return (uint)row_of(span, row) * (uint)m.n_units + columns.first;
}

// What all teams have of a row together.
FUNCTION float row_total(
    int row, Span span, const int pairs, Columns columns, __local const float *scratch) {
  const int all = (span.n << pairs) * columns.tasks, before = row * columns.tasks;
  float total = kept_sum(scratch + SUMS + row * KEPT);
  #pragma unroll 5
  for (int team = 1; team < TEAMS; team++) {
    const int begin = cut(all, TEAMS, team);
    if (begin <= before || begin >= before + columns.tasks || begin == cut(all, TEAMS, team + 1)) continue;
    total += kept_sum(scratch + CARRIES + team * KEPT);
  }
  return total;
}

FUNCTION float norm_factor(Source source, __local const float *scratch) {
  float squares = 0.0f;
  for (int team = 0; team < TEAMS; team++) squares += scratch[SQUARES + team];
  return rsqrt(squares / source.n + source.eps);
}

// See `finish` of product.cl; every work-item has at most one result.
FUNCTION void finish_round(
    Source source, Span span, Columns columns, __global float *out, const int pairs, const int add,
    __local float *scratch) {
  const int i = get_local_id(0);
  float before = 0.0f;
  if (add && i < span.n) before = load_shared(out + span.first + i);
  LOCAL_FENCE;
  if (i < span.n) {
    const float factor = source.norm ? norm_factor(source, scratch) : 1.0f;
    float total = row_total(i, span, pairs, columns, scratch) * factor;
    if (pairs) {
      const float up = row_total(span.n + i, span, pairs, columns, scratch) * factor;
      total *= up / (1.0f + exp(-total));
    }
    out[span.first + i] = before + total;
  }
}
