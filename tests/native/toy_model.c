/* A model.c written by hand, as small as one can be: what the runtime around emitted code is tested with.
 *
 * main: y[i] = 2 * x[i] + table[index[i]], table: 8 floats. decode: the cache keeps each token's id as a
 * float; the likeliest next token is (7 * sum of all ids + count) mod 32, its logit 0 and the others' minus
 * their distance. */
#include <math.h>

#include "kernels/plan.h"
#include "kernels/pool.h"
#include "kernels/program.h"

#ifndef NEEDS
#define NEEDS NULL
#endif

enum { VOCABULARY = 32, CONTEXT = 1000, TABLE = 8 };

static void main_shape(int tensor, const int64_t *sizes, int64_t *shape)
{
    (void)tensor;
    shape[0] = sizes[0];
}

/* More than it needs, so that the largest size asks for more than there can be. */
static double main_arena(const int64_t *sizes) { return whole_lines(65536.0 * (double)sizes[0]); }

static void main_scratch(const int64_t *sizes, size_t *worker_bytes, size_t *shared_bytes)
{
    (void)sizes, (void)worker_bytes, (void)shared_bytes;
}

static void main_run(worker *w, call *run)
{
    const float *x = run->tensors[0], *table = (const float *)(run->weights + 64);
    const int64_t *index = run->tensors[1];
    float *y = run->tensors[2], *twice = (float *)run->arena;
    range r = share(w, run->sizes[0], 1);
    for (int64_t i = r.begin; i < r.end; i++)
        twice[i] = 2 * x[i];
    barrier(w);
    r = share(w, run->sizes[0], 3);
    for (int64_t i = r.begin; i < r.end; i++) {
        int64_t row = index[i];
        if (row < 0 || row >= TABLE) {
            fail(run, "an index lies outside of the table");
            row = 0;
        }
        y[i] = twice[i] + table[row];
    }
}

/* Sizes: batch, tokens, selected, capacity. Tensors: ids, lengths, select, past, logits, next. */
static void decode_shape(int tensor, const int64_t *sizes, int64_t *shape)
{
    shape[0] = sizes[0];
    switch (tensor) {
    case 0: shape[1] = sizes[1]; break;
    case 2:
    case 5: shape[1] = sizes[2]; break;
    case 3: shape[1] = 1, shape[2] = sizes[3], shape[3] = 1; break;
    case 4: shape[1] = sizes[2], shape[2] = VOCABULARY; break;
    }
}

static double decode_arena(const int64_t *sizes) { return 8.0 * (double)sizes[0] * (double)sizes[1]; }

static void decode_scratch(const int64_t *sizes, size_t *worker_bytes, size_t *shared_bytes)
{
    (void)sizes;
    *worker_bytes = 64, *shared_bytes = 64;
}

static void decode_run(worker *w, call *run)
{
    const int64_t batch = run->sizes[0], tokens = run->sizes[1], selected = run->sizes[2],
                  capacity = run->sizes[3];
    const int64_t *ids = run->tensors[0], *lengths = run->tensors[1], *select = run->tensors[2];
    float *past = run->tensors[3], *logits = run->tensors[4];
    int64_t *next = run->tensors[5], *likeliest = (int64_t *)(void *)run->arena;
    range r = share(w, batch, 1);
    for (int64_t row = r.begin; row < r.end; row++) {
        float *cache = past + row * capacity, sum = 0;
        for (int64_t i = 0; i < lengths[row]; i++)
            sum += cache[i];
        for (int64_t i = 0; i < tokens; i++) {
            cache[lengths[row] + i] = (float)ids[row * tokens + i];
            sum += cache[lengths[row] + i];
            likeliest[row * tokens + i] = (7 * (int64_t)sum + lengths[row] + i + 1) % VOCABULARY;
        }
    }
    barrier(w);
    r = share(w, batch * selected, 1);
    for (int64_t i = r.begin; i < r.end; i++) {
        next[i] = likeliest[i / selected * tokens + select[i]];
        for (int64_t v = 0; v < VOCABULARY; v++)
            logits[i * VOCABULARY + v] = -fabsf((float)(v - next[i]));
    }
}

static const size_info main_sizes[] = {{"n", 0, 0}};
static const miaotui_tensor main_tensors[] = {
    {"x", MIAOTUI_FLOAT32, 1, 0, 0}, {"index", MIAOTUI_INT64, 1, 0, 0}, {"y", MIAOTUI_FLOAT32, 1, 1, 0}};
static const size_info decode_sizes[] = {
    {"batch", 1, 64}, {"tokens", 1, 0}, {"selected", 0, 0}, {"capacity", 1, 0}};
static const miaotui_tensor decode_tensors[] = {
    {"input_ids", MIAOTUI_INT64, 2, 0, 0}, {"past_lengths", MIAOTUI_INT64, 1, 0, 0},
    {"select", MIAOTUI_INT64, 2, 0, 0},    {"past_key_0", MIAOTUI_FLOAT32, 4, 0, 1},
    {"logits", MIAOTUI_FLOAT32, 3, 1, 0},  {"next", MIAOTUI_INT64, 2, 1, 0}};
static const input_check decode_checks[] = {
    {.tensor = 0, .maximum = VOCABULARY - 1, .add_size = -1, .maximum_size = -1},
    {.tensor = 1, .maximum = CONTEXT, .add_size = 1, .maximum_size = 3},
    {.tensor = 2, .maximum = -1, .add = 1, .add_size = -1, .maximum_size = 1}};
static const entry_info entries[] = {
    {"main", 1, main_sizes, 3, main_tensors, 0, NULL, main_shape, main_arena, main_scratch, main_run},
    {"decode", 4, decode_sizes, 6, decode_tensors, 3, decode_checks, decode_shape, decode_arena,
     decode_scratch, decode_run}};
static const decoding_info decoding = {.entry = 1,
                                       .vocabulary = VOCABULARY,
                                       .context = CONTEXT,
                                       .tokens = 0,
                                       .lengths = 1,
                                       .select = 2,
                                       .logits = 4,
                                       .next = 5,
                                       .batch_size = 0,
                                       .tokens_size = 1,
                                       .selected_size = 2,
                                       .capacity_size = 3,
                                       .encoder = -1,
                                       .encoder_ids = -1,
                                       .encoder_mask = -1,
                                       .encoder_batch_size = -1,
                                       .encoder_source_size = -1,
                                       .source_size = -1};
static const char *const needs[] = {NEEDS, NULL};

const program_info miaotui_program = {.isa = "toy",
                                      .needs = needs,
                                      .weights_size = 64 + 4 * TABLE,
                                      .fingerprint = {'t', 'o', 'y'},
                                      .entry_count = 2,
                                      .entries = entries,
                                      .decoding = &decoding};
