/* What a linear layer is: the facts fixed when the code is written, the arguments of a call, weight formats. */
#ifndef MIAOTUI_LINEAR_SPEC_H
#define MIAOTUI_LINEAR_SPEC_H

#include "base.h"

enum { LINEAR_PARTS = 3, TILE = 16 };

typedef enum { NORM_NONE, NORM_RMS, NORM_LAYER } norm_kind;
typedef enum {
    ACT_NONE, ACT_RELU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_SILU, ACT_SIGMOID, ACT_TANH
} activation;

/* Formats of weights. Integers: codes of `bits`, with `bias` 2^(bits-1) taken off them or not; times a scale; plus
 * an offset. linear_int.h says how they lie in memory. Floats are numbered from 1: linear_float.h. */
typedef enum { SCALE_F16, SCALE_F32, SCALE_TWO_LEVEL, SCALE_ROW } scale_kind;
typedef enum { OFFSET_NONE, OFFSET_ZERO_POINT, OFFSET_F16, OFFSET_F32, OFFSET_TWO_LEVEL } offset_kind;
#define WEIGHT_INT(bits, biased, scale, offset) \
    (0x10000 | (bits) | (biased) << 4 | (int)(scale) << 8 | (int)(offset) << 12)

INLINE int is_int(int format) { return format >> 16; }

/* What is fixed when the code is written: a `static const` one, so that the compiler specialises for it.
 * One packed weight: `rows` outputs; its format and group are what the packer returned. */
typedef struct linear_part {
    int rows;
    int format;
    int group;
} linear_part;

/* All parts have integer formats, or all have float formats. */
typedef struct linear_spec {
    int columns;
    norm_kind norm;
    float epsilon;
    activation act;
    int gated; /* the only part holds gate and up, interleaved by tile; rows counts one of them */
    int parts;
    linear_part part[LINEAR_PARTS];
} linear_spec;

/* x: float[count, columns], rows `x_stride` floats apart; y: float[count, sum of rows], likewise; y is no memory
 * of x. residual: of y's shape, or NULL; it may be y itself. bias: of each part, [rows] or NULL (gated: of gate,
 * of up). weight: the packed parts, aligned to 64 bytes. */
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

INLINE int64_t tiles_of(const linear_part *part) { return (part->rows + TILE - 1) / TILE; }

#endif
