/* Times one linear layer after another over a pool of weights; SPECS (generated) are the layers to choose from. */
#include <stdlib.h>

#include "linear.h"

SPECS

typedef struct job {
    int which;
    int64_t layers, bytes;
    const linear_args *args;
} job;

static void layers(worker *w, void *context)
{
    const job *j = context;
    linear_args args = *j->args;
    for (int64_t i = 0; i < j->layers; i++) {
        args.weight[0] = j->args->weight[0] + i * j->bytes;
        run_layer(j->which, w, &args);
        barrier(w);
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of each of `runs` runs through all layers, whose packed weights of `bytes` lie behind each other. */
int time_layers(int which, const unsigned char *weights, int64_t layer_count, int64_t bytes, int64_t count,
                int columns, int rows, int threads, int runs, double *times)
{
    struct pool *pool = pool_open(threads);
    float *x = aligned_alloc(64, (size_t)(count * (columns + rows) * 4 + 127) / 64 * 64);
    if (!pool || !x || !pool_scratch(pool, layer_worker_bytes(which, count), layer_shared_bytes(which, count)))
        return 0;
    for (int64_t i = 0; i < count * columns; i++)
        x[i] = (float)(i * 37 % 101) - 50;
    linear_args args = {count, x, columns, x + count * columns, rows, NULL, 0, NULL, NULL, {weights}, {NULL}};
    job j = {which, layer_count, bytes, &args};
    for (int r = 0; r < runs; r++) {
        double begin = seconds();
        pool_run(pool, layers, &j);
        times[r] = seconds() - begin;
    }
    free(x);
    pool_close(pool);
    return 1;
}
