/* One number or one distribution for a row: largest, smallest, softmax. Sums are in norm.h. */
#ifndef MIAOTUI_ROWS_H
#define MIAOTUI_ROWS_H

#include "elementwise.h"
#include "norm.h"

/* NaN if there is one; -infinity of no elements. */
INLINE float largest_of_row(const float *x, int64_t count)
{
    f32x16 top = splat16(-HUGE_VALF);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        f32x16 v = load16(x + i);
        top = select16((top > v) | (top != top), top, v);
    }
    float most = top[0];
    for (int k = 1; k < 16; k++)
        most = max_f32(most, top[k]);
    for (; i < count; i++)
        most = max_f32(most, x[i]);
    return most;
}

INLINE float smallest_of_row(const float *x, int64_t count)
{
    f32x16 low = splat16(HUGE_VALF);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        f32x16 v = load16(x + i);
        low = select16((low < v) | (low != low), low, v);
    }
    float least = low[0];
    for (int k = 1; k < 16; k++)
        least = min_f32(least, low[k]);
    for (; i < count; i++)
        least = min_f32(least, x[i]);
    return least;
}

/* y = e^(x - top), and their sum in an order that depends on `count` alone. */
INLINE float exp_row(const float *x, float *y, int64_t count, float top)
{
    f32x16 sums = splat16(0);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        f32x16 v = exp16(load16(x + i) - top);
        store16(y + i, v);
        sums += v;
    }
    float sum = sum16(sums);
    for (; i < count; i++) {
        y[i] = exp1(x[i] - top);
        sum += y[i];
    }
    return sum;
}

/* Elements lie x_step and y_step floats apart; y may be x. `logarithm`: log of the softmax. */
INLINE void softmax_row(const float *x, int64_t x_step, float *y, int64_t y_step, int64_t count, int logarithm)
{
    if (count <= 0)
        return;
    if (x_step == 1 && y_step == 1 && !logarithm) {
        float factor = 1 / exp_row(x, y, count, largest_of_row(x, count));
        for (int64_t i = 0; i < count; i++)
            y[i] *= factor;
        return;
    }
    float top = x[0], sum = 0;
    for (int64_t i = 1; i < count; i++)
        top = max_f32(top, x[i * x_step]);
    for (int64_t i = 0; i < count; i++)
        sum += exp1(x[i * x_step] - top);
    float shift = logarithm ? logf(sum) : 1 / sum;
    for (int64_t i = 0; i < count; i++) {
        float v = x[i * x_step] - top;
        y[i * y_step] = logarithm ? v - shift : exp1(v) * shift;
    }
}

#endif
