/* What every kernel needs: float vectors, the worker that runs it, and its share of the work. */
#ifndef MIAOTUI_BASE_H
#define MIAOTUI_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef INLINE /* tests, which specialise nothing, leave it to the compiler */
#define INLINE static inline __attribute__((always_inline))
#endif

/* 16 lanes on every instruction set: the compiler cuts them into what the registers hold. */
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef float f32x16u __attribute__((vector_size(64), aligned(4)));

INLINE f32x16 load16(const float *p) { return *(const f32x16u *)p; }
INLINE void store16(float *p, f32x16 v) { *(f32x16u *)p = v; }
INLINE f32x16 splat16(float x) { return x - (f32x16){0}; } /* 0 + x would change -0 */

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

struct pool;

/* One thread of a run. All workers of a pool run the same calls in the same order.
 * scratch: memory of this worker alone; shared: memory of all. Both are aligned to 64 bytes, hold at least what
 * the kernels' *_worker_bytes and *_shared_bytes ask for, and lose their contents at the next call. */
typedef struct worker {
    int index, count;
    struct pool *pool;
    unsigned char *scratch;
    unsigned char *shared;
} worker;

typedef struct range {
    int64_t begin, end;
} range;

/* The worker's part of `total` items, in multiples of `grain`: static, so that results do not depend on it. */
INLINE range share(const worker *w, int64_t total, int64_t grain)
{
    int64_t pieces = (total + grain - 1) / grain;
    range r = {min64(total, pieces * w->index / w->count * grain),
               min64(total, pieces * (w->index + 1) / w->count * grain)};
    return r;
}

#endif
