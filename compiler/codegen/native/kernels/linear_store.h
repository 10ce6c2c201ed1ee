/* What happens to a linear layer's sums before they leave the registers: bias, activation, gate, residual. */
#ifndef MIAOTUI_LINEAR_STORE_H
#define MIAOTUI_LINEAR_STORE_H

#include "linear_spec.h"
#include "vector_math.h"

INLINE f32x16 activate(activation act, f32x16 v)
{
    switch (act) {
    case ACT_RELU: return relu16(v);
    case ACT_GELU: return gelu16(v);
    case ACT_GELU_TANH: return gelu_tanh16(v);
    case ACT_QUICK_GELU: return quick_gelu16(v);
    case ACT_SILU: return silu16(v);
    case ACT_SIGMOID: return sigmoid16(v);
    case ACT_TANH: return tanh16(v);
    default: return v;
    }
}

INLINE f32x16 with_bias(const float *bias, int64_t at, int64_t width, f32x16 v)
{
    return bias ? v + (width == TILE ? load16(bias + at) : load_part(bias + at, width, 0)) : v;
}

/* Where tile `tile` of part `p` begins among the outputs of a row. */
INLINE int64_t output_at(const linear_spec *spec, int p, int64_t tile)
{
    int64_t at = tile * TILE;
    for (int i = 0; i < p; i++)
        at += spec->part[i].rows;
    return at;
}

/* Fetch the lines that `tiles` tiles of a row are going to be stored in, while they are computed. */
INLINE void prefetch_output(const linear_spec *spec, const linear_args *args, int p, int64_t row, int64_t tile,
                            int tiles)
{
    const int64_t at = output_at(spec, p, tile);
    for (int t = 0; t < tiles; t++) {
        __builtin_prefetch(args->y + row * args->y_stride + at + t * TILE, 1);
        if (args->residual && args->residual != args->y)
            __builtin_prefetch(args->residual + row * args->residual_stride + at + t * TILE);
    }
}

/* `v`: tile `tile` of part `p`, row `row` of the batch: all 16 outputs, or those that the last tile has. */
INLINE void store_finished(const linear_spec *spec, const linear_args *args, int p, int64_t row, int64_t tile,
                           f32x16 v)
{
    const int64_t at = output_at(spec, p, tile), width = min64(TILE, spec->part[p].rows - tile * TILE);
    float *y = args->y + row * args->y_stride + at;
    const float *residual = args->residual ? args->residual + row * args->residual_stride + at : NULL;
    if (width == TILE) {
        store16(y, residual ? v + load16(residual) : v);
    } else {
        store_part(y, width, residual ? v + load_part(residual, width, 0) : v);
    }
}

/* Bias, activation and residual of one tile's sums `v`, stored. */
INLINE void store_tile(const linear_spec *spec, const linear_args *args, int p, int64_t row, int64_t tile, f32x16 v)
{
    int64_t at = tile * TILE, width = min64(TILE, spec->part[p].rows - at);
    v = with_bias(args->bias[p], at, width, v);
    store_finished(spec, args, p, row, tile, activate(spec->act, v));
}

/* The same of a gated pair: activation(gate) * up. */
INLINE void store_gated(const linear_spec *spec, const linear_args *args, int64_t row, int64_t tile, f32x16 gate,
                        f32x16 up)
{
    int64_t at = tile * TILE, width = min64(TILE, spec->part[0].rows - at);
    gate = with_bias(args->bias[0], at, width, gate);
    up = with_bias(args->bias[1], at, width, up);
    store_finished(spec, args, 0, row, tile, activate(spec->act, gate) * up);
}

#endif
