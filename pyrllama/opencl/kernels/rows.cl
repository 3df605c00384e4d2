// What stands between the products of a batch: every kernel turns float rows into the rows of
// activations that the next product reads, float16 or, where `as_half` is 0, float32.

FUNCTION void put_pair(__global uint *out, long index, float2 v, int as_half) {
  if (as_half) {
    out[index / 2] = pack_halves(v.x, v.y);
  } else {
    out[index] = as_uint(v.x);
    out[index + 1] = as_uint(v.y);
  }
}

// RMSNorm of a row; with `gather` that of the token whose logits come out at this place.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void normalise_rows(
    __global const float *x, __global const float *weight, __global const int *batch,
    __global uint *out, int n, int stride, float eps, int as_half, int gather) {
  __local float scratch[GROUP];
  int row = get_group_id(0);
  __global const float *source = x + (long)(gather ? batch[BATCH_OUTPUTS + row] : row) * stride;
  float squares = 0.0f;
  for (int i = get_local_id(0); i < stride; i += GROUP) squares += source[i] * source[i];
  float factor = rsqrt(group_sum(squares, scratch) / (float)n + eps);
  for (int i = get_local_id(0); i < stride / 2; i += GROUP) {
    float2 v = vload2(i, source) * vload2(i, weight) * factor;
    put_pair(out, (long)get_group_id(0) * stride + 2 * i, v, as_half);
  }
}

// silu(gate) * up of rows of gates and then ups, `half_row` of each, padded to `stride`.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void swiglu_rows(
    __global const float *gate_up, __global uint *out, int half_row, int in_stride, int stride,
    int as_half) {
  __global const float *gates = gate_up + (long)get_group_id(0) * in_stride;
  for (int i = get_local_id(0); i < stride / 2; i += GROUP) {
    float v[2];
    for (int j = 0; j < 2; j++) {
      int c = 2 * i + j;
      float gate = c < half_row ? gates[c] : 0.0f;
      v[j] = c < half_row ? gate / (1.0f + exp(-gate)) * gates[half_row + c] : 0.0f;
    }
    put_pair(out, (long)get_group_id(0) * stride + 2 * i, (float2)(v[0], v[1]), as_half);
  }
}

// Join the splits of every row's attention.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void join_rows(
    __global const float *parts, __global const float2 *shares, __global uint *out, int as_half) {
  long row = get_group_id(0);
  Source source = {parts + row * SPLITS * Q_STRIDE, 0, shares + row * SPLITS * N_HEADS, Q_DIM, 0, 0};
  for (int i = get_local_id(0); i < Q_STRIDE / 2; i += GROUP) {
    float2 v = (float2)(joined(source, 2 * i), joined(source, 2 * i + 1));
    put_pair(out, row * Q_STRIDE + 2 * i, v, as_half);
  }
}
