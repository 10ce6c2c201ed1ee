/* What the emitted model.c tells load.c about itself: entries, sizes, tensors, and what a run must check. */
#ifndef MIAOTUI_PROGRAM_H
#define MIAOTUI_PROGRAM_H

#include "../include/model.h"
#include "base.h"

/* The first 64 bytes of a weight file, little-endian. Regions follow at offsets that model.c knows, each
 * aligned to 64 bytes. `size`: of the whole file. `fingerprint`: of the model.c that was emitted with it. */
typedef struct weights_header {
    char magic[8];
    uint32_t version;
    uint32_t reserved; /* 0 */
    uint64_t size;
    unsigned char fingerprint[32];
    unsigned char zero[8];
} weights_header;

#define WEIGHTS_MAGIC "MIAOTUI"
enum { WEIGHTS_VERSION = 1, FINGERPRINT_BYTES = 32 };

/* One run, as its workers see it. `tensors`: memory of all inputs, then of the outputs that are no state,
 * none NULL. `arena`: memory for the values in between, aligned to 64 bytes. */
typedef struct call {
    const int64_t *sizes;
    void *const *tensors;
    const unsigned char *weights;
    unsigned char *arena;
    const char *error; /* set by fail() */
} call;

/* A step found what can't be computed (an index outside of a table): the run goes on with any value in its
 * place and returns the error at its end. `why`: a sentence that lives as long as the program. Any worker may
 * call it. */
INLINE void fail(call *c, const char *why) { __atomic_store_n(&c->error, why, __ATOMIC_RELAXED); }

/* A named size of an entry: batch, tokens. */
typedef struct size_info {
    const char *name;
    int64_t minimum, maximum; /* both included; maximum 0: unbounded */
} size_info;

/* What every element x of an integer input must satisfy before a run:
 * minimum <= x, x + add + sizes[add_size] <= maximum, and <= sizes[maximum_size]. An index of -1 leaves that
 * part out. ids: {.minimum = 0, .maximum = vocabulary - 1}; lengths: {.add_size = tokens, .maximum_size =
 * capacity, .maximum = context}; select: {.add = 1, .maximum_size = tokens}. */
typedef struct input_check {
    int tensor;
    int64_t minimum, maximum;
    int64_t add;
    int add_size, maximum_size;
} input_check;

typedef struct entry_info {
    const char *name;
    int size_count;
    const size_info *sizes;
    int tensor_count; /* all inputs, then the outputs that are no state */
    const miaotui_tensor *tensors;
    int check_count;
    const input_check *checks;
    /* The shape of one tensor: shape[0 .. rank - 1]. */
    void (*shape)(int tensor, const int64_t *sizes, int64_t *shape);
    /* Bytes of the arena, computed in double so that no size can overflow it. */
    double (*arena)(const int64_t *sizes);
    /* The most that any step's kernels ask for; asked after the arena was found to fit. */
    void (*scratch)(const int64_t *sizes, size_t *worker_bytes, size_t *shared_bytes);
    /* All steps; every worker calls it. */
    void (*run)(worker *w, call *c);
} entry_info;

/* How an entry with state continues sequences: its tensors and sizes by role (indices into the entry's). */
typedef struct decoding_info {
    int entry;
    int64_t vocabulary, context; /* context 0: unbounded */
    int tokens, lengths, select; /* inputs */
    int logits, next;            /* outputs */
    int batch_size, tokens_size, selected_size, capacity_size;
    /* Encoder-decoder models: the entry that reads the source; -1 without. Its inputs, each [batch, source]:
     * the ids, and the mask or -1 (all ones are given). Every further input of the decoder is an output of
     * it, or its mask, of the same name. */
    int encoder, encoder_ids, encoder_mask, encoder_batch_size, encoder_source_size;
    int source_size; /* of the decoder; -1 if it has none */
} decoding_info;

/* What the emitted code is. `needs`: CPU features by their names in cpu.h, NULL at the end. */
typedef struct program_info {
    const char *isa;
    const char *const *needs;
    uint64_t weights_size;
    unsigned char fingerprint[FINGERPRINT_BYTES];
    int entry_count;
    const entry_info *entries;
    const decoding_info *decoding; /* NULL if no entry has state */
} program_info;

/* Defined by model.c. */
extern const program_info miaotui_program __attribute__((visibility("hidden")));

#endif
