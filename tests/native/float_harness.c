/* Calls the float kernels for specs that are known only here: linear layers, norms, vector math, the pool. */
#include <stdlib.h>

#include "linear.h"
#include "norm.h"
#include "pool.h"
#include "vector_math.h"

typedef struct job {
    const linear_spec *spec;
    const linear_args *args;
} job;

static void any_linear(worker *w, void *context)
{
    const job *j = context;
    linear_spec spec = *j->spec;
    spec.part[0].format &= 0xffff; /* so that no code for integers is compiled */
    linear(w, &spec, j->args);
}

/* 0 if there was no memory for it. */
int run_linear(const linear_spec *given, const linear_args *args, int threads)
{
    linear_spec copy = *given, *spec = &copy;
    copy.part[0].format &= 0xffff;
    job j = {spec, args};
    struct pool *pool = pool_open(threads);
    if (!pool)
        return 0;
    int ready = pool_scratch(pool, linear_worker_bytes(spec, args->count), linear_shared_bytes(spec, args->count));
    if (ready)
        pool_run(pool, any_linear, &j);
    pool_close(pool);
    return ready;
}

void run_unpack(const linear_part *part, int columns, const unsigned char *weight, int64_t row, float *y)
{
    unpack_row_float(part, columns, weight, row, y);
}

void run_norm(int kind, const float *x, float *y, int64_t columns, const float *scale, const float *bias,
              float epsilon)
{
    norm_row((norm_kind)kind, x, y, columns, scale, bias, epsilon);
}

/* Every function on lanes (the rest of `count` is left alone), and one float at a time. */
#define FUNCTION(name)                                                                                             \
    void run_##name##16(const float *x, float *y, int64_t count)                                                   \
    {                                                                                                              \
        for (int64_t i = 0; i + 16 <= count; i += 16)                                                              \
            store16(y + i, name##16(load16(x + i)));                                                               \
    }                                                                                                              \
    void run_##name##1(const float *x, float *y, int64_t count)                                                    \
    {                                                                                                              \
        for (int64_t i = 0; i < count; i++)                                                                        \
            y[i] = name##1(x[i]);                                                                                  \
    }

FUNCTION(exp)
FUNCTION(log)
FUNCTION(tanh)
FUNCTION(erf)
FUNCTION(sigmoid)
FUNCTION(relu)
FUNCTION(silu)
FUNCTION(quick_gelu)
FUNCTION(gelu)
FUNCTION(gelu_tanh)

/* Workers write their slot, meet, read all slots, meet again: `wrong` counts what was not there yet. */
typedef struct rounds {
    int64_t count, wrong;
    int64_t *slots; /* 8 apart */
} rounds;

static void meet_often(worker *w, void *context)
{
    rounds *r = context;
    for (int64_t i = 1; i <= r->count; i++) {
        r->slots[w->index * 8] += i;
        memset(w->scratch, w->index, 64);
        barrier(w);
        for (int other = 0; other < w->count; other++)
            if (r->slots[other * 8] != r->slots[w->index * 8])
                __atomic_fetch_add(&r->wrong, 1, __ATOMIC_RELAXED);
        barrier(w);
    }
}

/* `runs` runs of `count` rounds; -1 if there were no threads or memory, else how often a worker came too early. */
int64_t run_rounds(int threads, int runs, int64_t count)
{
    struct pool *pool = pool_open(threads);
    int64_t *slots = calloc((size_t)threads * 8, sizeof *slots);
    rounds r = {count, 0, slots};
    int ready = pool && slots;
    for (int i = 0; ready && i < runs; i++) {
        ready = pool_scratch(pool, 64 << i % 8, 0); /* grown between runs */
        if (ready)
            pool_run(pool, meet_often, &r);
    }
    pool_close(pool);
    free(slots);
    return ready ? r.wrong : -1;
}

static void nothing(worker *w, void *context)
{
    (void)w, (void)context;
}

struct pool *open_pool(int threads)
{
    struct pool *pool = pool_open(threads);
    if (pool)
        pool_run(pool, nothing, NULL);
    return pool;
}

void close_pool(struct pool *pool) { pool_close(pool); }

int64_t scratch_refused(void)
{
    struct pool *pool = pool_open(2);
    int refused = pool && !pool_scratch(pool, (size_t)1 << 62, 0) && pool_scratch(pool, 64, 64);
    pool_close(pool);
    return refused;
}
