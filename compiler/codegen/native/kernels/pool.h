/* Threads: a pool whose workers run one function together, with barriers that spin, then sleep. */
#ifndef MIAOTUI_POOL_H
#define MIAOTUI_POOL_H

#include "base.h"

typedef void (*task)(worker *w, void *context);

/* `threads` workers, the caller among them; NULL if memory or threads are missing. */
static struct pool *pool_open(int threads);
static void pool_close(struct pool *pool);

/* Run `run` on every worker; returns when all are done. One caller at a time. */
static void pool_run(struct pool *pool, task run, void *context);

/* Wait until every worker of the run is here; memory written before is seen by all behind it. */
static void barrier(worker *w);

#endif
