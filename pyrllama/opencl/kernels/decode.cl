// One token through the products of a layer, for one storage type: the launches of a step.

#define PRODUCT_PARAMETERS                                                                        \
  __global const uint4 *units, __global const ushort *scales, int rows, int n_units

#define PRODUCT(source, to, pairs, adds)                                                          \
  __local uint4 memory[ACTIVATION_BYTES / 16];                                                        \
  __local float scratch[SCRATCH_FLOATS];                                                          \
  Matrix m = {units, scales, rows, n_units};                                                      \
  Target target = {to, adds, UNSTAMPED};                                                          \
  Begun begun;                                                                                    \
  KIND(begin)(&begun, m, pairs);                                                                   \
  KIND(product)(&begun, m, source, target, pairs, memory, scratch);                                \
  KIND(finish)(&begun, m, source, target, pairs, scratch);

// out = matrix * RMSNorm(x)
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(norm_product)(
    PRODUCT_PARAMETERS, __global const float *x, __global const float *weight, int n, float eps,
    __global float *out, int out_first) {
  Source source = {x, weight, 0, n, eps, 1};
  PRODUCT(source, out + out_first, 0, 0)
}

// out = silu(gate * RMSNorm(x)) * (up * RMSNorm(x)), the matrix being gate and then up
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(swiglu_product)(
    PRODUCT_PARAMETERS, __global const float *x, __global const float *weight, int n, float eps,
    __global float *out) {
  Source source = {x, weight, 0, n, eps, 1};
  PRODUCT(source, out, 1, 0)
}

// out += matrix * x
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(add_product)(
    PRODUCT_PARAMETERS, __global const float *x, __global float *out) {
  Source source = {x, 0, 0, 0, 0, 0};
  PRODUCT(source, out, 0, 1)
}

// out += matrix * what attention gathered
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void KIND(attended_product)(
    PRODUCT_PARAMETERS, __global const float *parts, __global const float2 *shares,
    __global float *out) {
  Source source = {parts, 0, shares, 0, 0, 0};
  PRODUCT(source, out, 0, 1)
}

#undef PRODUCT
#undef PRODUCT_PARAMETERS
