/* Rotary embedding of one head, where no attention takes it in. */
#ifndef MIAOTUI_ROTATE_H
#define MIAOTUI_ROTATE_H

#include "base.h"

/* y = x with `pairs` pairs of its first features turned: neighbours if `interleaved`, else one of each half. */
INLINE void rotate_head(const float *x, float *y, int64_t size, const float *cosines, const float *sines,
                        int64_t pairs, int interleaved)
{
    int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : pairs;
    for (int64_t i = 0; i < pairs; i++) {
        float a = x[i * step], b = x[i * step + apart];
        y[i * step] = a * cosines[i] - b * sines[i];
        y[i * step + apart] = b * cosines[i] + a * sines[i];
    }
    if (2 * pairs < size)
        memcpy(y + 2 * pairs, x + 2 * pairs, (size_t)(size - 2 * pairs) * sizeof(float));
}

#endif
