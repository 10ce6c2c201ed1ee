/* Times the attention of a model's layers, one after another, each with a cache of its own; SPECS are generated. */
#include <stdlib.h>

#include "attention.h"

SPECS

typedef struct job {
    int which;
    int64_t layers, key_bytes, value_bytes;
    const attention_args *args;
} job;

static void layers(worker *w, void *context)
{
    const job *j = context;
    attention_args args = *j->args;
    for (int64_t i = 0; i < j->layers; i++) {
        if (args.past_key) {
            args.past_key = (unsigned char *)j->args->past_key + i * j->key_bytes;
            args.past_value = (unsigned char *)j->args->past_value + i * j->value_bytes;
        }
        run_attention(j->which, w, &args);
        barrier(w);
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of each of `runs` runs through all layers: `tokens` new ones behind `length` in the cache (or none).
 * keys, values: what the caches begin with, `layer_count` times their bytes. 0 if there is no memory. */
int time_attention(int which, int64_t tokens, int64_t length, int64_t layer_count, unsigned char *keys,
                   unsigned char *values, int64_t key_bytes, int64_t value_bytes, int threads, int runs, double *times)
{
    const attention_spec *spec = specs[which];
    int64_t size = spec->size, rows = spec->heads + 2 * spec->kv_heads, step = rows * size;
    float *x = aligned_alloc(64, (size_t)(tokens * (step + spec->heads * size + size) * 4 + 127) / 64 * 64);
    float *y = x + tokens * step, *angles = y + tokens * spec->heads * size;
    struct pool *pool = pool_open(threads);
    if (!x || !pool)
        return 0;
    for (int64_t i = 0; i < tokens * step; i++)
        x[i] = (float)(i * 7919 % 4093) / 2046 - 1;
    for (int64_t i = 0; i < tokens * size; i++)
        angles[i] = 0.7f;
    strides at = {0, size, step};
    attention_args args = {
        .batch = 1, .tokens = tokens, .keys = tokens, .capacity = length + tokens,
        .query = x, .key = x + spec->heads * size, .value = x + (spec->heads + spec->kv_heads) * size,
        .query_at = at, .key_at = at, .value_at = at,
        .past_key = keys, .past_value = values, .lengths = &length,
        .cos = angles, .sin = angles, .angle_token = size / 2,
        .y = y, .y_at = {0, size, spec->heads * size},
    };
    if (!pool_scratch(pool, attention_worker_bytes(spec, &args), attention_shared_bytes(spec, &args)))
        return 0;
    job j = {which, layer_count, key_bytes, value_bytes, &args};
    for (int r = 0; r < runs; r++) {
        double begin = seconds();
        pool_run(pool, layers, &j);
        times[r] = seconds() - begin;
    }
    pool_close(pool);
    free(x);
    return 1;
}
