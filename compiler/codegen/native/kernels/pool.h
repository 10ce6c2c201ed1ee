/* Threads: a pool whose workers run one function together, with barriers that spin, then sleep. */
#ifndef MIAOTUI_POOL_H
#define MIAOTUI_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

typedef void (*task)(worker *w, void *context);

enum { SPIN_MICROSECONDS = 100, CACHE_LINE = 64, MOST_THREADS = 1024 };

/* A number that only grows; who waits for it to change spins for a while, then sleeps. */
typedef struct gate {
    _Alignas(CACHE_LINE) _Atomic uint32_t phase;
    _Atomic int sleepers;
    pthread_mutex_t lock;
    pthread_cond_t opened;
} gate;

struct pool {
    gate start, meet;
    _Alignas(CACHE_LINE) _Atomic int arrived;
    _Alignas(CACHE_LINE) int count;
    int spin; /* 0 if there are more workers than processors: then spinning keeps others from working */
    int closing;
    task run;
    void *context;
    pthread_t *threads; /* of the workers 1 .. count - 1 */
    worker *workers;
    unsigned char *memory; /* all scratch */
    size_t worker_bytes, shared_bytes;
};

INLINE void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline int64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* Wait until the phase is no longer `seen`. */
static inline void gate_wait(gate *g, uint32_t seen, int spin)
{
    if (spin) {
        int64_t end = 0;
        for (int turn = 1; atomic_load_explicit(&g->phase, memory_order_acquire) == seen; turn++) {
            spin_pause();
            if (turn % 64 == 0) {
                int64_t now = microseconds();
                end = end ? end : now + SPIN_MICROSECONDS;
                if (now >= end)
                    break;
            }
        }
    }
    if (atomic_load_explicit(&g->phase, memory_order_acquire) != seen)
        return;
    /* Announced before the phase is read again; who opens writes the phase before it reads `sleepers`. So one
     * of the two sees the other, and nobody sleeps through an opening. */
    pthread_mutex_lock(&g->lock);
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->phase) == seen)
        pthread_cond_wait(&g->opened, &g->lock);
    atomic_fetch_sub(&g->sleepers, 1);
    pthread_mutex_unlock(&g->lock);
}

static inline void gate_open(gate *g)
{
    atomic_fetch_add(&g->phase, 1);
    if (atomic_load(&g->sleepers)) {
        pthread_mutex_lock(&g->lock);
        pthread_cond_broadcast(&g->opened);
        pthread_mutex_unlock(&g->lock);
    }
}

/* Wait until every worker of the run is here; memory written before is seen by all behind it. */
static inline void barrier(worker *w)
{
    struct pool *pool = w->pool;
    if (pool->count == 1)
        return;
    uint32_t seen = atomic_load_explicit(&pool->meet.phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->count - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        gate_open(&pool->meet);
    } else {
        gate_wait(&pool->meet, seen, pool->spin);
    }
}

static inline void *pool_thread(void *argument)
{
    worker *w = argument;
    struct pool *pool = w->pool;
    for (uint32_t runs = 0;; runs++) {
        gate_wait(&pool->start, runs, pool->spin);
        if (pool->closing)
            return NULL;
        pool->run(w, pool->context);
        barrier(w);
    }
}

/* Run `run` on every worker; returns when all are done. One caller at a time. */
static inline void pool_run(struct pool *pool, task run, void *context)
{
    pool->run = run;
    pool->context = context;
    if (pool->count > 1)
        gate_open(&pool->start);
    run(&pool->workers[0], context);
    barrier(&pool->workers[0]);
}

/* The larger one, a multiple of `line`. */
INLINE size_t larger(size_t a, size_t b, size_t line)
{
    return ((a > b ? a : b) + line - 1) / line * line;
}

/* Give every worker at least `worker_bytes` of scratch, and all together `shared_bytes`; between runs only.
 * 0 if there is no memory for it: then nothing has changed. */
static inline int pool_scratch(struct pool *pool, size_t worker_bytes, size_t shared_bytes)
{
    const size_t most = (size_t)-1 / 4 / MOST_THREADS, line = 2 * CACHE_LINE;
    if (worker_bytes <= pool->worker_bytes && shared_bytes <= pool->shared_bytes)
        return 1;
    if (worker_bytes > most || shared_bytes > most)
        return 0;
    worker_bytes = larger(worker_bytes, pool->worker_bytes, line);
    shared_bytes = larger(shared_bytes, pool->shared_bytes, line);
    unsigned char *memory = aligned_alloc(line, shared_bytes + worker_bytes * (size_t)pool->count);
    if (!memory)
        return 0;
    free(pool->memory);
    pool->memory = memory;
    pool->worker_bytes = worker_bytes;
    pool->shared_bytes = shared_bytes;
    for (int i = 0; i < pool->count; i++) {
        pool->workers[i].shared = memory;
        pool->workers[i].scratch = memory + shared_bytes + worker_bytes * (size_t)i;
    }
    return 1;
}

static inline void gate_init(gate *g)
{
    atomic_init(&g->phase, 0);
    atomic_init(&g->sleepers, 0);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->opened, NULL);
}

static inline void gate_free(gate *g)
{
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->opened);
}

/* End the threads of the first `started` workers and give all memory back. */
static inline void pool_end(struct pool *pool, int started)
{
    pool->closing = 1;
    gate_open(&pool->start);
    for (int i = 1; i < started; i++)
        pthread_join(pool->threads[i], NULL);
    gate_free(&pool->start);
    gate_free(&pool->meet);
    free(pool->memory);
    free(pool->workers);
    free(pool->threads);
    free(pool);
}

/* `threads` workers, the caller among them; NULL if memory or threads are missing. */
static inline struct pool *pool_open(int threads)
{
    int count = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    struct pool *pool = aligned_alloc(CACHE_LINE, sizeof(struct pool));
    if (!pool)
        return NULL;
    memset(pool, 0, sizeof *pool);
    pool->count = count;
    pool->spin = count <= sysconf(_SC_NPROCESSORS_ONLN);
    pool->threads = calloc((size_t)count, sizeof *pool->threads);
    pool->workers = calloc((size_t)count, sizeof *pool->workers);
    gate_init(&pool->start);
    gate_init(&pool->meet);
    atomic_init(&pool->arrived, 0);
    int started = 1;
    if (pool->threads && pool->workers) {
        for (int i = 0; i < count; i++)
            pool->workers[i] = (worker){.index = i, .count = count, .pool = pool};
        while (started < count
               && !pthread_create(&pool->threads[started], NULL, pool_thread, &pool->workers[started]))
            started++;
    } else {
        started = 0;
    }
    if (started == count)
        return pool;
    pool_end(pool, started);
    return NULL;
}

static inline void pool_close(struct pool *pool)
{
    if (pool)
        pool_end(pool, pool->count);
}

#endif
