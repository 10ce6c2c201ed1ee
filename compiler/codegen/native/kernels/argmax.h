/* The greedy choice: where a row is greatest. */
#ifndef MIAOTUI_ARGMAX_H
#define MIAOTUI_ARGMAX_H

#include "vector_math.h"

/* Index of the first greatest of `count` floats; 0 if all are NaN. */
INLINE int64_t argmax(const float *x, int64_t count)
{
    f32x16 tops[4] = {splat16(x[0]), splat16(x[0]), splat16(x[0]), splat16(x[0])};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64)
        for (int k = 0; k < 4; k++)
            tops[k] = max16(load16(x + i + 16 * k), tops[k]);
    f32x16 top = max16(max16(tops[0], tops[1]), max16(tops[2], tops[3]));
    float most = top[0];
    for (int k = 1; k < 16; k++)
        most = top[k] > most ? top[k] : most;
    for (; i < count; i++)
        most = x[i] > most ? x[i] : most;
    for (i = 0; i < count; i++)
        if (x[i] == most)
            return i;
    return 0;
}

#endif
