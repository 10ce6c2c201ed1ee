/* Sequences being written: rows of a cache, continued through the entry with state. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "runtime.h"

enum { CHUNK = 512 }; /* tokens of a prompt that one run takes: more would fall out of the caches */

static const double MAX_STATE = (double)((int64_t)1 << 46);

/* Memory of one tensor that holds something of every row. */
typedef struct rows_of {
    void *memory; /* as it was allocated */
    unsigned char *bytes;
    size_t row_bytes;
} rows_of;

struct miaotui_state {
    miaotui_model *model;
    const decoding_info *roles;
    const entry_info *entry;
    int64_t rows, capacity, source;
    rows_of *tensors; /* [entry's tensors]: state and what the encoder gave; empty for the others */
    int64_t *lengths, *next, *ids, *zeros;
    float *logits;
    unsigned char *has_logits;
    int is_encoded;
};

static void sizes_of(const miaotui_state *s, int64_t *sizes, int64_t batch, int64_t tokens, int64_t selected)
{
    sizes[s->roles->batch_size] = batch;
    sizes[s->roles->tokens_size] = tokens;
    sizes[s->roles->selected_size] = selected;
    sizes[s->roles->capacity_size] = s->capacity;
    if (s->roles->source_size >= 0)
        sizes[s->roles->source_size] = s->source;
}

static int is_given(const decoding_info *roles, int tensor)
{
    return tensor == roles->tokens || tensor == roles->lengths || tensor == roles->select;
}

/* Zeros for every row of a tensor, beginning at a cache line. */
static int allocate(miaotui_state *s, int tensor)
{
    int64_t sizes[s->entry->size_count + 1];
    rows_of *made = &s->tensors[tensor];
    sizes_of(s, sizes, 1, 1, 1);
    double bytes = tensor_bytes(s->entry, tensor, sizes);
    if (bytes * (double)s->rows <= MAX_STATE) {
        free(made->memory);
        made->row_bytes = (size_t)bytes;
        made->memory = calloc(1, made->row_bytes * (size_t)s->rows + 64);
        made->bytes = made->memory ? (unsigned char *)(((uintptr_t)made->memory + 63) / 64 * 64) : NULL;
        if (made->memory)
            return MIAOTUI_OK;
    }
    return refuse(MIAOTUI_NO_MEMORY, "there is no memory for %lld sequences of %lld tokens",
                  (long long)s->rows, (long long)s->capacity);
}

static int allocate_all(miaotui_state *s)
{
    size_t rows = (size_t)s->rows, vocabulary = (size_t)s->roles->vocabulary;
    s->tensors = calloc((size_t)s->entry->tensor_count, sizeof *s->tensors);
    s->lengths = calloc(rows, sizeof *s->lengths);
    s->next = calloc(rows, sizeof *s->next);
    s->ids = calloc(rows, sizeof *s->ids);
    s->zeros = calloc(rows, sizeof *s->zeros);
    s->has_logits = calloc(rows, 1);
    if ((double)rows * (double)vocabulary * sizeof *s->logits <= MAX_STATE)
        s->logits = calloc(rows * vocabulary, sizeof *s->logits);
    if (!s->tensors || !s->lengths || !s->next || !s->ids || !s->zeros || !s->has_logits || !s->logits)
        return refuse(MIAOTUI_NO_MEMORY, "there is no memory for %lld sequences", (long long)s->rows);
    for (int i = 0; i < s->entry->tensor_count; i++)
        if (s->entry->tensors[i].is_state && allocate(s, i))
            return MIAOTUI_NO_MEMORY;
    return MIAOTUI_OK;
}

miaotui_state *miaotui_state_new(miaotui_model *model, int64_t rows, int64_t capacity)
{
    const decoding_info *roles = miaotui_program.decoding;
    if (!model || !roles) {
        refuse(MIAOTUI_BAD_ARGUMENT, "this model continues no token sequences, or none is open");
        return NULL;
    }
    if (rows < 1 || rows > INT32_MAX || capacity < 1 ||
        capacity > (roles->context ? roles->context : INT32_MAX)) {
        refuse(MIAOTUI_BAD_ARGUMENT,
               "%lld sequences of %lld tokens: give at least 1 of both, at most %lld tokens", (long long)rows,
               (long long)capacity, (long long)(roles->context ? roles->context : INT32_MAX));
        return NULL;
    }
    miaotui_state *s = calloc(1, sizeof *s);
    if (!s) {
        refuse(MIAOTUI_NO_MEMORY, "there is no memory for a state");
        return NULL;
    }
    s->model = model;
    s->roles = roles;
    s->entry = &miaotui_program.entries[roles->entry];
    s->rows = rows;
    s->capacity = capacity;
    s->source = 1;
    if (allocate_all(s)) {
        miaotui_state_free(s);
        return NULL;
    }
    return s;
}

void miaotui_state_free(miaotui_state *s)
{
    if (!s)
        return;
    for (int i = 0; s->tensors && i < s->entry->tensor_count; i++)
        free(s->tensors[i].memory);
    free(s->tensors);
    free(s->lengths);
    free(s->next);
    free(s->ids);
    free(s->zeros);
    free(s->has_logits);
    free(s->logits);
    free(s);
}

/* ---- an encoder's outputs ---- */

static int tensor_named(const entry_info *entry, const char *name)
{
    for (int i = 0; i < entry->tensor_count; i++)
        if (!strcmp(entry->tensors[i].name, name))
            return i;
    return -1;
}

/* Every element 1, whatever the mask's type. */
static void fill_ones(void *mask, int dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        switch (dtype) {
        case MIAOTUI_INT64: ((int64_t *)mask)[i] = 1; break;
        case MIAOTUI_INT32: ((int32_t *)mask)[i] = 1; break;
        case MIAOTUI_FLOAT32: ((float *)mask)[i] = 1; break;
        default: ((unsigned char *)mask)[i] = 1;
        }
}

/* Run the encoder on one row, into the first row of the decoder's inputs; the other rows are copies of it. */
static int encode(miaotui_state *s, const entry_info *encoder, const int64_t *ids, int64_t count,
                  int64_t *mask)
{
    const decoding_info *roles = s->roles;
    int64_t sizes[encoder->size_count + 1];
    void *tensors[encoder->tensor_count + 1];
    sizes[roles->encoder_batch_size] = 1;
    sizes[roles->encoder_source_size] = count;
    for (int i = 0; i < encoder->tensor_count; i++) {
        int own = tensor_named(s->entry, encoder->tensors[i].name);
        int is_taken = own >= 0 && !is_given(roles, own);
        tensors[i] = is_taken ? s->tensors[own].bytes : NULL;
        if (i == roles->encoder_ids)
            tensors[i] = (void *)ids;
        if (i == roles->encoder_mask) {
            tensors[i] = mask;
            fill_ones(mask, encoder->tensors[i].dtype, count);
            if (is_taken)
                memcpy(s->tensors[own].bytes, mask, s->tensors[own].row_bytes);
        }
    }
    int error = miaotui_run(s->model, roles->encoder, sizes, tensors);
    for (int i = 0; !error && i < s->entry->tensor_count; i++) {
        rows_of *t = &s->tensors[i];
        for (int64_t row = 1; !s->entry->tensors[i].is_state && t->bytes && row < s->rows; row++)
            memcpy(t->bytes + (size_t)row * t->row_bytes, t->bytes, t->row_bytes);
    }
    return error;
}

int miaotui_encode(miaotui_state *s, const int64_t *ids, int64_t count)
{
    if (!s || s->roles->encoder < 0)
        return refuse(MIAOTUI_BAD_ARGUMENT, "this model has no encoder");
    if (!ids || count < 1 || count > INT32_MAX)
        return refuse(MIAOTUI_BAD_ARGUMENT, "a source text of %lld tokens", (long long)count);
    s->is_encoded = 0;
    s->source = count;
    for (int64_t row = 0; row < s->rows; row++)
        miaotui_reset(s, row);
    for (int i = 0; i < s->entry->tensor_count; i++) {
        const miaotui_tensor *info = &s->entry->tensors[i];
        if (!info->is_output && !info->is_state && !is_given(s->roles, i) && allocate(s, i))
            return MIAOTUI_NO_MEMORY;
    }
    int64_t *mask = calloc((size_t)count, sizeof *mask);
    if (!mask)
        return refuse(MIAOTUI_NO_MEMORY, "there is no memory for a source text of %lld tokens",
                      (long long)count);
    int error = encode(s, &miaotui_program.entries[s->roles->encoder], ids, count, mask);
    free(mask);
    s->is_encoded = !error;
    return error;
}

/* ---- writing ---- */

/* Append `tokens` ids to each of `batch` rows from `first` on; `selected`: keep the last one's logits. */
static int append(miaotui_state *s, int64_t first, int64_t batch, const int64_t *ids, int64_t tokens,
                  int selected)
{
    const decoding_info *roles = s->roles;
    int64_t sizes[s->entry->size_count + 1], last[1] = {tokens - 1};
    void *tensors[s->entry->tensor_count + 1];
    sizes_of(s, sizes, batch, tokens, selected);
    for (int i = 0; i < s->entry->tensor_count; i++)
        tensors[i] =
            s->tensors[i].bytes ? s->tensors[i].bytes + (size_t)first * s->tensors[i].row_bytes : NULL;
    tensors[roles->tokens] = (void *)ids;
    tensors[roles->lengths] = s->lengths + first;
    tensors[roles->select] = batch == 1 ? last : s->zeros; /* several rows get one token each */
    if (selected) {
        tensors[roles->logits] = s->logits + first * roles->vocabulary;
        tensors[roles->next] = s->next + first;
    }
    int error = miaotui_run(s->model, roles->entry, sizes, tensors);
    for (int64_t row = first; !error && row < first + batch; row++) {
        s->lengths[row] += tokens;
        s->has_logits[row] = (unsigned char)selected;
    }
    return error;
}

static int check_row(const miaotui_state *s, int64_t row)
{
    if (!s || row < 0 || row >= s->rows)
        return refuse(MIAOTUI_BAD_ARGUMENT, "there is no row %lld", (long long)row);
    return MIAOTUI_OK;
}

static int check_room(const miaotui_state *s, int64_t row, int64_t tokens)
{
    if (s->roles->encoder >= 0 && !s->is_encoded)
        return refuse(MIAOTUI_BAD_ARGUMENT, "no source text was encoded: call miaotui_encode first");
    if (tokens > s->capacity - s->lengths[row])
        return refuse(MIAOTUI_FULL, "row %lld holds %lld of %lld tokens, %lld more do not fit",
                      (long long)row, (long long)s->lengths[row], (long long)s->capacity, (long long)tokens);
    return MIAOTUI_OK;
}

static int check_ids(const miaotui_state *s, const int64_t *ids, int64_t count, int64_t minimum)
{
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < minimum || ids[i] >= s->roles->vocabulary)
            return refuse(MIAOTUI_BAD_ARGUMENT, "token %lld is %lld, outside 0..%lld", (long long)i,
                          (long long)ids[i], (long long)s->roles->vocabulary - 1);
    return MIAOTUI_OK;
}

int miaotui_prefill(miaotui_state *s, int64_t row, const int64_t *ids, int64_t count)
{
    int error = check_row(s, row);
    if (!error && (!ids || count < 1))
        error = refuse(MIAOTUI_BAD_ARGUMENT, "a prompt of %lld tokens", (long long)count);
    if (!error)
        error = check_room(s, row, count);
    if (!error)
        error = check_ids(s, ids, count, 0);
    int64_t length = error ? 0 : s->lengths[row];
    for (int64_t done = 0; !error && done < count; done += CHUNK) {
        int64_t tokens = min64(CHUNK, count - done);
        error = append(s, row, 1, ids + done, tokens, done + tokens == count);
        if (error)
            s->lengths[row] = length; /* all or nothing */
    }
    return error;
}

int miaotui_decode(miaotui_state *s, const int64_t *tokens, int64_t *next)
{
    if (!s || !tokens)
        return refuse(MIAOTUI_BAD_ARGUMENT, "there is no state, or there are no tokens");
    int error = check_ids(s, tokens, s->rows, INT64_MIN);
    for (int64_t row = 0; !error && row < s->rows; row++)
        if (tokens[row] >= 0)
            error = check_room(s, row, 1);
    if (error)
        return error;
    memcpy(s->ids, tokens, (size_t)s->rows * sizeof *tokens);
    /* Neighbours that go on share one run; rows that rest keep their cache and logits. */
    for (int64_t first = 0, end; !error && first < s->rows; first = end) {
        for (end = first; end < s->rows && (s->ids[end] >= 0) == (s->ids[first] >= 0); end++)
            ;
        if (s->ids[first] >= 0)
            error = append(s, first, end - first, s->ids + first, 1, 1);
    }
    if (!error && next)
        for (int64_t row = 0; row < s->rows; row++)
            next[row] = s->ids[row] >= 0 ? s->next[row] : s->ids[row];
    return error;
}

const float *miaotui_logits(miaotui_state *s, int64_t row)
{
    if (check_row(s, row))
        return NULL;
    if (!s->has_logits[row]) {
        refuse(MIAOTUI_BAD_ARGUMENT, "row %lld has no logits: append a token first", (long long)row);
        return NULL;
    }
    return s->logits + row * s->roles->vocabulary;
}

int64_t miaotui_next(miaotui_state *s, int64_t row) { return miaotui_logits(s, row) ? s->next[row] : -1; }

int64_t miaotui_length(miaotui_state *s, int64_t row) { return check_row(s, row) ? -1 : s->lengths[row]; }

int miaotui_truncate(miaotui_state *s, int64_t row, int64_t length)
{
    int error = check_row(s, row);
    if (!error && (length < 0 || length > s->lengths[row]))
        error = refuse(MIAOTUI_BAD_ARGUMENT, "row %lld holds %lld tokens, not %lld", (long long)row,
                       (long long)s->lengths[row], (long long)length);
    if (error || length == s->lengths[row])
        return error;
    s->lengths[row] = length;
    s->has_logits[row] = 0;
    return MIAOTUI_OK;
}

int miaotui_reset(miaotui_state *s, int64_t row) { return miaotui_truncate(s, row, 0); }

int64_t miaotui_vocabulary(void)
{
    return miaotui_program.decoding ? miaotui_program.decoding->vocabulary : 0;
}

int64_t miaotui_context(void) { return miaotui_program.decoding ? miaotui_program.decoding->context : 0; }
