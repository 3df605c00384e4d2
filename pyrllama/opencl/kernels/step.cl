// A product of a step in one kernel, inside persistent.cl's kernel: product `nth`, whose role is
// STEP_ROLE, of STEP_ROWS rows of STEP_UNITS units, whose type's functions STEP_CALL calls. Before
// the one behind attention goes attention itself. STEP_NEXT asks for what follows; with STEP_MEETS
// all groups wait for each other then.
{
  const int role = STEP_ROLE, pairs = role == ROLE_GATE_UP;
  const int add = role == ROLE_ATTN_OUTPUT || role == ROLE_FFN_DOWN;
  const int of_layer = STAMP_OF_LAYER;
  Source source = {x, norms + (2 * layer + pairs) * NORM_STRIDE, 0, DIM, EPS, !add,
                   {add ? of_layer : pairs ? STAMP_ATTENDED : STAMP_WHOLE, words}};
  Target target = {x, add, role == ROLE_FFN_DOWN ? STAMP_WHOLE : STAMP_ATTENDED};
  if (role == ROLE_QKV) target.out = qkv_out + STEP_OUT, target.stamp = of_layer;
  if (role == ROLE_ATTN_OUTPUT) source.x = parts, source.shares = shares;
  if (role == ROLE_GATE_UP) target.out = hidden, target.stamp = of_layer;
  if (role == ROLE_FFN_DOWN) source.x = hidden;
  if (role == ROLE_OUTPUT) target.out = logits, target.stamp = UNSTAMPED;
  m.rows = STEP_ROWS, m.n_units = STEP_UNITS;
  ANEW(source.x)
  ANEW(source.weight)
  ANEW(target.out)

  if (role == ROLE_ATTN_OUTPUT) {
    Attention a = ATTENTION;
    a.expected.stamp = of_layer;
    a.expected.words = words;
    ATTENTION_ANEW(a)
    #pragma unroll 1
    for (int index = group; index < ITEMS; index += n_groups) {
      if (index != group) {
        item = item_of(a, index, 1);
        ask_slice(&slice, a, item, item.next);
      }
      attend(a, item, &slice, 1, (__local float *)memory, scratch);
    }
    ARRIVE
    STEP_CALL(BEGIN);
    AWAIT(ROLE_ATTENTION)
  }
  // The weights of the norm that comes next, of which each group asks for a line.
  if (add && get_local_id(0) == 0 && group < DIM / 32) {
    ask_ahead(norms + (2 * layer + (role == ROLE_ATTN_OUTPUT ? 1 : 2)) * NORM_STRIDE + 32 * group);
  }
  touch(places + PLACE_WORDS * (nth + 1));
  STEP_CALL(COMPUTE);
  STEP_CALL(FINISH);
  // Weights are asked for once the others know that this group is there: results would stand in line
  // behind them.
  if (STEP_MEETS) {
    ARRIVE
  }
  STEP_NEXT
  if (STEP_MEETS) {
    AWAIT(role)
  }
  layer += role == ROLE_FFN_DOWN;
  nth++;
}
