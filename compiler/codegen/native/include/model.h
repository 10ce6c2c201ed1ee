/* A compiled model as a C library: token ids in, logits and tokens out.
 *
 * The library keeps no state of its own: everything hangs on a model (weights, threads, memory for
 * intermediate values) or on a state (the sequences being written, their cache of keys and values). Functions
 * that return int return MIAOTUI_OK or an error; those that return a pointer return NULL on error.
 * miaotui_last_error() then says what was wrong, in one sentence, to the thread that asked.
 *
 * Any thread may call; runs of one model wait for each other. A state is used by one thread at a time. A
 * result depends neither on the number of threads nor on what ran before.
 */
#ifndef MIAOTUI_MODEL_H
#define MIAOTUI_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MIAOTUI_API __attribute__((visibility("default")))

typedef struct miaotui_model miaotui_model;
typedef struct miaotui_state miaotui_state;

enum {
    MIAOTUI_OK = 0,
    MIAOTUI_BAD_ARGUMENT = 1, /* an index, a token id, a size or a length that the model can't take */
    MIAOTUI_NO_MEMORY = 2,
    MIAOTUI_BAD_FILE = 3, /* the weight file is missing, damaged, or another model's */
    MIAOTUI_BAD_CPU = 4,  /* this CPU lacks instructions that the library was built with */
    MIAOTUI_FULL = 5      /* the sequence has no room left */
};

/* Element types, numbered as in ONNX. */
enum {
    MIAOTUI_FLOAT32 = 1,
    MIAOTUI_UINT8 = 2,
    MIAOTUI_INT8 = 3,
    MIAOTUI_INT32 = 6,
    MIAOTUI_INT64 = 7,
    MIAOTUI_BOOL = 9,
    MIAOTUI_FLOAT16 = 10
};

enum { MIAOTUI_MAX_RANK = 8 };

/* An input or output of an entry. `is_state`: it lives between runs, is read and written in place, and has
 * one place among the tensors of a run. */
typedef struct miaotui_tensor {
    const char *name;
    int dtype;
    int rank;
    int is_output;
    int is_state;
} miaotui_tensor;

/* ---- a model ---- */

/* What went wrong last in this thread; "" if nothing did. Valid until the thread's next call. */
MIAOTUI_API const char *miaotui_last_error(void);

/* Map the weight file read-only; nothing is read before it is needed. `threads`: workers of a run, 0 for as
 * many as the process may use CPUs. */
MIAOTUI_API miaotui_model *miaotui_open(const char *weights_path, int threads);
MIAOTUI_API void miaotui_close(miaotui_model *model); /* its states were freed before; NULL is fine */

/* ---- text: for models that continue token sequences (miaotui_vocabulary() > 0) ---- */

/* Token ids are 0 .. vocabulary - 1. Context: tokens that a sequence may have, 0 if nothing bounds it. */
MIAOTUI_API int64_t miaotui_vocabulary(void);
MIAOTUI_API int64_t miaotui_context(void);

/* `rows` empty sequences, each with room for `capacity` tokens. */
MIAOTUI_API miaotui_state *miaotui_state_new(miaotui_model *model, int64_t rows, int64_t capacity);
MIAOTUI_API void miaotui_state_free(miaotui_state *state);

/* Encoder-decoder models: read a source text of `count` tokens; every row begins anew from it. */
MIAOTUI_API int miaotui_encode(miaotui_state *state, const int64_t *ids, int64_t count);

/* Append `count` tokens to a row; logits and the likeliest token behind the last one are there then. */
MIAOTUI_API int miaotui_prefill(miaotui_state *state, int64_t row, const int64_t *ids, int64_t count);

/* Append tokens[row] to every row, or nothing where it is negative. tokens: [rows]. next: [rows], the
 * likeliest token behind each; it may be `tokens`, so that miaotui_decode(state, t, t) in a loop writes
 * greedily. */
MIAOTUI_API int miaotui_decode(miaotui_state *state, const int64_t *tokens, int64_t *next);

/* Logits behind the last token of a row, [vocabulary], until the state's next call; NULL for an empty row. */
MIAOTUI_API const float *miaotui_logits(miaotui_state *state, int64_t row);
/* Their argmax; -1 for an empty row. */
MIAOTUI_API int64_t miaotui_next(miaotui_state *state, int64_t row);

/* Tokens of a row; -1 if there is no such row. */
MIAOTUI_API int64_t miaotui_length(miaotui_state *state, int64_t row);

/* Cut a row back to its first `length` tokens: 0 begins anew, more keep a common prefix. */
MIAOTUI_API int miaotui_truncate(miaotui_state *state, int64_t row, int64_t length);
MIAOTUI_API int miaotui_reset(miaotui_state *state, int64_t row);

/* ---- any model: entries over tensors ---- */

/* Entries are numbered from 0. Names, tensors and sizes are NULL behind the last one. */
MIAOTUI_API int miaotui_entry(const char *name); /* its number, -1 if there is none */
MIAOTUI_API const char *miaotui_entry_name(int entry);
MIAOTUI_API const char *miaotui_size_name(int entry, int size);
MIAOTUI_API const miaotui_tensor *miaotui_tensor_of(int entry, int tensor);

/* Shape of a tensor at these sizes. shape: [MIAOTUI_MAX_RANK]. */
MIAOTUI_API int miaotui_shape(int entry, int tensor, const int64_t *sizes, int64_t *shape);

/* Run an entry. `sizes`: one for every named size (batch, tokens, ...). `tensors`: row-major memory of every
 * input, then of every output that is no state; their shapes follow from the sizes. An output may be NULL: it
 * is dropped. */
MIAOTUI_API int miaotui_run(miaotui_model *model, int entry, const int64_t *sizes, void *const *tensors);

#ifdef __cplusplus
}
#endif

#endif
