/* Runs the attention kernel on a pool of its own, for specs that are known only here. */
#include <stdlib.h>

#include "attention.h"

typedef struct job {
    const attention_spec *spec;
    const attention_args *args;
} job;

static void any(worker *w, void *context)
{
    const job *j = context;
    attention(w, j->spec, j->args);
}

/* 0 if there was no memory for it. */
int run_attention(const attention_spec *spec, const attention_args *args, int threads)
{
    job j = {spec, args};
    struct pool *pool = pool_open(threads);
    if (!pool)
        return 0;
    int ready = pool_scratch(pool, attention_worker_bytes(spec, args), attention_shared_bytes(spec, args));
    if (ready)
        pool_run(pool, any, &j);
    pool_close(pool);
    return ready;
}

size_t scratch_bytes(const attention_spec *spec, const attention_args *args, int threads)
{
    return attention_worker_bytes(spec, args) * (size_t)threads + attention_shared_bytes(spec, args);
}
