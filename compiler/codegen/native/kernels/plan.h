/* Memory of a run: buffers one behind the other, each on its own cache lines. */
#ifndef MIAOTUI_PLAN_H
#define MIAOTUI_PLAN_H

#include "base.h"

/* Plain tensors in the weight file. */
INLINE const float *floats(const unsigned char *at) { return (const float *)at; }
INLINE const int64_t *longs(const unsigned char *at) { return (const int64_t *)at; }
INLINE const int32_t *ints(const unsigned char *at) { return (const int32_t *)at; }

/* Sizes are added up in double: no count of bytes can overflow it, and it is exact far beyond any memory. */
INLINE double most(double a, double b) { return a > b ? a : b; }
INLINE double whole_lines(double bytes) { return 64 * __builtin_ceil(bytes / 64); }
INLINE size_t size_max(size_t a, size_t b) { return a > b ? a : b; }

/* The greatest of an input's elements, none of which is negative; 0 of none. */
INLINE int64_t largest(const int64_t *x, int64_t count)
{
    int64_t top = 0;
    for (int64_t i = 0; i < count; i++)
        top = max64(top, x[i]);
    return top;
}

INLINE double all_of(int count, const double *bytes)
{
    double total = 0;
    for (int i = 0; i < count; i++)
        total += whole_lines(bytes[i]);
    return total;
}

/* The next `bytes` of the arena. */
INLINE unsigned char *take(unsigned char **at, double bytes)
{
    unsigned char *taken = *at;
    *at += (size_t)whole_lines(bytes);
    return taken;
}

#endif
