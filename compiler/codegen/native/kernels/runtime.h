/* What load.c and state.c share: a model, its errors, one run. */
#ifndef MIAOTUI_RUNTIME_H
#define MIAOTUI_RUNTIME_H

#include <pthread.h>

#include "pages.h"
#include "program.h"

/* Memory that only ever grows; what it held is lost when it does. */
typedef struct block {
    unsigned char *bytes;
    size_t size;
} block;

struct miaotui_model {
    pthread_mutex_t lock; /* held during a run: everything below belongs to it */
    struct pool *pool;
    int threads;
    const unsigned char *weights;
    size_t weights_size;
    pages pages; /* where they lie */
    block arena, dropped;
};

/* Keep the sentence for miaotui_last_error and give `code` back. */
int refuse(int code, const char *format, ...) __attribute__((format(printf, 2, 3), visibility("hidden")));

/* Elements and bytes of a tensor, in double so that no size can overflow them. */
double tensor_elements(const entry_info *entry, int tensor, const int64_t *sizes)
    __attribute__((visibility("hidden")));
double tensor_bytes(const entry_info *entry, int tensor, const int64_t *sizes)
    __attribute__((visibility("hidden")));

#endif
