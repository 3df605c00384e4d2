// How a product of one row is shared out, for all storage types.
//
// A task is LOADS units for each lane of a team; a row has a whole number of tasks, the last perhaps
// in part. A group has a run of results, and each of its teams as long a run of their tasks as
// the others, wherever rows end, so that all teams end together. What teams have of a row meets
// in local memory. Results that are too many for that are computed in rounds.

// Of a group's scratch: a sum for every row of a round, one for every team whose first row began
// with an earlier team, and the teams' sums of squares for a norm. The factors of attention's splits
// stand where the sums will: they are read before a product begins.
#define SUMS 0
#define FACTORS 0
#define CARRIES LARGER(2 * ROUND_RESULTS * KEPT, SPLITS * N_HEADS)
#define SQUARES (CARRIES + TEAMS * KEPT)
#define MARKS (SQUARES + TEAMS)

// When a group had its activations, when its first team had multiplied its tasks, and when all teams
// were there; see persistent.cl. Of attention: its heads, what it attended to, and all teams.
#ifdef PHASE_TIMES
enum { LOADED, COMPUTED, MET, N_MARKS };
#define MARK(which)                                                                               \
  if (get_local_id(0) == 0) ((__local uint *)scratch)[MARKS + which] = device_time();
#else
#define N_MARKS 0
#define MARK(which)
#endif
#define SCRATCH_FLOATS (MARKS + N_MARKS)
#define ATTEND_SCRATCH (N_MARKS ? SCRATCH_FLOATS : GROUP)

// The columns of a matrix that are in local memory: units [first, first + n) of its rows.
typedef struct {
  int first;
  int n;
  int tasks;  // of a row
} Columns;

// Things shared out: each part has `each` of them, and the first `longer` parts one more.
typedef struct {
  int each;
  int longer;
} Cut;

// A group's run of results in a round, and its team's run of the tasks of their rows, counted
// from the first of them. Of pairs, first come the gates' rows and then the ups'.
typedef struct {
  int first;
  int n;
  int to_ups;  // rows from behind the run's gates to its ups
  int begin;
  int end;
  Cut teams;  // the tasks of all teams
} Span;

// A task of a span.
typedef struct {
  int row;
  int column;
} Cursor;

// n / d, for n from 0 on and less than 2^22 of d: a division of whole numbers is a long chain of
// operations, and some of them stand before the first load of a product.
FUNCTION int quotient(int n, int d) {
  const int near = (int)((float)n * reciprocal((float)d));
  const int rest = n - near * d;
  return near + (rest >= d) - (rest < 0);
}

// The same where n and d are sizes, which compilers know if SIZES_KNOWN, and then divide themselves.
FUNCTION int over(int n, int d) {
#ifdef SIZES_KNOWN
  return (uint)n / (uint)d;
#else
  return quotient(n, d);
#endif
}

FUNCTION Columns columns_from(int first, int n) {
  Columns columns = {first, n, (uint)(n + LANES * LOADS - 1) / (LANES * LOADS)};
  return columns;
}

FUNCTION Cursor cursor_at(Columns columns, int nth) {
  const int row = over(nth, columns.tasks);
  Cursor cursor = {row, nth - row * columns.tasks};
  return cursor;
}

FUNCTION void advance(Cursor *cursor, Columns columns) {
  const int at_end = cursor->column + 1 == columns.tasks;
  cursor->column = at_end ? 0 : cursor->column + 1;
  cursor->row += at_end;
}

FUNCTION Cut cut_into(int n, int parts) {
  const int each = over(n, parts);
  Cut cut = {each, n - each * parts};
  return cut;
}

FUNCTION int begin_of(Cut cut, int part) { return cut.each * part + min(part, cut.longer); }

// The part that has the nth thing.
FUNCTION int part_with(Cut cut, int nth) {
  const int in_longer = cut.longer * (cut.each + 1), behind = nth - in_longer;
  return behind < 0 ? quotient(nth, cut.each + 1) : cut.longer + quotient(behind, max(cut.each, 1));
}

// Where part `index` of n things begins, when `parts` parts differ by one at most.
FUNCTION int cut(int n, int parts, int index) { return begin_of(cut_into(n, parts), index); }

// The same for every group, so that all of them meet the same fences.
FUNCTION int rounds_of(int rows, const int pairs) {
  const uint most = over(rows >> pairs, N_GROUPS) + 1;
  return (most + ROUND_RESULTS - 1) / ROUND_RESULTS;
}

FUNCTION Span span_of(int rows, const int pairs, Columns columns, int round) {
  int group = get_group_id(0), team = team_in_group();
#ifdef WORKED_OUT_ANEW
  FORGET(group);
  FORGET(team);
#endif
  const int results = rows >> pairs, n_rounds = rounds_of(rows, pairs);
  const Cut groups = cut_into(results, N_GROUPS);
  int first = begin_of(groups, group), n = begin_of(groups, group + 1) - first;
  if (n_rounds > 1) {
    const Cut rounds = cut_into(n, n_rounds);
    first += begin_of(rounds, round);
    n = begin_of(rounds, round + 1) - begin_of(rounds, round);
  }
  const uint all = (n << pairs) * columns.tasks;
  const Cut teams = {all / TEAMS, all % TEAMS};
  Span span = {first, n, results - n, begin_of(teams, team), begin_of(teams, team + 1), teams};
  return span;
}

// The row of the matrix that a row of a span is.
FUNCTION int row_of(Span span, int row) {
  return span.first + row + (row < span.n ? 0 : span.to_ups);
}

// The place of the task at a cursor, the cursor's number being `nth`, which then goes on to the next;
// nothing of it is there behind the end of the team's run.
FUNCTION Place next_place(Matrix m, Columns columns, Span span, Cursor *ahead, int nth) {
  const int row = row_of(span, ahead->row), unit = ahead->column * (LOADS * LANES) + lane_id();
  const Place at = {(uint)row * (uint)m.n_units + columns.first + unit, row, columns.first + unit,
                    nth < span.end ? columns.n - unit : 0};
  advance(ahead, columns);
  return at;
}

// Which teams have something of a row: that with which it begins has its sum, and those behind it,
// up to the other one, have CARRIES. Both in a word, as one stays in registers for long.
FUNCTION uint holders_of(int row, Span span, Columns columns) {
  const int first = row * columns.tasks;
  return part_with(span.teams, first) | part_with(span.teams, first + columns.tasks - 1) << 8;
}

// The same of what a work-item finishes: of its row, or of its gate's and, above that, its up's.
FUNCTION uint own_holders(Span span, Columns columns, const int pairs) {
  const int i = min((int)get_local_id(0), max(span.n - 1, 0));
  uint holders = holders_of(i, span, columns);
  if (pairs) holders |= holders_of(span.n + i, span, columns) << 16;
  return holders;
}

// On NVIDIA's GPUs it is known before a product begins, while groups wait for each other: behind the
// last task it would be a chain of operations. Elsewhere that is code for compilers to take long for.
FUNCTION void put_holders(Begun *begun, Span span, Columns columns, const int pairs) {
#ifdef NVIDIA
  uint holders = own_holders(span, columns, pairs);
  FORGET(holders);
  begun->holders = holders;
#endif
}

FUNCTION uint holders_put(const Begun *begun, Span span, Columns columns, const int pairs) {
#ifdef NVIDIA
  return begun->holders;
#else
  return own_holders(span, columns, pairs);
#endif
}

// What all teams have of a row together.
FUNCTION float row_total(int row, uint holders, __local const float *scratch) {
  const int first = holders & 255, last = holders >> 8 & 255;
  float total = kept_sum(scratch + SUMS + row * KEPT);
  // As a rule no more than one team has something besides, which is on its way with the sum.
  const float next = kept_sum(scratch + CARRIES + min(first + 1, TEAMS - 1) * KEPT);
  if (first < last) total += next;
  #pragma unroll 1
  for (int team = first + 2; team <= last; team++) {
    total += kept_sum(scratch + CARRIES + team * KEPT);
  }
  return total;
}

FUNCTION float norm_factor(Source source, __local const float *scratch) {
  float squares = 0.0f;
  for (int team = 0; team < TEAMS; team++) squares += scratch[SQUARES + team];
  return rsqrt(squares / source.n + source.eps);
}

// The target of columns from `first` on of a product: sums of columns before stand there then, and
// where others follow they may not pass for the result.
FUNCTION Target part_of(Target target, int first, int goes_on) {
  const int stamp = goes_on && target.stamp != UNSTAMPED ? target.stamp ^ 1 : target.stamp;
  Target part = {target.out, target.add || first, stamp};
  return part;
}

// What a work-item's result will be added to is on its way while the tasks are computed. It is the
// work-item's own, or of before the groups met.
FUNCTION void put_before(Begun *begun, Span span, Target target) {
  const int i = get_local_id(0);
  begun->before = 0.0f;
  if (target.add && i < span.n) begun->before = load_shared(target.out + span.first + i);
}

// See `finish` of product.cl; every work-item has at most one result. What does not need the sums
// comes before them: a group waits there for its last team.
FUNCTION void finish_round(
    const Begun *begun, Source source, Columns columns, Span span, Target target, const int pairs,
    __local float *scratch) {
  const int i = get_local_id(0), there = i < span.n;
  const uint holders = holders_put(begun, span, columns, pairs);
  float factor = source.norm ? norm_factor(source, scratch) : 1.0f;
  FORGET_FLOAT(factor);
  LOCAL_FENCE;
  MARK(MET)
  if (!there) return;
  float total = row_total(i, holders, scratch) * factor;
  if (pairs) total = swiglu(total, row_total(span.n + i, holders >> 16, scratch) * factor);
  put_stamped(target.out + span.first + i, begun->before + total, target.stamp);
}
