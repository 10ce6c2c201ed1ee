/* Indices into an axis, checked: what a model computes may lie outside of a table. */
#ifndef MIAOTUI_LOOKUP_H
#define MIAOTUI_LOOKUP_H

#include "program.h"

/* `index` from the end if it is negative. Outside of `size` the run fails with `why`, and this is -1. */
INLINE int64_t checked(call *run, int64_t index, int64_t size, const char *why)
{
    int64_t place = index < 0 ? index + size : index;
    if (place >= 0 && place < size)
        return place;
    fail(run, why);
    return -1;
}

#endif
