// A product of a step in one kernel, inside persistent.cl's kernel: product `nth`, whose role is
// STEP_ROLE, of STEP_ROWS rows of STEP_UNITS units, whose type's functions STEP_CALL calls. Before
// the one behind attention goes attention itself. STEP_NEXT asks for what follows; with STEP_MEETS
// all groups wait for each other then.
{
  const int role = STEP_ROLE, pairs = role == ROLE_GATE_UP;
  const int add = role == ROLE_ATTN_OUTPUT || role == ROLE_FFN_DOWN;
  Source source = {x, norms + (2 * layer + pairs) * NORM_STRIDE, 0, DIM, eps, !add};
  __global float *out = x;
  if (role == ROLE_QKV) out = qkv_out + STEP_OUT;
  if (role == ROLE_ATTN_OUTPUT) source.x = parts, source.shares = shares;
  if (role == ROLE_GATE_UP) out = hidden;
  if (role == ROLE_FFN_DOWN) source.x = hidden;
  if (role == ROLE_OUTPUT) out = logits;
  m.rows = STEP_ROWS, m.n_units = STEP_UNITS;
  ANEW(source.x)
  ANEW(source.weight)
  ANEW(out)

  if (role == ROLE_ATTN_OUTPUT) {
    Attention a = ATTENTION;
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
    AWAIT
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
    AWAIT
  }
  layer += role == ROLE_FFN_DOWN;
  nth++;
}
