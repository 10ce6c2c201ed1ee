/* A linear layer with all that is fused around it: norm, activation, gate, bias, residual (miaotui Linear). */
#ifndef MIAOTUI_LINEAR_H
#define MIAOTUI_LINEAR_H

#include "base.h"

enum { LINEAR_PARTS = 3 };

typedef enum { NORM_NONE, NORM_RMS, NORM_LAYER } norm_kind;
typedef enum {
    ACT_NONE, ACT_RELU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_SILU, ACT_SIGMOID, ACT_TANH
} activation;

/* What is fixed when the code is written: a `static const` one, so that the compiler specialises for it.
 * One packed weight: `rows` outputs; its format and group are what the packer returned. */
typedef struct linear_part {
    int rows;
    int format;
    int group;
} linear_part;

typedef struct linear_spec {
    int columns;
    norm_kind norm;
    float epsilon;
    activation act;
    int gated; /* the only part holds gate and up, interleaved by tile; rows counts one of them */
    int parts;
    linear_part part[LINEAR_PARTS];
} linear_spec;

/* x: float[count, columns], rows `x_stride` floats apart; y: float[count, sum of rows], likewise.
 * residual: of y's shape, or NULL; it may be y itself. bias: of each part, [rows] or NULL (gated: gate then up).
 * weight: the packed parts, aligned to 64 bytes. */
typedef struct linear_args {
    int64_t count;
    const float *x;
    int64_t x_stride;
    float *y;
    int64_t y_stride;
    const float *residual;
    int64_t residual_stride;
    const float *norm_scale, *norm_bias;
    const unsigned char *weight[LINEAR_PARTS];
    const float *bias[LINEAR_PARTS];
} linear_args;

/* All workers call it together; it ends without a barrier: the emitted code sets one behind it.
 *
 * INLINE void linear(worker *w, const linear_spec *spec, const linear_args *args);
 * INLINE size_t linear_worker_bytes(const linear_spec *spec, int64_t count);
 * INLINE size_t linear_shared_bytes(const linear_spec *spec, int64_t count);
 *
 * One row of a packed weight as floats (an embedding that shares its memory with the output layer):
 * INLINE void unpack_row(const linear_part *part, int columns, const unsigned char *weight, int64_t row, float *y);
 */

#endif
