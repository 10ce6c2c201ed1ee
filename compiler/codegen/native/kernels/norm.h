/* Normalization of rows by themselves: RMS and layer norm (where no Linear takes it in). */
#ifndef MIAOTUI_NORM_H
#define MIAOTUI_NORM_H

#include "linear_spec.h"
#include "vector_math.h"

/* The sum of `squared ? (x - mean)^2 : x` over a row, in an order that depends on `columns` alone. */
INLINE float sum_row(const float *x, int64_t columns, float mean, int squared)
{
    f32x16 sums[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 64 <= columns; i += 64)
        for (int k = 0; k < 4; k++) {
            f32x16 v = load16(x + i + 16 * k) - mean;
            sums[k] += squared ? v * v : v;
        }
    for (; i + 16 <= columns; i += 16) {
        f32x16 v = load16(x + i) - mean;
        sums[0] += squared ? v * v : v;
    }
    if (i < columns) {
        f32x16 v = load_part(x + i, columns - i, mean) - mean;
        sums[1] += squared ? v * v : v;
    }
    return sum16((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* What a norm multiplies the row with, and what it takes off it before. */
typedef struct moments {
    float mean, factor;
} moments;

INLINE moments row_moments(norm_kind kind, const float *x, int64_t columns, float epsilon)
{
    moments m = {0, 1};
    if (kind == NORM_LAYER)
        m.mean = sum_row(x, columns, 0, 0) / (float)columns;
    if (kind != NORM_NONE)
        m.factor = 1 / __builtin_sqrtf(sum_row(x, columns, m.mean, 1) / (float)columns + epsilon);
    return m;
}

/* y = norm(x) of `columns` floats; y may be x. scale, bias: [columns] or NULL. */
INLINE void norm_row(norm_kind kind, const float *x, float *y, int64_t columns, const float *scale,
                     const float *bias, float epsilon)
{
    moments m = row_moments(kind, x, columns, epsilon);
    int64_t i = 0;
    for (; i + 16 <= columns; i += 16) {
        f32x16 v = (load16(x + i) - m.mean) * m.factor;
        if (scale)
            v *= load16(scale + i);
        if (bias)
            v += load16(bias + i);
        store16(y + i, v);
    }
    for (; i < columns; i++) {
        float v = (x[i] - m.mean) * m.factor;
        if (scale)
            v *= scale[i];
        y[i] = bias ? v + bias[i] : v;
    }
}

#endif
