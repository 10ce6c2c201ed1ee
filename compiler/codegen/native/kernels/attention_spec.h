/* What one attention is: the facts fixed when the code is written, and the arguments of a call. */
#ifndef MIAOTUI_ATTENTION_SPEC_H
#define MIAOTUI_ATTENTION_SPEC_H

#include "base.h"

typedef enum { ROTARY_NONE, ROTARY_HALF, ROTARY_INTERLEAVED } rotary_kind;
typedef enum { CACHE_NONE, CACHE_F32, CACHE_F16, CACHE_I8 } cache_kind;

/* `pairs`: rotated pairs of a head, 0 without rotary. `window`: 0 is none. `scale`: 0 is 1 / sqrt(size).
 * `key_norm`: whether keys are normed; what a call needs of memory must not depend on its pointers.
 * An int8 cache row is `size` codes, then their float scale; its last axis has size + 4 bytes. */
typedef struct attention_spec {
    int heads, kv_heads, size, value_size;
    float scale, softcap, epsilon;
    int window, causal;
    rotary_kind rotary;
    int pairs, key_norm;
    cache_kind cache;
} attention_spec;

/* Floats (batch, head, token) apart; the last axis is contiguous. 0: the axis is broadcast. */
typedef struct strides {
    int64_t batch, head, token;
} strides;

/* query, key, value, y: [batch, heads, tokens or keys, size] by their strides. Without a cache there are
 * `keys` keys; with one, `tokens` new ones are written behind lengths[row], into past_key and past_value,
 * which are [batch, kv heads, capacity, width], contiguous, written in place. bias: float or NULL, [..,
 * tokens, keys] with `bias_key` 0 or 1 for its last axis. cos, sin: rows of `pairs` floats. query_norm,
 * key_norm: [size] or NULL. */
typedef struct attention_args {
    int64_t batch, tokens, keys, capacity;
    const float *query, *key, *value;
    strides query_at, key_at, value_at;
    void *past_key, *past_value;
    const int64_t *lengths;
    const float *bias;
    strides bias_at;
    int64_t bias_key;
    const float *cos, *sin;
    int64_t angle_batch, angle_token; /* floats between rows of cos and sin */
    const float *query_norm, *key_norm;
    float *y;
    strides y_at;
} attention_args;

/* Where a row lies that is (batch, head, token). */
INLINE int64_t offset_at(strides s, int64_t row, int64_t head, int64_t token)
{
    return row * s.batch + head * s.head + token * s.token;
}

#endif
