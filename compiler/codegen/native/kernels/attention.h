/* Attention, flash-style, over a cache or not, with rotary embedding and q/k norm (miaotui FusedAttention). */
#ifndef MIAOTUI_ATTENTION_H
#define MIAOTUI_ATTENTION_H

#include "base.h"

typedef enum { ROTARY_NONE, ROTARY_HALF, ROTARY_INTERLEAVED } rotary_kind;
typedef enum { CACHE_NONE, CACHE_F32, CACHE_F16, CACHE_I8 } cache_kind;

/* What is fixed when the code is written. `pairs`: rotated pairs of a head, 0 without rotary. `window`: 0 is none.
 * An int8 cache row is `size` codes, then their float scale; its last axis has size + 4 bytes. */
typedef struct attention_spec {
    int heads, kv_heads, size, value_size;
    float scale, softcap, epsilon;
    int window, causal;
    rotary_kind rotary;
    int pairs;
    cache_kind cache;
} attention_spec;

/* Floats (batch, head, token) apart; the last axis is contiguous. 0: the axis is broadcast. */
typedef struct strides {
    int64_t batch, head, token;
} strides;

/* query, key, value, y: [batch, heads, tokens or keys, size] by their strides. Without a cache there are `keys`
 * keys; with one, `tokens` new ones are written behind lengths[row], into past_key and past_value, which are
 * [batch, kv heads, capacity, width], contiguous, written in place. bias: float or NULL, [.., tokens, keys] with
 * `bias_key` 0 or 1 for its last axis. cos, sin: rows of `pairs` floats. query_norm, key_norm: [size] or NULL. */
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

/* All workers call it together; it ends without a barrier. Tokens behind the capacity were refused before.
 *
 * INLINE void attention(worker *w, const attention_spec *spec, const attention_args *args);
 * INLINE size_t attention_worker_bytes(const attention_spec *spec, const attention_args *args);
 * INLINE size_t attention_shared_bytes(const attention_spec *spec, const attention_args *args);
 */

#endif
